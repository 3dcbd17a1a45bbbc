//! The state of a worker, in words.

use std::time::Duration;

use pingfleet_report::{
    table::StatusText,
    words::{grouped, local_losses},
};
use pingfleet_store::WorkerRow;
use pingfleet_wire::{LocalLoss, StatusKind, timing::WORKER_TIMEOUT};

/// A worker that has settled nothing is starting for this long.
const STARTING: Duration = Duration::from_secs(10);

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerState {
    /// It has settled nothing yet.
    Starting,
    /// It probes, or waits for work.
    Live,
    /// It is stopping.
    Draining,
    /// No heartbeat for 30 s.
    Lost,
    /// Its last heartbeat is older, but the writer has not received for long enough to know.
    NotHeard,
}

impl WorkerState {
    /// `listening` is for how long the writer has received heartbeats without a break.
    pub(super) fn of(worker: &WorkerRow, listening: Duration) -> Self {
        if worker.age >= WORKER_TIMEOUT {
            if listening >= WORKER_TIMEOUT {
                Self::Lost
            } else {
                Self::NotHeard
            }
        } else if worker.draining {
            Self::Draining
        } else if worker.chunks_done == 0 && worker.age < STARTING && worker.in_hand == 0 {
            Self::Starting
        } else {
            Self::Live
        }
    }

    /// Its word, with the sign and the colour of a status.
    pub(super) fn text(self) -> StatusText {
        let (status, word) = match self {
            Self::Starting => (StatusKind::Late, "starting"),
            Self::Live => (StatusKind::Up, "live"),
            Self::Draining => (StatusKind::Unreachable, "draining"),
            Self::Lost => (StatusKind::Down, "LOST"),
            Self::NotHeard => (StatusKind::Unknown, "not heard yet"),
        };
        StatusText {
            word,
            ..status.into()
        }
    }
}

/// The local losses of a worker by cause, the most frequent first.
pub(super) fn losses(worker: &WorkerRow) -> String {
    let counts = worker.local_losses.by_cause();
    let mut causes: Vec<_> = (0..counts.len())
        .map(|bit| (counts[bit], LocalLoss(1 << bit).to_string()))
        .filter(|(count, _)| *count > 0)
        .collect();
    causes.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let texts = causes
        .iter()
        .map(|(count, cause)| format!("{} {}", grouped(*count as i64), local_losses(cause)));
    texts.collect::<Vec<_>>().join(", ")
}
