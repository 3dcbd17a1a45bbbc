//! Warns of the errors with which the kernel refuses requests: once for each run and error, however many chunks and
//! targets have it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use pingfleet_wire::{Outcome, Status, Target, WorkChunk};
use tracing::warn;
use uuid::Uuid;

use crate::socket::UnusableEgress;

/// Runs that are remembered. An older run that goes on is warned of again.
const MAX_RUNS: usize = 64;

/// What has been logged.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    /// Runs in the order in which they were first refused something, each with its errors.
    seen: Mutex<VecDeque<(Uuid, Vec<i32>)>>,
}

impl RefusalLog {
    /// Warns of what is new in the outcomes of a chunk.
    pub(super) fn look(&self, chunk: &WorkChunk, outcomes: &[Outcome]) {
        let mut errors = Vec::new();
        for (target, outcome) in chunk.targets.iter().zip(outcomes) {
            // The zone of an address may be missing while the interface of the run is there.
            let has_zone = matches!(target, Target::Text(text) if text.contains('%'));
            if let Status::SendFailed { errno } = outcome.status
                && !has_zone
                && !errors.contains(&errno)
            {
                errors.push(errno);
            }
        }
        for errno in errors {
            if self.is_new(chunk.key.run, errno) {
                let reason = UnusableEgress::from_errno(errno, &chunk.probing);
                warn!(%reason, "requests cannot be sent; their targets end as send_failed");
            }
        }
    }

    /// Whether the error is new in this run. From now on it is not.
    fn is_new(&self, run: Uuid, errno: i32) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, errors)) = seen.iter_mut().find(|(known, _)| *known == run) {
            let is_new = !errors.contains(&errno);
            if is_new {
                errors.push(errno);
            }
            return is_new;
        }
        if seen.len() == MAX_RUNS {
            seen.pop_front();
        }
        seen.push_back((run, vec![errno]));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_new_once_in_each_run() {
        let log = RefusalLog::default();
        let runs: Vec<_> = (0..=MAX_RUNS as u128).map(Uuid::from_u128).collect();
        assert!(log.is_new(runs[0], 19) && !log.is_new(runs[0], 19));
        assert!(log.is_new(runs[0], 101) && !log.is_new(runs[0], 19));
        assert!(runs[1..].iter().all(|run| log.is_new(*run, 19)));
        // The first run is forgotten, and no other one.
        assert!(runs[1..].iter().all(|run| !log.is_new(*run, 19)));
        assert!(log.is_new(runs[0], 19));
    }
}
