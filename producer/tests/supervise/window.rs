//! The publish window: what is published ahead, what `cancel` reaches, and how a run with a locked database stops.

use anyhow::Result;
use pingfleet_store::RunState;
use producer::{EndReason, ProducerError};

use crate::rig::{Rig, publishes, run_of};

/// The smallest window.
const WINDOW: usize = 64;

#[tokio::test]
async fn only_the_window_is_published_it_follows_what_is_settled_and_cancel_reaches_the_rest()
-> Result<()> {
    let rig = Rig::new(1)?;
    let producing = rig.start(Rig::plan(&["10.0.0.0/24"])?).await?;
    rig.published(WINDOW).await?;
    rig.answer(10).await?;
    rig.published(WINDOW + 10).await?;
    rig.answer(20).await?;
    rig.published(WINDOW + 30).await?;
    let run = rig.store()?.find_run("latest")?;
    assert!(rig.store()?.cancel_run(run)?);
    let outcome = producing.ended().await??;
    assert_eq!(outcome.reason, EndReason::Settled);
    assert_eq!(
        outcome.summary.map(|summary| summary.state),
        Some(RunState::Cancelled)
    );
    assert_eq!(publishes(&rig.watch.log.events()).len(), WINDOW + 30);
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 0")?,
        254 - WINDOW as i64 - 30
    );
    Ok(())
}

/// The control: nobody stays to publish the rest, so everything is published at once.
#[tokio::test]
async fn a_detached_run_is_published_at_once_and_cancel_reaches_nothing_of_it() -> Result<()> {
    let mut rig = Rig::new(1)?;
    let outcome = rig.detached(&["10.0.0.0/24"]).await?;
    assert!(rig.store()?.cancel_run(run_of(&outcome)?)?);
    assert_eq!(publishes(&rig.watch.log.events()).len(), 254);
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 0")?,
        0
    );
    Ok(())
}

#[tokio::test]
async fn what_a_detached_producer_published_counts_for_the_one_that_resumes() -> Result<()> {
    let mut rig = Rig::new(1)?;
    let run = run_of(&rig.detached(&["10.0.0.0/24"]).await?)?;
    // 100 are in the queue; the others were never published.
    rig.connection()?.execute(
        "UPDATE chunks SET state = 0, published_at_us = NULL, publishes = 0 WHERE chunk >= 100",
        (),
    )?;
    let resumed = rig.resume(run).await?;
    rig.answer(36).await?;
    // Settled lately counts, too, but it is less than the smallest window.
    rig.answer(4).await?;
    rig.published(254 + 4).await?;
    resumed.stop().await?;
    let events = rig.watch.log.events();
    assert_eq!(publishes(&events).values().sum::<usize>(), 254 + 4);
    rig.assert_published_as_planned();
    Ok(())
}

/// A producer with a full window is stopped while another program holds the database's write lock.
async fn stopped_under_a_lock(is_held: bool) -> Result<(Rig, Result<EndReason, ProducerError>)> {
    let rig = Rig::new(1)?;
    let producing = rig.start(Rig::plan(&["10.0.0.0/24"])?).await?;
    rig.published(WINDOW).await?;
    let other = rig.connection()?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    if !is_held {
        other.execute_batch("ROLLBACK")?;
    }
    producing.stop.cancel();
    let ended = producing.ended().await?;
    Ok((rig, ended.map(|outcome| outcome.reason)))
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_locked_database_and_the_run_can_be_resumed() -> Result<()> {
    let (rig, ended) = stopped_under_a_lock(true).await?;
    assert!(
        matches!(ended, Err(ProducerError::StopDeadline { .. })),
        "{ended:?}"
    );
    let resumed = rig.resume(1).await?;
    assert_eq!(resumed.stop().await?.reason, EndReason::Interrupted);
    Ok(())
}

/// The control: without the lock it stops in order.
#[tokio::test]
async fn a_stop_with_an_unlocked_database_is_an_orderly_one() -> Result<()> {
    let (rig, ended) = stopped_under_a_lock(false).await?;
    assert_eq!(ended?, EndReason::Interrupted);
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1")?,
        WINDOW as i64
    );
    Ok(())
}
