//! A chunk is acked when its result is stored, and not before; until then the same bytes are published again.

use std::sync::Arc;

use anyhow::Result;
use pingfleet_broker::{Confirmed, QueueName};
use tokio::sync::Semaphore;

use crate::{
    answers::Answer,
    rig::{Event, Rig, count, place, published},
};

/// Publishes of one chunk get these answers. The chunk must be probed once, published with the same bytes until it is
/// stored, and acked once after that.
async fn stored_in_the_end(answers: &[Answer], results: u32) -> Result<()> {
    let rig = Rig::new();
    rig.floor.answers.add(0, answers.iter().cloned());
    let worker = rig.start();
    rig.give(0).await?;
    rig.acked([0]).await?;
    // The session still works.
    rig.give(1).await?;
    rig.acked([1]).await?;
    assert_eq!(worker.stop().await?.chunks, 2);

    let events = rig.floor.log.events();
    let bodies = published(&events, 0);
    assert_eq!(bodies.len(), answers.len() + 1, "{events:?}");
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(count(&events, |event| *event == Event::Probing(0)), 1);
    assert_eq!(count(&events, |event| *event == Event::Acked(0)), 1);
    assert!(place(&events, &Event::Stored(0)) < place(&events, &Event::Acked(0)));
    assert_eq!(rig.ready(QueueName::RESULTS).await?, results);
    assert_eq!(rig.ready(QueueName::WORK).await?, 0);
    Ok(())
}

#[tokio::test]
async fn work_is_acked_only_after_its_result_is_stored() -> Result<()> {
    let rig = Rig::new();
    let permits = Arc::new(Semaphore::new(0));
    rig.floor
        .answers
        .add(1, [Answer::Waits(Arc::clone(&permits))]);
    let worker = rig.start();
    rig.give(0).await?;
    rig.acked([0]).await?;
    rig.give(1).await?;
    rig.give(2).await?;
    let events = rig.acked([2]).await?;
    assert_eq!(published(&events, 1).len(), 1);
    assert_eq!(count(&events, |event| *event == Event::Acked(1)), 0);
    permits.add_permits(1);
    rig.acked([1]).await?;
    worker.stop().await?;

    let events = rig.floor.log.events();
    for chunk in 0..3 {
        assert!(place(&events, &Event::Stored(chunk)) < place(&events, &Event::Acked(chunk)));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_refused_and_unroutable_is_stored_at_the_third_try() -> Result<()> {
    let answers = [Confirmed::Refused, Confirmed::Unroutable].map(Answer::Says);
    stored_in_the_end(&answers, 2).await
}

#[tokio::test(start_paused = true)]
async fn a_result_whose_confirm_is_lost_is_published_again() -> Result<()> {
    // The broker has it twice then: the writer counts a duplicate.
    stored_in_the_end(&[Answer::ConfirmLost], 3).await
}

#[tokio::test(start_paused = true)]
async fn a_result_whose_publish_breaks_the_session_is_published_again() -> Result<()> {
    stored_in_the_end(&[Answer::Lost], 2).await
}

#[tokio::test(start_paused = true)]
async fn a_result_survives_several_failures_in_a_row() -> Result<()> {
    let answers = [
        Answer::Lost,
        Answer::Says(Confirmed::Refused),
        Answer::ConfirmLost,
        Answer::Lost,
        Answer::Says(Confirmed::Unroutable),
    ];
    stored_in_the_end(&answers, 3).await
}

#[tokio::test]
async fn a_chunk_delivered_again_while_in_hand_is_probed_once_and_both_deliveries_are_acked()
-> Result<()> {
    let rig = Rig::gated();
    let worker = rig.start();
    rig.permits.add_permits(1);
    rig.give(0).await?;
    rig.acked([0]).await?;
    rig.give(1).await?;
    rig.give(1).await?;
    rig.floor
        .log
        .wait_for_some("both deliveries", 2, |event| *event == Event::Taken(1))
        .await?;
    rig.permits.add_permits(2);
    rig.floor
        .log
        .wait_for_some("both acks", 2, |event| *event == Event::Acked(1))
        .await?;
    worker.stop().await?;

    let events = rig.floor.log.events();
    assert_eq!(count(&events, |event| *event == Event::Probing(1)), 1);
    assert_eq!(published(&events, 1).len(), 1);
    assert_eq!(rig.ready(QueueName::WORK).await?, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_chunk_in_hand_when_the_session_breaks_is_probed_once_and_acked_on_the_next() -> Result<()>
{
    let rig = Rig::gated();
    let worker = rig.start();
    rig.give(0).await?;
    rig.floor
        .log
        .wait_for_some("the probing", 1, |event| *event == Event::Probing(0))
        .await?;
    rig.floor.cut.notify_one();
    rig.floor
        .log
        .wait_for_some("the second delivery", 2, |event| *event == Event::Taken(0))
        .await?;
    rig.permits.add_permits(2);
    rig.acked([0]).await?;
    worker.stop().await?;

    let events = rig.floor.log.events();
    assert_eq!(count(&events, |event| *event == Event::Probing(0)), 1);
    assert_eq!(published(&events, 0).len(), 1);
    assert_eq!(count(&events, |event| *event == Event::Acked(0)), 1);
    assert_eq!(rig.ready(QueueName::WORK).await?, 0);
    Ok(())
}
