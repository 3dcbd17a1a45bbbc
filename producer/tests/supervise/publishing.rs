//! Publishing: each chunk until its confirm; again only what is unconfirmed, overdue or retried.

use std::sync::{Arc, atomic::Ordering};

use anyhow::Result;
use pingfleet_broker::{Confirmed, QueueName};
use pingfleet_settings::Exit;
use pingfleet_store::Transport;
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat};
use producer::{EndReason, ProducerError, RunOutcome, RunRequest};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    answers::Answer,
    rig::{Event, Rig, publishes, run_of},
};

/// How often the depth of each queue is read before its message disappears.
const LOOKS: usize = 10;

#[tokio::test(start_paused = true)]
async fn a_refused_chunk_is_published_again_and_holds_up_no_other() -> Result<()> {
    let mut rig = Rig::new(1)?;
    let answers = [Confirmed::Refused, Confirmed::Refused].map(Answer::Says);
    rig.watch.answers.add(0, answers);
    let outcome = rig.detached(&["10.0.0.0/24"]).await?;
    assert_eq!(outcome.reason, EndReason::Detached);
    let events = rig.watch.log.events();
    let sent = |chunk| move |event: &Event| *event == Event::Published(chunk);
    let first = events.iter().position(sent(0));
    let again = events.iter().rposition(sent(0));
    let other = events.iter().position(sent(1));
    assert!(first < other && other < again, "{events:?}");
    let publishes = publishes(&events);
    assert_eq!(publishes[&0], 3);
    assert!(
        publishes
            .iter()
            .all(|(chunk, times)| *chunk == 0 || *times == 1)
    );
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1")?,
        254
    );
    rig.assert_published_as_planned();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_unroutable_chunk_is_published_again() -> Result<()> {
    let mut rig = Rig::new(10)?;
    rig.watch
        .answers
        .add(1, [Answer::Says(Confirmed::Unroutable)]);
    rig.detached(&["10.0.0.1-10.0.0.30"]).await?;
    let publishes = publishes(&rig.watch.log.events());
    assert_eq!(publishes[&1], 2);
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1")?,
        3
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_publishes_again_only_what_is_unconfirmed() -> Result<()> {
    let mut rig = Rig::new(1)?;
    rig.watch.answers.add(5, [Answer::Lost]);
    rig.watch.answers.add(12, [Answer::ConfirmLost]);
    rig.detached(&["10.0.0.1-10.0.0.20"]).await?;
    let publishes = publishes(&rig.watch.log.events());
    assert_eq!(publishes.len(), 20);
    for (chunk, times) in publishes {
        assert_eq!(
            times,
            if [5, 12].contains(&chunk) { 2 } else { 1 },
            "{chunk}"
        );
    }
    // Each is noted once, when it is confirmed.
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1 AND publishes = 1")?,
        20
    );
    rig.assert_published_as_planned();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn confirms_that_came_before_the_session_broke_are_kept() -> Result<()> {
    let mut rig = Rig::new(10)?;
    let permits = Arc::new(Semaphore::new(0));
    for chunk in 0..3 {
        rig.watch
            .answers
            .add(chunk, [Answer::Waits(Arc::clone(&permits))]);
    }
    rig.watch.answers.add(3, [Answer::Lost]);
    *rig.watch
        .confirms_at
        .lock()
        .expect("nothing panics with it") = Some((3, permits));
    rig.detached(&["10.0.0.1-10.0.0.50"]).await?;
    assert_eq!(
        Vec::from_iter(publishes(&rig.watch.log.events())),
        [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1)]
    );
    Ok(())
}

#[tokio::test]
async fn an_interrupted_producer_has_noted_what_was_confirmed_and_resumes_with_the_rest()
-> Result<()> {
    let rig = Rig::new(10)?;
    let never = Arc::new(Semaphore::new(0));
    rig.watch.answers.add(1, [Answer::Waits(never)]);
    let producing = rig.start(Rig::plan(&["10.0.0.1-10.0.0.30"])?).await?;
    rig.published(3).await?;
    let outcome = producing.stop().await?;
    assert_eq!(outcome.reason, EndReason::Interrupted);
    assert_eq!(outcome.exit(false), Exit::Interrupted);
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1")?,
        2
    );
    assert_eq!(rig.number("SELECT chunk FROM chunks WHERE state = 0")?, 1);

    let resumed = rig.start(RunRequest::Resume(run_of(&outcome)?)).await?;
    rig.published(4).await?;
    rig.answer(4).await?;
    let outcome = resumed.ended().await??;
    assert_eq!(outcome.exit(false), Exit::Complete);
    let publishes = publishes(&rig.watch.log.events());
    assert_eq!(Vec::from_iter(publishes), [(0, 1), (1, 2), (2, 1)]);
    rig.assert_published_as_planned();
    Ok(())
}

/// Publishes a run of three chunks, and resumes it while no session can be opened. The chunks from `unpublished` on were
/// not published.
async fn resumed_without_sessions(
    unpublished: u32,
) -> Result<(usize, Result<RunOutcome, ProducerError>)> {
    let mut rig = Rig::new(10)?;
    let run = run_of(&rig.detached(&["10.0.0.1-10.0.0.30"]).await?)?;
    rig.connection()?.execute(
        "UPDATE chunks SET state = 0, published_at_us = NULL, publishes = 0 WHERE chunk >= ?1",
        [unpublished],
    )?;
    rig.watch.refuses_sessions.store(true, Ordering::Relaxed);
    let ended = if unpublished == 3 {
        let resumed = rig.resume(run).await?;
        rig.answer(3).await?;
        resumed.ended().await?
    } else {
        rig.start(RunRequest::Resume(run)).await?.ended().await?
    };
    let opened = |event: &&Event| **event == Event::Opened;
    Ok((rig.watch.log.events().iter().filter(opened).count(), ended))
}

#[tokio::test]
async fn a_producer_with_nothing_to_publish_opens_no_session() -> Result<()> {
    let (opened, ended) = resumed_without_sessions(3).await?;
    assert_eq!(ended?.exit(false), Exit::Complete);
    assert_eq!(opened, 1, "only the one that published");
    Ok(())
}

/// The control: with a chunk to publish it needs a session.
#[tokio::test]
async fn a_producer_with_a_chunk_to_publish_opens_a_session() -> Result<()> {
    let (_, ended) = resumed_without_sessions(2).await?;
    assert!(matches!(ended, Err(ProducerError::Broker(_))), "{ended:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_was_sent_twice_counts_for_no_round_and_has_the_time_of_its_last_sending()
-> Result<()> {
    let mut rig = Rig::new(10)?;
    let mut store = rig.store()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    assert_eq!(store.begin_publish_round(Transport::Broker)?, Some(1));
    rig.watch.answers.add(1, [Answer::Says(Confirmed::Refused)]);
    rig.detached(&["10.0.0.1-10.0.0.30"]).await?;
    let rounds = "SELECT group_concat(published_round ORDER BY chunk) FROM chunks";
    let rounds: String = rig.connection()?.query_row(rounds, (), |row| row.get(0))?;
    // The control: the others were sent once.
    assert_eq!(rounds, "1,0,1");
    // The refused one was sent again after the others.
    let last = "SELECT chunk FROM chunks ORDER BY published_at_us DESC LIMIT 1";
    assert_eq!(rig.number(last)?, 1);
    Ok(())
}

/// Publishes a run of four chunks, of which the first is settled and the last loses its mark of being published, and
/// resumes it over `transport`. Returns the chunks that are published then.
async fn resumed_over(transport: Transport) -> Result<Vec<u32>> {
    let mut rig = Rig::new(10)?;
    let run = run_of(&rig.detached(&["10.0.0.1-10.0.0.40"]).await?)?;
    rig.answer(1).await?;
    rig.connection()?.execute_batch(&format!(
        "UPDATE runs SET transport = '{}';
         UPDATE chunks SET state = 0, published_at_us = NULL, publishes = 0 WHERE chunk = 3",
        transport.name()
    ))?;
    rig.settings.detach = true;
    rig.settings.transport = transport;
    let before = rig.watch.log.events().len();
    rig.start(RunRequest::Resume(run)).await?.ended().await??;
    rig.assert_published_as_planned();
    let events = rig.watch.log.events();
    Ok(publishes(&events[before..]).into_keys().collect())
}

#[tokio::test]
async fn resume_over_a_broker_publishes_only_what_was_never_published() -> Result<()> {
    assert_eq!(resumed_over(Transport::Broker).await?, [3]);
    Ok(())
}

#[tokio::test]
async fn resume_of_a_sweep_publishes_everything_outstanding() -> Result<()> {
    assert_eq!(resumed_over(Transport::Sweep).await?, [1, 2, 3]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn overdue_chunks_are_published_again_only_when_both_queues_are_empty() -> Result<()> {
    let mut rig = Rig::new(10)?;
    let outcome = rig.detached(&["10.0.0.1-10.0.0.30"]).await?;
    let run = run_of(&outcome)?;
    let run_id = outcome.summary.map(|summary| summary.run_id);
    assert_eq!(rig.memory.purge(QueueName::WORK), 3);
    let mut store = rig.store()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    // A worker lists the second chunk as in hand: that one is not overdue.
    let heartbeat = Heartbeat {
        in_hand: vec![ChunkInHand::just_taken(ChunkKey {
            run: run_id.unwrap_or_default(),
            chunk: 1,
        })],
        ..Heartbeat::new("busy", Uuid::new_v4())
    };
    store.apply(
        Transport::Broker,
        &[pingfleet_store::DecodedDelivery::Heartbeat {
            heartbeat,
            login: None,
        }],
    )?;
    rig.connection()?
        .execute_batch("UPDATE chunks SET published_at_us = published_at_us - 3600000000")?;

    let [work, results] = &rig.watch.extra_ready;
    work.store(1, Ordering::Relaxed);
    let resumed = rig.start(RunRequest::Resume(run)).await?;
    // First only `work` has a ready message, then only `results`, then none. The depth is read every two seconds, so these
    // reads take longer than the quiet time that makes chunks overdue.
    for (queue, in_work, in_results) in [(QueueName::WORK, 0, 1), (QueueName::RESULTS, 0, 0)] {
        rig.watch
            .log
            .wait_for_some("looks at a queue that is not empty", LOOKS, |event| {
                *event == Event::Depth(queue)
            })
            .await?;
        assert_eq!(
            publishes(&rig.watch.log.events()).values().sum::<usize>(),
            3
        );
        results.store(in_results, Ordering::Relaxed);
        work.store(in_work, Ordering::Relaxed);
    }
    let events = rig.published(5).await?;
    // A cancelled run ends after what is confirmed is recorded.
    assert!(rig.store()?.cancel_run(run)?);
    resumed.ended().await??;
    assert_eq!(Vec::from_iter(publishes(&events)), [(0, 2), (1, 1), (2, 2)]);
    // The count of publishes doubles their next wait.
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE publishes = 2")?,
        2
    );
    rig.assert_published_as_planned();
    Ok(())
}
