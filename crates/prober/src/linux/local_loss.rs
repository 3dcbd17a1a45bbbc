//! When our own box may have lost an answer. Invariant: a probe is never called affected before the loss, and always
//! after it, as long as it was unanswered then. Pure: no I/O and no clock.
//!
//! A target is judged when it is settled, so everything between its first request and now concerns it, and for each
//! cause the end of the latest loss says all.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pingfleet_wire::LocalLoss;

/// A loop that is late by less than this is on time, however short the timeout: a busy box lets every process wait as
/// long now and then, and what arrives meanwhile is kept by the kernel.
const MIN_STALL: Duration = Duration::from_millis(200);

/// A stall concerns a probe when it took a larger part of its timeout than one in this many.
const STALL_FRACTION: u32 = 5;

/// Stalls remembered. The shortest are forgotten first, by longer ones that came later.
const MAX_STALLS: usize = 64;

/// What our own box has lost, on the way of one socket.
#[derive(Debug, Default)]
pub(super) struct LocalLossLog {
    counter: Option<u32>,
    drops: Option<Instant>,
    send_path: Option<Instant>,
    canary: Option<Instant>,
    /// End and length. Each is shorter than the one before: an older and shorter one says nothing more.
    stalls: VecDeque<(Instant, Duration)>,
}

impl LocalLossLog {
    /// The kernel's counter of what the socket dropped stood at `counter` at `now`.
    pub(super) fn drops_counted(&mut self, counter: u32, now: Instant) {
        if self
            .counter
            .replace(counter)
            .is_some_and(|before| before != counter)
        {
            self.drops = Some(now);
        }
    }

    /// The socket had no room for what may have come until `now`.
    pub(super) fn receive_buffer_full(&mut self, now: Instant) {
        self.drops = Some(now);
    }

    /// The way out was broken until `now`.
    pub(super) fn send_path_failed(&mut self, now: Instant) {
        self.send_path = self.send_path.max(Some(now));
    }

    /// An echo to this box itself was lost before `now`.
    pub(super) fn canary_lost(&mut self, now: Instant) {
        self.canary = Some(now);
    }

    /// Nothing was read for `late` longer than it should have been, until `now`.
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

    /// What may have taken an answer to a target whose first request left at `first`, and which is unanswered.
    pub(super) fn since(&self, first: Instant, timeout: Duration) -> LocalLoss {
        let stall = self
            .stalls
            .iter()
            .rfind(|(_, late)| *late > timeout / STALL_FRACTION)
            .map(|(end, _)| *end);
        [
            (self.drops, LocalLoss::SOCKET_DROPS),
            (self.send_path, LocalLoss::SEND_PATH),
            (stall, LocalLoss::STALLED),
            (self.canary, LocalLoss::CANARY),
        ]
        .into_iter()
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
    fn only_a_counter_that_rose_after_the_request_concerns_it() {
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
    fn a_stall_counts_from_a_fifth_of_the_timeout_on_and_not_below_a_fifth_of_a_second() {
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
