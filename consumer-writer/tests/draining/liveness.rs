//! Liveness: workers appear with their first heartbeat and disappear with their last one.

use std::time::Duration;

use anyhow::Result;
use pingfleet_broker::QueueName;
use pingfleet_wire::{ChunkInHand, Heartbeat, Message as _, WorkerCounts};
use uuid::Uuid;

use crate::rig::Rig;

fn heartbeat(rig: &Rig, instance: u128) -> Heartbeat {
    Heartbeat {
        counts: WorkerCounts {
            chunks_done: 3,
            targets_done: 750,
            requests_sent: 1000,
            ..WorkerCounts::default()
        },
        in_hand: vec![ChunkInHand::just_taken(
            rig.works[instance as usize - 1].key,
        )],
        ..Heartbeat::new(format!("worker-{instance}"), Uuid::from_u128(instance))
    }
}

#[tokio::test]
async fn a_worker_is_listed_from_its_first_heartbeat_to_its_farewell() -> Result<()> {
    let mut rig = Rig::new(2, 3)?;
    rig.settings.batch_interval = Duration::from_millis(10);
    let writer = rig.start().await?;
    for instance in [1, 2] {
        let body = heartbeat(&rig, instance).encode();
        rig.put(QueueName::HEARTBEATS, &body).await?;
    }
    // Nothing that cannot be read harms the others.
    rig.put(QueueName::HEARTBEATS, b"no heartbeat").await?;
    rig.acked(QueueName::HEARTBEATS, 3).await?;
    let workers = rig.reader()?.workers()?;
    let listed: Vec<_> = workers
        .iter()
        .map(|row| (row.worker.as_str(), row.in_hand, row.chunks_done))
        .collect();
    assert_eq!(listed, [("worker-1", 1, 3), ("worker-2", 1, 3)]);

    // A draining worker is listed until its last heartbeat.
    let mut draining = heartbeat(&rig, 1);
    draining.draining = true;
    rig.put(QueueName::HEARTBEATS, &draining.encode()).await?;
    rig.acked(QueueName::HEARTBEATS, 4).await?;
    assert_eq!(rig.reader()?.workers()?.len(), 2);
    draining.in_hand.clear();
    rig.put(QueueName::HEARTBEATS, &draining.encode()).await?;
    rig.acked(QueueName::HEARTBEATS, 5).await?;
    let left = rig.reader()?.workers()?;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].worker, "worker-2");
    assert_eq!(rig.value::<i64>("SELECT count(*) FROM in_hand")?, 1);

    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.quarantined), (0, 0));
    rig.assert_sums()
}
