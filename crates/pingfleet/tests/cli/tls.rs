//! TLS from outside: every role names the cause of a fault and ends at once, and a whole run needs no password.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pingfleet_testbed::{CertificateFiles, Rabbit, TestAuthority, TlsListener, Validity};

use crate::rig::{Call, Finished, TestDir};

/// No output may show it.
const SECRET: &str = "hunter2-hunter2";

/// The settings of one connection.
struct Settings {
    url: String,
    ca: String,
    client: Option<CertificateFiles>,
    auth: &'static str,
}

impl Settings {
    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PINGFLEET_BROKER__URL", self.url.clone()),
            ("PINGFLEET_BROKER__CA_FILE", self.ca.clone()),
            ("PINGFLEET_BROKER__AUTH", self.auth.to_owned()),
        ];
        if let Some(client) = &self.client {
            variables.push(("PINGFLEET_BROKER__CERT_FILE", text(&client.certificate)));
            variables.push(("PINGFLEET_BROKER__KEY_FILE", text(&client.key)));
        }
        variables
    }

    fn call(&self, dir: &TestDir, program: &str, arguments: &[&str]) -> anyhow::Result<Call> {
        let call = dir.call(program, arguments)?;
        let variables = self.variables();
        Ok(variables
            .iter()
            .fold(call, |call, (name, value)| call.env(name, value)))
    }

    fn end(&self, dir: &TestDir, program: &str, arguments: &[&str]) -> anyhow::Result<Finished> {
        self.call(dir, program, arguments)?.end()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A node that demands certificates and accepts logins by them.
fn node(authority: &TestAuthority) -> anyhow::Result<Rabbit> {
    Rabbit::start_with_tls(TlsListener {
        ca_file: authority.ca_file().to_owned(),
        server: authority.server(&["localhost"], Validity::Now)?,
        demands_certificate: true,
        has_external: true,
    })
}

/// Every program and command that connects, with the arguments of a call.
const CALLS: [(&str, &[&str]); 4] = [
    ("ping-worker", &["-vv"]),
    ("consumer-writer", &["-vv"]),
    ("producer", &["-vv", "127.0.0.1"]),
    ("pingfleet", &["broker", "init"]),
];

#[test]
fn every_role_names_the_cause_of_a_fault_and_ends_at_once() -> anyhow::Result<()> {
    let authority = TestAuthority::new()?;
    let stranger = TestAuthority::new()?;
    let rabbit = node(&authority)?;
    let client = authority.client("guest", Validity::Now)?;
    let port = rabbit.tls_port()?;
    let right = || Settings {
        url: format!("amqps://guest:guest@localhost:{port}"),
        ca: text(authority.ca_file()),
        client: Some(client.clone()),
        auth: "plain",
    };
    let dir = TestDir::new()?;
    // The control.
    right()
        .end(&dir, "pingfleet", &["broker", "init"])?
        .ends_with(0);
    right().end(&dir, "pingfleet", &["doctor"])?;

    let faults = [
        (
            Settings {
                ca: text(stranger.ca_file()),
                ..right()
            },
            "does not trust the authority that signed it",
        ),
        (
            Settings {
                url: format!("amqps://guest:{SECRET}@127.0.0.1:{port}"),
                ..right()
            },
            "it is for another host name",
        ),
        (
            Settings {
                client: None,
                ..right()
            },
            "it demands a certificate of this program",
        ),
        (
            Settings {
                client: Some(stranger.client("guest", Validity::Now)?),
                ..right()
            },
            "does not trust the authority that signed this program's certificate",
        ),
        (
            Settings {
                client: Some(authority.client("guest", Validity::Expired)?),
                ..right()
            },
            "this program's certificate has expired",
        ),
        (
            Settings {
                url: format!("amqps://guest:{SECRET}@localhost:{}", rabbit.port()),
                ..right()
            },
            "this port does not speak TLS",
        ),
        (
            Settings {
                url: format!("amqps://localhost:{port}"),
                client: Some(authority.client("nobody", Validity::Now)?),
                auth: "external",
                ..right()
            },
            "refuses the login by the certificate",
        ),
    ];
    for (settings, cause) in faults {
        for (program, arguments) in CALLS {
            settings
                .end(&dir, program, arguments)?
                .hides(SECRET)
                .hides("trying again")
                .hides("docker-compose")
                .fails(4, &[cause]);
        }
        let doctor = settings
            .end(&dir, "pingfleet", &["doctor"])?
            .hides(SECRET)
            .hides("docker-compose")
            .ends_with(4);
        assert!(doctor.stdout.contains(cause), "{cause}: {doctor:#?}");
    }

    // Without the files of TLS, which amqp:// refuses.
    let url = format!("amqp://guest:{SECRET}@localhost:{port}");
    for (program, arguments) in CALLS {
        dir.call(program, arguments)?
            .env("PINGFLEET_BROKER__URL", &url)
            .end()?
            .hides(SECRET)
            .fails(4, &["this port expects TLS", "write amqps://"]);
    }
    Ok(())
}

/// Waits for a line of a log.
fn wait_for(dir: &TestDir, log: &str, line: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    while !fs::read_to_string(dir.path(log))?.contains(line) {
        let log = fs::read_to_string(dir.path(log))?;
        ensure!(
            began.elapsed() < Duration::from_mins(2),
            "no {line:?}: {log}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The settings of a user without a password, whom this adds to the node.
fn user(authority: &TestAuthority, rabbit: &Rabbit, name: &str) -> anyhow::Result<Settings> {
    rabbit.ctl(&["add_user", name, SECRET])?;
    rabbit.ctl(&["clear_password", name])?;
    rabbit.ctl(&["set_permissions", name, ".*", ".*", ".*"])?;
    Ok(Settings {
        url: format!("amqps://localhost:{}/%2f", rabbit.tls_port()?),
        ca: text(authority.ca_file()),
        client: Some(authority.client(name, Validity::Now)?),
        auth: "external",
    })
}

#[test]
fn a_run_by_certificates_alone_is_complete() -> anyhow::Result<()> {
    let authority = TestAuthority::new()?;
    let rabbit = node(&authority)?;
    let settings = |name| user(&authority, &rabbit, name);
    let dir = TestDir::new()?;
    let (master, worker) = (settings("master")?, settings("worker")?);
    let (of_master, of_worker) = (master.variables(), worker.variables());
    let _writer = dir.start_as_service("consumer-writer", &[], &of_master, "writer.log")?;
    wait_for(&dir, "writer.log", "writer ready")?;
    let _worker = dir.start_as_service("ping-worker", &[], &of_worker, "worker.log")?;
    wait_for(&dir, "worker.log", "worker ready")?;
    master
        .end(&dir, "producer", &["127.0.0.0/26", "--chunk-size", "4"])?
        .hides(SECRET)
        .ends_with(0);
    let up = "SELECT count(*) FROM report WHERE status = 'up'";
    let state = dir.sqlite3("pingfleet.db", up).context("rows")?;
    // Without the addresses of the network and of all its hosts.
    assert_eq!(state, "62");
    let users = rabbit.ctl(&["list_connections", "user", "ssl", "auth_mechanism"])?;
    assert!(users.contains("worker\ttrue\tEXTERNAL"), "{users}");
    assert!(!users.contains("false"), "{users}");
    Ok(())
}

/// How often this line is in a log.
fn count(dir: &TestDir, log: &str, line: &str) -> anyhow::Result<usize> {
    Ok(fs::read_to_string(dir.path(log))?.matches(line).count())
}

#[test]
fn sighup_renews_the_connections_and_no_chunk_is_delivered_twice() -> anyhow::Result<()> {
    const CLOSED: &str = "session with the broker closed in order";
    let authority = TestAuthority::new()?;
    let rabbit = node(&authority)?;
    let (master, worker, renewed) = (
        user(&authority, &rabbit, "master")?,
        user(&authority, &rabbit, "worker")?,
        user(&authority, &rabbit, "renewed")?,
    );
    let dir = TestDir::new()?;
    let of_master = master.variables();
    let writing = dir.start_as_service("consumer-writer", &[], &of_master, "writer.log")?;
    wait_for(&dir, "writer.log", "writer ready")?;
    let working = dir.start_as_service("ping-worker", &[], &worker.variables(), "worker.log")?;
    wait_for(&dir, "worker.log", "worker ready")?;

    // The worker's certificate becomes one of another user.
    let (old, new) = (
        worker.client.context("files")?,
        renewed.client.context("files")?,
    );
    fs::copy(&new.certificate, &old.certificate)?;
    fs::copy(&new.key, &old.key)?;
    // More chunks than either prefetch.
    let targets = ["127.0.0.0/20", "--rate", "1000", "--chunk-size", "4"];
    let mut producer = dir.start_as_service("producer", &targets, &master.variables(), "p.log")?;
    while producer.is_running()? {
        std::thread::sleep(Duration::from_millis(700));
        for pid in [writing.pid(), working.pid(), producer.pid()] {
            // The producer may have ended.
            let sent = std::process::Command::new("kill")
                .args(["-HUP", &pid.to_string()])
                .stderr(std::process::Stdio::null())
                .status()?;
            ensure!(sent.success() || pid == producer.pid(), "a role has ended");
        }
    }
    let newest = "SELECT state, duplicates FROM run_summary ORDER BY run DESC LIMIT 1";
    let summary = dir.sqlite3("pingfleet.db", newest)?;
    let logs = ["writer.log", "worker.log", "p.log"]
        .map(|log| fs::read_to_string(dir.path(log)).unwrap_or_default());
    assert_eq!(summary, "complete|0", "{logs:#?}");
    // Of no queue.
    assert_eq!(rabbit.redelivered()?, 0, "{logs:#?}");
    // Both closed their sessions while the run went on.
    let closed_at = logs[0].find(CLOSED).context("no session was closed")?;
    assert!(Some(closed_at) < logs[0].find("run closed"), "{logs:#?}");
    let of_work = format!("{CLOSED}, a new one follows session=\"work\"");
    assert!(logs[1].contains(&of_work), "{logs:#?}");
    for log in ["writer.log", "worker.log"] {
        assert_eq!(count(&dir, log, "WARN")?, 0, "{logs:#?}");
    }
    // RabbitMQ goes on to list those that are closed.
    let began = Instant::now();
    loop {
        let users = rabbit.ctl(&["list_connections", "user", "state"])?;
        if users.contains("renewed\trunning") && !users.contains("worker\trunning") {
            break;
        }
        ensure!(began.elapsed() < Duration::from_mins(1), "{users}");
    }

    // The control: connections that end without that, in a run that goes on for minutes.
    let slow = ["127.0.0.0/20", "--rate", "20", "--chunk-size", "4"];
    let mut producer =
        dir.start_as_service("producer", &slow, &master.variables(), "control.log")?;
    let began = Instant::now();
    while rabbit.redelivered()? == 0 {
        ensure!(producer.is_running()? && began.elapsed() < Duration::from_mins(2));
        rabbit.ctl(&["close_all_connections", "a test"])?;
    }
    Ok(())
}

#[test]
fn sighup_stops_a_worker_with_a_terminal_and_no_other() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // The shell of `script` has a terminal.
    let line = "script -qec '
        ping-worker 2> terminal.log & pid=$!
        until grep -q \"no session with the broker\" terminal.log; do sleep 0.1; done
        kill -HUP $pid; wait $pid; echo ended with $?' /dev/null";
    let with_terminal = dir.shell(line)?.ends_with(0);
    assert!(
        with_terminal.stdout.contains("ended with 0"),
        "{with_terminal:#?}"
    );

    let mut service = dir.start_as_service("ping-worker", &[], &[], "service.log")?;
    wait_for(&dir, "service.log", "no session with the broker")?;
    let sent = std::process::Command::new("kill")
        .args(["-HUP", &service.pid().to_string()])
        .status()?;
    ensure!(sent.success(), "the worker has ended");
    wait_for(&dir, "service.log", "SIGHUP: new connections")?;
    assert!(service.is_running()?);
    assert_eq!(count(&dir, "service.log", "stopping")?, 0);
    Ok(())
}

#[test]
fn settings_of_tls_that_contradict_each_other_are_reported_together() -> anyhow::Result<()> {
    let authority = TestAuthority::new()?;
    let (first, second) = (
        authority.client("first", Validity::Now)?,
        authority.client("second", Validity::Now)?,
    );
    let dir = TestDir::new()?;
    let with = |settings: &Settings| settings.end(&dir, "pingfleet", &["broker", "init"]);
    let right = |url: &str| Settings {
        url: url.to_owned(),
        ca: text(authority.ca_file()),
        client: Some(first.clone()),
        auth: "external",
    };
    let key = text(&second.key);
    with(&Settings {
        url: format!("amqps://bob:{SECRET}@127.0.0.1:1"),
        client: Some(CertificateFiles {
            key: second.key.clone(),
            ..first.clone()
        }),
        ..right("")
    })?
    .hides(SECRET)
    .fails(
        3,
        &[
            "2 problems",
            "a password has no effect with broker.auth = external",
            &format!("{key} is not the private key of the certificate in"),
        ],
    );
    with(&right("amqp://127.0.0.1:1"))?
        .fails(3, &["no effect on amqp://", "external needs amqps://"]);
    let missing = Settings {
        ca: "missing.pem".to_owned(),
        ..right("amqps://127.0.0.1:1")
    };
    with(&missing)?.fails(3, &["missing.pem: No such file"]);
    let empty = dir.write("empty.pem", "no certificate\n")?;
    let empty = Settings {
        ca: empty,
        ..right("amqps://127.0.0.1:1")
    };
    with(&empty)?.fails(3, &["empty.pem: has no certificate in PEM"]);
    for (query, instead) in [
        ("auth_mechanism=external", "set broker.auth"),
        ("cacertfile=ca.pem", "set broker.ca_file"),
        ("verify=verify_none", "always verified"),
    ] {
        let url = format!("amqps://localhost:1?{query}");
        with(&right(&url))?.fails(3, &["has no effect here", instead]);
    }
    // The control: right settings are not refused, and the broker that is not there is.
    with(&right("amqps://127.0.0.1:1"))?.fails(4, &["cannot be reached"]);
    // A key that others can read is a warning with the fix.
    fs::set_permissions(&first.key, fs::Permissions::from_mode(0o644))?;
    let exposed = with(&right("amqps://127.0.0.1:1"))?.ends_with(4);
    assert!(exposed.stderr.contains("chmod 600"), "{exposed:#?}");
    Ok(())
}
