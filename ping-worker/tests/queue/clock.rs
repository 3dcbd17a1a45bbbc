//! A worker with a clock that was never set takes no chunk, keeps none from others, and goes on when the clock is set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pingfleet_broker::{Broker as _, QueueName};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    rig::{Event, Rig, count},
    watched::within,
};

const DAY: Duration = Duration::from_hours(24);

/// A run that was planned so much later than now.
fn planned_in(later: Duration) -> Result<Uuid> {
    let planned = (SystemTime::now() + later).duration_since(UNIX_EPOCH)?;
    let time = Timestamp::from_unix(NoContext, planned.as_secs(), planned.subsec_nanos());
    Ok(Uuid::new_v7(time))
}

/// Waits until the worker has returned the chunk: no consumer is left.
async fn returned(rig: &Rig) -> Result<()> {
    rig.floor
        .log
        .wait_for_some("the chunk", 1, |event| *event == Event::Taken(0))
        .await?;
    within("the end of its session", async {
        while rig.memory.depth(QueueName::WORK).await?.consumers > 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    assert_eq!(rig.ready(QueueName::WORK).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_worker_whose_clock_is_before_the_run_returns_its_chunk_once_and_takes_no_more()
-> Result<()> {
    let mut rig = Rig::new();
    rig.run = planned_in(DAY + Duration::from_hours(1))?;
    rig.give(0).await?;
    let worker = rig.start();
    returned(&rig).await?;
    // Another worker with a right clock can take it; a second look of the first one would cost it a delivery.
    let mut other = rig.memory.consumer(QueueName::WORK, 1).await?;
    let delivery = other.next().await?;
    assert!(delivery.redelivered);
    other.ack(&[delivery.tag]).await?;
    drop(other);
    assert_eq!(worker.stop().await?.chunks, 0);
    let events = rig.floor.log.events();
    assert_eq!(count(&events, |event| *event == Event::Taken(0)), 1);
    assert_eq!(count(&events, |event| *event == Event::Probing(0)), 0);
    Ok(())
}

#[tokio::test]
async fn a_worker_goes_on_when_its_clock_is_late_enough() -> Result<()> {
    let mut rig = Rig::new();
    rig.run = planned_in(DAY + Duration::from_secs(4))?;
    rig.give(0).await?;
    // It returns the chunk at first, if it is there within 4 s.
    let worker = rig.start();
    rig.acked([0]).await?;
    assert_eq!(worker.stop().await?.chunks, 1);
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_less_than_a_day_behind_is_right_enough() -> Result<()> {
    let mut rig = Rig::new();
    rig.run = planned_in(Duration::from_hours(23))?;
    rig.give(0).await?;
    let worker = rig.start();
    rig.acked([0]).await?;
    assert_eq!(worker.stop().await?.chunks, 1);
    Ok(())
}

#[tokio::test]
async fn a_sweep_in_one_process_goes_on_when_the_clock_is_set_back() -> Result<()> {
    let mut rig = Rig::new();
    rig.settings.exclusive = true;
    rig.run = planned_in(30 * DAY)?;
    rig.give(0).await?;
    let worker = rig.start();
    rig.acked([0]).await?;
    assert_eq!(worker.stop().await?.chunks, 1);
    Ok(())
}
