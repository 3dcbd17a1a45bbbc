//! `pingfleet doctor`: what it finds in networks of the test's own, as root and as a user without any privilege, and
//! that the lines by which it mends do mend. What a kernel has that no namespace can change is judged by unit tests.

use std::fs;

use anyhow::{Context, ensure};
use pingfleet_testbed::Namespace;

use crate::{
    permission::{EVERY_GROUP, NO_GROUP, namespace},
    rig::{Ended, Room},
};

/// Where the findings begin: after the state and what was looked at.
const MARGIN: usize = 23;

/// One check as it was printed.
#[derive(Debug)]
struct Found {
    state: String,
    what: String,
    text: String,
    mend: Option<String>,
}

/// What was printed, check by check. Any line of another form fails.
fn read(doctor: &Ended) -> anyhow::Result<Vec<Found>> {
    let mut all: Vec<Found> = Vec::new();
    for line in doctor.stdout.lines() {
        if let Some(mend) = line.strip_prefix("      to mend it: ") {
            let last = all.last_mut().context("a line that mends nothing")?;
            ensure!(last.mend.is_none(), "two lines that mend: {doctor:#?}");
            last.mend = Some(mend.to_owned());
            continue;
        }
        let (head, text) = line.split_at_checked(MARGIN).context("a short line")?;
        let (state, what) = head.split_at(6);
        ensure!(!text.starts_with(' '), "not aligned: {line:?}");
        all.push(Found {
            state: state.trim().to_owned(),
            what: what.trim().to_owned(),
            text: text.to_owned(),
            mend: None,
        });
    }
    Ok(all)
}

/// The finding of one check.
fn finding(doctor: &Ended, what: &str) -> anyhow::Result<Found> {
    read(doctor)?
        .into_iter()
        .find(|found| found.what == what)
        .with_context(|| format!("no {what:?} in {doctor:#?}"))
}

/// As `nobody`, with a database that it may make.
fn as_nobody(room: &Room, namespace: &Namespace) -> anyhow::Result<Ended> {
    let own = room.path("own");
    if !own.exists() {
        fs::create_dir(&own)?;
        std::os::unix::fs::chown(&own, Some(65534), Some(65534))?;
    }
    let arguments = ["doctor", "--db", "own/sweeps.db"];
    room.call_as_nobody(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()
}

/// As root, with the capabilities that `bounding` of `setpriv` leaves.
fn as_root(room: &Room, namespace: &Namespace, bounding: &str) -> anyhow::Result<Ended> {
    let mut wrapped = namespace.command("setpriv");
    let bounding = format!("--bounding-set={bounding}");
    wrapped.args([&bounding, "--inh-caps=-all", "timeout"]);
    room.call_as(wrapped, "pingfleet", &["doctor"])?.end()
}

/// The exit code is 4 with anything bad and 0 otherwise, and what is at fault comes with the line that mends it.
#[track_caller]
fn agrees(doctor: &Ended) -> anyhow::Result<()> {
    let found = read(doctor)?;
    assert!(!found.is_empty(), "{doctor:#?}");
    for one in &found {
        let at_fault = match one.state.as_str() {
            "ok" | "-" => false,
            "poor" | "BAD" => true,
            other => anyhow::bail!("state {other:?}"),
        };
        assert_eq!(one.mend.is_some(), at_fault, "{one:?}");
        // A folder's or a broker's name can be of any length.
        if !["database", "broker"].contains(&one.what.as_str()) {
            assert!(one.text.chars().count() <= 80 - MARGIN, "{one:?}");
            assert!(
                one.mend.as_ref().is_none_or(|mend| mend.len() <= 62),
                "{one:?}"
            );
        }
    }
    let is_bad = found.iter().any(|one| one.state == "BAD");
    assert_eq!(doctor.code, Some(if is_bad { 4 } else { 0 }), "{doctor:#?}");
    Ok(())
}

#[test]
fn an_unprivileged_user_is_told_the_group_that_gives_datagram_sockets() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    let doctor = as_nobody(&room, &namespace)?.ends_with(0);
    agrees(&doctor)?;
    for family in ["ICMP IPv4", "ICMP IPv6"] {
        let found = finding(&doctor, family)?;
        assert_eq!(found.state, "ok");
        assert_eq!(
            found.text,
            "datagram sockets: ping_group_range has group 65534"
        );
    }
    assert_eq!(finding(&doctor, "prober")?.state, "ok");
    // Looking leaves nothing behind.
    assert!(fs::read_dir(room.path("own"))?.next().is_none());
    Ok(())
}

#[test]
fn the_line_that_mends_a_refused_socket_mends_it() -> anyhow::Result<()> {
    let room = Room::new()?;
    // The next group to that of the user.
    for groups in [NO_GROUP, "65533 65533"] {
        let namespace = namespace(groups)?;
        let doctor = as_nobody(&room, &namespace)?.ends_with(4);
        agrees(&doctor)?;
        let mut mend = None;
        for family in ["ICMP IPv4", "ICMP IPv6"] {
            let found = finding(&doctor, family)?;
            assert_eq!(found.state, "BAD");
            assert!(found.text.contains("no group in ping_group_range"));
            assert!(found.text.contains("no CAP_NET_RAW"));
            mend = found.mend;
        }
        let mend = mend.context("a line that mends")?;
        let line = mend.strip_prefix("sudo ").context("it is root's")?;
        let status = namespace.command("sh").args(["-c", line]).status()?;
        ensure!(
            status.success(),
            "cannot run {line}: apt-get install procps"
        );
        let mended = as_nobody(&room, &namespace)?.ends_with(0);
        assert_eq!(finding(&mended, "ICMP IPv4")?.state, "ok");
    }
    Ok(())
}

#[test]
fn root_is_told_which_capability_gives_what() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = namespace(NO_GROUP)?;
    let families = ["ICMP IPv4", "ICMP IPv6"];
    let all = as_root(&room, &namespace, "+all")?.ends_with(0);
    agrees(&all)?;
    let raw_only = as_root(&room, &namespace, "-all,+net_raw")?.ends_with(0);
    agrees(&raw_only)?;
    for doctor in [&all, &raw_only] {
        for family in families {
            let found = finding(doctor, family)?;
            assert_eq!(
                (found.state.as_str(), found.text.as_str()),
                (
                    "ok",
                    "raw sockets by CAP_NET_RAW: no group in ping_group_range"
                )
            );
        }
    }
    for (buffer, setting, enough) in [
        ("receive buffer", "rmem_max", 16 << 20),
        ("send buffer", "wmem_max", 4 << 20),
    ] {
        let passed = finding(&all, buffer)?;
        let by = format!("CAP_NET_ADMIN passes net.core.{setting}");
        assert!(
            passed.state == "ok" && passed.text.contains(&by),
            "{passed:?}"
        );
        // Without that capability the machine's own limit holds.
        let limit: u64 = fs::read_to_string(format!("/proc/sys/net/core/{setting}"))?
            .trim()
            .parse()?;
        let limited = finding(&raw_only, buffer)?;
        let state = if limit >= enough { "ok" } else { "poor" };
        assert_eq!(limited.state, state, "{limited:?}");
        assert!(!limited.text.contains("CAP_NET_ADMIN"), "{limited:?}");
    }
    // Root without the capability is like everybody.
    let none = as_root(&room, &namespace, "-all")?.ends_with(4);
    agrees(&none)?;
    for family in families {
        assert_eq!(finding(&none, family)?.state, "BAD");
    }
    Ok(())
}

#[test]
fn what_a_network_does_not_show_is_said_and_not_judged() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    let doctor = as_nobody(&room, &namespace)?.ends_with(0);
    // Only the machine's first network namespace has the limits of the neighbour table.
    for (what, setting) in [
        ("neighbours IPv4", "net.ipv4.neigh.default.gc_thresh3"),
        ("neighbours IPv6", "net.ipv6.neigh.default.gc_thresh3"),
    ] {
        let found = finding(&doctor, what)?;
        assert_eq!(found.state, "-");
        assert_eq!(found.text, format!("{setting} is not there"));
    }
    Ok(())
}

#[test]
fn too_few_open_files_are_told_and_the_line_that_mends_them_mends_them() -> anyhow::Result<()> {
    let room = Room::new()?;
    let limited = |limits: &str, line: &str| {
        room.shell(&format!("prlimit --nofile={limits} bash -c '{line}'"))
    };
    let poor = limited("100:4096", "pingfleet doctor")?.ends_with(0);
    agrees(&poor)?;
    let files = finding(&poor, "open files")?;
    assert_eq!(files.state, "poor");
    let mend = files.mend.context("a line that mends")?;
    let (line, service) = mend.split_once("; for a service ").context("two ways")?;
    assert_eq!(service, "LimitNOFILE=1024");
    let mended = limited("100:4096", &format!("{line}; pingfleet doctor"))?.ends_with(0);
    assert_eq!(finding(&mended, "open files")?.state, "ok");

    // Even with hardly any it says what is wrong.
    for limit in ["5:5", "40:40", "63:63"] {
        let bad = limited(limit, "exec pingfleet doctor")?.ends_with(4);
        let files = finding(&bad, "open files")?;
        assert_eq!(files.state, "BAD", "{limit}");
        let mend = files.mend.context("a line that mends")?;
        assert!(mend.starts_with("sudo prlimit -n1024:1024"), "{mend}");
    }
    Ok(())
}

#[test]
fn a_sweep_runs_with_as_many_files_as_doctor_asks_for_and_not_with_half_of_them()
-> anyhow::Result<()> {
    let room = Room::new()?;
    let sweep = |files: u32| {
        room.shell(&format!(
            "PINGFLEET_WORKER__THREADS=4 prlimit --nofile={files}:{files} pingfleet sweep -q \
             --db {files}.db --chunk-size 16 127.0.0.0/24 ::1"
        ))
    };
    sweep(64)?.ends_with(0);
    sweep(32)?.ends_with(4);
    Ok(())
}

#[test]
fn doctor_leaves_nothing_behind_and_takes_no_broker_for_a_fault_of_the_box() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = namespace(NO_GROUP)?;
    let doctor = as_root(&room, &namespace, "+all")?.ends_with(0);
    let broker = finding(&doctor, "broker")?;
    assert_eq!(broker.state, "poor");
    assert!(broker.text.starts_with("127.0.0.1:1: "), "{broker:?}");
    assert!(
        broker
            .mend
            .is_some_and(|mend| mend.contains("docker-compose up -d"))
    );
    assert!(
        finding(&doctor, "database")?
            .text
            .contains("can be created")
    );
    assert!(room.files()?.is_empty());
    let arguments = ["doctor", "--db", "missing/sweeps.db"];
    let doctor = room
        .call_as(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()?
        .ends_with(4);
    let database = finding(&doctor, "database")?;
    assert_eq!(database.state, "BAD");
    assert_eq!(database.mend.as_deref(), Some("mkdir -p missing"));
    assert!(room.files()?.is_empty());
    Ok(())
}
