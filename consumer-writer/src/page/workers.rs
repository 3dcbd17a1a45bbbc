//! The state of a worker, as the page shows it.

use std::time::Duration;

use pingfleet_report::table::StatusText;
use pingfleet_store::{WorkerRow, WorkerState};
use pingfleet_wire::{StatusKind, timing::WORKER_TIMEOUT};

/// What a worker does. None when nothing was heard of it, but the writer has not received for long enough to know that it
/// is lost: `listening` is for how long it has, without a break.
pub(super) fn state(worker: &WorkerRow, listening: Duration) -> Option<WorkerState> {
    let is_unsure = worker.state == WorkerState::Lost && listening < WORKER_TIMEOUT;
    (!is_unsure).then_some(worker.state)
}

/// The word for a state, with the colour of a status.
pub(super) fn text(state: Option<WorkerState>) -> StatusText {
    let status = match state {
        Some(WorkerState::Lost) => StatusKind::Down,
        Some(WorkerState::Live) => StatusKind::Up,
        Some(WorkerState::Starting) => StatusKind::Late,
        Some(WorkerState::Draining) => StatusKind::Unreachable,
        None => StatusKind::Unknown,
    };
    let plain = StatusText::from(status);
    StatusText {
        sign: state.map_or(plain.sign, WorkerState::sign),
        word: state.map_or("not heard yet", WorkerState::word),
        ..plain
    }
}
