//! A process that is killed at any statement of a batch leaves nothing of that batch.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, Message as _, Status, WorkChunk};
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    child::{self, Process},
    sample::{dead_letter, delivery, options, reader, result, sent, start},
};
use crate::{Applied, DecodedDelivery, RunState, Transport, Writer};

/// One delivery of each kind: results, a dead letter, a duplicate, a message for no chunk, a heartbeat.
fn batch(works: &[WorkChunk]) -> Vec<DecodedDelivery> {
    let mut stranger = result(&works[0], &[Status::Up]);
    stranger.token.0 = Uuid::nil();
    let heartbeat = Heartbeat {
        in_hand: vec![ChunkInHand::just_taken(ChunkKey {
            run: works[0].key.run,
            chunk: 1,
        })],
        ..Heartbeat::new("worker-1", Uuid::nil())
    };
    let down = Status::DOWN;
    vec![
        DecodedDelivery::Heartbeat {
            heartbeat,
            login: None,
        },
        delivery(result(&works[0], &[Status::Up, down])),
        delivery(stranger),
        dead_letter(&works[1]),
        delivery(result(&works[0], &[down])),
        delivery(result(&works[2], &[down])),
    ]
}

/// The work messages of the only run, from its plan.
fn works(store: &Writer) -> Result<Vec<WorkChunk>> {
    let sql = "SELECT work FROM plan WHERE run = 1 ORDER BY chunk";
    let mut statement = store.connection.prepare(sql)?;
    let works = statement.query_map((), |row| row.get::<_, Vec<u8>>(0))?;
    works.map(|work| Ok(WorkChunk::decode(&work?)?)).collect()
}

/// Does something with the store, and calls `at` at the beginning of each statement, with its number from 1.
fn traced<T>(
    store: &mut Writer,
    mut at: impl FnMut(usize, &str) + Send + 'static,
    act: impl FnOnce(&mut Writer) -> Result<T>,
) -> Result<T> {
    let mut number = 0;
    store.connection.trace_v2(
        TraceEventCodes::SQLITE_TRACE_STMT,
        Some(move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(_, sql) = event {
                number += 1;
                at(number, sql);
            }
        }),
    )?;
    let done = act(store)?;
    store
        .connection
        .trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent<'_>)>)?;
    Ok(done)
}

fn apply_traced(
    store: &mut Writer,
    at: impl FnMut(usize, &str) + Send + 'static,
) -> Result<Applied> {
    let batch = batch(&works(store)?);
    traced(store, at, |store| {
        Ok(store.apply(Transport::Broker, &batch)?)
    })
}

fn stop_at(statement: usize) -> impl FnMut(usize, &str) + Send + 'static {
    move |number, sql| {
        if number == statement {
            println!("reached {sql}");
            child::wait().expect("the parent's word");
        }
    }
}

#[test]
#[ignore = "a process that another test starts"]
fn child_applies() -> Result<()> {
    let mut store = options(&child::database()?).open()?;
    println!("waiting");
    let statement = child::wait()?.parse()?;
    apply_traced(&mut store, stop_at(statement))?;
    println!("applied");
    child::wait()?;
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_closes() -> Result<()> {
    let mut store = options(&child::database()?).open()?;
    println!("waiting");
    let statement = child::wait()?.parse()?;
    traced(&mut store, stop_at(statement), |store| {
        Ok(store.close_settled_runs(Transport::Broker)?)
    })?;
    anyhow::bail!("it has no statement {statement}")
}

fn child_at(path: &Path, statement: usize) -> Result<Process> {
    start_child("tests::crash::child_applies", path, statement)
}

fn start_child(test: &str, path: &Path, statement: usize) -> Result<Process> {
    let mut child = Process::start(test, path)?;
    child.hear("waiting")?;
    child.send_line(&statement.to_string())?;
    Ok(child)
}

fn is_whole(store: &mut Writer) -> Result<()> {
    let summary = store.summary(1)?;
    ensure!(summary.state == RunState::Incomplete, "{summary:?}");
    ensure!((summary.chunks_done, summary.chunks_dead) == (2, 1));
    let sign = store.writer_liveness(Transport::Broker)?;
    ensure!(sign.is_some_and(|sign| {
        (sign.taken, sign.applied, sign.duplicates, sign.quarantined) == (5, 3, 1, 1)
    }));
    let proof = reader(store)?.verify(1)?;
    ensure!(proof.is_consistent(), "{:?}", proof.findings);
    ensure!(proof.proven_targets == 4 && rows(store, "latest_rows")? == 4);
    ensure!(rows(store, "quarantine")? == 1 && rows(store, "workers")? == 1);
    // What its heartbeat claims is settled by the same batch.
    ensure!(rows(store, "in_hand")? == 0);
    Ok(())
}

fn rows(store: &Writer, table: &str) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM {table}");
    Ok(store.connection.query_row(&sql, (), |row| row.get(0))?)
}

fn is_untouched(store: &mut Writer) -> Result<()> {
    let proof = reader(store)?.verify(1)?;
    ensure!(proof.is_consistent(), "{:?}", proof.findings);
    ensure!((proof.proven_targets, proof.outstanding_chunks) == (0, 3));
    let sign = store.writer_liveness(Transport::Broker)?;
    ensure!(sign.is_some_and(|sign| sign.taken == 0));
    for table in ["results", "latest_rows", "quarantine", "workers", "in_hand"] {
        ensure!(rows(store, table)? == 0, "{table} has rows");
    }
    Ok(())
}

/// A run of three chunks that waits for its results, in a closed file.
fn waiting(folder: &TempDir) -> Result<std::path::PathBuf> {
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let (planned, _) = start(&mut store, Transport::Broker, &[2, 2, 2])?;
    store.mark_published(planned.run, &sent(&[1]))?;
    store.close()?;
    Ok(path)
}

#[test]
fn a_process_killed_at_any_statement_leaves_nothing_of_its_batch() -> Result<()> {
    let folder = TempDir::new()?;
    let base = waiting(&folder)?;
    let copy = folder.path().join("copy.db");
    fs::copy(&base, &copy)?;
    let (sender, statements) = std::sync::mpsc::channel();
    let mut store = options(&copy).open()?;
    apply_traced(&mut store, move |_, sql| {
        sender.send(sql.to_owned()).expect("the test listens");
    })?;
    is_whole(&mut store)?;
    store.close()?;
    let statements: Vec<_> = statements.into_iter().collect();
    let first = statements.iter().position(|sql| sql.starts_with("BEGIN"));
    let last = statements.iter().position(|sql| sql.starts_with("COMMIT"));
    let (Some(first), Some(last)) = (first, last) else {
        anyhow::bail!("no transaction: {statements:?}");
    };
    ensure!(last > first + 20, "{statements:?}");

    for (number, sql) in (1..).zip(&statements).take(last + 1).skip(first) {
        fs::copy(&base, &copy)?;
        let mut child = child_at(&copy, number)?;
        child.hear("reached ")?;
        child.kill()?;
        let mut store = options(&copy).open()?;
        is_untouched(&mut store).map_err(|error| error.context(sql.clone()))?;
        // The broker delivers the same again, and nothing of the first attempt is in its way.
        store.apply(Transport::Broker, &batch(&works(&store)?))?;
        is_whole(&mut store)?;
        store.close()?;
    }
    Ok(())
}

#[test]
fn a_process_killed_after_its_commit_has_stored_the_batch() -> Result<()> {
    let folder = TempDir::new()?;
    let path = waiting(&folder)?;
    let mut child = child_at(&path, usize::MAX)?;
    child.hear("applied")?;
    child.kill()?;
    is_whole(&mut options(&path).open()?)
}

/// The control: a process that stops at a statement and then continues stores all of its batch.
#[test]
fn a_process_that_goes_on_stores_its_batch() -> Result<()> {
    let folder = TempDir::new()?;
    let path = waiting(&folder)?;
    let mut child = child_at(&path, 10)?;
    child.hear("reached ")?;
    child.send_line("go on")?;
    child.hear("applied")?;
    child.send_line("end")?;
    child.join()?;
    is_whole(&mut options(&path).open()?)
}

#[test]
fn a_process_killed_at_any_statement_of_a_large_end_leaves_it_to_the_next() -> Result<()> {
    let folder = TempDir::new()?;
    let base = folder.path().join("fleet.db");
    let copy = folder.path().join("copy.db");
    let mut store = options(&base).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let (_, works) = start(&mut store, Transport::Broker, &[1000; 101])?;
    let batch: Vec<_> = works
        .iter()
        .map(|work| delivery(result(work, &[Status::Up])))
        .collect();
    store.apply(Transport::Broker, &batch)?;
    store.close()?;
    fs::copy(&base, &copy)?;
    let (sender, statements) = std::sync::mpsc::channel();
    let mut store = options(&copy).open()?;
    traced(
        &mut store,
        move |_, sql| sender.send(sql.to_owned()).expect("the test listens"),
        |store| Ok(store.close_settled_runs(Transport::Broker)?),
    )?;
    store.close()?;
    let statements: Vec<_> = statements.into_iter().collect();
    let commits = statements.iter().filter(|sql| sql.starts_with("COMMIT"));
    ensure!(commits.count() == 3, "{statements:?}");

    for (number, sql) in (1..).zip(&statements) {
        fs::copy(&base, &copy)?;
        let mut child = start_child("tests::crash::child_closes", &copy, number)?;
        child.hear("reached ")?;
        child.kill()?;
        let mut store = options(&copy).open()?;
        ensure!(reader(&store)?.verify(1)?.is_consistent(), "{sql}");
        ensure!(
            store.close_settled_runs(Transport::Broker)?.len() == 1,
            "{sql}"
        );
        ensure!(store.summary(1)?.state == RunState::Complete, "{sql}");
        ensure!(rows(&store, "latest_rows")? == 101_000, "{sql}");
        store.close()?;
    }
    Ok(())
}
