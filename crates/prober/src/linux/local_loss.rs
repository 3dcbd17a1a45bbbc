//! When this machine may have lost an answer ("local loss"). Invariant: a loss affects every target that was unanswered
//! when it happened, and no target whose first request left later. Pure: no I/O and no clock.
//!
//! A target is judged when it is settled. So a loss affects it if it ended after the target's first request, and for each
//! cause the end of the latest loss is enough.

mod canary;
mod detector;
mod kernel_counter;
mod recovery;
mod refusals;
mod slowdown;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pingfleet_wire::{LocalLoss, LocalLossCounts};

pub(super) use self::{
    detector::{LossDetector, Watched},
    recovery::Recovery,
    refusals::{KnownRoute, Refused, RefusedPath, Verdict, is_of_path},
    slowdown::Slowdown,
};

/// A delay of the loop below this is no stall, with any timeout. On a busy machine every process waits this long now and
/// then, and the kernel keeps what arrives meanwhile.
const MIN_STALL: Duration = Duration::from_millis(200);

/// A stall affects a target when it was longer than its timeout divided by this.
const STALL_FRACTION: u32 = 5;

/// Stalls that are kept.
const MAX_STALLS: usize = 64;

/// The losses that concern one socket.
#[derive(Debug, Default)]
pub(super) struct LocalLossLog {
    drop_count: Option<u32>,
    /// When each cause that has a bit was last observed, in the order of the bits of [`LocalLoss`].
    latest: [Option<Instant>; LocalLossCounts::CAUSES],
    /// End and length, kept in decreasing length: a later, longer stall supersedes earlier, shorter ones.
    stalls: VecDeque<(Instant, Duration)>,
}

impl LocalLossLog {
    /// The kernel's counter of messages that the socket dropped is `counter` at `now`.
    pub(super) fn drops_counted(&mut self, counter: u32, now: Instant) {
        if self
            .drop_count
            .replace(counter)
            .is_some_and(|before| before != counter)
        {
            self.lost(LocalLoss::SOCKET_DROPS, now);
        }
    }

    /// The receive buffer was full until `now`, and may have had no room for a message.
    pub(super) fn receive_buffer_full(&mut self, now: Instant) {
        self.lost(LocalLoss::SOCKET_DROPS, now);
    }

    /// Requests or answers may have been lost by `cause` until `at`.
    pub(super) fn lost(&mut self, cause: LocalLoss, at: Instant) {
        for (bit, latest) in self.latest.iter_mut().enumerate() {
            if cause.has(LocalLoss(1 << bit)) {
                *latest = (*latest).max(Some(at));
            }
        }
    }

    /// The socket was read `late` too late, at `now`.
    pub(super) fn stalled(&mut self, late: Duration, now: Instant) {
        if late < MIN_STALL {
            return;
        }
        while self
            .stalls
            .back()
            .is_some_and(|(_, shorter)| *shorter <= late)
        {
            self.stalls.pop_back();
        }
        if self.stalls.len() == MAX_STALLS {
            self.stalls.pop_front();
        }
        self.stalls.push_back((now, late));
    }

    /// Causes by which an answer of an unanswered target may be lost, whose first request left at `first`.
    pub(super) fn since(&self, first: Instant, timeout: Duration) -> LocalLoss {
        let stall = self
            .stalls
            .iter()
            .rfind(|(_, late)| *late > timeout / STALL_FRACTION)
            .map(|(end, _)| *end);
        let others = (0..).zip(self.latest);
        let others = others.map(|(bit, latest)| (latest, LocalLoss(1 << bit)));
        others
            .chain([(stall, LocalLoss::STALLED)])
            .filter(|(end, _)| end.is_some_and(|end| end >= first))
            .fold(LocalLoss::default(), |all, (_, cause)| all.and(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn only_a_rise_of_the_counter_after_the_request_affects_it() {
        let start = Instant::now();
        let mut losses = LocalLossLog::default();
        losses.drops_counted(7, start);
        assert_eq!(losses.since(start, TIMEOUT), LocalLoss::default());
        losses.drops_counted(7, start + ms(100));
        assert_eq!(losses.since(start, TIMEOUT), LocalLoss::default());
        losses.drops_counted(8, start + ms(200));
        losses.drops_counted(8, start + ms(300));
        assert_eq!(losses.since(start, TIMEOUT), LocalLoss::SOCKET_DROPS);
        assert_eq!(losses.since(start + ms(201), TIMEOUT), LocalLoss::default());
    }

    #[test]
    fn a_stall_counts_above_a_fifth_of_the_timeout_and_not_below_200_ms() {
        let start = Instant::now();
        let mut losses = LocalLossLog::default();
        losses.stalled(ms(500), start + ms(500));
        losses.stalled(ms(300), start + ms(900));
        losses.stalled(ms(190), start + ms(1200));
        let since = |after, timeout| losses.since(start + ms(after), timeout);
        assert_eq!(since(0, TIMEOUT * 2), LocalLoss::STALLED);
        assert_eq!(since(600, TIMEOUT * 2), LocalLoss::default());
        assert_eq!(since(600, TIMEOUT), LocalLoss::STALLED);
        assert_eq!(since(1000, ms(1)), LocalLoss::default());
    }
}
