//! A full disk, and a database that another program has locked: a failed transaction leaves nothing.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_wire::{Status, WorkChunk};
use rusqlite::{
    Connection, ErrorCode,
    trace::{TraceEvent, TraceEventCodes},
};
use tempfile::TempDir;

use super::sample::{delivery, options, plan, reader, result, sent, start};
use crate::{DatabaseThread, DecodedDelivery, PlannedRun, StoreError, Transport, Writer};

fn waiting(folder: &TempDir, sizes: &[usize]) -> Result<(Writer, PlannedRun, Vec<WorkChunk>)> {
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Sweep, "test")?;
    let (planned, works) = start(&mut store, Transport::Sweep, sizes)?;
    Ok((store, planned, works))
}

fn results(works: &[WorkChunk]) -> Vec<DecodedDelivery> {
    works
        .iter()
        .map(|work| delivery(result(work, &[Status::Up])))
        .collect()
}

fn limit(store: &Writer, pages: i64) -> Result<()> {
    store
        .connection
        .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    Ok(())
}

#[test]
fn a_full_disk_leaves_nothing_of_the_batch() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, planned, works) = waiting(&folder, &[200; 4])?;
    let batch = results(&works);
    let pages: i64 = store
        .connection
        .pragma_query_value(None, "page_count", |row| row.get(0))?;
    let mut failures = 0;
    // Each limit lets it come a little further.
    for room in 0.. {
        limit(&store, pages + room)?;
        match store.apply(Transport::Sweep, &batch) {
            Ok(applied) => {
                ensure!(applied.applied == 4 && applied.closed.len() == 1);
                break;
            }
            Err(StoreError::Sqlite(error)) => {
                ensure!(error.sqlite_error_code() == Some(ErrorCode::DiskFull));
                ensure!(!StoreError::from(error).is_transient());
            }
            Err(error) => bail!(error),
        }
        ensure!(store.connection.is_autocommit());
        let proof = reader(&store)?.verify(planned.run)?;
        ensure!(proof.is_consistent(), "{:?}", proof.findings);
        ensure!(proof.proven_targets == 0 && proof.outstanding_chunks == 4);
        let sign = store.writer_liveness(Transport::Sweep)?;
        ensure!(sign.is_some_and(|sign| sign.taken == 0));
        failures += 1;
    }
    ensure!(failures > 5, "the disk was full {failures} times");
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}

/// On Unix only: elsewhere the system refuses to delete what is open.
#[cfg(unix)]
#[test]
fn what_is_written_into_a_deleted_file_is_not_stored() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, planned, works) = waiting(&folder, &[2, 2])?;
    let batch = results(&works);
    ensure!(store.apply(Transport::Sweep, &batch[..1])?.applied == 1);
    let moved = folder.path().join("moved.db");
    std::fs::rename(store.path(), &moved)?;
    for _ in 0..2 {
        let refused = store.apply(Transport::Sweep, &batch[1..]);
        ensure!(matches!(&refused, Err(error @ StoreError::Gone { .. }) if !error.is_transient()));
        // The same with another file in its place.
        std::fs::write(store.path(), "")?;
    }
    std::fs::rename(&moved, store.path())?;
    store.apply(Transport::Sweep, &batch[1..])?;
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}

#[test]
fn a_locked_database_is_transient_and_leaves_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, planned, works) = waiting(&folder, &[2, 2])?;
    let run = planned.run;
    store.connection.busy_timeout(Duration::ZERO)?;
    let other = Connection::open(store.path())?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    let batch = results(&works);
    let refused = [
        store.apply(Transport::Sweep, &batch).err(),
        store.mark_published(run, &sent(&[0])).err(),
        store.cancel_run(run).err(),
        store.retry_dead(run).err(),
        store.release_lease(run).err(),
        store.note_writer_alive(Transport::Sweep, "x").err(),
        store.remove_abandoned_plans().err(),
        store.try_commit().err(),
        plan(&mut store, Transport::Sweep, &[1])
            .err()
            .and_then(|error| error.downcast().ok()),
    ];
    for (at, error) in refused.iter().enumerate() {
        ensure!(
            error.as_ref().is_some_and(StoreError::is_transient),
            "call {at}: {error:?}"
        );
    }
    // Reading still works.
    ensure!(reader(&store)?.verify(run)?.outstanding_chunks == 2);
    ensure!(store.unpublished_chunks(run, None, 10)?.len() == 2);
    other.execute_batch("ROLLBACK")?;
    ensure!(store.apply(Transport::Sweep, &batch)?.applied == 2);
    ensure!(reader(&store)?.verify(run)?.is_complete());
    ensure!(reader(&store)?.summaries()?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_call_while_busy_repeats_until_the_lock_is_free() -> Result<()> {
    let folder = TempDir::new()?;
    let db = DatabaseThread::open(options(&folder.path().join("fleet.db"))).await?;
    db.call(|store| Ok(store.connection.busy_timeout(Duration::ZERO)?))
        .await?;
    let other = Connection::open(db.path())?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    let blocker = Arc::new(Mutex::new((0, Some(other))));
    let inside = Arc::clone(&blocker);
    db.call_while_busy(move |store| {
        let mut blocker = inside.lock().unwrap_or_else(PoisonError::into_inner);
        blocker.0 += 1;
        if blocker.0 == 3 {
            blocker.1 = None;
        }
        store.try_commit()
    })
    .await?;
    let tries = blocker.lock().unwrap_or_else(PoisonError::into_inner).0;
    ensure!(tries == 3, "{tries} tries");
    db.close().await?;
    Ok(())
}

/// Another producer plans its run at the moment of the commit. It gets a number and a lock of its own.
#[test]
fn a_run_can_begin_at_once_when_an_abandoned_plan_is_removed() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let mut other = options(&path).open()?;
    let (abandoned, _works) = plan(&mut other, Transport::Sweep, &[1])?;
    let number = abandoned.run;
    drop(abandoned);
    let (sender, begun) = mpsc::channel();
    let mut other = Some(other);
    store.connection.trace_v2(
        TraceEventCodes::SQLITE_TRACE_PROFILE,
        Some(move |event: TraceEvent<'_>| {
            if let TraceEvent::Profile(statement, _) = event
                && statement.sql().starts_with("COMMIT")
                && let Some(mut other) = other.take()
            {
                let begun =
                    plan(&mut other, Transport::Sweep, &[1]).map(|(planned, _)| planned.run);
                sender.send(begun).expect("the test listens");
            }
        }),
    )?;
    ensure!(store.remove_abandoned_plans()? == [number]);
    let begun = begun.try_recv().context("nothing was committed")??;
    ensure!(begun == number + 1, "run {begun} after run {number}");
    Ok(())
}

/// What another process sees of a run when the transaction is committed that cancels it: its state, whether it has ended,
/// and how many of its rows are in `latest`.
type Seen = (String, bool, i64);

fn seen(path: &std::path::Path, run: i64) -> Result<Seen> {
    Ok(Connection::open(path)?.query_row(
        "SELECT state, finished_at_us IS NOT NULL, (SELECT count(*) FROM latest_rows WHERE run = ?1)
         FROM runs WHERE run = ?1",
        [run],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?)
}

#[test]
fn a_run_is_cancelled_before_its_rows_go_into_latest() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, planned, works) = waiting(&folder, &[200; 4])?;
    let run = planned.run;
    store.apply(Transport::Sweep, &results(&works[..3]))?;
    let (sender, commits) = mpsc::channel();
    let path = store.path().to_owned();
    store.connection.trace_v2(
        TraceEventCodes::SQLITE_TRACE_PROFILE,
        Some(move |event: TraceEvent<'_>| {
            if let TraceEvent::Profile(statement, _) = event
                && statement.sql().starts_with("COMMIT")
            {
                sender.send(seen(&path, run)).expect("the test listens");
            }
        }),
    )?;
    ensure!(store.cancel_run(run)?);
    let commits: Vec<_> = commits.try_iter().collect::<Result<_>>()?;
    let cancelled = |finished, rows| ("cancelled".to_owned(), finished, rows);
    ensure!(
        commits
            == [
                cancelled(false, 0),
                cancelled(false, 600),
                cancelled(true, 600)
            ],
        "{commits:?}"
    );
    Ok(())
}

#[test]
fn the_writer_completes_what_a_killed_canceller_began() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, planned, works) = waiting(&folder, &[200; 4])?;
    let run = planned.run;
    store.apply(Transport::Sweep, &results(&works[..2]))?;
    // The first transaction of a cancelling.
    store
        .connection
        .execute("UPDATE runs SET state = 'cancelled' WHERE run = ?1", [run])?;
    store.apply(Transport::Sweep, &results(&works[2..3]))?;
    ensure!(store.close_settled_runs(Transport::Broker)?.is_empty());
    ensure!(seen(store.path(), run)? == ("cancelled".to_owned(), false, 200));
    ensure!(store.close_settled_runs(Transport::Sweep)?.is_empty());
    ensure!(seen(store.path(), run)? == ("cancelled".to_owned(), true, 600));
    ensure!(!store.cancel_run(run)?);
    Ok(())
}
