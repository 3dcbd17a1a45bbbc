//! A database of the first schema version is upgraded with its runs.

use anyhow::{Context as _, Result, ensure};
use pingfleet_wire::{Status, Target};
use rusqlite::Connection;
use tempfile::TempDir;

use super::sample::{STARTED_AT_US, delivery, options, plan_of, result, start};
use crate::{
    Reader, StoreError, Transport,
    schema::{APPLICATION_ID, MIGRATIONS},
};

/// The tables of a connection, and the columns of each.
fn tables(connection: &Connection) -> Result<Vec<(String, String)>> {
    let sql = "SELECT t.name, group_concat(c.name, ', ') FROM sqlite_schema t, pragma_table_info(t.name) c
        WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' GROUP BY t.name";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[test]
fn a_database_of_version_1_keeps_its_runs_and_notes_changes_from_then_on() -> Result<()> {
    let folder = TempDir::new()?;
    let (path, newer) = (
        folder.path().join("fleet.db"),
        folder.path().join("newer.db"),
    );
    let mut store = options(&newer).open()?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[3])?;
    let outcomes = [Status::Up, Status::DOWN];
    store.apply(Transport::Broker, &[delivery(result(&works[0], &outcomes))])?;
    // A run that goes on after the upgrade.
    let other = |number| vec![Target::Text(format!("other-{number}.example"))];
    let (begun_run, begun) = plan_of(&mut store, Transport::Broker, (0..3).map(other).collect())?;
    store.start_run(begun_run.run)?;
    store.apply(
        Transport::Broker,
        &[delivery(result(&begun[0], &[Status::Up]))],
    )?;
    store.close()?;
    // The same rows in a database of version 1.
    let connection = Connection::open(&path)?;
    connection.execute_batch(MIGRATIONS[0])?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", 1)?;
    connection.execute("ATTACH ?1 AS newer", [newer.to_str()])?;
    // Version 6 keeps no workers of an earlier one.
    let kept = tables(&connection)?;
    let kept = kept
        .into_iter()
        .filter(|(table, _)| table != "workers" && table != "in_hand");
    for (table, columns) in kept {
        connection.execute_batch(&format!(
            "INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}"
        ))?;
    }
    connection.execute_batch(
        "INSERT INTO in_hand (instance, run_id, chunk, taken_at_us) VALUES (zeroblob(16), 'x', 1, 1)",
    )?;
    connection.execute_batch(
        "INSERT INTO quarantine (received_at_us, queue, reason, length, body)
         VALUES (1, 'results', 'wrong token for chunk 5 of run 3', 0, x'00')",
    )?;
    drop(connection);
    ensure!(matches!(
        Reader::open(&path),
        Err(StoreError::Older {
            found: 1,
            needed: 6,
            ..
        })
    ));

    let mut store = options(&path).open()?;
    let reader = Reader::open(&path)?;
    ensure!(reader.verify(1)?.is_complete() && reader.workers()?.is_empty());
    let row = reader.target_runs("10.0.0.0")?;
    let row = row.context("the target is there")?.rows.remove(0);
    ensure!((row.worker.as_deref(), row.login) == (Some("worker-1"), None));
    let refused = reader.quarantine()?;
    ensure!(refused.reasons == [("results".into(), "refused by an older version".into(), 1)]);
    ensure!(refused.newest[0].detail == "wrong token for chunk 5 of run 3");
    store.apply(
        Transport::Broker,
        &[delivery(result(&begun[1], &[Status::Up]))],
    )?;
    ensure!(reader.verify(2)?.is_consistent() && reader.progress(2)?.is_none());
    let host = reader.target_runs("10.0.0.0")?;
    ensure!(host.is_some_and(|host| host.rows.len() == 1 && host.changes.is_empty()));
    // A run of the same targets, an hour later, in which the first one is down.
    let (_planned, works) = start(&mut store, Transport::Broker, &[3])?;
    let mut message = result(&works[0], &[Status::DOWN]);
    message.started_at_us = STARTED_AT_US + 3_600_000_000;
    store.apply(Transport::Broker, &[delivery(message)])?;
    let changes = reader
        .target_runs("10.0.0.0")?
        .map(|host| host.changes.len());
    ensure!(changes == Some(1), "{changes:?}");
    // The counters of a run are kept from its first result on.
    ensure!(reader.progress(1)?.is_none() && reader.progress(3)?.is_some());
    ensure!(
        reader
            .target_runs("10.0.0.1")?
            .is_some_and(|host| host.changes.is_empty())
    );
    store.close()?;
    Ok(())
}
