//! Liveness: who counts as alive, and who does not.

use std::{num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{DecodedDelivery, Transport, Writer};
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, LocalLossCounts, Status, WorkerCounts};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{delivery, options, reader, result, start};

pub(crate) fn heartbeat(worker: &str, instance: u128, in_hand: Vec<ChunkKey>) -> DecodedDelivery {
    DecodedDelivery::Heartbeat(Heartbeat {
        pid: 42,
        threads: 2,
        prefetch: 21,
        counts: WorkerCounts {
            chunks_done: 7,
            targets_done: 70,
            requests_sent: 71,
            replies: 60,
            local_losses: LocalLossCounts::from_causes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        },
        in_hand: in_hand.into_iter().map(ChunkInHand::just_taken).collect(),
        ..Heartbeat::new(worker, Uuid::from_u128(instance))
    })
}

fn open(folder: &TempDir) -> Result<(Writer, Connection)> {
    let path = folder.path().join("fleet.db");
    let store = options(&path).open()?;
    Ok((store, Connection::open(&path)?))
}

#[test]
fn a_heartbeat_is_outside_the_counters() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, _clock) = open(&folder)?;
    store.note_writer_alive(Transport::Broker, "pid 1 on host")?;
    store.apply(Transport::Broker, &[heartbeat("w", 1, Vec::new())])?;
    let sign = store.writer_liveness(Transport::Broker)?;
    ensure!(sign.is_some_and(|sign| sign.taken == 0 && sign.holder == "pid 1 on host"));
    let workers = reader(&store)?.workers()?;
    ensure!(workers.len() == 1 && workers[0].worker == "w" && workers[0].pid == 42);
    ensure!((workers[0].chunks_done, workers[0].targets_done) == (7, 70));
    Ok(())
}

#[test]
fn a_result_shows_that_its_worker_is_alive() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[1])?;
    store.apply(Transport::Broker, &[heartbeat("worker-1", 1, Vec::new())])?;
    clock.execute_batch("UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000")?;
    ensure!(store.live_workers()?.count == 0);
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    ensure!(store.live_workers()?.count == 1);
    Ok(())
}

/// A restarted worker has the name of the lost one, but not its chunks in hand.
#[test]
fn a_result_of_a_restarted_worker_keeps_the_lost_one_lost() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    let lost = heartbeat("worker-1", 1, vec![works[1].key]);
    store.apply(Transport::Broker, &[lost])?;
    clock.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000,
                            first_seen_us = first_seen_us - 60 * 1000000",
    )?;
    store.apply(Transport::Broker, &[heartbeat("worker-1", 2, Vec::new())])?;
    ensure!(store.live_workers()?.count == 1);
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    ensure!(store.live_workers()?.count == 1);
    Ok(())
}

#[test]
fn a_worker_is_forgotten_after_a_week() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let key = ChunkKey {
        run: Uuid::now_v7(),
        chunk: 3,
    };
    store.apply(Transport::Broker, &[heartbeat("old", 1, vec![key])])?;
    clock.execute_batch("UPDATE workers SET last_seen_us = last_seen_us - 6 * 86400000000")?;
    store.apply(Transport::Broker, &[heartbeat("new", 2, Vec::new())])?;
    ensure!(reader(&store)?.workers()?.len() == 2);
    clock.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 2 * 86400000000 WHERE worker = 'old'",
    )?;
    store.apply(Transport::Broker, &[heartbeat("new", 2, Vec::new())])?;
    ensure!(reader(&store)?.workers()?.len() == 1);
    let in_hand: i64 = clock.query_row("SELECT count(*) FROM in_hand", (), |row| row.get(0))?;
    ensure!(in_hand == 0);
    Ok(())
}

#[test]
fn counters_of_the_two_transports_are_separate() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, _clock) = open(&folder)?;
    store.note_writer_alive(Transport::Sweep, "a")?;
    store.note_writer_alive(Transport::Broker, "b")?;
    let (_planned, works) = start(&mut store, Transport::Sweep, &[1])?;
    let result = delivery(result(&works[0], &[Status::Up]));
    for _ in 0..2 {
        store.apply(Transport::Sweep, std::slice::from_ref(&result))?;
    }
    // A new update keeps the counters.
    store.note_writer_alive(Transport::Sweep, "c")?;
    let sign = store.writer_liveness(Transport::Sweep)?;
    ensure!(sign.is_some_and(|sign| {
        (sign.taken, sign.applied, sign.duplicates, sign.quarantined) == (2, 1, 1, 0)
            && sign.holder == "c"
    }));
    ensure!(
        store
            .writer_liveness(Transport::Broker)?
            .is_some_and(|sign| sign.taken == 0)
    );
    Ok(())
}

#[test]
fn a_row_has_all_that_the_heartbeat_reports() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, _connection) = open(&folder)?;
    let key = |chunk| ChunkKey {
        run: Uuid::now_v7(),
        chunk,
    };
    let counts = WorkerCounts {
        chunks_done: 7,
        targets_done: 70,
        requests_sent: 71,
        replies: 60,
        local_losses: LocalLossCounts::from_causes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    };
    let mut heartbeat = Heartbeat {
        program_version: "1.2.3".to_owned(),
        group: "north".to_owned(),
        threads: 3,
        prefetch: 21,
        rate: NonZeroU32::new(5000),
        counts,
        in_hand: [(0, 1500), (1, 70_000), (2, 0)]
            .map(|(chunk, age_ms)| ChunkInHand {
                key: key(chunk),
                age_ms,
            })
            .to_vec(),
        ..Heartbeat::new("w", Uuid::from_u128(1))
    };
    store.apply(
        Transport::Broker,
        &[DecodedDelivery::Heartbeat(heartbeat.clone())],
    )?;
    let workers = reader(&store)?.workers()?;
    let row = &workers[0];
    ensure!((row.version.as_str(), row.group.as_str()) == ("1.2.3", "north"));
    ensure!((row.threads, row.prefetch, row.rate) == (3, 21, Some(5000)));
    ensure!((row.requests_sent, row.replies) == (71, 60));
    ensure!(row.local_losses == counts.local_losses);
    ensure!(row.in_hand == 3 && !row.draining);
    let oldest = row.oldest_in_hand.context("it has chunks in hand")?;
    ensure!(oldest >= Duration::from_secs(70), "{oldest:?}");
    ensure!(store.live_workers()?.prefetch == 21);

    heartbeat.rate = None;
    heartbeat.prefetch = 4;
    heartbeat.draining = true;
    heartbeat.counts.replies = 61;
    heartbeat.in_hand.truncate(1);
    store.apply(Transport::Broker, &[DecodedDelivery::Heartbeat(heartbeat)])?;
    let workers = reader(&store)?.workers()?;
    let row = &workers[0];
    ensure!((row.prefetch, row.rate, row.replies) == (4, None, 61));
    ensure!(row.in_hand == 1 && row.draining);
    ensure!(store.live_workers()?.prefetch == 0, "it takes nothing new");
    Ok(())
}

#[test]
fn a_lost_worker_has_no_live_prefetch() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, connection) = open(&folder)?;
    for instance in [1, 2] {
        store.apply(Transport::Broker, &[heartbeat("w", instance, Vec::new())])?;
    }
    ensure!(store.live_workers()?.prefetch == 42);
    connection.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000 WHERE instance = (SELECT min(instance) FROM workers)",
    )?;
    ensure!(store.live_workers()?.prefetch == 21);
    Ok(())
}
