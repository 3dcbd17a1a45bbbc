//! Liveness: who counts as alive, and who does not.

use std::{num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{DecodedDelivery, Transport, WorkerState, Writer};
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, LocalLossCounts, Status, WorkerCounts};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{delivery, options, reader, result, sent, start};

pub(crate) fn heartbeat(worker: &str, instance: u128, in_hand: Vec<ChunkKey>) -> DecodedDelivery {
    DecodedDelivery::Heartbeat {
        login: None,
        heartbeat: Heartbeat {
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
        },
    }
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
    let (planned, works) = start(&mut store, Transport::Broker, &[1])?;
    store.mark_published(planned.run, &sent(&[0]))?;
    store.apply(
        Transport::Broker,
        &[heartbeat("old", 1, vec![works[0].key])],
    )?;
    ensure!(reader(&store)?.workers()?[0].in_hand == 1);
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
    let (planned, _works) = start(&mut store, Transport::Broker, &[1, 1, 1])?;
    store.mark_published(planned.run, &sent(&[0, 1, 2]))?;
    let key = |chunk| ChunkKey {
        run: planned.run_id,
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
        &[DecodedDelivery::Heartbeat {
            heartbeat: heartbeat.clone(),
            login: None,
        }],
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
    store.apply(
        Transport::Broker,
        &[DecodedDelivery::Heartbeat {
            heartbeat,
            login: None,
        }],
    )?;
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

#[test]
fn a_worker_starts_lives_drains_and_is_lost() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let reader = reader(&store)?;
    let state = || -> Result<WorkerState> {
        Ok(reader.fleet()?.workers.first().context("a worker")?.state)
    };
    let beat = |chunks_done, draining| {
        let DecodedDelivery::Heartbeat {
            heartbeat: mut beat,
            ..
        } = heartbeat("w", 1, Vec::new())
        else {
            unreachable!("it is one");
        };
        beat.counts.chunks_done = chunks_done;
        beat.draining = draining;
        beat.in_hand = vec![ChunkInHand::just_taken(ChunkKey {
            run: Uuid::nil(),
            chunk: 0,
        })];
        DecodedDelivery::Heartbeat {
            heartbeat: beat,
            login: None,
        }
    };
    let move_back = |column: &str, seconds: i64| {
        clock.execute(
            &format!("UPDATE workers SET {column} = {column} - ?1 * 1000000"),
            [seconds],
        )
    };
    store.apply(Transport::Broker, &[beat(0, false)])?;
    // An hour ahead: a slow test does not count as the passing of time.
    move_back("first_seen_us", -3600)?;
    move_back("last_seen_us", -3600)?;
    ensure!(state()? == WorkerState::Starting);
    // It is live once it has settled a chunk, or is there for 10 s.
    move_back("first_seen_us", 3610)?;
    ensure!(state()? == WorkerState::Live);
    move_back("first_seen_us", -3610)?;
    store.apply(Transport::Broker, &[beat(1, false)])?;
    move_back("last_seen_us", -3600)?;
    ensure!(state()? == WorkerState::Live);
    store.apply(Transport::Broker, &[beat(1, true)])?;
    move_back("last_seen_us", -3600)?;
    ensure!(state()? == WorkerState::Draining);
    move_back("last_seen_us", 3630)?;
    ensure!(state()? == WorkerState::Lost);
    // As of the time at which the last writer was seen, it was not.
    store.note_writer_alive(Transport::Broker, "pid 7")?;
    ensure!(state()? == WorkerState::Lost);
    clock.execute_batch("UPDATE writers SET seen_us = seen_us - 31 * 1000000")?;
    ensure!(state()? == WorkerState::Draining && reader.fleet()?.writer_away.is_some());
    Ok(())
}

#[test]
fn lost_workers_come_first_and_a_rate_is_that_between_two_heartbeats() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let reader = reader(&store)?;
    for (name, instance) in [("a", 1), ("b", 2), ("c", 3)] {
        store.apply(Transport::Broker, &[heartbeat(name, instance, Vec::new())])?;
    }
    ensure!(
        reader
            .workers()?
            .iter()
            .all(|worker| worker.requests_per_s.is_none())
    );
    clock.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000 WHERE worker = 'b';
         UPDATE workers SET heartbeat_us = heartbeat_us - 3600 * 1000000, requests_sent = requests_sent - 3600000
         WHERE worker = 'c'",
    )?;
    store.apply(Transport::Broker, &[heartbeat("c", 3, Vec::new())])?;
    let workers = reader.workers()?;
    let names: Vec<_> = workers
        .iter()
        .map(|worker| worker.worker.as_str())
        .collect();
    ensure!(names == ["b", "a", "c"], "{names:?}");
    // 3.6 million in an hour, and what the test takes.
    let rate = workers[2].requests_per_s.context("two heartbeats")?;
    ensure!((900.0..=1000.0).contains(&rate), "{rate}");
    Ok(())
}

#[test]
fn heartbeats_that_are_received_at_once_do_not_change_the_base_of_a_rate() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let reader = reader(&store)?;
    let rate = || -> Result<Option<f64>> {
        let workers = reader.workers()?;
        Ok(workers.first().context("a worker")?.requests_per_s)
    };
    let beat = |requests_sent| {
        let DecodedDelivery::Heartbeat {
            heartbeat: mut beat,
            ..
        } = heartbeat("w", 1, Vec::new())
        else {
            unreachable!("it makes heartbeats");
        };
        beat.counts.requests_sent = requests_sent;
        DecodedDelivery::Heartbeat {
            heartbeat: beat,
            login: None,
        }
    };
    // Two in one batch: nothing says how long it took.
    store.apply(Transport::Broker, &[beat(0), beat(5_000)])?;
    ensure!(rate()?.is_none());
    // The writer was away for an hour, and receives what the worker sent in that time.
    clock.execute_batch("UPDATE workers SET heartbeat_us = heartbeat_us - 3600 * 1000000")?;
    let batch = [beat(1_205_000), beat(2_405_000), beat(3_605_000)];
    store.apply(Transport::Broker, &batch)?;
    // 3.6 million in an hour, and what the test takes.
    let found = rate()?.context("a base")?;
    ensure!((900.0..=1000.0).contains(&found), "{found}");
    Ok(())
}

#[test]
fn the_writer_of_a_sweep_is_not_the_broker_s_writer() -> Result<()> {
    let folder = TempDir::new()?;
    let (mut store, clock) = open(&folder)?;
    let reader = reader(&store)?;
    let state = || -> Result<WorkerState> {
        Ok(reader.fleet()?.workers.first().context("a worker")?.state)
    };
    store.note_writer_alive(Transport::Sweep, "pid 7")?;
    store.apply(Transport::Sweep, &[heartbeat("w", 1, Vec::new())])?;
    ensure!(state()? == WorkerState::Live);
    // The sweep was killed a minute ago: no writer is missing, and its worker is lost.
    clock.execute_batch(
        "UPDATE writers SET seen_us = seen_us - 60 * 1000000;
         UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000",
    )?;
    ensure!(reader.fleet()?.writer_away.is_none() && state()? == WorkerState::Lost);
    // It stays lost when the broker's writer was away before the sweep began.
    store.note_writer_alive(Transport::Broker, "pid 8")?;
    clock.execute_batch(
        "UPDATE writers SET seen_us = seen_us - 3600 * 1000000 WHERE transport = 'broker'",
    )?;
    ensure!(reader.fleet()?.writer_away.is_some() && state()? == WorkerState::Lost);
    Ok(())
}
