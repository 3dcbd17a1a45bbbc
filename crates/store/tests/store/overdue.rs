//! When a chunk is overdue: each condition of the store's part of the rule prevents it alone. A chunk of these plans
//! waits 12 s after its first publish.

use std::time::Duration;

use anyhow::{Result, ensure};
use pingfleet_store::{DecodedDelivery, Overdue, Transport, Writer};
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, Status, WorkChunk};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{dead_letter, delivery, options, reader, result, sent, start};

/// A run of two chunks, both published and, to begin with, both overdue.
struct Late {
    store: Writer,
    run: i64,
    works: Vec<WorkChunk>,
    clock: Connection,
    _folder: TempDir,
}

impl Late {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let mut store = options(&folder.path().join("fleet.db")).open()?;
        let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
        store.mark_published(planned.run, &sent(&[0, 1]))?;
        store.note_writer_alive(Transport::Broker, "test")?;
        let late = Self {
            clock: Connection::open(store.path())?,
            run: planned.run,
            store,
            works,
            _folder: folder,
        };
        late.published_before(13)?;
        ensure!(late.chunks()? == [0, 1], "not overdue to begin with");
        Ok(late)
    }

    fn published_before(&self, seconds: i64) -> Result<()> {
        self.change(&format!(
            "UPDATE chunks SET published_at_us = {}",
            pingfleet_store::now_us() - seconds * 1_000_000
        ))
    }

    fn change(&self, sql: &str) -> Result<()> {
        Ok(self.clock.execute_batch(sql)?)
    }

    fn chunks(&self) -> Result<Vec<u32>> {
        match self.store.overdue(self.run, Transport::Broker, 100)? {
            Overdue::Chunks(chunks) => Ok(chunks),
            Overdue::WriterSilent => anyhow::bail!("the writer is silent"),
        }
    }

    fn heartbeat(&mut self, instance: u128, in_hand: Vec<ChunkKey>, draining: bool) -> Result<()> {
        let heartbeat = Heartbeat {
            in_hand: in_hand.into_iter().map(ChunkInHand::just_taken).collect(),
            draining,
            ..Heartbeat::new("worker-1", Uuid::from_u128(instance))
        };
        self.store.apply(
            Transport::Broker,
            &[DecodedDelivery::Heartbeat {
                heartbeat,
                login: None,
            }],
        )?;
        Ok(())
    }
}

#[test]
fn a_recent_publish_is_not_overdue() -> Result<()> {
    let late = Late::new()?;
    late.published_before(5)?;
    ensure!(late.chunks()?.is_empty());
    Ok(())
}

#[test]
fn the_wait_has_twice_the_worst_case_in_it() -> Result<()> {
    let late = Late::new()?;
    late.change("UPDATE runs SET worst_chunk_us = 30 * 1000000")?;
    ensure!(late.chunks()?.is_empty());
    late.published_before(71)?;
    ensure!(late.chunks()? == [0, 1]);
    Ok(())
}

#[test]
fn the_wait_doubles_with_each_publishing_again() -> Result<()> {
    let late = Late::new()?;
    for (publishes, early, late_enough) in [(1, 5, 13), (2, 20, 25), (3, 40, 49), (5, 180, 193)] {
        late.change(&format!("UPDATE chunks SET publishes = {publishes}"))?;
        late.published_before(early)?;
        ensure!(late.chunks()?.is_empty(), "{publishes} times, {early} s");
        late.published_before(late_enough)?;
        ensure!(
            late.chunks()? == [0, 1],
            "{publishes} times, {late_enough} s"
        );
    }
    Ok(())
}

#[test]
fn an_often_published_chunk_still_becomes_overdue() -> Result<()> {
    let late = Late::new()?;
    late.change("UPDATE chunks SET publishes = 1000000")?;
    late.published_before(12 * 1024 + 60)?;
    ensure!(late.chunks()? == [0, 1]);
    Ok(())
}

#[test]
fn publishing_again_starts_the_wait_anew() -> Result<()> {
    let mut late = Late::new()?;
    late.store.mark_published(late.run, &sent(&[1]))?;
    ensure!(late.chunks()? == [0]);
    Ok(())
}

#[test]
fn nothing_is_overdue_while_the_writer_is_silent() -> Result<()> {
    let late = Late::new()?;
    late.change("UPDATE writers SET seen_us = seen_us - 20 * 1000000")?;
    let overdue = late.store.overdue(late.run, Transport::Broker, 100)?;
    ensure!(overdue == Overdue::WriterSilent);
    late.change("DELETE FROM writers")?;
    let overdue = late.store.overdue(late.run, Transport::Broker, 100)?;
    ensure!(overdue == Overdue::WriterSilent);
    Ok(())
}

#[test]
fn the_writer_of_the_other_transport_does_not_count() -> Result<()> {
    let mut late = Late::new()?;
    late.change("DELETE FROM writers")?;
    late.store.note_writer_alive(Transport::Sweep, "test")?;
    let overdue = late.store.overdue(late.run, Transport::Broker, 100)?;
    ensure!(overdue == Overdue::WriterSilent);
    Ok(())
}

#[test]
fn a_batch_shows_that_the_writer_is_alive() -> Result<()> {
    let mut late = Late::new()?;
    late.change("UPDATE writers SET seen_us = 0")?;
    late.heartbeat(1, Vec::new(), false)?;
    ensure!(late.chunks()? == [0, 1]);
    Ok(())
}

#[test]
fn a_chunk_in_hand_is_not_overdue_until_its_worker_is_silent() -> Result<()> {
    let mut late = Late::new()?;
    let key = late.works[1].key;
    let elsewhere = ChunkKey {
        run: Uuid::now_v7(),
        chunk: 0,
    };
    late.heartbeat(1, vec![key, elsewhere], false)?;
    ensure!(late.chunks()? == [0]);
    // Another worker, alive, with nothing in hand changes nothing.
    late.heartbeat(2, Vec::new(), false)?;
    late.change("UPDATE workers SET last_seen_us = last_seen_us - 20 * 1000000")?;
    ensure!(late.chunks()? == [0]);
    late.change("UPDATE workers SET last_seen_us = last_seen_us - 20 * 1000000")?;
    ensure!(late.chunks()? == [0, 1]);
    Ok(())
}

#[test]
fn only_the_last_heartbeat_decides_what_is_in_hand() -> Result<()> {
    let mut late = Late::new()?;
    let [first, second] = [late.works[0].key, late.works[1].key];
    late.heartbeat(1, vec![first], false)?;
    late.heartbeat(1, vec![second], false)?;
    ensure!(late.chunks()? == [0]);
    late.heartbeat(1, Vec::new(), true)?;
    ensure!(late.chunks()? == [0, 1]);
    ensure!(reader(&late.store)?.workers()?.is_empty());
    Ok(())
}

#[test]
fn a_settled_chunk_is_not_overdue() -> Result<()> {
    let mut late = Late::new()?;
    let done = delivery(result(&late.works[0], &[pingfleet_wire::Status::Up]));
    late.store.apply(Transport::Broker, &[done])?;
    ensure!(late.chunks()? == [1]);
    let (_planned, others) = start(&mut late.store, Transport::Broker, &[1])?;
    late.store
        .apply(Transport::Broker, &[dead_letter(&others[0])])?;
    ensure!(late.chunks()? == [1]);
    late.store
        .apply(Transport::Broker, &[dead_letter(&late.works[1])])?;
    ensure!(late.chunks()?.is_empty());
    // Sent again, it is overdue like a new one: not before its publish.
    late.store.retry_dead(late.run)?;
    ensure!(late.chunks()?.is_empty());
    late.store.mark_published(late.run, &sent(&[1]))?;
    ensure!(late.chunks()?.is_empty());
    late.published_before(13)?;
    ensure!(late.chunks()? == [1]);
    Ok(())
}

#[test]
fn a_cancelled_run_has_nothing_overdue() -> Result<()> {
    let mut late = Late::new()?;
    late.store.cancel_run(late.run)?;
    ensure!(late.chunks()?.is_empty());
    Ok(())
}

#[test]
fn the_number_of_overdue_chunks_is_limited() -> Result<()> {
    let late = Late::new()?;
    let overdue = late.store.overdue(late.run, Transport::Broker, 1)?;
    ensure!(overdue == Overdue::Chunks(vec![0]));
    Ok(())
}

#[test]
fn a_chunk_is_unclaimed_when_it_was_sent_long_ago_and_no_worker_that_was_heard_has_it() -> Result<()>
{
    let mut late = Late::new()?;
    let second = Duration::from_secs(1);
    let count = |late: &Late, sent: u32, heard: u32| -> Result<i64> {
        let reader = reader(&late.store)?;
        Ok(reader.unclaimed_chunks(late.run, second * sent, second * heard)?)
    };
    assert_eq!(count(&late, 12, 300)?, 2);
    assert_eq!(count(&late, 600, 300)?, 0);
    let key = late.works[1].key;
    late.heartbeat(1, vec![key], false)?;
    assert_eq!(count(&late, 12, 300)?, 1);
    // Nothing was heard of that worker for long.
    late.change("UPDATE workers SET last_seen_us = last_seen_us - 200 * 1000000")?;
    assert_eq!(count(&late, 12, 300)?, 1);
    assert_eq!(count(&late, 12, 100)?, 2);
    // A result of that worker: it is heard, and what is settled is not missing.
    late.store.apply(
        Transport::Broker,
        &[delivery(result(&late.works[0], &[Status::Up]))],
    )?;
    assert_eq!(count(&late, 12, 100)?, 0);
    Ok(())
}
