//! Draining: the worker finishes what it has in hand within the timeout, and does not count as lost afterwards.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use ping_worker::WorkerState;
use pingfleet_broker::QueueName;
use pingfleet_wire::{
    ChunkKey, Heartbeat, Message as _, Outcome, ResultChunk, Status, timing::HEARTBEAT_INTERVAL,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    answers::Answer,
    rig::{Event, Rig, TARGETS, count, place, published},
    watched::within,
};

fn heartbeats(events: &[Event]) -> Vec<&Heartbeat> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Heartbeat(heartbeat) => Some(&**heartbeat),
            _ => None,
        })
        .collect()
}

fn keys(heartbeat: &Heartbeat) -> Vec<ChunkKey> {
    let in_hand = heartbeat.in_hand.iter();
    in_hand.map(|chunk| chunk.key).collect()
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_hand_and_takes_nothing_new() -> Result<()> {
    let rig = Rig::gated();
    let worker = rig.start();
    rig.permits.add_permits(1);
    for chunk in 0..11 {
        rig.give(chunk).await?;
    }
    // One for the slow start, then a window of four.
    rig.floor
        .log
        .wait_for_some("the full window", 5, |event| {
            matches!(event, Event::Taken(_))
        })
        .await?;
    worker.stop.cancel();
    rig.floor
        .log
        .wait_for_some("the drain", 1, |event| *event == Event::Stopped)
        .await?;
    rig.permits.add_permits(11);
    let summary = worker.ended().await?;
    assert_eq!((summary.chunks, summary.left), (5, 0));
    assert_eq!(summary.targets, u64::from(5 * TARGETS));

    let events = rig.floor.log.events();
    let drained = &events[place(&events, &Event::Stopped)..];
    assert_eq!(
        count(drained, |event| matches!(event, Event::Taken(_))),
        0,
        "{drained:?}"
    );
    for chunk in 0..5 {
        assert!(place(&events, &Event::Stored(chunk)) < place(&events, &Event::Acked(chunk)));
    }
    assert_eq!(rig.ready(QueueName::WORK).await?, 6);
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 5);
    let last_heartbeat = heartbeats(&events).pop();
    let last_heartbeat =
        last_heartbeat.map(|last| (last.draining, last.in_hand.len(), last.counts.chunks_done));
    assert_eq!(last_heartbeat, Some((true, 0, 5)));
    Ok(())
}

/// A worker whose only chunk never ends stops when draining times out. It returns the chunk and acks nothing.
/// It is stopped at the event `when`.
async fn returns_its_chunk(rig: &Rig, when: fn(&Event) -> bool) -> Result<()> {
    let worker = rig.start();
    rig.give(0).await?;
    rig.floor.log.wait_for_some("the chunk", 1, when).await?;
    let summary = worker.stop().await?;
    assert_eq!((summary.chunks, summary.left), (0, 1));
    let events = rig.floor.log.events();
    assert_eq!(
        count(&events, |event| matches!(event, Event::Acked(_))),
        0,
        "{events:?}"
    );
    assert_eq!(rig.ready(QueueName::WORK).await?, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_hanging_prober_holds_the_worker_only_until_the_timeout() -> Result<()> {
    returns_its_chunk(&Rig::gated(), |event| *event == Event::Probing(0)).await
}

#[tokio::test(start_paused = true)]
async fn a_missing_confirm_holds_the_worker_only_until_the_timeout() -> Result<()> {
    let rig = Rig::new();
    let never = Arc::new(Semaphore::new(0));
    rig.floor.answers.add(0, [Answer::Waits(never)]);
    returns_its_chunk(&rig, |event| matches!(event, Event::Published(0, _))).await
}

#[tokio::test(start_paused = true)]
async fn heartbeats_list_what_is_in_hand_and_the_last_one_is_draining() -> Result<()> {
    let rig = Rig::gated();
    let worker = rig.start();
    rig.give(0).await?;
    rig.floor
        .log
        .wait_for("a heartbeat with the chunk in hand", |events| {
            heartbeats(events).iter().any(|heartbeat| {
                keys(heartbeat) == [rig.key(0)]
                    && heartbeat.in_hand[0].age_ms >= 5000
                    && !heartbeat.draining
            })
        })
        .await?;
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for("a heartbeat with the chunk settled", |events| {
            heartbeats(events)
                .iter()
                .any(|heartbeat| heartbeat.in_hand.is_empty() && heartbeat.counts.chunks_done == 1)
        })
        .await?;
    worker.stop().await?;

    let events = rig.floor.log.events();
    let heartbeats = heartbeats(&events);
    let last = heartbeats.last().expect("there were some");
    assert!(last.draining && last.in_hand.is_empty());
    assert_eq!(last.counts.targets_done, u64::from(TARGETS));
    assert!(last.counts.requests_sent > 0);
    assert!(
        heartbeats
            .iter()
            .all(|heartbeat| heartbeat.worker == "rigged" && heartbeat.instance == last.instance)
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_a_broker_stops_at_once() -> Result<()> {
    let rig = Rig::new();
    rig.floor.away.store(true, Ordering::Relaxed);
    let worker = rig.start();
    for wanted in [Event::Opened(None), Event::Opened(Some(1))] {
        rig.floor
            .log
            .wait_for_some("tries again and again", 3, |event| *event == wanted)
            .await?;
    }
    // By the paused clock, which only moves when everything waits: nothing waits for a heartbeat that cannot leave.
    let signal = Instant::now();
    assert_eq!(worker.stop().await?.left, 0);
    assert!(
        signal.elapsed() < Duration::from_secs(1),
        "{:?}",
        signal.elapsed()
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_unconfirmed_last_heartbeat_does_not_hold_the_worker() -> Result<()> {
    let rig = Rig::new();
    rig.floor
        .heartbeats_unconfirmed
        .store(true, Ordering::Relaxed);
    let worker = rig.start();
    rig.give(0).await?;
    rig.acked([0]).await?;
    let summary = worker.stop().await?;
    assert_eq!((summary.chunks, summary.left), (1, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn draining_shows_at_once_and_as_long_as_it_lasts() -> Result<()> {
    let rig = Rig::gated();
    let worker = rig.start();
    rig.give(0).await?;
    rig.floor
        .log
        .wait_for_some("the probing", 1, |event| *event == Event::Probing(0))
        .await?;
    let began = Instant::now();
    worker.stop.cancel();
    let draining = |events: &[Event]| {
        let heartbeats = heartbeats(events);
        let draining = heartbeats
            .iter()
            .filter(|heartbeat| heartbeat.draining && keys(heartbeat) == [rig.key(0)]);
        draining.count()
    };
    rig.floor
        .log
        .wait_for("the first draining heartbeat", |events| {
            draining(events) >= 1
        })
        .await?;
    assert!(
        began.elapsed() < HEARTBEAT_INTERVAL,
        "{:?}",
        began.elapsed()
    );
    rig.floor
        .log
        .wait_for("another draining heartbeat", |events| draining(events) >= 2)
        .await?;
    // Draining times out because the chunk never ends.
    assert_eq!(worker.ended().await?.left, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn heartbeats_report_the_worker_and_its_counts() -> Result<()> {
    let mut rig = Rig::new();
    rig.settings.rate = NonZeroU32::new(1_000_000);
    let worker = rig.start();
    for chunk in 0..3 {
        rig.give(chunk).await?;
    }
    rig.acked(0..3).await?;
    worker.stop().await?;
    let events = rig.floor.log.events();
    let replies: u64 = (0..3).map(|chunk| received(&events, chunk)).sum();
    let lost: u64 = (0..3).map(|chunk| unknown(&events, chunk)).sum();
    let last = heartbeats(&events).pop().expect("there were some");
    assert_eq!(last.program_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(last.group, "default");
    assert_eq!((last.threads, last.prefetch), (1, 4));
    assert_eq!(last.rate, NonZeroU32::new(1_000_000));
    assert!(replies > 0);
    assert_eq!(last.counts.replies, replies);
    let losses = last.counts.local_losses.by_cause();
    assert!(losses.iter().all(|count| *count <= lost));
    assert_eq!(losses.iter().any(|count| *count > 0), lost > 0);
    Ok(())
}

fn outcomes(events: &[Event], chunk: u32) -> Vec<Outcome> {
    let body = published(events, chunk).remove(0);
    ResultChunk::decode(&body.0)
        .expect("the worker sends what it can read")
        .outcomes
}

fn received(events: &[Event], chunk: u32) -> u64 {
    let outcomes = outcomes(events, chunk);
    outcomes
        .iter()
        .map(|outcome| u64::from(outcome.received))
        .sum()
}

fn unknown(events: &[Event], chunk: u32) -> u64 {
    let outcomes = outcomes(events, chunk);
    let unknown = outcomes
        .iter()
        .filter(|outcome| matches!(outcome.status, Status::Unknown(_)));
    unknown.count() as u64
}

#[tokio::test]
async fn the_status_shows_each_state_and_what_was_done() -> Result<()> {
    let rig = Rig::gated();
    rig.floor.away.store(true, Ordering::Relaxed);
    let worker = rig.start();
    let mut status = worker.status.clone();
    assert_eq!(status.borrow_and_update().state, WorkerState::Starting);
    assert!(!status.borrow().connected);
    rig.floor.away.store(false, Ordering::Relaxed);
    within(
        "a live worker",
        status.wait_for(|status| status.state == WorkerState::Live && status.connected),
    )
    .await??;
    rig.give(0).await?;
    within(
        "a chunk in hand",
        status.wait_for(|status| status.in_hand == 1),
    )
    .await??;
    rig.permits.add_permits(1);
    let done = within(
        "the chunk's end",
        status.wait_for(|status| status.counts.chunks_done == 1 && status.in_hand == 0),
    )
    .await??
    .to_owned();
    assert_eq!(done.counts.targets_done, u64::from(TARGETS));
    assert!(done.counts.requests_sent >= u64::from(TARGETS));
    rig.give(1).await?;
    within(
        "another chunk",
        status.wait_for(|status| status.in_hand == 1),
    )
    .await??;
    worker.stop.cancel();
    within(
        "the drain",
        status.wait_for(|status| status.state == WorkerState::Draining && status.in_hand == 1),
    )
    .await??;
    rig.permits.add_permits(1);
    let summary = worker.ended().await?;
    assert_eq!(summary.chunks, status.borrow().counts.chunks_done);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_status_shows_a_lost_session() -> Result<()> {
    let rig = Rig::new();
    let worker = rig.start();
    let mut status = worker.status.clone();
    within("a session", status.wait_for(|status| status.connected)).await??;
    rig.floor.away.store(true, Ordering::Relaxed);
    rig.floor.cut.notify_one();
    within("its loss", status.wait_for(|status| !status.connected)).await??;
    rig.floor.away.store(false, Ordering::Relaxed);
    within("the next one", status.wait_for(|status| status.connected)).await??;
    worker.stop().await?;
    Ok(())
}
