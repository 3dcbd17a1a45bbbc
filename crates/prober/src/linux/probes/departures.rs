//! Notes when requests left. No I/O.

use std::time::Instant;

use super::{Probes, Staged};
use crate::linux::send_times::SendTimes;

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
        let departures = self.send_times.departures(staged.len(), from, by);
        for (staged, left) in staged.iter().zip(departures) {
            let target = self.table.target_mut(staged.target);
            target.newest_request = Some(staged.request_id);
            if let Some(refused) = target.refused.take() {
                self.path.gave_way(&refused);
            }
            target.state.sent_by(staged.request, left, by);
            self.update(staged.target);
        }
    }

    /// When requests leave.
    pub(in crate::linux) fn send_times(&mut self) -> &mut SendTimes {
        &mut self.send_times
    }

    /// The kernel will say when a request left that had a call of its own between `from` and `by`.
    pub(in crate::linux) fn await_stamp(&mut self, staged: Staged, from: Instant, by: Instant) {
        self.send_times.await_stamp(staged.request_id, from, by);
    }

    /// The kernel says when the request left that it stamped with `key`; `departure` computes the moment from the earliest
    /// possible one.
    pub(in crate::linux) fn stamped(
        &mut self,
        key: u32,
        departure: impl FnOnce(Instant) -> Option<Instant>,
    ) {
        let Some((request_id, left)) = self.send_times.stamped(key, departure) else {
            return;
        };
        if let Some(in_flight) = self.sequence.get(request_id) {
            let target = self.table.target_mut(in_flight.target);
            target.state.left(usize::from(in_flight.request), left);
        }
    }
}
