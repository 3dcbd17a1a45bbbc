//! Pruned runs: what the writer does with late results, and that a changed run is not marked.

use anyhow::{Result, ensure};
use pingfleet_store::{Reader, StoreError, Transport};
use pingfleet_wire::Status;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::sample::{dead_letter, delivery, options, result, start};

#[test]
fn a_late_result_of_a_pruned_run_is_put_aside() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 2, 2])?;
    let run = planned.run;
    let late = |at: usize| delivery(result(&works[at], &[Status::Up, Status::Up]));
    store.apply(
        Transport::Broker,
        &[late(0), dead_letter(&works[1]), dead_letter(&works[2])],
    )?;
    let reader = Reader::open(&path)?;
    let before = reader.summary(run)?;
    // A result that comes after the rows were read changes the run: it is not marked.
    store.apply(Transport::Broker, &[late(1)])?;
    ensure!(!store.mark_pruned(&before, None)?);
    ensure!(reader.summary(run)?.pruned.is_none());
    let now = reader.summary(run)?;
    ensure!(reader.progress(run)?.is_some());
    ensure!(store.mark_pruned(&now, Some("/archive/run.parquet"))?);
    ensure!(reader.progress(run)?.is_none());
    // From now on nothing is stored.
    let applied = store.apply(Transport::Broker, &[late(2)])?;
    ensure!(applied.quarantined == 1 && applied.rows == 0, "{applied:?}");
    ensure!(reader.summary(run)?.counts == now.counts);
    match reader.verify(run) {
        Err(StoreError::Pruned { archive, .. }) => {
            ensure!(archive.as_deref() == Some("/archive/run.parquet"));
        }
        other => anyhow::bail!("{other:?}"),
    }
    // All its rows are those that `latest` shows.
    let stop = CancellationToken::new();
    ensure!(reader.latest_counts()?.get(&run) == Some(&4));
    let rows = store.remove_pruned_rows(run, &stop)?;
    ensure!((rows.removed, rows.kept) == (0, 4), "{rows:?}");
    // Nothing of it is to be removed before `latest` shows other rows.
    ensure!(store.pruned_runs_to_clean(&reader)?.is_empty());
    rusqlite::Connection::open(&path)?.execute_batch("DELETE FROM latest_rows")?;
    ensure!(store.pruned_runs_to_clean(&reader)? == [run]);
    ensure!(matches!(
        store.cancel_run(run),
        Err(StoreError::Pruned { .. })
    ));
    let rows = store.remove_pruned_rows(run, &stop)?;
    ensure!((rows.removed, rows.kept) == (4, 0), "{rows:?}");
    ensure!(store.pruned_runs_to_clean(&reader)?.is_empty());
    stop.cancel();
    let stopped = store.remove_pruned_rows(run, &stop);
    ensure!(
        matches!(stopped, Err(StoreError::Interrupted)),
        "{stopped:?}"
    );
    Ok(())
}

#[test]
fn a_run_that_is_not_over_is_not_marked() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (planned, _works) = start(&mut store, Transport::Sweep, &[2])?;
    let summary = Reader::open(&path)?.summary(planned.run)?;
    ensure!(!store.mark_pruned(&summary, None)?);
    // The control: a cancelled one is.
    store.cancel_run(planned.run)?;
    ensure!(store.mark_pruned(&summary, None)?);
    Ok(())
}
