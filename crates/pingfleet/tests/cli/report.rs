//! The summary of a run: what stands on the screen at several widths, and the JSON object.

use std::{fs, path::Path, time::Duration};

use anyhow::Context;
use pingfleet_store::{Durability, FileMode, NewChunk, NewRun, OpenOptions, Transport};
use rusqlite::Connection;
use serde_json::json;
use uuid::Uuid;

use crate::{
    rig::TestDir,
    screens::{generated, matches_its_snapshot, on_a_terminal},
};

#[test]
fn a_run_with_every_status_fits_each_width() -> anyhow::Result<()> {
    matches_its_snapshot(&generated(2100, 2)?, "every-status", "report")
}

#[test]
fn a_run_of_three_targets_is_a_list_of_them() -> anyhow::Result<()> {
    matches_its_snapshot(&generated(3, 1)?, "three-targets", "report")
}

#[test]
fn a_run_with_no_target_up_begins_with_the_likely_cause() -> anyhow::Result<()> {
    let dir = generated(40, 1)?;
    Connection::open(dir.path("pingfleet.db"))?.execute_batch(
        "UPDATE results SET status = 6, reason = NULL, sent = 3, received = 0, attempts = 1, rtt_avg_ns = NULL;
         UPDATE latest_rows SET status = 6, last_up_us = NULL, changed_at_us = NULL;
         UPDATE runs SET up = 0, late = 0, unreachable = 0, dns_failed = 0, send_failed = 0, unknown = 0, down = 40",
    )?;
    matches_its_snapshot(&dir, "none-up", "report")
}

#[test]
fn a_run_in_progress_says_so() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let mut store = OpenOptions {
        path: dir.path("pingfleet.db"),
        durability: Durability::Off,
        create: true,
        mode: FileMode::User,
        check: false,
    }
    .open()?;
    let planned = store.begin_run(&NewRun {
        transport: Transport::Sweep,
        source: "127.0.0.0/27".to_owned(),
        probing: "{}".to_owned(),
        seed: None,
        worst_chunk: Duration::from_secs(5),
        parent_run: None,
    })?;
    let chunk = NewChunk {
        chunk: 0,
        token: Uuid::nil(),
        targets: 32,
        work: Vec::new(),
        labels: Vec::new(),
    };
    store.add_chunks(planned.run, &[chunk])?;
    store.start_run(planned.run)?;
    let report = dir.pingfleet(&["report"])?.ends_with(0);
    assert!(
        report.stdout.contains("In progress: 0 of 32 targets"),
        "{report:#?}"
    );
    // The control: without its producer it is no longer in progress, and the next command stands there.
    drop(planned.lock);
    let report = dir.pingfleet(&["report"])?.ends_with(0);
    assert!(
        report.stdout.contains("Continue it: pingfleet resume 1"),
        "{report:#?}"
    );
    Ok(())
}

#[test]
fn a_database_without_a_run_shows_how_to_start_one() -> anyhow::Result<()> {
    let dir = generated(1, 0)?;
    for arguments in [
        ["report"].as_slice(),
        &["report", "--json"],
        &["report", "--targets"],
    ] {
        dir.pingfleet(arguments)?.fails(
            3,
            &["no run", "pingfleet.db", "pingfleet sweep 127.0.0.0/24"],
        );
    }
    Ok(())
}

#[test]
fn colours_are_for_terminals_and_each_has_a_sign() -> anyhow::Result<()> {
    let dir = generated(2100, 1)?;
    let colour = on_a_terminal(&dir, "report", 80, "")?;
    assert!(colour.contains("\u{1b}[31m✕ down"), "{colour}");
    let plain = on_a_terminal(&dir, "report", 80, "NO_COLOR=1")?;
    assert!(
        !plain.contains('\u{1b}') && plain.contains("✕ down"),
        "{plain}"
    );
    Ok(())
}

#[test]
fn the_json_summary_is_one_object_with_the_counts_of_the_database() -> anyhow::Result<()> {
    let dir = generated(2100, 2)?;
    let objects = dir.pingfleet(&["report", "--json"])?.ends_with(0).json()?;
    let [summary] = objects.as_slice() else {
        panic!("{objects:#?}")
    };
    assert_eq!(summary["targets"], json!(2100));
    for status in ["up", "late", "down", "unknown"] {
        let sql = format!("SELECT count(*) FROM report WHERE run = 2 AND status = '{status}'");
        let count: u64 = dir.sqlite3("pingfleet.db", &sql)?.parse()?;
        assert_eq!(summary["statuses"][status], json!(count));
    }
    let documented = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report-json.md"),
    )?;
    let fields = summary.as_object().context("an object")?;
    for field in fields.keys() {
        assert!(documented.contains(&format!("| `{field}` |")), "{field}");
    }
    Ok(())
}

#[test]
fn a_list_is_sorted_by_what_is_asked_for() -> anyhow::Result<()> {
    let dir = generated(2100, 1)?;
    // The column of a list: the target, RECEIVED as answered and sent requests, or the mean round trip.
    let list = |flags: &[&str], column: usize| {
        let arguments = [["report", "--targets"].as_slice(), flags].concat();
        let listed = dir.pingfleet(&arguments)?.ends_with(0).stdout;
        let rows = listed.lines().skip(1);
        let column = |row: &str| row.split_whitespace().nth(column).unwrap_or("").to_owned();
        anyhow::Ok(rows.map(column).collect::<Vec<_>>())
    };
    let loss = |received: &String| {
        let (received, sent) = received.split_once('/').unwrap_or(("0", "1"));
        let [received, sent] = [received, sent].map(|text| text.parse::<f64>().unwrap_or(f64::NAN));
        // Nothing was sent, so nothing was lost.
        if sent > 0.0 {
            1.0 - received / sent
        } else {
            -1.0
        }
    };
    let losses: Vec<_> = list(&["--sort", "loss", "--where", "target = address"], 2)?
        .iter()
        .map(loss)
        .collect();
    assert!(losses.len() > 1000);
    assert!(losses.is_sorted_by(|one, other| one >= other), "{losses:?}");
    let answered = [
        "--sort",
        "rtt",
        "--where",
        "target = address AND received > 0",
    ];
    let means: Vec<f64> = list(&answered, 4)?
        .iter()
        .map(|mean| mean.parse())
        .collect::<Result<_, _>>()?;
    assert!(means.len() > 1000);
    assert!(means.is_sorted_by(|one, other| one >= other), "{means:?}");
    let targets = list(&["--sort", "target"], 0)?;
    assert_eq!(targets[..2], ["10.0.0.1", "10.0.0.2"]);
    let position = |target| targets.iter().position(|listed| listed == target);
    assert!(position("10.10.0.1") > position("10.2.0.1"));
    // The control: in the order of the plan they are not sorted.
    assert_ne!(list(&[], 0)?[1], "10.0.0.2");
    Ok(())
}
