//! How many requests are unanswered at once, where nothing ever answers: the requests sent within the last timeout.
//! No I/O.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Counts of requests sent, over time.
#[derive(Debug)]
pub(crate) struct Outstanding {
    wait: Duration,
    counts: VecDeque<(Instant, u64)>,
    most: u64,
}

impl Outstanding {
    /// For requests with this timeout.
    pub(crate) fn new(wait: Duration) -> Self {
        Self {
            wait,
            counts: VecDeque::new(),
            most: 0,
        }
    }

    /// Records how many requests were sent until `now`.
    pub(crate) fn note(&mut self, now: Instant, sent: u64) {
        self.counts.push_back((now, sent));
        while let Some((at, before)) = self.counts.front() {
            if *at + self.wait >= now {
                self.most = self.most.max(sent - before);
                break;
            }
            self.counts.pop_front();
        }
    }

    /// The most that were unanswered at once. It is a lower bound: the times between two counts are not known.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }
}
