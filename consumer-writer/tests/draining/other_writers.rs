//! Other writers and other databases on the same broker.

use anyhow::Result;
use consumer_writer::WriterError;
use pingfleet_broker::{Broker as _, QueueName};
use pingfleet_store::Transport;
use pingfleet_wire::Message as _;
use uuid::Uuid;

use crate::rig::{Rig, acked};

async fn put_foreign(rig: &Rig, theirs: Uuid) -> Result<()> {
    let mut foreign = rig.result(0);
    foreign.database = theirs;
    rig.put(QueueName::RESULTS, &foreign.encode()).await
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_reads_only_another_database_s_results_acks_none_and_names_both() -> Result<()>
{
    let rig = Rig::new(1, 3)?;
    let foreigner = Uuid::from_u128(99);
    for _ in 0..3 {
        put_foreign(&rig, foreigner).await?;
    }
    let ended = rig.start().await?.ended().await?;
    let Err(error @ WriterError::OtherDatabase { .. }) = ended else {
        panic!("{ended:?}");
    };
    let message = error.to_string();
    for named in [
        foreigner.to_string(),
        rig.database.to_string(),
        rig.path().display().to_string(),
    ] {
        assert!(message.contains(&named), "{message}");
    }
    assert!(acked(&rig.desk.log.events(), QueueName::RESULTS).is_empty());
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 3);
    assert_eq!(rig.value::<i64>("SELECT count(*) FROM quarantine")?, 0);
    Ok(())
}

#[tokio::test]
async fn a_writer_goes_on_while_its_own_results_come_between_those_of_another() -> Result<()> {
    let rig = Rig::new(20, 3)?;
    let foreigner = Uuid::from_u128(99);
    for chunk in 0..20 {
        rig.put_results([chunk]).await?;
        put_foreign(&rig, foreigner).await?;
    }
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 20).await?;
    rig.taken(QueueName::RESULTS, 40).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.quarantined), (20, 0));
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 20);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_window_full_of_another_database_s_results_ends_the_writer() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    rig.put_results([0]).await?;
    for _ in 0..300 {
        put_foreign(&rig, Uuid::from_u128(99)).await?;
    }
    let ended = rig.start().await?.ended().await?;
    assert!(
        matches!(ended, Err(WriterError::OtherDatabase { .. })),
        "{ended:?}"
    );
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 300);
    rig.assert_no_early_ack();
    rig.assert_complete()
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
