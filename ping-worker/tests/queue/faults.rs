//! A failing chunk affects neither the worker nor another chunk.

use std::num::NonZeroU16;

use anyhow::Result;
use pingfleet_broker::{Broker as _, QueueName};

use crate::rig::{Event, Panics, Rig, count, published};

/// Deliveries of a message until it is a dead letter: one, and one more per return.
const DELIVERIES: usize = 21;

fn panics(rig: &Rig, chunk: u32, times: usize) {
    *rig.panics.lock().expect("no test panics with it") = Panics { chunk, times };
}

#[tokio::test]
async fn a_panic_in_the_prober_gives_the_chunk_back_and_the_worker_lives() -> Result<()> {
    let rig = Rig::new();
    panics(&rig, 1, 1);
    let worker = rig.start();
    for chunk in 0..4 {
        rig.give(chunk).await?;
    }
    rig.acked(0..4).await?;
    assert_eq!(worker.stop().await?.chunks, 4);

    let events = rig.floor.log.events();
    assert_eq!(
        count(&events, |event| *event == Event::Requeued(Some(1))),
        1
    );
    assert_eq!(count(&events, |event| *event == Event::Probing(1)), 2);
    for chunk in 0..4 {
        assert_eq!(published(&events, chunk).len(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_chunk_that_always_panics_becomes_a_dead_letter_and_the_worker_continues() -> Result<()> {
    let mut rig = Rig::new();
    rig.settings.prefetch = Some(NonZeroU16::MIN);
    panics(&rig, 1, usize::MAX);
    let worker = rig.start();
    for chunk in 0..4 {
        rig.give(chunk).await?;
    }
    rig.acked([0, 2, 3]).await?;
    assert_eq!(worker.stop().await?.chunks, 3);

    let events = rig.floor.log.events();
    assert_eq!(
        count(&events, |event| *event == Event::Requeued(Some(1))),
        DELIVERIES
    );
    assert_eq!(rig.ready(QueueName::DEAD).await?, 1);
    assert_eq!(rig.ready(QueueName::WORK).await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_unreadable_message_becomes_a_dead_letter_and_the_worker_continues() -> Result<()> {
    let rig = Rig::new();
    let worker = rig.start();
    rig.put(b"no chunk").await?;
    rig.give(0).await?;
    rig.acked([0]).await?;
    worker.stop().await?;

    let events = rig.floor.log.events();
    assert_eq!(
        count(&events, |event| *event == Event::Requeued(None)),
        DELIVERIES
    );
    let mut dead = rig.memory.consumer(QueueName::DEAD, 1).await?;
    let letter = dead.next().await?;
    assert_eq!(letter.body, b"no chunk");
    assert_eq!(letter.dead_letter_reason.as_deref(), Some("delivery_limit"));
    assert_eq!(rig.ready(QueueName::WORK).await?, 0);
    Ok(())
}
