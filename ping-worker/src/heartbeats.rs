//! Makes the worker's heartbeats: every 5 s, at once when the worker begins to drain, and a last one at its end.

use std::{sync::Arc, time::Duration};

use pingfleet_wire::{Message, timing::HEARTBEAT_INTERVAL};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::status::StatusBoard;

/// How often the counts of the [`WorkerStatus`](crate::WorkerStatus) are updated.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);

/// Writes heartbeats to `bodies` until `finished`, then the last one.
pub(crate) async fn make_heartbeats(
    board: Arc<StatusBoard>,
    bodies: watch::Sender<Option<Vec<u8>>>,
    finished: CancellationToken,
) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = tokio::time::interval(STATUS_INTERVAL);
    status.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = finished.cancelled() => break,
            () = board.heartbeat_due.notified() => {}
            _ = heartbeat.tick() => {}
            _ = status.tick() => {
                board.show();
                continue;
            }
        }
        bodies.send_replace(Some(board.heartbeat().encode()));
    }
    board.show();
    bodies.send_replace(Some(board.heartbeat().encode()));
}
