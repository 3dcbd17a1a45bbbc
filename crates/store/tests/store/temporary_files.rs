//! Runs are closed and cancelled although SQLite's temporary files have no room.

use anyhow::{Result, ensure};
use pingfleet_store::{DecodedDelivery, PlannedRun, Reader, RunState, Transport};
use pingfleet_testbed::SmallDisk;
use pingfleet_wire::{Status, WorkChunk};
use rusqlite::{Connection, ErrorCode};
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::{delivery, options, result, start},
};

#[test]
fn a_full_folder_of_temporary_files_ends_no_writer() -> Result<()> {
    let disk = SmallDisk::new(256)?;
    disk.fill(0)?;
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    Process::start_with("temporary_files::child_closes_runs", &path, |command| {
        command.env("SQLITE_TMPDIR", disk.path());
    })?
    .join()?;
    let reader = Reader::open(&path)?;
    for run in 1..=3 {
        ensure!(reader.verify(run)?.is_complete(), "run {run}");
    }
    Ok(())
}

/// The results of chunks whose targets are up. Each run is probed later than the one before, so its rows are the latest.
fn up(planned: &PlannedRun, works: &[WorkChunk]) -> Vec<DecodedDelivery> {
    let probed = |work| {
        let mut message = result(work, &[Status::Up]);
        message.started_at_us += planned.run.unsigned_abs() * 60_000_000;
        delivery(message)
    };
    works.iter().map(probed).collect()
}

#[test]
#[ignore = "a process that another test starts"]
fn child_closes_runs() -> Result<()> {
    // The control: without room, what needs a temporary file fails.
    let refused = Connection::open_in_memory()?.query_row(
        "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 200000)
         SELECT y FROM (SELECT hex(randomblob(50)) AS y FROM n ORDER BY y)",
        (),
        |row| row.get::<_, String>(0),
    );
    let code = refused
        .as_ref()
        .err()
        .and_then(rusqlite::Error::sqlite_error_code);
    ensure!(code == Some(ErrorCode::DiskFull), "{refused:?}");
    // The first run is closed with its last chunk, the others afterwards.
    for (chunks, is_large) in [(90, false), (101, true), (101, true)] {
        // Each time with new connection, which tries the folder again.
        let mut store = options(&child::database()?).open()?;
        let (planned, works) = start(&mut store, Transport::Sweep, &vec![1000; chunks])?;
        let batch = up(&planned, &works);
        let (last, others) = batch.split_last().expect("there are chunks");
        store.apply(Transport::Sweep, others)?;
        let applied = store.apply(Transport::Sweep, std::slice::from_ref(last))?;
        ensure!(applied.is_large_run_settled == is_large);
        if is_large {
            ensure!(store.close_settled_runs(Transport::Sweep)?.len() == 1);
        }
        ensure!(store.summary(planned.run)?.state == RunState::Complete);
        let latest: i64 = Connection::open(store.path())?.query_row(
            "SELECT count(*) FROM latest_rows WHERE run = ?1",
            [planned.run],
            |row| row.get(0),
        )?;
        ensure!(latest == chunks as i64 * 1000, "{latest} rows");
    }
    // A run that is open when it is cancelled.
    let mut store = options(&child::database()?).open()?;
    let (planned, works) = start(&mut store, Transport::Sweep, &[1000; 102])?;
    let batch = up(&planned, &works[1..]);
    store.apply(Transport::Sweep, &batch)?;
    ensure!(store.cancel_run(planned.run)?);
    ensure!(store.summary(planned.run)?.state == RunState::Cancelled);
    let (latest, has_ended): (i64, bool) = Connection::open(store.path())?.query_row(
        "SELECT count(*), (SELECT finished_at_us IS NOT NULL FROM runs WHERE run = ?1)
         FROM latest_rows WHERE run = ?1",
        [planned.run],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    ensure!(latest == 101_000 && has_ended, "{latest} rows");
    Ok(())
}
