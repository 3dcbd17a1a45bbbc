//! When requests left that the kernel accepted in one system call. No I/O.

use std::time::{Duration, Instant};

use super::{Probes, Staged};

/// A request takes the kernel at least this long.
pub(super) const MIN_SEND_COST: Duration = Duration::from_micros(2);

/// The cost of a request grows by no more than this part from one system call to the next.
const GROWTH: u32 = 4;

/// What one request of a system call takes, without the stalls of this thread.
#[derive(Debug)]
pub(super) struct SendCost(Duration);

impl Default for SendCost {
    fn default() -> Self {
        Self(MIN_SEND_COST)
    }
}

impl SendCost {
    /// The time from the departure of one request to that of the next, in a call with so many between `from` and `by`.
    ///
    /// If this thread waited for its CPU within the call, it is not known when. Then a departure is taken to be early: a
    /// round trip may be too long, as in every program that waits, and is never too short.
    fn of_each(&mut self, requests: usize, from: Instant, by: Instant) -> Duration {
        let share = by.saturating_duration_since(from) / requests.max(1) as u32;
        let most = self.0 + self.0 / GROWTH;
        self.0 = share.min(most).max(MIN_SEND_COST);
        share.min(self.0)
    }
}

impl Probes {
    /// The kernel accepted these requests, one after the other, between `from` and `by`.
    pub(in crate::linux) fn sent(&mut self, staged: &[Staged], from: Instant, by: Instant) {
        let same_run = |one: &Staged, other: &Staged| {
            let [one, other] = [one, other].map(|staged| self.table.pace(staged.target));
            one.is_of_same_run(other)
        };
        for of_run in staged.chunk_by(same_run) {
            let pace = self.table.pace(of_run[0].target);
            pace.left(of_run.len() as u32, by);
        }
        if let Some(last) = staged.last() {
            self.path_accepted(staged.len() as u32, last.target, by);
        }
        let share = self.send_cost.of_each(staged.len(), from, by);
        for (order, staged) in (0..).zip(staged) {
            let target = self.table.target_mut(staged.target);
            target.newest_request = Some(staged.request_id);
            if let Some(refused) = target.refused.take() {
                self.path.gave_way(&refused);
            }
            let left = from + share * order;
            target.state.sent_by(staged.request, left, by);
            self.update(staged.target);
        }
    }
}
