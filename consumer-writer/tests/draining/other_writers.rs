//! Other writers and other databases on the same broker.

use std::sync::atomic::Ordering;

use anyhow::Result;
use consumer_writer::WriterError;
use pingfleet_broker::{Broker as _, QueueName};
use pingfleet_store::Transport;
use pingfleet_wire::Message as _;
use uuid::Uuid;

use crate::rig::Rig;

async fn put_foreign(rig: &Rig, theirs: Uuid) -> Result<()> {
    let mut foreign = rig.result(0);
    foreign.database = theirs;
    rig.put(QueueName::RESULTS, &foreign.encode()).await
}

const THEIRS: Uuid = Uuid::from_u128(99);

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
        put_foreign(&rig, THEIRS).await?;
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
        let mut foreign = rig.result(0);
        (foreign.database, foreign.worker) = (THEIRS, format!("theirs-{number}"));
        rig.put(QueueName::RESULTS, &foreign.encode()).await?;
        sent.push(foreign.encode());
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
    assert_eq!(set_aside(&rig).await?, [foreign.encode()]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_the_queue_of_foreign_messages_does_not_take_holds_up_nothing() -> Result<()> {
    let rig = Rig::new(5, 3)?;
    rig.desk.foreign_is_stuck.store(true, Ordering::Relaxed);
    for _ in 0..200 {
        put_foreign(&rig, THEIRS).await?;
    }
    rig.put_results(0..5).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 141).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.quarantined, summary.foreign),
        (5, 136, 0)
    );
    // Those that wait for their confirm come again.
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 64);
    let reason = rig.value::<String>("SELECT DISTINCT reason FROM quarantine")?;
    assert!(reason.contains("takes no more"), "{reason}");
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn foreign_deliveries_of_a_lost_session_come_again() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    rig.desk.foreign_is_stuck.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        put_foreign(&rig, THEIRS).await?;
    }
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 3).await?;
    rig.desk.cut.notify_one();
    rig.taken(QueueName::RESULTS, 6).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.quarantined, summary.foreign), (0, 0));
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 3);
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
