//! Sweeps in one process: what is printed, probed and repeated with which flags, and interrupted runs.

use pingfleet_testbed::Namespace;
use serde_json::json;

use crate::rig::{Call, TestDir};

/// A sweep that takes six seconds and prints its first targets within one.
fn slow(dir: &TestDir) -> anyhow::Result<Call> {
    dir.call(
        "pingfleet",
        &[
            "sweep",
            "-a",
            "-r0",
            "-t200ms",
            "--rate",
            "10",
            "--chunk-size",
            "5",
            "127.0.0.0/26",
        ],
    )
}

/// The targets of a run in the order of its plan.
fn order(dir: &TestDir, database: &str) -> anyhow::Result<Vec<String>> {
    let report = dir.pingfleet(&["export", "--db", database])?.ends_with(0);
    Ok(report
        .json()?
        .iter()
        .filter_map(|row| row["target"].as_str().map(str::to_owned))
        .collect())
}

#[test]
fn printed_targets_replace_the_summary_on_standard_output() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let sweep = |flags: &[&str]| {
        let common = [
            "sweep",
            "-r0",
            "-t200ms",
            "--no-shuffle",
            "10.0.0.1",
            "10.128.0.1",
        ];
        let arguments = [common.as_slice(), flags].concat();
        dir.call_as(namespace.command("timeout"), "pingfleet", &arguments)?
            .end()
    };
    assert_eq!(sweep(&["-a"])?.ends_with(0).stdout, "10.0.0.1\n");
    assert_eq!(sweep(&["-u"])?.ends_with(0).stdout, "10.128.0.1\n");
    let both = sweep(&["-u", "-s"])?.ends_with(0);
    assert_eq!(both.stdout, "10.128.0.1\n");
    assert!(both.stderr.contains("1  up (50.0%)"), "{both:#?}");
    let summary = sweep(&["-s"])?.ends_with(0);
    assert_eq!(summary.stderr, "");
    for part in [
        " complete ",
        "2  targets",
        "1  up (50.0%)",
        "1  down (50.0%)",
    ] {
        assert!(summary.stdout.contains(part), "{part}: {summary:#?}");
    }
    // Only with --fail-down a target that is down changes the exit code.
    assert_eq!(sweep(&["-a", "--fail-down"])?.ends_with(1).stderr, "");
    dir.pingfleet(&["sweep", "--fail-down", "127.0.0.1"])?
        .ends_with(0);
    Ok(())
}

#[test]
fn a_dry_run_writes_nothing_and_needs_no_broker() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for program in ["pingfleet", "producer"] {
        let dry = ["--dry-run", "--seed", "3", "127.0.0.0/24", "127.0.0.9"];
        let arguments = if program == "pingfleet" {
            [["sweep"].as_slice(), &dry].concat()
        } else {
            dry.to_vec()
        };
        let finished = dir.call(program, &arguments)?.end()?.ends_with(0);
        for part in [
            "254 targets in 2 chunks",
            "1 duplicate,",
            "--seed 3",
            "254 requests when all answer, 762 when none does",
        ] {
            assert!(finished.stdout.contains(part), "{part}: {finished:#?}");
        }
        assert!(dir.files()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_seed_repeats_an_order_and_no_shuffle_keeps_it() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (database, flags) in [
        ("one.db", ["--seed", "7"].as_slice()),
        ("again.db", &["--seed", "7"]),
        ("other.db", &["--seed", "8"]),
        ("kept.db", &["--no-shuffle"]),
    ] {
        let arguments = [&["sweep", "--db", database, "127.0.0.0/26"], flags].concat();
        dir.pingfleet(&arguments)?.ends_with(0);
    }
    let one = order(&dir, "one.db")?;
    assert_eq!(one, order(&dir, "again.db")?);
    assert_ne!(one, order(&dir, "other.db")?);
    let kept = order(&dir, "kept.db")?;
    let given: Vec<_> = (1..63).map(|host| format!("127.0.0.{host}")).collect();
    assert_eq!(kept, given);
    assert_ne!(one, kept);
    Ok(())
}

#[test]
fn count_and_retries_decide_the_number_of_requests() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.pingfleet(&["sweep", "-c", "3", "-p", "10ms", "127.0.0.1"])?
        .ends_with(0);
    let rows = dir.pingfleet(&["export"])?.ends_with(0).json()?;
    assert_eq!(
        (&rows[0]["sent"], &rows[0]["received"]),
        (&json!(3), &json!(3))
    );
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let arguments = ["sweep", "-r", "2", "-t", "50ms", "10.0.0.1", "10.128.0.1"];
    dir.call_as(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()?
        .ends_with(0);
    for row in dir.pingfleet(&["export"])?.ends_with(0).json()? {
        // A target that answers gets one request, a silent one three.
        let sent = if row["status"] == "up" { 1 } else { 3 };
        assert_eq!(row["sent"], json!(sent), "{row:#}");
    }
    Ok(())
}

#[test]
fn names_and_both_families_are_swept() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (flag, address) in [("-4", "127.0.0.1"), ("-6", "::1")] {
        dir.pingfleet(&["sweep", flag, "localhost", address])?
            .ends_with(0);
        let rows = dir.pingfleet(&["export"])?.ends_with(0).json()?;
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert_eq!(row["status"], "up", "{row:#}");
            assert_eq!(row["address"], address, "{row:#}");
        }
    }
    dir.pingfleet(&["sweep", "-4", "::1"])?
        .fails(2, &["::1", "-4"]);
    dir.pingfleet(&["sweep", "-6", "127.0.0.1"])?
        .fails(2, &["127.0.0.1", "-6"]);
    Ok(())
}

#[test]
fn an_interrupted_run_prints_how_to_resume_and_can_be_resumed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let finished = slow(&dir)?.interrupted()?.ends_with(130);
    assert!(
        finished.stderr.contains("a second signal exits at once"),
        "{finished:#?}"
    );
    assert!(
        finished.stderr.contains("pingfleet resume 1"),
        "{finished:#?}"
    );
    let proof = dir.pingfleet(&["verify"])?.ends_with(5);
    assert!(proof.stdout.contains("run 1 incomplete"), "{proof:#?}");
    assert!(proof.stdout.contains("pingfleet resume 1"), "{proof:#?}");
    let stored = order(&dir, "pingfleet.db")?.len();
    assert!((1..62).contains(&stored), "{stored}");
    let files: Vec<_> = dir.files()?.into_keys().collect();
    assert_eq!(files, ["pingfleet.db"]);
    dir.pingfleet(&["resume"])?.ends_with(0);
    dir.pingfleet(&["verify"])?.ends_with(0);
    assert_eq!(order(&dir, "pingfleet.db")?.len(), 62);
    Ok(())
}

#[test]
fn a_run_that_is_complete_after_ctrl_c_in_its_last_chunk_ends_as_a_complete_one()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let sweep = |flag: &str| {
        let arguments = [
            "sweep",
            flag,
            "-r0",
            "-t2s",
            "--no-shuffle",
            "--chunk-size",
            "2",
            "10.0.0.1",
            "10.0.0.3",
            // This chunk waits for the second of its targets.
            "10.0.0.2",
            "10.128.0.1",
        ];
        dir.call_as(namespace.command("timeout"), "pingfleet", &arguments)
    };
    let finished = sweep("-a")?.interrupted()?.ends_with(0);
    assert!(finished.stderr.contains("stopping"), "{finished:#?}");
    // The targets of the last chunk are printed as well, once.
    assert_eq!(finished.stdout, "10.0.0.1\n10.0.0.3\n10.0.0.2\n");
    assert!(!finished.stderr.contains("resume"), "{finished:#?}");
    dir.pingfleet(&["verify"])?.ends_with(0);
    Ok(())
}

#[test]
fn a_closed_terminal_drains_a_sweep_unless_it_was_started_with_nohup() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let finished = slow(&dir)?.signalled("HUP")?.ends_with(130);
    assert!(finished.stderr.contains("resume 1"), "{finished:#?}");
    dir.pingfleet(&["resume"])?.ends_with(0);
    // `nohup` does the same: the signal is ignored in the program that follows.
    let sweep = "pingfleet sweep -a -r0 -t200ms --rate 10 --chunk-size 5 127.0.0.0/27";
    let line = format!(
        "exec 3< <(trap '' HUP; exec {sweep}); sweep=$!; read -r -u 3 first; kill -HUP $sweep; cat <&3; wait $sweep"
    );
    let finished = dir.shell(&line)?.ends_with(0);
    assert_eq!(finished.stdout.lines().count(), 29, "{finished:#?}");
    Ok(())
}

#[test]
fn a_cancelled_run_is_not_resumed_and_says_why() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    slow(&dir)?.interrupted()?.ends_with(130);
    let cancelled = dir.pingfleet(&["cancel"])?.ends_with(0);
    assert!(
        cancelled.stdout.contains("run 1 is cancelled"),
        "{cancelled:#?}"
    );
    for command in ["resume", "retry"] {
        dir.pingfleet(&[command])?
            .fails(3, &["run 1 is cancelled", "new run"]);
    }
    let proof = dir.pingfleet(&["verify"])?.ends_with(5);
    assert!(proof.stdout.contains("was cancelled"), "{proof:#?}");
    let again = dir.pingfleet(&["cancel"])?.ends_with(0);
    assert!(again.stdout.contains("nothing to cancel"), "{again:#?}");
    Ok(())
}

#[test]
fn a_run_without_a_finished_plan_is_not_proven_complete() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    // The state after a producer was killed before it stored its first chunk.
    dir.sqlite3(
        "pingfleet.db",
        "DELETE FROM results; DELETE FROM chunks; DELETE FROM plan; DELETE FROM run_progress;
         UPDATE runs SET state = 'planning', targets = 0, chunks = 0, chunks_done = 0, up = 0, finished_at_us = NULL",
    )?;
    let proof = dir.pingfleet(&["verify"])?.ends_with(5);
    assert!(proof.stdout.contains("run 1 incomplete"), "{proof:#?}");
    assert!(!proof.stdout.contains("resume"), "{proof:#?}");
    // The next run removes it.
    dir.pingfleet(&["sweep", "127.0.0.1"])?.ends_with(0);
    assert_eq!(
        dir.sqlite3("pingfleet.db", "SELECT count(*) FROM runs")?,
        "1"
    );
    Ok(())
}
