//! Publish rounds: which settled chunks show that everything that was sent before a round was delivered.

use anyhow::{Context as _, Result, ensure};
use pingfleet_store::{Republish, Transport, Writer};
use pingfleet_wire::{Status, WorkChunk};
use tempfile::TempDir;

use crate::sample::{dead_letter, delivery, options, result, sent_in_round, start};

/// A run of five chunks whose first publish round has begun.
struct RoundTest {
    store: Writer,
    run: i64,
    works: Vec<WorkChunk>,
    round: i64,
    _folder: TempDir,
}

impl RoundTest {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let mut store = options(&folder.path().join("fleet.db")).open()?;
        store.note_writer_alive(Transport::Broker, "test")?;
        let (planned, works) = start(&mut store, Transport::Broker, &[1; 5])?;
        let round = store
            .begin_publish_round(Transport::Broker)?
            .context("there is a writer")?;
        Ok(Self {
            run: planned.run,
            store,
            works,
            round,
            _folder: folder,
        })
    }

    fn publish(&mut self, round: i64, chunks: &[u32]) -> Result<()> {
        let chunks = sent_in_round(round, chunks);
        Ok(self.store.mark_published(self.run, &chunks)?)
    }

    fn settle(&mut self, chunk: usize) -> Result<()> {
        let settled = delivery(result(&self.works[chunk], &[Status::Up]));
        self.store.apply(Transport::Broker, &[settled])?;
        Ok(())
    }

    fn settled_round(&self) -> Result<i64> {
        let facts = self
            .store
            .overtaking_facts(self.run, Transport::Broker, 10)?;
        Ok(facts.settled_round)
    }
}

#[test]
fn a_chunk_with_one_message_counts_for_its_round_when_it_is_settled() -> Result<()> {
    let mut test = RoundTest::new()?;
    ensure!(test.store.unpublished_chunks(test.run, None, 1)?[0].round == test.round);
    test.publish(test.round, &[0])?;
    ensure!(test.settled_round()? == 0);
    test.settle(0)?;
    ensure!(test.settled_round()? == test.round);
    Ok(())
}

#[test]
fn a_chunk_that_is_settled_before_it_is_recorded_counts_then() -> Result<()> {
    let mut test = RoundTest::new()?;
    test.settle(0)?;
    ensure!(test.settled_round()? == 0);
    test.publish(test.round, &[0])?;
    ensure!(test.settled_round()? == test.round);
    Ok(())
}

#[test]
fn a_chunk_that_was_sent_more_than_once_does_not_count() -> Result<()> {
    let mut test = RoundTest::new()?;
    // Sent again by the same producer before it was confirmed.
    test.publish(0, &[0])?;
    test.settle(0)?;
    test.settle(1)?;
    test.publish(0, &[1])?;
    // Published again because it was overdue.
    test.publish(test.round, &[2])?;
    test.publish(test.round, &[2])?;
    test.settle(2)?;
    ensure!(test.settled_round()? == 0);
    Ok(())
}

#[test]
fn a_chunk_that_an_earlier_producer_may_have_sent_does_not_count() -> Result<()> {
    let mut test = RoundTest::new()?;
    ensure!(test.store.take_over_run(test.run, Republish::None)?);
    test.publish(test.round, &[0])?;
    test.settle(0)?;
    // Settled before it is recorded, perhaps by the earlier producer's message.
    test.settle(1)?;
    test.publish(test.round, &[1])?;
    ensure!(test.settled_round()? == 0);
    Ok(())
}

#[test]
fn a_retried_chunk_does_not_count() -> Result<()> {
    let mut test = RoundTest::new()?;
    test.publish(0, &[0, 1])?;
    let dead = [dead_letter(&test.works[0]), dead_letter(&test.works[1])];
    test.store.apply(Transport::Broker, &dead)?;
    ensure!(test.store.retry_dead(test.run)? == 2);
    test.publish(test.round, &[0])?;
    test.settle(0)?;
    test.settle(1)?;
    test.publish(test.round, &[1])?;
    ensure!(test.settled_round()? == 0);
    Ok(())
}

#[test]
fn rounds_ascend_and_need_a_writer() -> Result<()> {
    let mut test = RoundTest::new()?;
    let next = test.store.begin_publish_round(Transport::Broker)?;
    ensure!(next == Some(test.round + 1));
    ensure!(test.store.begin_publish_round(Transport::Sweep)?.is_none());
    ensure!(
        test.store
            .outstanding_work(test.run, 0)?
            .map(|chunk| chunk.round)
            == next
    );
    Ok(())
}

#[test]
fn published_and_unsettled_chunks_are_counted() -> Result<()> {
    let mut test = RoundTest::new()?;
    ensure!(test.store.published_unsettled(test.run)? == 0);
    test.publish(test.round, &[0, 1, 2])?;
    test.settle(0)?;
    test.store
        .apply(Transport::Broker, &[dead_letter(&test.works[1])])?;
    ensure!(test.store.published_unsettled(test.run)? == 1);
    ensure!(test.store.settled_chunks(test.run)? == 2);
    Ok(())
}
