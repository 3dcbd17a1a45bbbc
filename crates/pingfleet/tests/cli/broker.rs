//! Brokers that cannot be used: one message says what to do, no output shows a password, and no run is planned.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;
use pingfleet_testbed::{Namespace, Rabbit};

use crate::rig::{Finished, NO_BROKER, TestDir};

/// The password of the tests. No output may contain it.
const SECRET: &str = "hunter2-hunter2";

/// Runs the producer with this broker.
fn producer(dir: &TestDir, broker: &str) -> anyhow::Result<Finished> {
    dir.call("producer", &["127.0.0.1", "-vv"])?
        .env("PINGFLEET_BROKER__URL", broker)
        .end()
}

/// A folder with a database, so that a run which a failure adds to it is noticed.
fn dir_with_a_run() -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    Ok(dir)
}

/// No run was planned, and no lock is left.
#[track_caller]
fn assert_nothing_planned(dir: &TestDir) -> anyhow::Result<()> {
    assert_eq!(
        dir.sqlite3("pingfleet.db", "SELECT count(*) FROM runs")?,
        "1"
    );
    let files: Vec<_> = dir.files()?.into_keys().collect();
    assert_eq!(files, ["pingfleet.db"]);
    Ok(())
}

/// The names of our queues, without their prefix.
fn queues(rabbit: &Rabbit) -> anyhow::Result<Vec<String>> {
    let listed = rabbit.ctl(&["list_queues", "name"])?;
    let names = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pingfleet."));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

#[test]
fn an_unreachable_broker_is_reported_with_the_command_that_starts_one() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    producer(&dir, NO_BROKER)?.fails(
        4,
        &[
            "broker 127.0.0.1:1 cannot be reached",
            "refused",
            "docker-compose up -d",
            "--broker",
        ],
    );
    assert_nothing_planned(&dir)?;
    dir.pingfleet(&["broker", "init"])?.fails(
        4,
        &["broker 127.0.0.1:1 cannot be reached", "docker-compose"],
    );
    Ok(())
}

#[test]
fn a_producer_without_a_broker_creates_no_database() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    producer(&dir, NO_BROKER)?.fails(4, &["cannot be reached"]);
    assert!(dir.files()?.is_empty());
    Ok(())
}

#[test]
fn a_name_that_does_not_resolve_is_reported() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    // Inside the namespace no name server answers.
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let servers = tempfile::NamedTempFile::new()?;
    std::fs::write(&servers, "nameserver 127.0.0.1\n")?;
    let mut wrapped = namespace.command("sh");
    wrapped
        .args([
            "-c",
            "mount --bind \"$1\" /etc/resolv.conf && shift && exec timeout \"$@\"",
            "sh",
        ])
        .arg(servers.path());
    dir.call_as(wrapped, "producer", &["127.0.0.1", "-vv"])?
        .env(
            "PINGFLEET_BROKER__URL",
            &format!("amqp://user:{SECRET}@no-such-host.invalid"),
        )
        .end()?
        .hides(SECRET)
        .fails(4, &["broker no-such-host.invalid:5672 cannot be reached"]);
    assert_nothing_planned(&dir)
}

#[test]
fn a_silent_broker_times_out() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    // The kernel accepts the connection; no program answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    producer(&dir, &format!("amqp://user:{SECRET}@127.0.0.1:{port}"))?
        .hides(SECRET)
        .fails(4, &[&format!("127.0.0.1:{port}"), "does not answer"]);
    assert_nothing_planned(&dir)
}

#[test]
fn an_ipv6_literal_is_not_replaced_by_localhost() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("fd00:10::/64")?;
    let rabbit = Rabbit::start_in(&namespace)?;
    let init = |url: &str| {
        dir.call_as(
            namespace.command("timeout"),
            "pingfleet",
            &["broker", "init"],
        )?
        .env("PINGFLEET_BROKER__URL", url)
        .end()
    };
    let reached = init(&rabbit.ipv6_url()?)?.ends_with(0);
    let address = format!("[::1]:{}", rabbit.port());
    assert!(reached.stdout.contains(&address), "{reached:#?}");
    // This broker listens on localhost, but not on this address.
    let address = format!("[fd00:10::9]:{}", rabbit.port());
    init(&format!("amqp://guest:guest@{address}/"))?
        .fails(4, &[&format!("broker {address} cannot be reached")]);
    Ok(())
}

#[test]
fn a_refused_login_ends_at_once_and_shows_the_password_nowhere() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    let rabbit = Rabbit::start()?;
    let url = format!("amqp://guest@127.0.0.1:{}", rabbit.port());
    let file = dir.write("secret", format!("{SECRET}\n"))?;
    let in_url = format!("amqp://guest:{SECRET}@127.0.0.1:{}", rabbit.port());
    for (program, arguments) in [
        ("producer", ["127.0.0.1", "-vv"].as_slice()),
        ("producer", &["127.0.0.1", "-vv", "--log-format", "json"]),
        ("ping-worker", &["-vv"]),
        ("consumer-writer", &["-vv"]),
        ("pingfleet", &["broker", "init", "-vv"]),
    ] {
        for (name, value) in [
            ("PINGFLEET_BROKER__PASSWORD", SECRET),
            ("PINGFLEET_BROKER__PASSWORD_FILE", &file),
            ("PINGFLEET_BROKER__URL", &in_url),
        ] {
            let finished = dir
                .call(program, arguments)?
                .env("PINGFLEET_BROKER__URL", &url)
                .env(name, value)
                .end()?
                .hides(SECRET)
                .fails(4, &["refuses the login of user \"guest\"", "password_file"]);
            // No second attempt: it could lock the user out.
            assert!(!finished.stderr.contains("trying again"), "{finished:#?}");
        }
    }
    std::fs::remove_file(file)?;
    assert_nothing_planned(&dir)?;
    let doctor = dir
        .call("pingfleet", &["doctor", "-vv"])?
        .env("PINGFLEET_BROKER__URL", &in_url)
        .end()?
        .ends_with(4);
    let doctor = doctor.hides(SECRET);
    assert!(doctor.stdout.contains("refuses the login"), "{doctor:#?}");
    Ok(())
}

/// A certificate of a private authority, in this folder: `authority.pem`, `server.pem`, `server.key`.
const CERTIFICATE: &str = "set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=private authority' \
    -keyout authority.key -out authority.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=broker' -keyout server.key -out request.pem
printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > extensions
openssl x509 -req -in request.pem -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile extensions \
    -out server.pem";

/// A server of TLS with that certificate, which is no broker. It ends when it is dropped.
struct TlsServer {
    process: std::process::Child,
    port: u16,
}

impl TlsServer {
    fn start(dir: &TestDir) -> anyhow::Result<Self> {
        let mut process = std::process::Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "openssl",
                "s_server",
                "-accept",
                "127.0.0.1:0",
            ])
            .args(["-cert", "server.pem", "-key", "server.key"])
            .current_dir(dir.path("."))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .context("no openssl: apt-get install openssl")?;
        let output = process.stdout.take().context("a pipe")?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
        let accepting = lines
            .find_map(|line| line.ok()?.strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok())
            .context("the server does not say its port")?;
        // It goes on printing what it receives.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            process,
            port: accepting,
        })
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// `pingfleet broker init` with this broker.
fn init(dir: &TestDir, url: &str) -> anyhow::Result<crate::rig::Call> {
    let call = dir.call("pingfleet", &["broker", "init"])?;
    Ok(call.env("PINGFLEET_BROKER__URL", url))
}

#[test]
fn advice_about_tls_follows_the_cause() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.shell(CERTIFICATE)?.ends_with(0);
    let server = TlsServer::start(&dir)?;
    let port = server.port;
    let starts_one = "docker-compose";
    let by_tls = format!("amqps://user:{SECRET}@localhost:{port}");
    init(&dir, &by_tls)?
        .end()?
        .hides(SECRET)
        .hides(starts_one)
        .fails(4, &["does not trust the authority", "broker.ca_file"]);
    let doctor = dir
        .call("pingfleet", &["doctor"])?
        .env("PINGFLEET_BROKER__URL", &by_tls)
        .end()?
        .hides(starts_one)
        .ends_with(4);
    assert!(doctor.stdout.contains("broker.ca_file"), "{doctor:#?}");
    // The advice helps. Another name than the certificate's is the next problem.
    let other_name = format!("amqps://user:{SECRET}@127.0.0.1:{port}");
    for variable in ["PINGFLEET_BROKER__CA_FILE", "SSL_CERT_FILE"] {
        init(&dir, &other_name)?
            .env(variable, "authority.pem")
            .end()?
            .hides(starts_one)
            .fails(4, &["another host name"]);
    }
    init(&dir, &format!("amqp://user:{SECRET}@localhost:{port}"))?
        .end()?
        .hides(SECRET)
        .hides(starts_one)
        .fails(4, &["this port expects TLS", "write amqps://"]);

    // What RabbitMQ answers on a port without TLS.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!(
        "amqps://user:{SECRET}@localhost:{}",
        listener.local_addr()?.port()
    );
    let plain = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        std::io::Read::read(&mut peer, &mut [0; 5])?;
        std::io::Write::write_all(&mut peer, b"AMQP\0\0\x09\x01")
    });
    init(&dir, &url)?
        .end()?
        .hides(SECRET)
        .hides(starts_one)
        .fails(4, &["does not speak TLS", "write amqp://"]);
    plain.join().expect("the peer does not panic")?;
    Ok(())
}

#[test]
fn a_limit_of_connections_is_named_with_the_command_that_raises_it() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let rabbit = Rabbit::start()?;
    rabbit.ctl(&["add_vhost", "full house"])?;
    rabbit.ctl(&[
        "set_permissions",
        "-p",
        "full house",
        "guest",
        ".*",
        ".*",
        ".*",
    ])?;
    let none = "{\"max-connections\": 0}";
    rabbit.ctl(&["set_vhost_limits", "-p", "full house", none])?;
    let url = format!(
        "amqp://guest:guest@127.0.0.1:{}/full%20house",
        rabbit.port()
    );
    let refused = init(&dir, &url)?.end()?.hides("docker-compose").fails(
        4,
        &[
            "connection limit (0) is reached",
            "full house",
            "rabbitmqctl set_vhost_limits -p 'full house' '{\"max-connections\": NUMBER}'",
        ],
    );
    // The command works as it is printed.
    let (_, command) = refused
        .stderr
        .split_once("rabbitmqctl ")
        .context("a command")?;
    let words = dir.shell(&format!(
        "printf '%s\\0' {}",
        command.trim_end().replace("NUMBER", "5")
    ))?;
    let words: Vec<_> = words.stdout.trim_end_matches('\0').split('\0').collect();
    rabbit.ctl(&words)?;
    let ready = init(&dir, &url)?.end()?.ends_with(0);
    assert!(
        ready.stdout.contains("virtual host 'full house'"),
        "{ready:#?}"
    );

    rabbit.ctl(&["set_user_limits", "guest", none])?;
    init(&dir, &url)?.end()?.fails(
        4,
        &[
            "user connection limit",
            "set_user_limits guest '{\"max-connections",
        ],
    );
    Ok(())
}

#[test]
fn the_process_list_does_not_show_a_password_of_the_environment_or_a_file() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    let file = dir.write("secret", SECRET)?;
    for (name, value) in [
        ("PINGFLEET_BROKER__PASSWORD", SECRET),
        ("PINGFLEET_BROKER__PASSWORD_FILE", &file),
    ] {
        for program in ["ping-worker", "consumer-writer", "producer"] {
            let arguments: &[&str] = if program == "producer" {
                &["127.0.0.1"]
            } else {
                &[]
            };
            // A listener for each program: the last program may have left a second connection in the queue.
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let url = format!("amqp://user@{}", listener.local_addr()?);
            let running = dir.start(
                program,
                arguments,
                &[("PINGFLEET_BROKER__URL", &url), (name, value)],
            )?;
            // When it connects, it has read all settings.
            let (_silent, _) = listener.accept()?;
            let seen = running.command_line()?;
            assert!(seen.contains(program), "{seen}");
            assert!(!seen.contains(SECRET), "{seen}");
        }
    }
    Ok(())
}

#[test]
fn a_missing_permission_is_reported_with_the_command_that_grants_it() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    let rabbit = Rabbit::start()?;
    let url = format!("amqp://guest:guest@127.0.0.1:{}/nowhere", rabbit.port());
    producer(&dir, &url)?.fails(4, &["nowhere", "rabbitmqctl add_vhost nowhere"]);
    assert_nothing_planned(&dir)?;

    rabbit.ctl(&["add_user", "worker", SECRET])?;
    let url = format!("amqp://worker:{SECRET}@127.0.0.1:{}/", rabbit.port());
    producer(&dir, &url)?
        .hides(SECRET)
        .fails(4, &["rabbitmqctl set_permissions -p / worker "]);
    assert_nothing_planned(&dir)?;

    // A user without the configure permission cannot declare the queues.
    rabbit.ctl(&["set_permissions", "-p", "/", "worker", "^$", ".*", ".*"])?;
    let init = |url: &str| {
        dir.call("pingfleet", &["broker", "init"])?
            .env("PINGFLEET_BROKER__URL", url)
            .end()
    };
    init(&url)?.hides(SECRET).fails(
        4,
        &["is missing on broker", "pingfleet broker init", "configure"],
    );
    assert!(queues(&rabbit)?.is_empty());
    init(&rabbit.url())?.ends_with(0);
    assert_eq!(
        queues(&rabbit)?,
        ["dead", "foreign", "heartbeats", "results", "work"]
    );
    // Once the queues exist, that user needs nothing more, and declaring them again changes nothing.
    init(&url)?.ends_with(0);
    init(&rabbit.url())?.ends_with(0);

    rabbit.ctl(&["delete_queue", "pingfleet.heartbeats"])?;
    let doctor = dir
        .call("pingfleet", &["doctor"])?
        .env("PINGFLEET_BROKER__URL", &rabbit.url())
        .end()?
        .ends_with(0);
    assert!(
        doctor.stdout.contains("pingfleet broker init"),
        "{doctor:#?}"
    );
    assert_eq!(queues(&rabbit)?, ["dead", "foreign", "results", "work"]);
    Ok(())
}

#[test]
fn queues_with_other_arguments_are_reported_and_not_changed() -> anyhow::Result<()> {
    let dir = dir_with_a_run()?;
    let rabbit = Rabbit::start()?;
    // A classic queue with our name, as if declared by hand.
    let declare = "rabbit_amqqueue:declare({resource, <<\"/\">>, queue, <<\"pingfleet.work\">>}, true, false, [], none, \
                <<\"guest\">>).";
    rabbit
        .ctl(&["eval", declare])
        .context("declaring a classic queue")?;
    producer(&dir, &rabbit.url())?.fails(4, &["has other arguments", "broker.prefix"]);
    assert_nothing_planned(&dir)
}

#[test]
fn an_unusable_url_or_password_file_is_a_configuration_error() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for url in [
        "amqp://user:hunter2-hunter2@host:port/v",
        "http://user:hunter2-hunter2@host",
        "user:hunter2-hunter2@host",
        "amqp://user:hunter2-hunter2@",
        "amqp://user:hunter2-hunter2@host?heartbeat=soon",
        "amqp://user:hunter2-hunter2@host?verify=verify_none",
        "amqp://user@host?password=hunter2-hunter2",
        "amqp://user@host?hunter2-hunter2",
    ] {
        for (program, arguments) in [
            ("producer", ["127.0.0.1", "-vv"].as_slice()),
            ("ping-worker", &["-vv"]),
            ("consumer-writer", &["-vv"]),
            ("pingfleet", &["broker", "init", "-vv"]),
        ] {
            dir.call(program, arguments)?
                .env("PINGFLEET_BROKER__URL", url)
                .end()?
                .hides(SECRET)
                .fails(3, &["PINGFLEET_BROKER__URL: "]);
        }
    }
    dir.write("empty", "\n")?;
    for (file, part) in [("missing", "No such file"), ("empty", "no password")] {
        dir.call("ping-worker", &[])?
            .env("PINGFLEET_BROKER__PASSWORD_FILE", file)
            .end()?
            .fails(3, &["PINGFLEET_BROKER__PASSWORD_FILE: ", file, part]);
    }
    Ok(())
}
