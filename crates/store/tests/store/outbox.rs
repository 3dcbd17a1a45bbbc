//! The plan as an outbox: which chunks are published, and which are not.

use anyhow::{Result, ensure};
use pingfleet_store::{
    FileLock, PublishedChunk, Republish, RunState, StoreError, Transport, Writer, now_us,
};
use pingfleet_wire::{Message as _, Status, WorkChunk};
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::{dead_letter, dead_letter_for, delivery, options, plan, reader, result, sent, start},
};

fn open(folder: &TempDir) -> Result<Writer> {
    Ok(options(&folder.path().join("fleet.db")).open()?)
}

/// The numbers of all chunks that are to be published.
fn outgoing(store: &Writer, run: i64) -> Result<Vec<u32>> {
    let chunks = store.unpublished_chunks(run, None, 1000)?;
    Ok(chunks.into_iter().map(|outgoing| outgoing.chunk).collect())
}

fn apply_result(store: &mut Writer, work: &WorkChunk) -> Result<()> {
    store.apply(
        Transport::Broker,
        &[delivery(result(work, &[Status::DOWN]))],
    )?;
    Ok(())
}

#[test]
fn nothing_leaves_before_the_run_is_started() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = plan(&mut store, Transport::Broker, &[2, 2])?;
    ensure!(outgoing(&store, planned.run)?.is_empty());
    ensure!(store.outstanding_work(planned.run, 0)?.is_none());
    ensure!(store.summary(planned.run)?.state == RunState::Planning);
    // A result that guessed the token of an unpublished plan is not applied, either.
    store.note_writer_alive(Transport::Broker, "test")?;
    let applied = store.apply(
        Transport::Broker,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    ensure!(applied.quarantined == 1, "{applied:?}");

    store.start_run(planned.run)?;
    ensure!(outgoing(&store, planned.run)? == [0, 1]);
    let summary = store.summary(planned.run)?;
    ensure!(summary.state == RunState::Running);
    ensure!((summary.chunks, summary.targets) == (2, 4));
    Ok(())
}

#[test]
fn a_run_is_started_once() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[1])?;
    let again = store.start_run(planned.run);
    ensure!(matches!(again, Err(StoreError::BadPlan { .. })));
    Ok(())
}

#[test]
fn chunks_leave_in_pages_by_key_as_the_bytes_of_the_plan() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 2, 3, 1, 2])?;
    let (_other, _) = start(&mut store, Transport::Broker, &[1; 9])?;
    let (mut after, mut read) = (None, Vec::new());
    loop {
        let page = store.unpublished_chunks(planned.run, after, 2)?;
        let Some(last) = page.last() else { break };
        ensure!(page.len() <= 2);
        after = Some(last.chunk);
        read.extend(page);
    }
    ensure!(read.len() == works.len());
    for (outgoing, work) in read.iter().zip(&works) {
        ensure!(outgoing.chunk == work.key.chunk);
        ensure!(outgoing.work == work.encode());
        let again = store.outstanding_work(planned.run, work.key.chunk)?;
        ensure!(again.as_ref() == Some(outgoing));
    }
    Ok(())
}

#[test]
fn a_published_chunk_leaves_once_and_a_done_one_never() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 4])?;
    store.mark_published(planned.run, &sent(&[0, 2]))?;
    ensure!(outgoing(&store, planned.run)? == [1, 3]);
    // Its result arrives before it is recorded as published.
    apply_result(&mut store, &works[1])?;
    store.mark_published(planned.run, &sent(&[1]))?;
    ensure!(store.done_chunks(planned.run, 0)? == [1]);
    ensure!(store.done_chunks(planned.run, 1)? == [1]);
    ensure!(store.done_chunks(planned.run, 2)?.is_empty());
    ensure!(outgoing(&store, planned.run)? == [3]);
    ensure!(store.outstanding_work(planned.run, 1)?.is_none());
    ensure!(store.outstanding_work(planned.run, 2)?.is_some());
    ensure!(store.take_over_run(planned.run, Republish::All)?);
    ensure!(outgoing(&store, planned.run)? == [0, 2, 3]);
    Ok(())
}

#[test]
fn a_run_of_the_broker_is_reopened_without_publishing_again() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[1; 3])?;
    store.mark_published(planned.run, &sent(&[0]))?;
    store.release_lease(planned.run)?;
    ensure!(store.summary(planned.run)?.state == RunState::Incomplete);
    ensure!(store.take_over_run(planned.run, Republish::None)?);
    ensure!(store.summary(planned.run)?.state == RunState::Running);
    ensure!(outgoing(&store, planned.run)? == [1, 2]);
    Ok(())
}

#[test]
fn a_cancelled_run_publishes_nothing_more() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 3])?;
    store.mark_published(planned.run, &sent(&[0]))?;
    ensure!(store.cancel_run(planned.run)?);
    ensure!(outgoing(&store, planned.run)?.is_empty());
    ensure!(store.outstanding_work(planned.run, 0)?.is_none());
    ensure!(!store.take_over_run(planned.run, Republish::All)?);
    ensure!(!store.cancel_run(planned.run)?);
    apply_result(&mut store, &works[0])?;
    ensure!(store.done_chunks(planned.run, 0)? == [0]);
    ensure!(store.summary(planned.run)?.state == RunState::Cancelled);
    Ok(())
}

#[test]
fn a_complete_run_is_neither_reopened_nor_cancelled() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1])?;
    apply_result(&mut store, &works[0])?;
    ensure!(!store.take_over_run(planned.run, Republish::All)?);
    ensure!(!store.cancel_run(planned.run)?);
    ensure!(store.retry_dead(planned.run)? == 0);
    ensure!(store.summary(planned.run)?.state == RunState::Complete);
    Ok(())
}

#[test]
fn only_dead_chunks_are_retried_and_each_as_if_new() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 3])?;
    store.mark_published(planned.run, &sent(&[0, 1, 2]))?;
    apply_result(&mut store, &works[0])?;
    store.apply(
        Transport::Broker,
        &[dead_letter(&works[1]), dead_letter(&works[2])],
    )?;
    let summary = store.summary(planned.run)?;
    ensure!((summary.state, summary.chunks_dead) == (RunState::Incomplete, 2));
    ensure!(outgoing(&store, planned.run)?.is_empty());
    ensure!(!store.take_over_run(planned.run, Republish::All)?);

    ensure!(store.retry_dead(planned.run)? == 2);
    ensure!(store.retry_dead(planned.run)? == 0);
    let summary = store.summary(planned.run)?;
    ensure!((summary.state, summary.chunks_dead) == (RunState::Running, 0));
    ensure!(summary.finished_at.is_none());
    ensure!(outgoing(&store, planned.run)? == [1, 2]);
    store.mark_published(planned.run, &sent(&[1]))?;
    ensure!(outgoing(&store, planned.run)? == [2]);
    // The in-process queue is gone with its process: what was retried and published goes out again.
    ensure!(store.take_over_run(planned.run, Republish::All)?);
    ensure!(outgoing(&store, planned.run)? == [1, 2]);
    Ok(())
}

#[test]
fn a_chunk_counts_as_published_again_after_an_earlier_publish_was_confirmed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (other, _) = start(&mut store, Transport::Broker, &[1])?;
    store.mark_published(other.run, &sent(&[0]))?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 4])?;
    let run = planned.run;
    // The control: the first publish of each chunk counts nothing, nor does one that was settled before it was recorded.
    apply_result(&mut store, &works[3])?;
    store.mark_published(run, &sent(&[0, 1, 2, 3]))?;
    ensure!(store.summary(run)?.republished == 0);
    store.mark_published(run, &sent(&[0]))?;
    store.mark_published(run, &sent(&[0, 1]))?;
    ensure!(store.summary(run)?.republished == 3);
    // Its result arrives before the second publish is recorded.
    apply_result(&mut store, &works[1])?;
    store.mark_published(run, &sent(&[1]))?;
    ensure!(store.summary(run)?.republished == 4);
    // `retry` is asked for.
    store.apply(
        Transport::Broker,
        &[dead_letter(&works[0]), dead_letter(&works[2])],
    )?;
    ensure!(store.retry_dead(run)? == 2);
    store.mark_published(run, &sent(&[0, 2]))?;
    ensure!(store.summary(run)?.republished == 4);
    ensure!(store.summary(other.run)?.republished == 0);
    Ok(())
}

#[test]
fn a_chunk_whose_message_a_policy_removed_counts_once_it_is_published_again() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 2])?;
    let run = planned.run;
    store.renew_lease(run, None)?;
    let at = |chunk, sent_at_us| PublishedChunk {
        chunk,
        sent_at_us,
        round: 0,
    };
    let before = now_us();
    store.mark_published(run, &[at(0, before)])?;
    let expired: Vec<_> = works
        .iter()
        .map(|work| dead_letter_for(work, "expired"))
        .collect();
    let applied = store.apply(Transport::Broker, &expired)?;
    ensure!(applied.removed.by_policy == 2, "{applied:?}");
    // The removed message is the one that is recorded now.
    store.mark_published(run, &[at(1, before)])?;
    ensure!(store.summary(run)?.republished == 0);
    let after = now_us() + 1_000_000;
    store.mark_published(run, &[at(0, after), at(1, after)])?;
    ensure!(store.summary(run)?.republished == 2);
    Ok(())
}

/// People and scripts keep run numbers: one of a removed run must not lead to another run.
#[test]
fn the_number_of_a_removed_run_is_not_given_again() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (first, _works) = plan(&mut store, Transport::Broker, &[1])?;
    let (second, _works) = plan(&mut store, Transport::Broker, &[1])?;
    ensure!(second.run == first.run + 1);
    drop(second.lock);
    store.remove_plan(second.run)?;
    store.close()?;
    let mut store = options(&path).open()?;
    let (third, _works) = plan(&mut store, Transport::Broker, &[1])?;
    ensure!(third.run == second.run + 1, "{}", third.run);
    Ok(())
}

#[test]
fn an_abandoned_plan_is_removed_only_when_its_producer_is_gone() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (kept, _works) = start(&mut store, Transport::Broker, &[1])?;
    drop(kept);
    let mut planner = Process::start("outbox::child_plans", &path)?;
    let run: i64 = planner.hear("planned ")?.parse()?;
    ensure!(store.remove_abandoned_plans()?.is_empty());
    ensure!(store.summary(run)?.state == RunState::Planning);

    planner.kill()?;
    ensure!(store.remove_abandoned_plans()? == [run]);
    let gone = store.summary(run);
    ensure!(matches!(gone, Err(StoreError::NoSuchRun { .. })));
    let left: i64 = rusqlite::Connection::open(&path)?.query_row(
        "SELECT (SELECT count(*) FROM plan WHERE run = ?1) + (SELECT count(*) FROM chunks WHERE run = ?1)
              + (SELECT count(*) FROM labels WHERE run = ?1)",
        [run],
        |row| row.get(0),
    )?;
    ensure!(left == 0, "{left} rows are left");
    ensure!(reader(&store)?.summaries()?.len() == 1);
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_plans() -> Result<()> {
    let mut store = options(&child::database()?).open()?;
    let (planned, _works) = plan(&mut store, Transport::Broker, &[2, 2])?;
    println!("planned {}", planned.run);
    child::wait()?;
    Ok(())
}

#[test]
fn a_run_is_found_by_number_prefix_and_latest() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    ensure!(matches!(
        store.find_run("latest"),
        Err(StoreError::NoSuchRun { .. })
    ));
    let (first, _) = plan(&mut store, Transport::Broker, &[1])?;
    let (second, _) = plan(&mut store, Transport::Broker, &[1])?;
    let text = second.run_id.to_string();
    ensure!(store.find_run("latest")? == second.run);
    ensure!(store.find_run(&first.run.to_string())? == first.run);
    ensure!(store.find_run(&text)? == second.run);
    ensure!(store.find_run(&text.to_uppercase())? == second.run);
    // Version 7 UUIDs of one moment begin alike.
    let shared = &text[..text
        .bytes()
        .zip(first.run_id.to_string().bytes())
        .take_while(|(a, b)| a == b)
        .count()];
    ensure!(matches!(
        store.find_run(shared),
        Err(StoreError::AmbiguousRun { count: 2, .. })
    ));
    for wanted in ["", "%", "_", "99", "ffffffff-"] {
        let found = store.find_run(wanted);
        ensure!(
            matches!(found, Err(StoreError::NoSuchRun { .. })),
            "{wanted:?}: {found:?}"
        );
    }
    Ok(())
}

#[test]
fn only_the_producer_has_the_lock_of_its_run() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[1])?;
    let second = FileLock::run(store.path(), planned.run);
    ensure!(matches!(second, Err(StoreError::AlreadyLocked { .. })));
    drop(planned.lock);
    FileLock::run(store.path(), planned.run)?;
    Ok(())
}
