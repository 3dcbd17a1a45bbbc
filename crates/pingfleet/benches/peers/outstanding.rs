//! How many requests are unanswered at once, where nothing ever answers: as many as have left within the last wait.
//! No I/O.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What has left, as it was counted from time to time.
#[derive(Debug)]
pub(crate) struct Outstanding {
    wait: Duration,
    counts: VecDeque<(Instant, u64)>,
    most: u64,
}

impl Outstanding {
    /// For requests that are each waited for so long.
    pub(crate) fn new(wait: Duration) -> Self {
        Self {
            wait,
            counts: VecDeque::new(),
            most: 0,
        }
    }

    /// By `now` so many have left in all.
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

    /// The most that were unanswered at once, or some fewer: what left between two counts is not told apart.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }
}
