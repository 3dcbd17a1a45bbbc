//! Months of runs lie in one file: what is asked of one run never walks over the others. The statements are those that
//! the functions really run, and their plans are SQLite's own (<https://www.sqlite.org/eqp.html>).

use std::sync::mpsc;

use anyhow::{Result, ensure};
use pingfleet_wire::Status;
use rusqlite::{
    Connection,
    trace::{TraceEvent, TraceEventCodes},
};
use tempfile::TempDir;

use super::sample::{dead_letter, delivery, options, result, sent, start};
use crate::{
    ReportFilter, Transport, Writer,
    reader::{report::PageQuery, verify::verify},
};

/// Tables that grow with the number of workers and writers only; everything else grows with every run.
const SMALL: [&str; 4] = ["w", "workers", "writers", "database"];

/// The plans of all statements that a function runs: statement, and one line for each of its loops.
fn plans(
    store: &mut Writer,
    function: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<Vec<(String, Vec<String>)>> {
    let (sender, receiver) = mpsc::channel();
    store.connection.trace_v2(
        TraceEventCodes::SQLITE_TRACE_STMT,
        Some(move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(statement, _) = event {
                sender
                    .send(statement.sql().into_owned())
                    .expect("the test listens");
            }
        }),
    )?;
    function(store)?;
    store
        .connection
        .trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent<'_>)>)?;
    let mut statements: Vec<_> = receiver.into_iter().collect();
    statements.sort();
    statements.dedup();
    statements
        .into_iter()
        .filter(|sql| !sql.starts_with("BEGIN") && !sql.starts_with("COMMIT"))
        .map(|sql| {
            let lines = plan(&store.connection, &sql)?;
            Ok((sql, lines))
        })
        .collect()
}

/// The lines of a statement's plan (<https://www.sqlite.org/eqp.html>).
pub(super) fn plan(connection: &Connection, sql: &str) -> Result<Vec<String>> {
    let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    let mut rows = explain.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(row.get(3)?);
    }
    Ok(lines)
}

/// The lines that walk over all rows of a big table.
pub(super) fn walks(lines: &[String]) -> Vec<&String> {
    lines
        .iter()
        .filter(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("SCAN")
                && words.next().is_some_and(|table| !SMALL.contains(&table))
        })
        .collect()
}

#[test]
fn what_is_asked_of_one_run_walks_over_no_other() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 2, 2])?;
    let run = planned.run;
    let seen = plans(&mut store, |store| {
        store.unpublished_chunks(run, None, 10)?;
        store.outstanding_work(run, 0)?;
        store.mark_published(run, &sent(&[0, 1, 2]))?;
        store.overdue(run, Transport::Broker, 10)?;
        store.apply(
            Transport::Broker,
            &[
                delivery(result(&works[0], &[Status::Up])),
                dead_letter(&works[1]),
            ],
        )?;
        store.retry_dead(run)?;
        store.apply(
            Transport::Broker,
            &[
                delivery(result(&works[1], &[Status::Up])),
                delivery(result(&works[2], &[Status::Up])),
            ],
        )?;
        store.renew_lease(run, None)?;
        store.summary(run)?;
        verify(&store.connection, run)?;
        store.done_chunks(run, 0)?;
        store.chunk_targets(run, 0, true)?;
        PageQuery::new(&ReportFilter::default()).read(&store.connection, run, (1, 0))?;
        store.find_run(&planned.run_id.to_string()[..13])?;
        Ok(())
    })?;
    ensure!(seen.len() > 20, "{} statements", seen.len());
    let mut by_key = 0;
    for (sql, lines) in &seen {
        let walks = walks(lines);
        ensure!(walks.is_empty(), "{sql}: {walks:?}");
        by_key += lines
            .iter()
            .filter(|line| line.contains("USING PRIMARY KEY (run=?"))
            .count();
    }
    ensure!(by_key > 10, "{by_key} searches by the key of a run");
    Ok(())
}

/// A file has a row for each run of many years. A role that starts or ends walks over none of them.
#[test]
fn a_role_that_starts_walks_over_no_run() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    start(&mut store, Transport::Broker, &[1])?;
    let seen = plans(&mut store, |store| {
        store.try_commit()?;
        store.note_writer_alive(Transport::Broker, "test")?;
        store.close_settled_runs(Transport::Broker)?;
        store.remove_abandoned_plans()?;
        store.find_run("latest")?;
        store.live_workers()?;
        Ok(())
    })?;
    ensure!(seen.len() > 5, "{} statements", seen.len());
    for (sql, lines) in &seen {
        let walks = walks(lines);
        ensure!(walks.is_empty(), "{sql}: {walks:?}");
    }
    let by_index = seen.iter().flat_map(|(_, lines)| lines);
    let by_index = by_index.filter(|line| line.contains("unfinished_runs"));
    ensure!(by_index.count() == 2, "{seen:?}");
    Ok(())
}

/// The control: a walk over all rows is seen as one.
#[test]
fn a_walk_over_all_runs_is_seen() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let seen = plans(&mut store, |store| {
        store
            .connection
            .query_row("SELECT count(*) FROM results WHERE status = 1", (), |_| {
                Ok(())
            })?;
        Ok(())
    })?;
    ensure!(seen.len() == 1 && walks(&seen[0].1).len() == 1, "{seen:?}");
    Ok(())
}
