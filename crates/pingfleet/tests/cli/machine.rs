//! What this machine lacks: an interface, a source address, open files, an option of sockets. One message in words says
//! it, no panic and no `Debug` text.

use std::fs;

use anyhow::{Context, ensure};
use pingfleet_testbed::Namespace;

use crate::rig::{Finished, TestDir};

/// The lines on standard error that contain `part`.
fn lines(finished: &Finished, part: &str) -> usize {
    let lines = finished.stderr.lines();
    lines.filter(|line| line.contains(part)).count()
}

#[test]
fn an_interface_or_a_source_that_is_not_here_is_refused_before_anything_is_planned()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (flag, value, part) in [
        ("-I", "nope0", "this machine has no network interface nope0"),
        ("-S", "192.0.2.1", "192.0.2.1 is not an address of this"),
        ("-S", "2001:db8::1", "2001:db8::1 is not an address of this"),
    ] {
        let arguments = ["sweep", "localhost", flag, value];
        let refused = dir.pingfleet(&arguments)?.fails(3, &[part]);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:#?}");
        assert!(dir.files()?.is_empty());
    }
    // Control: what is here is used.
    let here = ["sweep", "127.0.0.1", "-I", "lo", "-S", "127.0.0.1"];
    dir.pingfleet(&here)?.ends_with(0);
    Ok(())
}

#[test]
fn an_interface_that_goes_away_is_warned_of_once_and_in_words() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("10.0.0.0/24")?;
    // The interface is removed when the first targets are stored.
    let script = "set -e; ip link add away0 type veth peer name away1; ip link set away1 up; ip addr add 10.9.0.1/24 dev away0; ip link set away0 up
        exec 3< <(exec timeout \"$@\"); sweep=$!; read -r -u 3 first; ip link del away0
        cat <&3; wait $sweep";
    let mut wrapped = namespace.command("bash");
    wrapped.args(["-c", script, "bash"]);
    let arguments = [
        "sweep",
        "-u",
        "-I",
        "away0",
        "-r0",
        "-t100ms",
        "--rate",
        "20",
        "--chunk-size",
        "1",
        "10.9.0.16/28",
    ];
    let swept = dir
        .call_as(wrapped, "pingfleet", &arguments)?
        .end()?
        .ends_with(0);
    assert_eq!(lines(&swept, "network interface away0"), 1, "{swept:#?}");
    let swept = swept.hides(" { ").hides("Os ");
    let failed = ["export", "--status", "send_failed"];
    let rows = dir.pingfleet(&failed)?.ends_with(0).json()?;
    assert!(rows.len() > 1, "{rows:#?} {swept:#?}");
    // An errno comes with its text.
    let reasons: Vec<_> = rows.iter().map(|row| &row["reason"]).collect();
    assert!(
        reasons
            .iter()
            .any(|reason| *reason == "errno 19 (No such device)"),
        "{reasons:?}"
    );
    Ok(())
}

#[test]
fn a_run_is_not_resumed_on_a_machine_without_its_interface() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let links = |line: &str| -> anyhow::Result<()> {
        let status = namespace.command("sh").args(["-ec", line]).status()?;
        ensure!(status.success(), "{line}");
        Ok(())
    };
    let add = "ip link add away0 type veth peer name away1; ip link set away1 up
        ip addr add 10.9.0.1/24 dev away0; ip link set away0 up";
    links(add)?;
    let arguments = [
        "sweep",
        "-u",
        "-I",
        "away0",
        "-r0",
        "-t100ms",
        "--rate",
        "10",
        "--chunk-size",
        "2",
        "10.9.0.0/26",
    ];
    dir.call_as(namespace.command("timeout"), "pingfleet", &arguments)?
        .interrupted()?
        .ends_with(130);
    let stored = dir.sqlite3("pingfleet.db", "SELECT count(*) FROM results")?;
    let resume = || dir.call_as(namespace.command("timeout"), "pingfleet", &["resume"]);
    links("ip link del away0")?;
    resume()?
        .end()?
        .fails(3, &["this machine has no network interface away0"]);
    let after = dir.sqlite3("pingfleet.db", "SELECT count(*) FROM results")?;
    assert_eq!(after, stored);
    // Control: with the interface it goes on.
    links(add)?;
    resume()?.end()?.ends_with(0);
    Ok(())
}

/// Runs a command with at most `files` open files.
fn limited(dir: &TestDir, files: u32, command: &str) -> anyhow::Result<Finished> {
    dir.shell(&format!(
        "exec env PINGFLEET_WORKER__THREADS=4 prlimit --nofile={files}:{files} {command}"
    ))
}

#[test]
fn too_few_open_files_are_one_message_before_anything_starts() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for files in [10, 12, 15, 18, 20, 23, 26, 28, 30, 31, 40, 50, 64, 80, 95] {
        for command in [
            "pingfleet sweep --db new.db 127.0.0.0/28",
            "ping-worker",
            "consumer-writer --db new.db",
            "producer --db new.db 127.0.0.1",
            "pingfleet broker init",
        ] {
            let probes = command.contains("sweep") || command.contains("worker");
            if !probes && files >= 32 {
                continue;
            }
            limited(&dir, files, command)?.fails(4, &["too few open files", "ulimit -n 1024"]);
            assert!(dir.files()?.is_empty(), "{files} {command}");
        }
    }
    Ok(())
}

#[test]
fn commands_that_read_or_change_the_database_name_the_limit_of_open_files() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    let mut refused = 0;
    for files in 4..12 {
        for command in ["runs", "report", "export", "verify", "cancel"] {
            let finished = limited(&dir, files, &format!("pingfleet {command}"))?;
            if finished.code == Some(0) {
                continue;
            }
            finished.fails(4, &["Too many open files", "ulimit -n"]);
            refused += 1;
        }
    }
    assert!(refused > 0, "no limit was too low");
    Ok(())
}

#[test]
fn a_kernel_without_a_needed_option_of_sockets_is_one_message() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let sweep = |trace: &str| {
        dir.shell(&format!(
            "exec env PINGFLEET_WORKER__THREADS=1 strace -f -qq -o trace {trace} pingfleet sweep --db o.db 127.0.0.1"
        ))
    };
    sweep("-e trace=getsockopt")?.ends_with(0);
    fs::remove_file(dir.path("o.db"))?;
    // `strace` counts the calls of each thread. The first one that reads the memory counters fails, and all after it.
    let trace = fs::read_to_string(dir.path("trace"))?;
    let (thread, _) = trace
        .lines()
        .find(|line| line.contains("SO_MEMINFO") || line.contains("0x37"))
        .and_then(|line| line.split_once(' '))
        .context("strace: apt-get install strace")?;
    let of_thread = trace.lines().filter(|line| line.starts_with(thread));
    let before = of_thread
        .take_while(|line| !line.contains("SO_MEMINFO") && !line.contains("0x37"))
        .count();
    let first = before + 1;
    ensure!(first > 1, "no other option was read before: {trace}");
    let inject =
        format!("-e trace=getsockopt -e inject=getsockopt:error=ENOPROTOOPT:when={first}+");
    sweep(&inject)?.fails(4, &["lack an option", "Protocol not available"]);
    assert!(!dir.path("o.db").exists());
    Ok(())
}
