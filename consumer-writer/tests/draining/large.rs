//! The end of a run that is too large to be closed by the batch that settles it.

use std::sync::atomic::Ordering;

use anyhow::Result;
use pingfleet_broker::QueueName;
use pingfleet_store::RunState;

use crate::rig::Rig;

/// More targets than one transaction takes into `latest`.
const CHUNKS: u32 = 101;

fn rig() -> Result<Rig> {
    let mut rig = Rig::new(CHUNKS, 1000)?;
    rig.settings.batch_size = 1_000_000;
    Ok(rig)
}

fn assert_closed(rig: &Rig) -> Result<()> {
    let summary = rig.store()?.summary(rig.planned.run)?;
    assert_eq!(summary.state, RunState::Complete);
    assert_eq!(
        rig.value::<i64>("SELECT count(*) FROM latest_rows")?,
        101_000
    );
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_large_run_is_closed_once_it_is_acked() -> Result<()> {
    let rig = rig()?;
    rig.put_results(0..CHUNKS).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, CHUNKS as usize).await?;
    assert_eq!(writer.stop().await?.duplicates, 0);
    assert_closed(&rig)
}

#[tokio::test]
async fn a_large_run_whose_last_ack_is_lost_is_closed_by_the_next_session() -> Result<()> {
    let rig = rig()?;
    rig.desk.ack_is_lost.store(true, Ordering::Relaxed);
    rig.put_results(0..CHUNKS).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, CHUNKS as usize).await?;
    assert_eq!(writer.stop().await?.duplicates, u64::from(CHUNKS));
    assert_closed(&rig)
}
