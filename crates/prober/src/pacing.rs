//! Pacing: when the next request may leave. One bucket for each run, shared by all its chunks on all probing threads,
//! and one for the box; a request needs a token of both. Invariant: over any time `t` at most `rate * t` requests
//! and one bucket more leave, and what was not used in a stall is gone.
//!
//! The bucket is a virtual schedule (the generic cell rate algorithm, ITU-T I.371): one instant for each bucket, no
//! timer for each token. Waits are done by the runtime's clock.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

/// What a bucket holds at most, as time: requests that a late timer held up may leave together. The runtime's timers
/// are up to this late.
const BUCKET: Duration = Duration::from_millis(2);

/// What is probed again, because our own box may have lost the answer, leaves at the run's rate divided by this.
const REPEATS: u32 = 4;

/// The rate that a quarter is taken of where a run has none.
const UNLIMITED: NonZeroU32 = NonZeroU32::new(40_000).expect("not zero");

/// A bucket of tokens.
#[derive(Debug)]
struct Pacer {
    /// The gap between requests.
    gap: Duration,
    /// How much earlier than planned a request may leave.
    tolerance: Duration,
    /// When the next request is planned. `None` before the first one.
    planned: Mutex<Option<Instant>>,
}

impl Pacer {
    fn new(rate: NonZeroU32) -> Self {
        Self::with_gap(Duration::from_secs(1) / rate.get())
    }

    fn with_gap(gap: Duration) -> Self {
        Self {
            gap,
            // A full bucket lets `1 + tolerance / gap` requests leave together. Where the bucket holds less than two,
            // a late one still puts the next ones off as little as can be without two leaving together.
            tolerance: BUCKET
                .saturating_sub(gap)
                .max(BUCKET.min(gap.saturating_sub(Duration::from_nanos(1)))),
            planned: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant is whole whenever the lock is free, so a panic elsewhere has not spoilt it.
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a request may leave by this plan; `None` is at once.
    fn open_at(&self, planned: Option<Instant>, now: Instant) -> Option<Instant> {
        planned?
            .saturating_duration_since(now)
            .checked_sub(self.tolerance)
            .filter(|wait| !wait.is_zero())
            .map(|wait| now + wait)
    }

    fn take(&self, planned: &mut Option<Instant>, now: Instant) {
        *planned = Some(planned.map_or(now, |planned| planned.max(now)) + self.gap);
    }

    /// Whether forgetting this bucket changes nothing.
    fn is_full(&self, now: Instant) -> bool {
        self.lock().is_none_or(|planned| planned <= now)
    }
}

/// The buckets of this process.
#[derive(Debug)]
pub struct Paces {
    lanes: usize,
    box_pacer: Option<Arc<Pacer>>,
    runs: Mutex<HashMap<Uuid, Arc<RunPacer>>>,
}

#[derive(Debug)]
struct RunPacer {
    pacer: Option<Pacer>,
    /// For what is probed again.
    repeats: Pacer,
    /// One place to wait for each lane: the chunks of a lane wait in line behind one timer, and no bucket wakes more
    /// waiters than there are lanes.
    turns: Box<[tokio::sync::Mutex<()>]>,
}

impl Paces {
    /// Buckets for `lanes` probing threads, with at most `box_rate` requests a second over all runs.
    #[must_use]
    pub fn new(lanes: usize, box_rate: Option<NonZeroU32>) -> Self {
        Self {
            lanes,
            box_pacer: box_rate.map(|rate| Arc::new(Pacer::new(rate))),
            runs: Mutex::new(HashMap::new()),
        }
    }

    /// The pace of a chunk of `run` on lane number `lane`. All chunks of a run share one bucket of the first one's
    /// `rate`, which is forgotten when no chunk of it is in hand and the bucket is full again.
    #[must_use]
    pub fn pace(&self, run: Uuid, rate: Option<NonZeroU32>, lane: usize) -> Pace {
        let now = now();
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|id, entry| {
            *id == run
                || Arc::strong_count(entry) > 1
                || !entry.pacer.as_ref().is_none_or(|pacer| pacer.is_full(now))
        });
        let entry = runs.entry(run).or_insert_with(|| {
            Arc::new(RunPacer {
                pacer: rate.map(Pacer::new),
                repeats: Pacer::with_gap(
                    Duration::from_secs(1) * REPEATS / rate.unwrap_or(UNLIMITED).get(),
                ),
                turns: (0..self.lanes)
                    .map(|_| tokio::sync::Mutex::new(()))
                    .collect(),
            })
        });
        Pace {
            run: Arc::clone(entry),
            box_pacer: self.box_pacer.clone(),
            lane,
        }
    }
}

/// The pace of one chunk: its run's and the box's bucket together.
#[derive(Debug, Clone)]
pub struct Pace {
    run: Arc<RunPacer>,
    box_pacer: Option<Arc<Pacer>>,
    lane: usize,
}

impl Pace {
    /// A pace that never waits.
    #[must_use]
    pub fn unlimited() -> Self {
        Paces::new(1, None).pace(Uuid::nil(), None, 0)
    }

    /// Waits until one request may leave. Cancel-safe: a token is taken only in the moment in which this returns.
    /// The waiters of one lane are served in the order of their calls.
    pub async fn acquire(&self) {
        if self.run.pacer.is_none() && self.box_pacer.is_none() {
            return;
        }
        let _turn = self.run.turns[self.lane].lock().await;
        while let Err(at) = self.take(now()) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Takes one token of each bucket, or says when it is worth another try. Never waits.
    ///
    /// # Errors
    /// The earliest moment at which both buckets may have a token.
    pub fn take(&self, now: Instant) -> Result<(), Instant> {
        self.take_of(None, now)
    }

    /// As [`Self::take`], for a target that is probed again because our own box may have lost an answer: these leave
    /// at a quarter of the rate, over all chunks of the run.
    ///
    /// # Errors
    /// The earliest moment at which all buckets may have a token.
    pub fn take_again(&self, now: Instant) -> Result<(), Instant> {
        self.take_of(Some(&self.run.repeats), now)
    }

    /// Requests for which tokens were taken left only at `at`. What follows is paced from then on: time between token
    /// and departure is not caught up, or a wait for a processor would be followed by more than a full bucket.
    pub fn left(&self, requests: u32, at: Instant) {
        let pacers = [self.run.pacer.as_ref(), self.box_pacer.as_deref()];
        for pacer in pacers.into_iter().flatten() {
            let mut planned = pacer.lock();
            *planned = (*planned).max(Some(at + pacer.gap * requests));
        }
    }

    /// Whether both are the pace of one run, so that what waits for one waits for the other.
    #[must_use]
    pub fn is_of_same_run(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    fn take_of(&self, repeats: Option<&Pacer>, now: Instant) -> Result<(), Instant> {
        // Always in this order, repeats before run before box: two locks never cross.
        let pacers = [repeats, self.run.pacer.as_ref(), self.box_pacer.as_deref()];
        let mut taken = pacers.map(|pacer| pacer.map(|pacer| (pacer, pacer.lock())));
        let open_at = taken
            .iter()
            .flatten()
            .filter_map(|(pacer, planned)| pacer.open_at(**planned, now))
            .max();
        if let Some(at) = open_at {
            return Err(at);
        }
        for (pacer, planned) in taken.iter_mut().flatten() {
            pacer.take(planned, now);
        }
        Ok(())
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
