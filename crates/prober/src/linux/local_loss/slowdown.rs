//! How fast a socket may send after this machine itself has refused or discarded a part of its requests, as a filter does
//! that limits the rate. Invariant: the rate halves at most once in [`Slowdown::INTERVAL`], and grows again as long as nothing more is
//! lost. Pure: no I/O and no clock.

use std::time::{Duration, Instant};

/// The rate grows by this factor in each interval without a loss.
const GROWTH: f64 = 1.1;

/// The part of the admitted rate that is sent after discards.
const ADMITTED_PART: f64 = 0.9;

/// The lowest rate, in requests a second.
const MIN_RATE: f64 = 500.0;

/// How much earlier than planned a request may leave: the runtime's timers are up to this late.
const TOLERANCE: Duration = Duration::from_millis(1);

/// The rate of one socket, in requests a second.
#[derive(Debug)]
pub(in crate::linux) struct Slowdown {
    /// `None`: as fast as the run may.
    limit: Option<f64>,
    /// When the next request may leave, under the limit.
    planned: Option<Instant>,
    /// Requests accepted in the current interval.
    accepted: u32,
    interval_began: Instant,
    /// The rate of the last whole interval.
    measured: f64,
    /// Something was lost in the current interval.
    is_lossy: bool,
}

impl Slowdown {
    /// How often the rate is measured, and changes.
    pub(in crate::linux) const INTERVAL: Duration = Duration::from_millis(100);

    /// No limit.
    pub(in crate::linux) fn new(now: Instant) -> Self {
        Self {
            limit: None,
            planned: None,
            accepted: 0,
            interval_began: now,
            measured: 0.0,
            is_lossy: false,
        }
    }

    /// When the next request may leave; `None` means now.
    pub(in crate::linux) fn open_at(&self, now: Instant) -> Option<Instant> {
        let planned = self.planned.filter(|_| self.limit.is_some())?;
        planned.checked_sub(TOLERANCE).filter(|at| *at > now)
    }

    /// A request is about to leave.
    pub(in crate::linux) fn take(&mut self, now: Instant) {
        if let Some(limit) = self.limit {
            let planned = self.planned.map_or(now, |planned| planned.max(now));
            self.planned = Some(planned + Duration::from_secs_f64(1.0 / limit));
        }
    }

    /// The request that was about to leave did not.
    pub(in crate::linux) fn give_back(&mut self) {
        if let (Some(limit), Some(planned)) = (self.limit, self.planned) {
            self.planned = planned.checked_sub(Duration::from_secs_f64(1.0 / limit));
        }
    }

    /// The kernel accepted requests.
    pub(in crate::linux) fn accepted(&mut self, requests: u32, now: Instant) {
        self.accepted += requests;
        let elapsed = now.saturating_duration_since(self.interval_began);
        if elapsed < Self::INTERVAL {
            return;
        }
        self.measured = f64::from(self.accepted) / elapsed.as_secs_f64();
        self.interval_began = now;
        self.accepted = 0;
        if std::mem::take(&mut self.is_lossy) {
            return;
        }
        if let Some(limit) = self.limit {
            let limit = limit * GROWTH;
            // Far above what is sent, it limits nothing.
            self.limit = (limit < 4.0 * self.measured.max(MIN_RATE)).then_some(limit);
        }
    }

    /// A part of the requests was refused or discarded until `now`.
    pub(in crate::linux) fn lost(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_lossy, true) {
            return;
        }
        let elapsed = now.saturating_duration_since(self.interval_began);
        let current = if elapsed < Self::INTERVAL / 4 && self.measured > 0.0 {
            self.measured
        } else {
            f64::from(self.accepted) / elapsed.max(Self::INTERVAL / 10).as_secs_f64()
        };
        let current = self.limit.map_or(current, |limit| current.min(limit));
        self.limit = Some((current / 2.0).max(MIN_RATE));
    }

    /// The kernel has discarded a part of the requests that it accepted, so that only `admitted` of them left in the last
    /// `elapsed`.
    pub(in crate::linux) fn discarded(&mut self, admitted: u64, elapsed: Duration) {
        self.is_lossy = true;
        let rate = ADMITTED_PART * admitted as f64 / elapsed.as_secs_f64();
        let rate = self.limit.map_or(rate, |limit| rate.min(limit));
        self.limit = Some(rate.max(MIN_RATE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Sends at most `wanted` requests a millisecond for a number of seconds, of which `admitted` a millisecond get through.
    /// Returns how many got through and how many were refused.
    fn send(slowdown: &mut Slowdown, now: &mut Instant, wanted: u32, admitted: u32) -> (u32, u32) {
        let (mut sent, mut refused) = (0, 0);
        for _ in 0..10_000 {
            *now += MILLISECOND;
            let mut asked = 0;
            while asked < wanted && slowdown.open_at(*now).is_none() {
                slowdown.take(*now);
                asked += 1;
            }
            let through = asked.min(admitted);
            slowdown.accepted(through, *now);
            if asked > through {
                slowdown.lost(*now);
            }
            sent += through;
            refused += asked - through;
        }
        (sent, refused)
    }

    #[test]
    fn the_rate_finds_what_a_filter_admits_and_recovers() {
        let mut now = Instant::now();
        let mut slowdown = Slowdown::new(now);
        assert_eq!(send(&mut slowdown, &mut now, 20, 100), (200_000, 0));
        assert!(slowdown.limit.is_none());
        let (sent, refused) = send(&mut slowdown, &mut now, 20, 10);
        assert!(sent > 60_000, "{sent} sent");
        assert!(refused < sent / 10, "{refused} refused, {sent} sent");
        // The filter is gone.
        send(&mut slowdown, &mut now, 20, 100);
        assert!(slowdown.limit.is_none());
    }

    #[test]
    fn after_discards_the_rate_is_below_what_was_admitted_at_once() {
        let mut now = Instant::now();
        let mut slowdown = Slowdown::new(now);
        slowdown.accepted(3000, now);
        now += Slowdown::INTERVAL;
        slowdown.discarded(100, Slowdown::INTERVAL);
        assert_eq!(slowdown.limit, Some(900.0));
        let (sent, refused) = send(&mut slowdown, &mut now, 20, 1);
        assert!(refused < sent / 5, "{refused} refused, {sent} sent");
        slowdown.discarded(0, Slowdown::INTERVAL);
        assert_eq!(slowdown.limit, Some(MIN_RATE));
    }

    #[test]
    fn it_never_stops() {
        let mut now = Instant::now();
        let mut slowdown = Slowdown::new(now);
        let (sent, refused) = send(&mut slowdown, &mut now, 20, 0);
        assert_eq!(sent, 0);
        assert!((4_000..=7_000).contains(&refused), "{refused}");
    }
}
