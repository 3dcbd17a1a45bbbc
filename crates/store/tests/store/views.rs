//! The views that users query: they use only SQLite's built-in functions, and show NULL for what was not measured.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pingfleet_store::{Transport, Writer};
use pingfleet_wire::{DnsFailure, Status};
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::sample::{dead_letter, delivery, options, result, start};

/// The rows of a query, as the system's own `sqlite3` reads them.
fn rows(store: &Writer, sql: &str) -> Result<Vec<Map<String, Value>>> {
    let output = Command::new("sqlite3")
        .args(["-json", &format!("file:{}?mode=ro", store.path().display())])
        .arg(sql)
        .output()
        .context("this test needs the program sqlite3")?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn only(store: &Writer, sql: &str) -> Result<Map<String, Value>> {
    let mut rows = rows(store, sql)?;
    match (rows.pop(), rows.len()) {
        (Some(row), 0) => Ok(row),
        _ => bail!("{sql}: not one row"),
    }
}

fn state(store: &Writer) -> Result<Value> {
    Ok(only(store, "SELECT state FROM run_summary")?["state"].clone())
}

fn open(folder: &TempDir) -> Result<Writer> {
    Ok(options(&folder.path().join("fleet.db")).open()?)
}

const REPORT: [&str; 17] = [
    "run",
    "run_id",
    "target",
    "address",
    "status",
    "reason",
    "sent",
    "received",
    "loss_pct",
    "rtt_min_ms",
    "rtt_avg_ms",
    "rtt_max_ms",
    "rtt_stddev_ms",
    "attempts",
    "worker",
    "probed_at",
    "labels",
];

const RUN_SUMMARY: [&str; 17] = [
    "run",
    "run_id",
    "state",
    "started_at",
    "finished_at",
    "targets",
    "chunks",
    "chunks_done",
    "up",
    "late",
    "unreachable",
    "dns_failed",
    "send_failed",
    "unknown",
    "down",
    "duplicates",
    "redelivered",
];

#[test]
fn the_columns_are_those_of_the_contract() -> Result<()> {
    let folder = TempDir::new()?;
    let store = open(&folder)?;
    let connection = Connection::open(store.path())?;
    let columns = |view: &str| -> Result<Vec<String>> {
        let statement = connection.prepare(&format!("SELECT * FROM {view}"))?;
        Ok(statement.column_names().map(str::to_owned).collect())
    };
    ensure!(columns("report")? == REPORT);
    ensure!(columns("run_summary")? == RUN_SUMMARY);
    let latest = columns("latest")?;
    ensure!(latest[..17] == REPORT && latest[17..] == ["first_seen", "last_up", "changed_at"]);
    Ok(())
}

#[test]
fn an_answered_target_has_its_figures() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1])?;
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    let row = only(&store, "SELECT * FROM report")?;
    let wanted = json!({
        "run": 1, "run_id": planned.run_id.to_string(), "target": "10.0.0.0", "address": "10.0.0.0",
        "status": "up", "reason": null, "sent": 3, "received": 2,
        "rtt_min_ms": 1.0, "rtt_avg_ms": 1.5, "rtt_max_ms": 2.0, "rtt_stddev_ms": 0.5,
        "attempts": 1, "worker": "worker-1", "probed_at": "2023-11-14T22:13:20.123Z",
        "labels": r#"{"rack":"0"}"#,
    });
    for (column, value) in wanted.as_object().context("an object")? {
        ensure!(&row[column] == value, "{column}: {}", row[column]);
    }
    let loss = row["loss_pct"].as_f64().context("a number")?;
    ensure!((loss - 100.0 / 3.0).abs() < 1e-9, "{loss}");

    let latest = only(&store, "SELECT * FROM latest")?;
    for column in REPORT {
        ensure!(latest[column] == row[column], "{column}");
    }
    for column in ["first_seen", "last_up", "changed_at"] {
        ensure!(latest[column] == "2023-11-14T22:13:20.123Z", "{column}");
    }
    Ok(())
}

#[test]
fn what_was_not_measured_is_null() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[3])?;
    let statuses = [
        Status::Down { no_arp: false },
        Status::SendFailed { errno: 1 },
        Status::DnsFailed(DnsFailure::Nxdomain),
    ];
    store.apply(Transport::Broker, &[delivery(result(&works[0], &statuses))])?;
    for view in ["report", "latest"] {
        let found = rows(&store, &format!("SELECT * FROM {view} ORDER BY status"))?;
        let [dns_failed, down, send_failed] = found.as_slice() else {
            bail!("{found:?}");
        };
        for row in [dns_failed, down, send_failed] {
            for column in ["rtt_min_ms", "rtt_avg_ms", "rtt_max_ms", "rtt_stddev_ms"] {
                ensure!(row[column].is_null(), "{column}: {row:?}");
            }
            ensure!(row["received"] == 0);
        }
        // Three requests and no answer were measured; no request at all was not.
        ensure!(down["loss_pct"] == 100.0 && down["sent"] == 3);
        ensure!(down["reason"].is_null());
        ensure!(send_failed["loss_pct"].is_null() && send_failed["sent"] == 0);
        ensure!(dns_failed["loss_pct"].is_null() && dns_failed["address"].is_null());
        ensure!(dns_failed["labels"].is_null() && dns_failed["target"] == "host-2.example");
    }
    let row = only(&store, "SELECT last_up FROM latest WHERE status = 'down'")?;
    ensure!(row["last_up"].is_null());
    Ok(())
}

#[test]
fn a_run_without_a_lease_is_incomplete() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    let clock = Connection::open(store.path())?;
    ensure!(state(&store)? == "running");
    let back = |seconds: i64| {
        clock.execute(
            "UPDATE runs SET lease_renewed_us = ?1",
            [pingfleet_store::now_us() - seconds * 1_000_000],
        )
    };
    back(8)?;
    ensure!(state(&store)? == "running");
    back(20)?;
    ensure!(state(&store)? == "incomplete");
    store.renew_lease(planned.run)?;
    ensure!(state(&store)? == "running");
    store.release_lease(planned.run)?;
    ensure!(state(&store)? == "incomplete");
    // A complete run does not depend on its lease.
    let batch: Vec<_> = works
        .iter()
        .map(|work| delivery(result(work, &[Status::Up])))
        .collect();
    store.apply(Transport::Broker, &batch)?;
    ensure!(state(&store)? == "complete");
    // A large run whose last chunk was settled, and which is not closed yet.
    clock.execute("UPDATE runs SET state = 'running'", ())?;
    ensure!(state(&store)? == "running");
    Ok(())
}

#[test]
fn a_summary_counts_what_is_stored() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 3, 1])?;
    let batch = [
        delivery(result(&works[0], &[Status::Up, Status::Late])),
        delivery(result(&works[0], &[Status::Late])),
        delivery(result(&works[1], &[Status::Down { no_arp: true }])),
        dead_letter(&works[2]),
    ];
    store.apply(Transport::Broker, &batch)?;
    let row = only(&store, "SELECT * FROM run_summary")?;
    let wanted = json!({
        "run": 1, "run_id": planned.run_id.to_string(), "state": "incomplete", "targets": 6, "chunks": 3,
        "chunks_done": 2, "up": 1, "late": 1, "unreachable": 0, "dns_failed": 0, "send_failed": 0, "unknown": 0,
        "down": 3, "duplicates": 1, "redelivered": 0,
    });
    for (column, value) in wanted.as_object().context("an object")? {
        ensure!(&row[column] == value, "{column}: {}", row[column]);
    }
    for column in ["started_at", "finished_at"] {
        let text = row[column].as_str().context("a text")?;
        ensure!(text.len() == 24 && text.ends_with('Z'), "{text}");
    }
    // One that goes on has no end.
    store.retry_dead(planned.run)?;
    let row = only(&store, "SELECT finished_at, state FROM run_summary")?;
    ensure!(row["finished_at"].is_null() && row["state"] == "running");
    Ok(())
}
