//! `pingfleet doctor` in network namespaces of the tests, as root and as an unprivileged user. The commands after
//! `fix:` are run, and must fix the problem. Kernel limits that no namespace can change are covered by unit tests.

use std::fs;

use anyhow::{Context, ensure};
use pingfleet_testbed::Namespace;

use crate::{
    permission::{EVERY_GROUP, NO_GROUP, namespace},
    rig::{Finished, TestDir},
};

/// The column in which the result begins, after the state and the name of the check.
const MARGIN: usize = 23;

/// One check as it was printed.
#[derive(Debug)]
struct PrintedCheck {
    state: String,
    name: String,
    text: String,
    fix: Option<String>,
}

/// All printed checks. A line in another format is an error.
fn parse(doctor: &Finished) -> anyhow::Result<Vec<PrintedCheck>> {
    let mut all: Vec<PrintedCheck> = Vec::new();
    for line in doctor.stdout.lines() {
        if let Some(fix) = line.strip_prefix("      fix: ") {
            let last = all.last_mut().context("a fix without a problem")?;
            ensure!(last.fix.is_none(), "two fixes: {doctor:#?}");
            last.fix = Some(fix.to_owned());
            continue;
        }
        let (head, text) = line.split_at_checked(MARGIN).context("a short line")?;
        let (state, name) = head.split_at(6);
        ensure!(!text.starts_with(' '), "not aligned: {line:?}");
        all.push(PrintedCheck {
            state: state.trim().to_owned(),
            name: name.trim().to_owned(),
            text: text.to_owned(),
            fix: None,
        });
    }
    Ok(all)
}

/// The check with this name.
fn check(doctor: &Finished, name: &str) -> anyhow::Result<PrintedCheck> {
    parse(doctor)?
        .into_iter()
        .find(|check| check.name == name)
        .with_context(|| format!("no {name:?} in {doctor:#?}"))
}

/// Runs it as `nobody`, who may create its database.
fn as_nobody(dir: &TestDir, namespace: &Namespace) -> anyhow::Result<Finished> {
    let own = dir.path("own");
    if !own.exists() {
        fs::create_dir(&own)?;
        std::os::unix::fs::chown(&own, Some(65534), Some(65534))?;
    }
    let arguments = ["doctor", "--db", "own/sweeps.db"];
    dir.call_as_nobody(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()
}

/// Runs it as root with only the capabilities that `bounding` of `setpriv` leaves.
fn as_root(dir: &TestDir, namespace: &Namespace, bounding: &str) -> anyhow::Result<Finished> {
    let mut wrapped = namespace.command("setpriv");
    let bounding = format!("--bounding-set={bounding}");
    wrapped.args([&bounding, "--inh-caps=-all", "timeout"]);
    dir.call_as(wrapped, "pingfleet", &["doctor"])?.end()
}

/// The exit code is 4 if a check is bad, else 0, and each problem has a fix.
#[track_caller]
fn assert_consistent(doctor: &Finished) -> anyhow::Result<()> {
    let checks = parse(doctor)?;
    assert!(!checks.is_empty(), "{doctor:#?}");
    for one in &checks {
        let is_problem = match one.state.as_str() {
            "ok" | "-" => false,
            "poor" | "BAD" => true,
            other => anyhow::bail!("state {other:?}"),
        };
        assert_eq!(one.fix.is_some(), is_problem, "{one:?}");
        // The name of a folder or broker can have any length.
        if !["database", "broker"].contains(&one.name.as_str()) {
            assert!(one.text.chars().count() <= 80 - MARGIN, "{one:?}");
            assert!(
                one.fix.as_ref().is_none_or(|fix| fix.len() <= 69),
                "{one:?}"
            );
        }
    }
    let is_bad = checks.iter().any(|one| one.state == "BAD");
    assert_eq!(doctor.code, Some(if is_bad { 4 } else { 0 }), "{doctor:#?}");
    Ok(())
}

#[test]
fn an_unprivileged_user_sees_the_group_that_allows_datagram_sockets() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    let doctor = as_nobody(&dir, &namespace)?.ends_with(0);
    assert_consistent(&doctor)?;
    for family in ["ICMP IPv4", "ICMP IPv6"] {
        let found = check(&doctor, family)?;
        assert_eq!(found.state, "ok");
        assert_eq!(
            found.text,
            "datagram sockets: ping_group_range has group 65534"
        );
    }
    assert_eq!(check(&doctor, "prober")?.state, "ok");
    // It leaves no file behind.
    assert!(fs::read_dir(dir.path("own"))?.next().is_none());
    Ok(())
}

#[test]
fn the_fix_of_a_refused_socket_works() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // The second range ends just below the user's group.
    for groups in [NO_GROUP, "65533 65533"] {
        let namespace = namespace(groups)?;
        let doctor = as_nobody(&dir, &namespace)?.ends_with(4);
        assert_consistent(&doctor)?;
        let mut fix = None;
        for family in ["ICMP IPv4", "ICMP IPv6"] {
            let found = check(&doctor, family)?;
            assert_eq!(found.state, "BAD");
            assert!(found.text.contains("no group in ping_group_range"));
            assert!(found.text.contains("no CAP_NET_RAW"));
            fix = found.fix;
        }
        let fix = fix.context("no fix")?;
        let line = fix.strip_prefix("sudo ").context("a command for root")?;
        let status = namespace.command("sh").args(["-c", line]).status()?;
        ensure!(
            status.success(),
            "cannot run {line}: apt-get install procps"
        );
        let fixed = as_nobody(&dir, &namespace)?.ends_with(0);
        assert_eq!(check(&fixed, "ICMP IPv4")?.state, "ok");
    }
    Ok(())
}

#[test]
fn root_sees_which_capability_allows_what() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(NO_GROUP)?;
    let families = ["ICMP IPv4", "ICMP IPv6"];
    let all = as_root(&dir, &namespace, "+all")?.ends_with(0);
    assert_consistent(&all)?;
    let raw_only = as_root(&dir, &namespace, "-all,+net_raw")?.ends_with(0);
    assert_consistent(&raw_only)?;
    for doctor in [&all, &raw_only] {
        for family in families {
            let found = check(doctor, family)?;
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
        let overridden = check(&all, buffer)?;
        let by = format!("CAP_NET_ADMIN overrides net.core.{setting}");
        assert!(
            overridden.state == "ok" && overridden.text.contains(&by),
            "{overridden:?}"
        );
        // Without that capability the machine's limit applies.
        let limit: u64 = fs::read_to_string(format!("/proc/sys/net/core/{setting}"))?
            .trim()
            .parse()?;
        let limited = check(&raw_only, buffer)?;
        let state = if limit >= enough { "ok" } else { "poor" };
        assert_eq!(limited.state, state, "{limited:?}");
        assert!(!limited.text.contains("CAP_NET_ADMIN"), "{limited:?}");
    }
    // Root without the capability is like any other user.
    let none = as_root(&dir, &namespace, "-all")?.ends_with(4);
    assert_consistent(&none)?;
    for family in families {
        assert_eq!(check(&none, family)?.state, "BAD");
    }
    Ok(())
}

#[test]
fn what_a_namespace_does_not_show_is_reported_and_not_judged() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    let doctor = as_nobody(&dir, &namespace)?.ends_with(0);
    // Only the machine's first network namespace has the limits of the neighbour table.
    for (name, setting) in [
        ("neighbours IPv4", "net.ipv4.neigh.default.gc_thresh3"),
        ("neighbours IPv6", "net.ipv6.neigh.default.gc_thresh3"),
    ] {
        let found = check(&doctor, name)?;
        assert_eq!(found.state, "-");
        assert_eq!(found.text, format!("{setting} does not exist"));
    }
    Ok(())
}

#[test]
fn too_few_open_files_are_reported_and_the_fix_works() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let limited = |limits: &str, line: &str| {
        dir.shell(&format!("prlimit --nofile={limits} bash -c '{line}'"))
    };
    let poor = limited("100:4096", "pingfleet doctor")?.ends_with(0);
    assert_consistent(&poor)?;
    let files = check(&poor, "open files")?;
    assert_eq!(files.state, "poor");
    let fix = files.fix.context("no fix")?;
    let (line, service) = fix
        .split_once("; for a service ")
        .context("a fix for a shell and one for a service")?;
    assert_eq!(service, "LimitNOFILE=1024");
    let fixed = limited("100:4096", &format!("{line}; pingfleet doctor"))?.ends_with(0);
    assert_eq!(check(&fixed, "open files")?.state, "ok");

    // It reports the problem even with very few open files.
    for limit in ["5:5", "40:40", "95:95"] {
        let bad = limited(limit, "exec pingfleet doctor")?.ends_with(4);
        let files = check(&bad, "open files")?;
        assert_eq!(files.state, "BAD", "{limit}");
        let fix = files.fix.context("no fix")?;
        assert!(fix.starts_with("sudo prlimit -n1024:1024"), "{fix}");
    }
    Ok(())
}

#[test]
fn a_sweep_needs_the_open_files_that_doctor_requires() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let sweep = |files: u32| {
        dir.shell(&format!(
            "PINGFLEET_WORKER__THREADS=4 prlimit --nofile={files}:{files} pingfleet sweep -q \
             --db {files}.db --chunk-size 16 127.0.0.0/24 ::1"
        ))
    };
    sweep(96)?.ends_with(0);
    sweep(32)?.ends_with(4);
    Ok(())
}

#[test]
fn doctor_leaves_no_file_behind_and_a_missing_broker_is_not_bad() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(NO_GROUP)?;
    let doctor = as_root(&dir, &namespace, "+all")?.ends_with(0);
    let broker = check(&doctor, "broker")?;
    assert_eq!(broker.state, "poor");
    assert!(broker.text.starts_with("127.0.0.1:1: "), "{broker:?}");
    assert!(
        broker
            .fix
            .is_some_and(|fix| fix.contains("docker-compose up -d"))
    );
    assert!(check(&doctor, "database")?.text.contains("can be created"));
    assert!(dir.files()?.is_empty());
    let arguments = ["doctor", "--db", "missing/sweeps.db"];
    let doctor = dir
        .call_as(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()?
        .ends_with(4);
    let database = check(&doctor, "database")?;
    assert_eq!(database.state, "BAD");
    assert_eq!(database.fix.as_deref(), Some("mkdir -p missing"));
    assert!(dir.files()?.is_empty());
    Ok(())
}
