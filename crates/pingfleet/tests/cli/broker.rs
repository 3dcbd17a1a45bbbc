//! Brokers that cannot be had: one message that says what to do, no password in any output, and nothing planned.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;
use pingfleet_testbed::{Namespace, Rabbit};

use crate::rig::{Ended, NO_BROKER, Room};

/// No real password: found in an output it shows a leak.
const SECRET: &str = "hunter2-hunter2";

/// What the producer says about a broker.
fn producer(room: &Room, broker: &str) -> anyhow::Result<Ended> {
    room.call("producer", &["127.0.0.1", "-vv"])?
        .env("PINGFLEET_BROKER__URL", broker)
        .end()
}

/// A folder with a database in it, so that what a failure adds to it would show.
fn room_with_a_run() -> anyhow::Result<Room> {
    let room = Room::new()?;
    room.swept("pingfleet.db")?;
    Ok(room)
}

/// No run was planned, and no lock is left.
#[track_caller]
fn assert_nothing_planned(room: &Room) -> anyhow::Result<()> {
    assert_eq!(
        room.sqlite3("pingfleet.db", "SELECT count(*) FROM runs")?,
        "1"
    );
    let files: Vec<_> = room.files()?.into_keys().collect();
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
fn a_broker_that_is_not_there_is_told_with_what_starts_one() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    producer(&room, NO_BROKER)?.fails(
        4,
        &[
            "broker 127.0.0.1:1 cannot be reached",
            "refused",
            "docker-compose up -d",
            "--broker",
        ],
    );
    assert_nothing_planned(&room)?;
    room.pingfleet(&["broker", "init"])?.fails(
        4,
        &["broker 127.0.0.1:1 cannot be reached", "docker-compose"],
    );
    Ok(())
}

#[test]
fn a_producer_without_a_broker_creates_no_database() -> anyhow::Result<()> {
    let room = Room::new()?;
    producer(&room, NO_BROKER)?.fails(4, &["cannot be reached"]);
    assert!(room.files()?.is_empty());
    Ok(())
}

#[test]
fn a_name_that_does_not_resolve_is_told() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    // Its own name server, which is not there, in place of the machine's.
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
    room.call_as(wrapped, "producer", &["127.0.0.1", "-vv"])?
        .env(
            "PINGFLEET_BROKER__URL",
            &format!("amqp://user:{SECRET}@no-such-host.invalid"),
        )
        .end()?
        .hides(SECRET)
        .fails(4, &["broker no-such-host.invalid:5672 cannot be reached"]);
    assert_nothing_planned(&room)
}

#[test]
fn a_broker_that_says_nothing_is_given_up() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    // The kernel accepts for it; nobody ever answers.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    producer(&room, &format!("amqp://user:{SECRET}@127.0.0.1:{port}"))?
        .hides(SECRET)
        .fails(4, &[&format!("127.0.0.1:{port}"), "does not answer"]);
    assert_nothing_planned(&room)
}

#[test]
fn an_ipv6_literal_is_the_host_that_it_names() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = Namespace::answering("fd00:10::/64")?;
    let rabbit = Rabbit::start_in(&namespace)?;
    let init = |url: &str| {
        room.call_as(
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
    // Another host is not taken for localhost, where this broker listens.
    let address = format!("[fd00:10::9]:{}", rabbit.port());
    init(&format!("amqp://guest:guest@{address}/"))?
        .fails(4, &[&format!("broker {address} cannot be reached")]);
    Ok(())
}

#[test]
fn a_refused_login_ends_at_once_and_shows_the_password_nowhere() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    let rabbit = Rabbit::start()?;
    let url = format!("amqp://guest@127.0.0.1:{}", rabbit.port());
    let file = room.write("secret", format!("{SECRET}\n"))?;
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
            let ended = room
                .call(program, arguments)?
                .env("PINGFLEET_BROKER__URL", &url)
                .env(name, value)
                .end()?
                .hides(SECRET)
                .fails(4, &["refuses the login of user \"guest\"", "password_file"]);
            // Trying again could only lock the user out.
            assert!(!ended.stderr.contains("trying again"), "{ended:#?}");
        }
    }
    std::fs::remove_file(file)?;
    assert_nothing_planned(&room)?;
    let doctor = room
        .call("pingfleet", &["doctor", "-vv"])?
        .env("PINGFLEET_BROKER__URL", &in_url)
        .end()?
        .ends_with(4);
    let doctor = doctor.hides(SECRET);
    assert!(doctor.stdout.contains("refuses the login"), "{doctor:#?}");
    Ok(())
}

#[test]
fn the_process_list_does_not_show_a_password_of_the_environment_or_a_file() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    let file = room.write("secret", SECRET)?;
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
            // One for each: a program may have left a second connection waiting.
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let url = format!("amqp://user@{}", listener.local_addr()?);
            let running = room.start(
                program,
                arguments,
                &[("PINGFLEET_BROKER__URL", &url), (name, value)],
            )?;
            // When it knocks, it has read all of its settings.
            let (_silent, _) = listener.accept()?;
            let seen = running.command_line()?;
            assert!(seen.contains(program), "{seen}");
            assert!(!seen.contains(SECRET), "{seen}");
        }
    }
    Ok(())
}

#[test]
fn what_a_user_may_not_do_is_told_with_the_line_that_permits_it() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    let rabbit = Rabbit::start()?;
    let url = format!("amqp://guest:guest@127.0.0.1:{}/nowhere", rabbit.port());
    producer(&room, &url)?.fails(4, &["nowhere", "rabbitmqctl add_vhost 'nowhere'"]);
    assert_nothing_planned(&room)?;

    rabbit.ctl(&["add_user", "worker", SECRET])?;
    let url = format!("amqp://worker:{SECRET}@127.0.0.1:{}/", rabbit.port());
    producer(&room, &url)?
        .hides(SECRET)
        .fails(4, &["rabbitmqctl set_permissions -p '/' 'worker'"]);
    assert_nothing_planned(&room)?;

    // May use everything and make nothing: the queues have to be made for it.
    rabbit.ctl(&["set_permissions", "-p", "/", "worker", "^$", ".*", ".*"])?;
    let init = |url: &str| {
        room.call("pingfleet", &["broker", "init"])?
            .env("PINGFLEET_BROKER__URL", url)
            .end()
    };
    init(&url)?.hides(SECRET).fails(
        4,
        &["is missing on broker", "pingfleet broker init", "configure"],
    );
    assert!(queues(&rabbit)?.is_empty());
    init(&rabbit.url())?.ends_with(0);
    assert_eq!(queues(&rabbit)?, ["dead", "heartbeats", "results", "work"]);
    // Once they stand, that user has all it needs; and making them again changes nothing.
    init(&url)?.ends_with(0);
    init(&rabbit.url())?.ends_with(0);

    rabbit.ctl(&["delete_queue", "pingfleet.heartbeats"])?;
    let doctor = room
        .call("pingfleet", &["doctor"])?
        .env("PINGFLEET_BROKER__URL", &rabbit.url())
        .end()?
        .ends_with(0);
    assert!(
        doctor.stdout.contains("pingfleet broker init"),
        "{doctor:#?}"
    );
    assert_eq!(queues(&rabbit)?, ["dead", "results", "work"]);
    Ok(())
}

#[test]
fn queues_of_another_make_are_told_and_left_alone() -> anyhow::Result<()> {
    let room = room_with_a_run()?;
    let rabbit = Rabbit::start()?;
    // A queue of our name, as somebody made it by hand.
    let make = "rabbit_amqqueue:declare({resource, <<\"/\">>, queue, <<\"pingfleet.work\">>}, true, false, [], none, \
                <<\"guest\">>).";
    rabbit
        .ctl(&["eval", make])
        .context("making a classic queue")?;
    producer(&room, &rabbit.url())?.fails(4, &["not ours", "broker.prefix"]);
    assert_nothing_planned(&room)
}

#[test]
fn an_unusable_url_or_password_file_is_a_configuration_error() -> anyhow::Result<()> {
    let room = Room::new()?;
    for url in [
        "amqp://user:hunter2-hunter2@host:port/v",
        "http://user:hunter2-hunter2@host",
        "user:hunter2-hunter2@host",
        "amqp://user:hunter2-hunter2@",
        "amqp://user:hunter2-hunter2@host?heartbeat=soon",
    ] {
        for (program, arguments) in [
            ("producer", ["127.0.0.1", "-vv"].as_slice()),
            ("ping-worker", &["-vv"]),
            ("consumer-writer", &["-vv"]),
            ("pingfleet", &["runs", "-vv"]),
        ] {
            room.call(program, arguments)?
                .env("PINGFLEET_BROKER__URL", url)
                .end()?
                .hides(SECRET)
                .fails(3, &["PINGFLEET_BROKER__URL: "]);
        }
    }
    room.write("empty", "\n")?;
    for (file, part) in [("missing", "No such file"), ("empty", "no password")] {
        room.call("ping-worker", &[])?
            .env("PINGFLEET_BROKER__PASSWORD_FILE", file)
            .end()?
            .fails(3, &["PINGFLEET_BROKER__PASSWORD_FILE: ", file, part]);
    }
    Ok(())
}
