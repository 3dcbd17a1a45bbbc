//! When the next hops of an interface work again after an outage: with the first answer to a request that left after it. A link that has its
//! carrier back, or a gateway that is found again, is not enough: the kernel, the switch and address resolution need up to
//! seconds. Pure: no I/O and no clock.

use std::time::{Duration, Instant};

/// An outage counts for no longer than this after it was last observed. So a network that is silent stays `down`.
const MAX_RECOVERY: Duration = Duration::from_secs(5);

/// The recovery of an interface from its last outage, as one socket sees it.
#[derive(Debug, Default)]
pub(in crate::linux) struct Recovery {
    /// When the outage was last observed.
    seen: Option<Instant>,
    /// When the earliest request left after that which was answered.
    answered: Option<Instant>,
}

impl Recovery {
    /// An outage was last observed at `at`. Returns whether that is later than before.
    pub(in crate::linux) fn outage(&mut self, at: Instant) -> bool {
        if Some(at) <= self.seen {
            return false;
        }
        *self = Self {
            seen: Some(at),
            answered: None,
        };
        true
    }

    /// Whether an answer to a request that left at `sent` says something new.
    pub(in crate::linux) fn awaits(&self, sent: Instant) -> bool {
        self.seen.is_some_and(|seen| sent > seen)
            && self.answered.is_none_or(|earlier| sent < earlier)
    }

    /// A request that left at `sent` was answered.
    pub(in crate::linux) fn answered(&mut self, sent: Instant) {
        if self.awaits(sent) {
            self.answered = Some(sent);
        }
    }

    /// How much longer than it was observed the outage may have lasted.
    pub(in crate::linux) fn grace(&self) -> Duration {
        match (self.seen, self.answered) {
            (None, _) => Duration::ZERO,
            (Some(_), None) => MAX_RECOVERY,
            (Some(seen), Some(answered)) => (answered - seen).min(MAX_RECOVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_the_first_answer_to_a_request_that_left_after_it() {
        let start = Instant::now();
        let ms = |millis| start + Duration::from_millis(millis);
        let mut recovery = Recovery::default();
        recovery.answered(ms(0));
        assert_eq!(recovery.grace(), Duration::ZERO);
        assert!(recovery.outage(ms(100)));
        assert!(!recovery.outage(ms(100)));
        // It left before the outage.
        recovery.answered(ms(90));
        assert_eq!(recovery.grace(), MAX_RECOVERY);
        recovery.answered(ms(1300));
        recovery.answered(ms(1200));
        recovery.answered(ms(1400));
        assert_eq!(recovery.grace(), Duration::from_millis(1100));
        assert!(recovery.outage(ms(2000)));
        assert_eq!(recovery.grace(), MAX_RECOVERY);
        recovery.answered(ms(60_000));
        assert_eq!(recovery.grace(), MAX_RECOVERY);
    }
}
