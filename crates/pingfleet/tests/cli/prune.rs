//! `prune`: rows of old runs go, and nothing else.

use std::fs;

use anyhow::Context;
use pingfleet_store::{Durability, FileMode, OpenOptions};
use pingfleet_testbed::SmallDisk;
use serde_json::Value;

use crate::{
    rig::TestDir,
    screens::{generated, matches_its_snapshot_on_copies},
};

/// A folder with a generated database, in which the targets of the first chunk were probed the last time by the run before the newest one.
pub(crate) fn with_targets_of_an_older_run(targets: u32, runs: u32) -> anyhow::Result<TestDir> {
    let dir = generated(targets, runs)?;
    dir.sqlite3(
        "pingfleet.db",
        &format!(
            "DELETE FROM results WHERE run = {runs} AND chunk = 0;
             UPDATE runs SET (up, late, unreachable, dns_failed, send_failed, unknown, down) =
                (SELECT sum(status = 0), sum(status = 1), sum(status = 2), sum(status = 3), sum(status = 4),
                        sum(status = 5), sum(status = 6) FROM results WHERE run = {runs}) WHERE run = {runs};
             UPDATE latest_rows SET run = {} WHERE chunk = 0",
            runs - 1
        ),
    )?;
    Ok(dir)
}

/// What stays the same when a database is pruned.
fn summaries(dir: &TestDir) -> anyhow::Result<[String; 2]> {
    Ok([
        dir.sqlite3("pingfleet.db", "SELECT * FROM run_summary")?,
        dir.sqlite3("pingfleet.db", "SELECT * FROM latest ORDER BY target")?,
    ])
}

/// How many rows each table has of each run.
pub(crate) fn rows_left(dir: &TestDir, table: &str) -> anyhow::Result<String> {
    let sql = format!(
        "SELECT group_concat(run || ':' || rows, ' ') FROM
            (SELECT run, count(*) AS rows FROM {table} GROUP BY run ORDER BY run)"
    );
    dir.sqlite3("pingfleet.db", &sql)
}

#[test]
fn old_runs_lose_their_rows_and_keep_their_line() -> anyhow::Result<()> {
    let dir = generated(600, 4)?;
    let before = summaries(&dir)?;
    let pruned = dir.pingfleet(&["prune", "--keep", "2"])?.ends_with(0);
    assert_eq!(
        pruned.stdout,
        "run 1: 600 rows removed\nrun 2: 600 rows removed\n2 runs pruned, 1,200 rows removed\n"
    );
    assert_eq!(pruned.stderr, "");
    assert_eq!(summaries(&dir)?, before);
    assert_eq!(rows_left(&dir, "results")?, "3:600 4:600");
    for table in ["chunks", "plan"] {
        assert_eq!(rows_left(&dir, table)?, "3:3 4:3");
    }
    let labels = "SELECT count(*) FROM labels WHERE run < 3";
    assert_eq!(dir.sqlite3("pingfleet.db", labels)?, "0");
    for run in ["3", "4"] {
        dir.pingfleet(&["verify", run])?.ends_with(0);
    }
    dir.pingfleet(&["verify", "--database"])?.ends_with(0);
    let again = dir.pingfleet(&["prune", "--keep", "2"])?.ends_with(0);
    assert_eq!(
        again.stdout,
        "nothing to prune: the database has 4 runs, 2 of them pruned before\n"
    );
    Ok(())
}

#[test]
fn a_pruned_run_says_so_wherever_its_rows_are_asked_for() -> anyhow::Result<()> {
    let dir = generated(600, 2)?;
    dir.pingfleet(&["prune", "--keep", "1", "-q"])?.ends_with(0);
    for arguments in [
        ["export", "1"].as_slice(),
        &["verify", "1"],
        &["report", "1", "--targets"],
        &["report", "1", "--status", "up"],
        &["resume", "1"],
        &["retry", "1"],
        &["retry", "1", "--only", "down"],
        &["diff", "1", "2"],
        &["diff", "2", "1"],
        &["diff", "1"],
        &["cancel", "1"],
    ] {
        dir.pingfleet(arguments)?.fails(
            3,
            &["the rows of run 1 were pruned at 20", "without an archive"],
        );
    }
    let report = dir.pingfleet(&["report", "1"])?.ends_with(0);
    assert!(
        report.stdout.contains("Its rows were pruned at"),
        "{report:#?}"
    );
    assert!(report.stdout.contains("✕ down"), "{report:#?}");
    dir.pingfleet(&["diff"])?
        .fails(3, &["run 2 is the only complete one of ", "not pruned"]);
    let report_of_2 = dir.pingfleet(&["report", "2"])?.ends_with(0).stdout;
    assert!(!report_of_2.contains("pingfleet diff"), "{report_of_2}");
    let json = dir
        .pingfleet(&["report", "1", "--json"])?
        .ends_with(0)
        .json()?;
    assert!(json[0]["pruned_at"].is_string(), "{json:#?}");
    assert_eq!(
        (&json[0]["archive"], &json[0]["rtt"]),
        (&Value::Null, &Value::Null)
    );
    let runs = dir.pingfleet(&["runs"])?.ends_with(0);
    assert_eq!(
        runs.stdout.matches("complete, pruned").count(),
        1,
        "{runs:#?}"
    );
    // The control: the other run is as before.
    for arguments in [
        ["export", "2"].as_slice(),
        &["verify", "2"],
        &["report", "2", "--targets"],
    ] {
        dir.pingfleet(arguments)?.ends_with(0);
    }
    Ok(())
}

#[test]
fn a_history_counts_the_pruned_runs_apart() -> anyhow::Result<()> {
    let dir = with_targets_of_an_older_run(600, 4)?;
    let [old, new] = [(3, 0), (4, 1)].map(|(run, chunk)| {
        dir.sqlite3(
            "pingfleet.db",
            &format!(
                "SELECT target FROM report WHERE run = {run} AND target IN
                    (SELECT name FROM results WHERE run = {run} AND chunk = {chunk}) LIMIT 1"
            ),
        )
    });
    let (old, new) = (old?, new?);
    let whole = dir.pingfleet(&["history", "10.0.0.0/8"])?.ends_with(0);
    assert!(!whole.stdout.contains("pruned"), "{whole:#?}");
    dir.pingfleet(&["prune", "--keep", "1", "-q"])?.ends_with(0);
    // Run 3 still has rows that `latest` shows.
    for (target, rows, pruned) in [
        ("10.0.0.0/8", 1, "3 runs are pruned"),
        (&old, 1, "2 runs are pruned"),
        (&new, 1, "3 runs are pruned"),
    ] {
        let text = dir.pingfleet(&["history", target])?.ends_with(0).stdout;
        assert!(text.contains(pruned), "{text}");
        let json = dir.pingfleet(&["history", target, "--json"])?.ends_with(0);
        assert!(json.stderr.contains(pruned), "{json:#?}");
        assert_eq!(json.json()?.len(), rows);
        let quiet = dir.pingfleet(&["-q", "history", target, "--json"])?;
        assert_eq!(quiet.ends_with(0).stderr, "");
    }
    Ok(())
}

#[test]
fn rows_that_latest_shows_stay_until_a_newer_run_has_their_targets() -> anyhow::Result<()> {
    let dir = with_targets_of_an_older_run(600, 3)?;
    let before = summaries(&dir)?;
    let dry = ["prune", "--keep", "1", "--dry-run"];
    let dry = dir.pingfleet(&dry)?.ends_with(0);
    let line = "run 2: 350 rows to remove, 250 rows that `latest` shows kept\n";
    assert!(dry.stdout.contains(line), "{dry:#?}");
    let pruned = dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    let line = "run 2: 350 rows removed, 250 rows that `latest` shows kept\n";
    assert!(pruned.stdout.contains(line), "{pruned:#?}");
    assert_eq!(summaries(&dir)?, before);
    assert_eq!(rows_left(&dir, "results")?, "2:250 3:350");
    assert_eq!(rows_left(&dir, "chunks")?, "2:1 3:3");
    let labels = "SELECT count(*) FROM labels WHERE run = 2";
    assert_ne!(dir.sqlite3("pingfleet.db", labels)?, "0");
    // A newer run has these targets.
    dir.sqlite3(
        "pingfleet.db",
        "INSERT INTO results SELECT 3, chunk, position, status, sent, received, attempts, probed_after_us, address,
            rtt_avg_ns, rtt_min_ns, rtt_max_ns, rtt_stddev_ns, name, reason FROM results WHERE run = 2;
         UPDATE latest_rows SET run = 3 WHERE run = 2",
    )?;
    let pruned = dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    assert_eq!(pruned.stdout, "0 runs pruned, 250 rows removed\n");
    for table in ["results", "chunks", "labels"] {
        assert!(rows_left(&dir, table)?.starts_with("3:"), "{table}");
    }
    Ok(())
}

#[test]
fn runs_are_chosen_by_the_age_of_their_end() -> anyhow::Result<()> {
    let dir = generated(40, 4)?;
    // Run 2 ended a day and an hour ago, run 3 an hour less than a day.
    for (run, hours) in [(1, 48), (2, 25), (3, 23), (4, 1)] {
        dir.sqlite3(
            "pingfleet.db",
            &format!("UPDATE runs SET finished_at_us = (unixepoch() - {hours} * 3600) * 1000000 WHERE run = {run}"),
        )?;
    }
    let nothing = dir
        .pingfleet(&["prune", "--older-than", "3d"])?
        .ends_with(0);
    assert_eq!(
        nothing.stdout,
        "nothing to prune: the database has 4 runs, none with rows ended over 3days ago\n"
    );
    dir.pingfleet(&["prune", "--older-than", "1d"])?
        .ends_with(0);
    assert_eq!(rows_left(&dir, "results")?, "3:40 4:40");
    Ok(())
}

#[test]
fn a_run_in_progress_or_one_that_can_be_resumed_is_kept() -> anyhow::Result<()> {
    let dir = generated(40, 3)?;
    dir.sqlite3(
        "pingfleet.db",
        "UPDATE runs SET state = 'running', finished_at_us = NULL, chunks_done = 0,
            lease_renewed_us = (unixepoch() + 3600) * 1000000 WHERE run < 3",
    )?;
    let mut store = OpenOptions {
        path: dir.path("pingfleet.db"),
        durability: Durability::Off,
        create: false,
        mode: FileMode::User,
        check: false,
    }
    .open()?;
    store.release_lease(2)?;
    let _producer = pingfleet_store::FileLock::run(&dir.path("pingfleet.db"), 1)?;
    let kept = dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    assert!(
        kept.stderr.contains("run 1 is in progress: it is kept"),
        "{kept:#?}"
    );
    let note =
        "run 2 can still be resumed: it is kept until `pingfleet resume 2` or `pingfleet cancel 2`";
    assert!(kept.stderr.contains(note), "{kept:#?}");
    assert_eq!(rows_left(&dir, "results")?, "1:40 2:40 3:40");
    // Somebody has a lock, whatever the state is.
    dir.sqlite3(
        "pingfleet.db",
        "UPDATE runs SET state = 'complete', finished_at_us = 1",
    )?;
    let kept = dir.pingfleet(&["prune", "--keep", "2"])?.ends_with(0);
    assert!(
        kept.stderr.contains("run 1 is in use by another process"),
        "{kept:#?}"
    );
    assert_eq!(rows_left(&dir, "results")?, "1:40 2:40 3:40");
    Ok(())
}

#[test]
fn a_run_with_dead_chunks_is_kept_and_a_pruned_one_is_not_to_be_retried() -> anyhow::Result<()> {
    let dir = generated(600, 2)?;
    let dead = "UPDATE runs SET state = 'incomplete', chunks_dead = 1, chunks_done = chunks_done - 1 WHERE run = 1";
    dir.sqlite3("pingfleet.db", dead)?;
    let kept = dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    let note = "run 1 has 1 dead chunk that can be sent again: it is kept until `pingfleet retry 1` or `pingfleet cancel 1`";
    assert!(kept.stderr.contains(note), "{kept:#?}");
    assert_eq!(rows_left(&dir, "results")?, "1:600 2:600");
    // An older version pruned such a run.
    dir.sqlite3(
        "pingfleet.db",
        "INSERT INTO pruned_runs VALUES (1, 1, NULL)",
    )?;
    let report = dir.pingfleet(&["report", "1"])?.ends_with(0);
    assert!(report.stdout.contains("It is incomplete"), "{report:#?}");
    assert!(!report.stdout.contains("pingfleet retry"), "{report:#?}");
    Ok(())
}

/// Runs of which the first can be sent again, and the third has rows that `latest` shows.
fn with_all_kinds() -> anyhow::Result<TestDir> {
    let dir = with_targets_of_an_older_run(1600, 4)?;
    let dead = "UPDATE runs SET state = 'incomplete', chunks_dead = 1, chunks_done = chunks_done - 1 WHERE run = 1";
    dir.sqlite3("pingfleet.db", dead)?;
    Ok(dir)
}

#[test]
fn what_was_removed_fits_each_width() -> anyhow::Result<()> {
    let dir = with_all_kinds()?;
    matches_its_snapshot_on_copies(&dir, "prune", "prune --keep 1", str::to_owned)
}

#[cfg(feature = "parquet")]
#[test]
fn what_would_be_removed_fits_each_width() -> anyhow::Result<()> {
    let command = "prune --keep 1 --dry-run --archive archive";
    crate::screens::matches_its_snapshot(&with_all_kinds()?, "prune-dry-run", command)
}

#[test]
fn a_dry_run_changes_nothing() -> anyhow::Result<()> {
    let dir = generated(600, 3)?;
    let before = dir.files()?;
    let mut arguments = vec!["prune", "--keep", "1", "--dry-run"];
    let dry = dir.pingfleet(&arguments)?.ends_with(0);
    assert_eq!(
        dry.stdout,
        "run 1: 600 rows to remove\nrun 2: 600 rows to remove\n\
         2 runs would be pruned, 1,200 rows removed; nothing was changed\n"
    );
    if cfg!(feature = "parquet") {
        arguments.extend(["--archive", "a/b"]);
        let dry = dir.pingfleet(&arguments)?.ends_with(0);
        assert!(
            dry.stdout.contains("600 rows to remove, after a/b/run-1-"),
            "{dry:#?}"
        );
    }
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn wrong_arguments_and_empty_databases_are_one_message() -> anyhow::Result<()> {
    let dir = generated(10, 0)?;
    let before = dir.files()?;
    for (arguments, part) in [
        ([].as_slice(), "--keep"),
        (&["--vacuum"], "--older-than"),
        (&["--keep", "0"], "--keep"),
        (
            &["--keep", "1", "--older-than", "1d"],
            "cannot be used with",
        ),
        (&["--older-than", "30"], "with a unit, such as 30d"),
    ] {
        let arguments = [["prune"].as_slice(), arguments].concat();
        dir.pingfleet(&arguments)?.fails(3, &[part]);
    }
    let nothing = dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    assert_eq!(
        nothing.stdout,
        "nothing to prune: the database has 0 runs\n"
    );
    dir.pingfleet(&["prune", "--keep", "1", "--db", "none.db"])?
        .fails(4, &["no database none.db"]);
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn vacuum_makes_the_file_smaller_and_needs_free_space_and_no_writer() -> anyhow::Result<()> {
    let dir = generated(4000, 4)?;
    let size = || anyhow::Ok(fs::metadata(dir.path("pingfleet.db"))?.len());
    let before = size()?;
    let writer = pingfleet_store::FileLock::writer(&dir.path("pingfleet.db"))?;
    dir.pingfleet(&["prune", "--keep", "1", "--vacuum"])?
        .ends_with(4);
    assert_eq!(rows_left(&dir, "results")?, "4:4000");
    assert!(size()? >= before);
    drop(writer);
    let vacuumed = dir
        .pingfleet(&["prune", "--keep", "1", "--vacuum"])?
        .ends_with(0);
    assert!(
        vacuumed.stdout.contains("pingfleet.db has "),
        "{vacuumed:#?}"
    );
    assert!(size()? * 2 < before, "{} of {before}", size()?);
    dir.pingfleet(&["verify", "4"])?.ends_with(0);
    // A disk on which the file fits, and not its copies.
    let disk = SmallDisk::new(size()? as u32 / 1024 + 200)?;
    let database = disk.path().join("small.db");
    fs::copy(dir.path("pingfleet.db"), &database)?;
    let database = database.to_str().context("a plain name")?;
    let refused = dir
        .pingfleet(&["prune", "--keep", "1", "--vacuum", "--db", database])?
        .ends_with(4);
    let message = "--vacuum needs ";
    assert!(refused.stderr.contains(message), "{refused:#?}");
    dir.pingfleet(&["verify", "4", "--db", database])?
        .ends_with(0);
    Ok(())
}

#[test]
fn a_closed_pipe_leaves_a_sound_database() -> anyhow::Result<()> {
    let dir = generated(600, 4)?;
    let before = summaries(&dir)?;
    dir.shell("set -o pipefail; pingfleet prune --keep 1 | true")?
        .ends_with(0);
    assert_eq!(summaries(&dir)?, before);
    assert_eq!(rows_left(&dir, "results")?, "4:600");
    Ok(())
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_removes_nothing_that_was_to_be_archived() -> anyhow::Result<()> {
    let dir = generated(40, 2)?;
    let before = dir.files()?;
    dir.pingfleet(&["prune", "--keep", "1", "--archive", "archive"])?
        .fails(
            3,
            &[
                "cargo build --release --features parquet",
                "without --archive",
            ],
        );
    assert_eq!(dir.files()?, before);
    Ok(())
}
