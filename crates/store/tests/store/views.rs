//! The views that users query: they use only SQLite's built-in functions, and show NULL for what was not measured.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_store::{LATEST_COLUMNS, REPORT_COLUMNS, Transport, Writer};
use pingfleet_wire::{
    DnsFailure, DownReason, Rtt, Status, Target,
    timing::{RUN_LEASE, WORKER_TIMEOUT, WRITER_TIMEOUT},
};
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::liveness::heartbeat;
use crate::sample::{dead_letter, delivery, options, plan_of, reader, result, sent, start};

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
    // Of the first run.
    let sql = "SELECT state FROM run_summary ORDER BY run LIMIT 1";
    Ok(only(store, sql)?["state"].clone())
}

fn open(folder: &TempDir) -> Result<Writer> {
    Ok(options(&folder.path().join("fleet.db")).open()?)
}

const RUN_SUMMARY: [&str; 18] = [
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
    "parent_run",
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
    ensure!(columns("report")? == REPORT_COLUMNS);
    ensure!(columns("run_summary")? == RUN_SUMMARY);
    let latest = columns("latest")?;
    ensure!(latest[..REPORT_COLUMNS.len()] == REPORT_COLUMNS);
    ensure!(latest[REPORT_COLUMNS.len()..] == LATEST_COLUMNS);
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
        "attempts": 1, "worker": "worker-1", "login": null, "probed_at": "2023-11-14T22:13:20.123Z",
        "labels": r#"{"rack":"0"}"#,
    });
    for (column, value) in wanted.as_object().context("an object")? {
        ensure!(&row[column] == value, "{column}: {}", row[column]);
    }
    let loss = row["loss_pct"].as_f64().context("a number")?;
    ensure!((loss - 100.0 / 3.0).abs() < 1e-9, "{loss}");

    let latest = only(&store, "SELECT * FROM latest")?;
    for column in REPORT_COLUMNS {
        ensure!(latest[column] == row[column], "{column}");
    }
    for column in ["first_seen", "last_up", "changed_at"] {
        ensure!(latest[column] == "2023-11-14T22:13:20.123Z", "{column}");
    }
    Ok(())
}

/// One reply has one round-trip time. The table stores it once, and the views show it in every column.
#[test]
fn one_reply_is_shortest_mean_and_longest() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[1])?;
    let mut message = result(&works[0], &[Status::Up]);
    let sample = Rtt {
        min_ns: 1_250_000,
        avg_ns: 1_250_000,
        max_ns: 1_250_000,
        stddev_ns: 0,
    };
    message.outcomes[0].received = 1;
    message.outcomes[0].rtt = Some(sample);
    message.outcomes[0].probed_after_us = 2_000_000;
    store.apply(Transport::Broker, &[delivery(message)])?;
    for view in ["report", "latest"] {
        let row = only(&store, &format!("SELECT * FROM {view}"))?;
        for column in ["rtt_min_ms", "rtt_avg_ms", "rtt_max_ms"] {
            ensure!(row[column] == 1.25, "{column}: {row:?}");
        }
        ensure!(row["rtt_stddev_ms"] == 0.0, "{row:?}");
        ensure!(row["probed_at"] == "2023-11-14T22:13:22.123Z", "{row:?}");
    }
    let stored = only(&store, "SELECT * FROM results")?;
    for column in ["rtt_min_ns", "rtt_max_ns", "rtt_stddev_ns"] {
        ensure!(stored[column].is_null(), "{column}: {stored:?}");
    }
    Ok(())
}

/// A name, an IPv6 address and both ends of IPv4: the views show each as it was planned.
#[test]
fn every_kind_of_target_is_shown_as_text() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let addresses = [
        "0.0.0.1",
        "10.0.0.1",
        "127.255.255.255",
        "128.0.0.0",
        "255.255.255.254",
        "fd00::1",
    ];
    let mut targets = Vec::new();
    for address in addresses {
        targets.push(Target::Address(address.parse()?));
    }
    for name in ["host.example", "host6.example"] {
        targets.push(Target::Text(name.to_owned()));
    }
    let (planned, works) = plan_of(&mut store, Transport::Broker, vec![targets])?;
    store.start_run(planned.run)?;
    let mut message = result(&works[0], &[Status::Up]);
    message.outcomes[6].address = Some("192.0.2.1".parse()?);
    message.outcomes[7].address = Some("2001:db8::1".parse()?);
    store.apply(Transport::Broker, &[delivery(message)])?;
    let wanted: Vec<_> = addresses
        .into_iter()
        .map(|address| (address, address))
        .chain([
            ("host.example", "192.0.2.1"),
            ("host6.example", "2001:db8::1"),
        ])
        .collect();
    for view in ["report", "latest"] {
        let found = rows(
            &store,
            &format!("SELECT target, address FROM {view} ORDER BY run, target"),
        )?;
        let mut found: Vec<_> = found
            .iter()
            .map(|row| {
                (
                    row["target"].as_str().unwrap_or("no text"),
                    row["address"].as_str().unwrap_or("no text"),
                )
            })
            .collect();
        found.sort_by_key(|(target, _)| wanted.iter().position(|(text, _)| text == target));
        ensure!(found == wanted, "{view}: {found:?}");
    }
    let chunk = store.chunk_targets(planned.run, 0, true)?;
    ensure!(
        chunk.iter().eq(wanted.iter().map(|(target, _)| target)),
        "{chunk:?}"
    );
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}

/// The statuses stand in the wire's `Status` and as text in the schema. Both agree.
#[test]
fn the_schema_knows_the_statuses_of_the_wire() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[1])?;
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    let connection = Connection::open(store.path())?;
    let set = |code: u8| connection.execute("UPDATE results SET status = ?1", [code]);
    for (code, name) in (0..).zip(Status::NAMES) {
        set(code)?;
        let row = only(&store, "SELECT status FROM report")?;
        ensure!(row["status"] == name, "{code}: {row:?}");
    }
    ensure!(
        set(Status::NAMES.len() as u8).is_err(),
        "a code without a status"
    );
    // The counters of a run have the names and the order of the statuses.
    ensure!(RUN_SUMMARY[8..15] == Status::NAMES);
    // The statements call `status <= 1` answered.
    ensure!([Status::Up.code(), Status::Late.code()] == [0, 1]);
    Ok(())
}

#[test]
fn a_run_has_a_parent_that_is_a_run_or_none() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    start(&mut store, Transport::Broker, &[1])?;
    start(&mut store, Transport::Broker, &[1])?;
    let connection = Connection::open(store.path())?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let set =
        |parent: i64| connection.execute("UPDATE runs SET parent_run = ?1 WHERE run = 2", [parent]);
    ensure!(set(3).is_err(), "a parent that is no run");
    set(1)?;
    let parent = |store: &Writer| -> Result<Value> {
        Ok(only(store, "SELECT parent_run FROM run_summary WHERE run = 2")?["parent_run"].clone())
    };
    ensure!(parent(&store)? == 1);
    connection.execute("DELETE FROM runs WHERE run = 1", ())?;
    ensure!(parent(&store)?.is_null());
    Ok(())
}

#[test]
fn what_was_not_measured_is_null() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[3])?;
    let statuses = [
        Status::DOWN,
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
    store.renew_lease(planned.run, None)?;
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
fn a_detached_run_is_running_while_it_moves() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    store.note_writer_alive(Transport::Broker, "test")?;
    // A worker has a chunk of another run in hand, and the chunks of this one wait behind it.
    let (other, other_works) = start(&mut store, Transport::Broker, &[1])?;
    store.mark_published(other.run, &sent(&[0]))?;
    let busy = heartbeat("worker-1", 1, vec![other_works[0].key]);
    store.apply(Transport::Broker, std::slice::from_ref(&busy))?;
    store.release_lease(planned.run)?;
    // Its producer was stopped before all was published: nobody publishes the rest.
    store.mark_published(planned.run, &sent(&[0]))?;
    ensure!(state(&store)? == "incomplete");
    store.mark_published(planned.run, &sent(&[1]))?;
    ensure!(state(&store)? == "running");

    let clock = Connection::open(store.path())?;
    let set_back = |table: &str, column: &str, seconds: i64| {
        clock.execute(
            &format!("UPDATE {table} SET {column} = {column} - ?1"),
            [seconds * 1_000_000],
        )
    };
    let seconds = |time: Duration| time.as_secs() as i64;
    // Without a writer nothing is stored.
    set_back("writers", "seen_us", seconds(WRITER_TIMEOUT) - 5)?;
    ensure!(state(&store)? == "running");
    set_back("writers", "seen_us", 10)?;
    ensure!(state(&store)? == "incomplete");
    store.note_writer_alive(Transport::Broker, "test")?;
    ensure!(state(&store)? == "running");
    // Without a live worker nothing is probed.
    set_back("workers", "last_seen_us", seconds(WORKER_TIMEOUT) - 5)?;
    ensure!(state(&store)? == "running");
    set_back("workers", "last_seen_us", 10)?;
    ensure!(state(&store)? == "incomplete");
    store.apply(Transport::Broker, &[busy])?;
    ensure!(state(&store)? == "running");
    // Workers that have nothing to do: the messages of this run are lost.
    store.apply(Transport::Broker, &[heartbeat("worker-1", 1, Vec::new())])?;
    ensure!(state(&store)? == "incomplete");

    for work in &works {
        store.apply(Transport::Broker, &[delivery(result(work, &[Status::Up]))])?;
    }
    ensure!(state(&store)? == "complete");
    Ok(())
}

#[test]
fn a_lease_lasts_as_long_as_the_roles_agreed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, _works) = start(&mut store, Transport::Broker, &[1])?;
    let clock = Connection::open(store.path())?;
    let set_back = |seconds: i64| {
        clock.execute(
            "UPDATE runs SET lease_renewed_us = lease_renewed_us - ?1",
            [seconds * 1_000_000],
        )
    };
    set_back(RUN_LEASE.as_secs() as i64 - 5)?;
    ensure!(state(&store)? == "running");
    set_back(10)?;
    ensure!(state(&store)? == "incomplete");
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
        delivery(result(&works[1], &[Status::Down(DownReason::NoArp)])),
        dead_letter(&works[2]),
    ];
    store.apply(Transport::Broker, &batch)?;
    let row = only(&store, "SELECT * FROM run_summary")?;
    let wanted = json!({
        "run": 1, "run_id": planned.run_id.to_string(), "state": "incomplete", "targets": 6, "chunks": 3,
        "chunks_done": 2, "up": 1, "late": 1, "unreachable": 0, "dns_failed": 0, "send_failed": 0, "unknown": 0,
        "down": 3, "duplicates": 1, "redelivered": 0, "parent_run": null,
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
