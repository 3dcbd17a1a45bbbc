//! Other writers and other databases on the same broker.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use consumer_writer::{WriterError, WriterState, WriterSummary};
use pingfleet_broker::{Broker as _, QueueName};
use pingfleet_store::Transport;
use pingfleet_wire::{Message as _, Target};
use uuid::Uuid;

use crate::{
    rig::{ForeignQueue, Rig},
    watched::within,
};

const THEIRS: Uuid = Uuid::from_u128(99);

/// Puts a result of another database on the queue, different from every other one.
async fn put_foreign(rig: &Rig) -> Result<Vec<u8>> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut foreign = rig.result(0);
    (foreign.database, foreign.worker) = (THEIRS, format!("theirs-{number}"));
    let body = foreign.encode();
    rig.put(QueueName::RESULTS, &body).await?;
    Ok(body)
}

fn let_the_foreign_queue(rig: &Rig, state: ForeignQueue) {
    rig.desk.foreign_queue.send_replace(state);
}

/// The bodies of the messages in the queue of foreign ones.
async fn set_aside(rig: &Rig) -> Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    let mut consumer = rig.memory.consumer(QueueName::FOREIGN, u16::MAX).await?;
    for _ in 0..rig.ready(QueueName::FOREIGN).await? {
        bodies.push(consumer.next().await?.body);
    }
    Ok(bodies)
}

#[tokio::test]
async fn a_writer_that_reads_only_another_database_s_results_sets_them_aside_and_stays()
-> Result<()> {
    let rig = Rig::new(1, 3)?;
    for _ in 0..3 {
        put_foreign(&rig).await?;
    }
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 3).await?;
    assert_eq!(set_aside(&rig).await?.len(), 3);
    // Its own result comes later, and is stored.
    rig.put_results([0]).await?;
    rig.acked(QueueName::RESULTS, 4).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (1, 0, 3)
    );
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_flood_of_another_database_s_results_is_set_aside_whole_between_the_own_ones()
-> Result<()> {
    let rig = Rig::new(20, 3)?;
    let mut sent = Vec::new();
    for number in 0..600 {
        sent.push(put_foreign(&rig).await?);
        if number % 30 == 0 {
            rig.put_results([number / 30]).await?;
        }
    }
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 620).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (20, 0, 600)
    );
    assert_eq!(set_aside(&rig).await?, sent);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_dead_letter_of_another_database_is_set_aside() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let mut foreign = rig.works[0].clone();
    foreign.database = THEIRS;
    rig.kill(&foreign.encode()).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::DEAD, 1).await?;
    assert_eq!(writer.stop().await?.foreign, 1);
    let mut consumer = rig.memory.consumer(QueueName::FOREIGN, 1).await?;
    let letter = consumer.next().await?;
    assert_eq!(letter.body, foreign.encode());
    // Who returns it can say why it is one.
    assert_eq!(letter.dead_letter_reason.as_deref(), Some("delivery_limit"));
    Ok(())
}

#[tokio::test]
async fn a_foreign_queue_that_does_not_answer_loses_nothing_and_does_not_hold_up_own_results()
-> Result<()> {
    let rig = Rig::new(5, 3)?;
    let_the_foreign_queue(&rig, ForeignQueue::IsSilent);
    for _ in 0..200 {
        put_foreign(&rig).await?;
    }
    rig.put_results(0..5).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 5).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (5, 0, 0)
    );
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 200);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

/// How many of 300 results of another database, and 5 own ones, are applied, quarantined and set aside, when the queue of
/// foreign messages takes none any more after the first one.
async fn when_the_foreign_queue(state: ForeignQueue) -> Result<[u64; 3]> {
    let rig = Rig::new(5, 3)?;
    put_foreign(&rig).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 1).await?;
    let_the_foreign_queue(&rig, state);
    for _ in 0..300 {
        put_foreign(&rig).await?;
    }
    rig.put_results(0..5).await?;
    rig.acked(QueueName::RESULTS, 306).await?;
    let summary = writer.stop().await?;
    let reasons = rig.value::<String>("SELECT group_concat(DISTINCT reason) FROM quarantine")?;
    assert_eq!(
        reasons,
        "for another database, and the queue `foreign` takes no more"
    );
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 0);
    rig.assert_no_early_ack();
    rig.assert_complete()?;
    Ok([summary.applied, summary.quarantined, summary.foreign])
}

#[tokio::test]
async fn what_a_full_foreign_queue_refuses_is_quarantined_and_acked() -> Result<()> {
    let counts = when_the_foreign_queue(ForeignQueue::Refuses).await?;
    assert_eq!(counts, [5, 300, 1]);
    Ok(())
}

#[tokio::test]
async fn a_writer_that_loses_its_permission_to_set_aside_quarantines_and_goes_on() -> Result<()> {
    let counts = when_the_foreign_queue(ForeignQueue::IsForbidden).await?;
    assert_eq!(counts, [5, 300, 1]);
    Ok(())
}

#[tokio::test]
async fn foreign_results_are_never_quarantined_because_the_writer_stops() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let_the_foreign_queue(&rig, ForeignQueue::IsSilent);
    let mut writer = rig.start().await?;
    let connected = |summary: &WriterSummary| summary.state == WriterState::Connected;
    within("a session", writer.summary.wait_for(connected)).await??;
    // Its own result waits for another program's lock, and meanwhile the writer takes all that it may.
    let other = rig.connection()?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    rig.put_results([0]).await?;
    for _ in 0..300 {
        put_foreign(&rig).await?;
    }
    rig.taken(QueueName::RESULTS, 256).await?;
    writer.stop.cancel();
    other.execute_batch("COMMIT")?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (1, 0, 0)
    );
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 300);
    rig.assert_complete()
}

#[tokio::test]
async fn foreign_deliveries_of_a_lost_session_come_again() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let_the_foreign_queue(&rig, ForeignQueue::IsSilent);
    let mut sent = HashSet::new();
    // More than may wait for their confirm at a time.
    for _ in 0..100 {
        sent.insert(put_foreign(&rig).await?);
    }
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 100).await?;
    rig.desk.cut.notify_one();
    rig.taken(QueueName::RESULTS, 200).await?;
    // Those of the first session have no delivery any more, and leave room for those that came again.
    let_the_foreign_queue(&rig, ForeignQueue::Stores);
    rig.acked(QueueName::RESULTS, 100).await?;
    rig.put_results([0]).await?;
    rig.acked(QueueName::RESULTS, 101).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (1, 0, 100)
    );
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 0);
    let stored: HashSet<_> = set_aside(&rig).await?.into_iter().collect();
    assert_eq!(stored, sent);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn foreign_messages_that_wait_for_their_confirm_are_bounded_in_bytes() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let_the_foreign_queue(&rig, ForeignQueue::IsSilent);
    let mut large = rig.works[0].clone();
    large.database = THEIRS;
    large.targets = vec![Target::Text("x".repeat(253)); 4000];
    let body = large.encode();
    let fitting = (16_usize << 20).div_ceil(body.len());
    // The control: without the limit all of them would wait for their confirm.
    assert!(fitting < 20, "{} bytes", body.len());
    for _ in 0..20 {
        rig.put(QueueName::DEAD, &body).await?;
    }
    rig.put_results([0]).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 1).await?;
    let published = || rig.desk.foreign_published.load(Ordering::Relaxed);
    within("as many as may wait", async {
        while published() < fitting {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    rig.put(QueueName::DEAD, &body).await?;
    rig.taken(QueueName::DEAD, 21).await?;
    assert_eq!(published(), fitting);
    let_the_foreign_queue(&rig, ForeignQueue::Stores);
    rig.acked(QueueName::DEAD, 21).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.quarantined, summary.foreign), (0, 21));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_second_writer_ends_and_says_who_the_first_one_is() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    rig.store()?
        .note_writer_alive(Transport::Broker, "pid 4711")?;
    let _first = rig.memory.consumer(QueueName::RESULTS, 1).await?;
    rig.put_results([0]).await?;
    let ended = rig.start().await?.ended().await?;
    let Err(error @ WriterError::SecondWriter { .. }) = ended else {
        panic!("{ended:?}");
    };
    assert!(error.to_string().contains("pid 4711"), "{error}");
    assert_eq!(rig.memory.depth(QueueName::RESULTS).await?.consumers, 1);
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_second_writer_takes_over_when_the_first_one_leaves() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let first = rig.memory.consumer(QueueName::RESULTS, 1).await?;
    rig.put_results([0]).await?;
    let writer = rig.start().await?;
    drop(first);
    rig.acked(QueueName::RESULTS, 1).await?;
    writer.stop().await?;
    rig.assert_complete()
}

#[tokio::test]
async fn a_second_writer_that_waits_can_be_stopped() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let _first = rig.memory.consumer(QueueName::RESULTS, 1).await?;
    let writer = rig.start().await?;
    assert_eq!(writer.stop().await?.batches, 0);
    Ok(())
}
