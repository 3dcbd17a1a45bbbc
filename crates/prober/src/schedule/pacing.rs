//! Pacing: when the next request may leave. Each run has a bucket of tokens, shared by its chunks on all probing threads,
//! and the machine has one; a request needs a token of both. Invariant: in any time `t` at most `rate * t` requests leave,
//! plus one full bucket. Tokens that a stall left unused are lost.
//!
//! A bucket is a virtual schedule (the generic cell rate algorithm, ITU-T I.371): it is one instant, and needs no timer
//! for each token. Waits use the runtime's clock.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Size of a full bucket, as time. The runtime's timers are up to this late, and the requests that such a timer delayed
/// may leave together.
const BUCKET: Duration = Duration::from_millis(2);

/// The next attempts at targets whose answer this machine may have lost leave at the run's rate divided by this.
const REPEAT_DIVISOR: u32 = 4;

/// Stands for the run's rate in [`REPEAT_DIVISOR`] when the run has none.
const RATE_OF_UNLIMITED: NonZeroU32 = NonZeroU32::new(40_000).expect("not zero");

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
            // A full bucket lets `1 + tolerance / gap` requests leave together. For slow rates, where that is less than
            // two, the tolerance stays just below one gap: a late request then delays the next ones as little as
            // possible, and no two leave together.
            tolerance: BUCKET
                .saturating_sub(gap)
                .max(BUCKET.min(gap.saturating_sub(Duration::from_nanos(1)))),
            planned: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // The instant is written in one step, so it is valid even after a panic elsewhere.
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a request may leave; `None` means now.
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

    /// Whether the bucket is full, so that dropping it changes nothing.
    fn is_full(&self, now: Instant) -> bool {
        self.lock().is_none_or(|planned| planned <= now)
    }
}

/// The buckets of this process.
#[derive(Debug)]
pub struct Paces {
    threads: usize,
    machine_pacer: Option<Arc<Pacer>>,
    runs: Mutex<HashMap<Uuid, Arc<RunPacer>>>,
}

#[derive(Debug)]
struct RunPacer {
    pacer: Option<Pacer>,
    /// For the next attempts.
    repeats: Pacer,
    /// One lock for each probing thread. The chunks of a thread queue for it, so that only one of them waits on a timer,
    /// and a bucket never wakes more waiters than there are threads.
    turns: Box<[tokio::sync::Mutex<()>]>,
}

impl Paces {
    /// Buckets for `threads` probing threads, with at most `machine_rate` requests a second over all runs.
    #[must_use]
    pub fn new(threads: usize, machine_rate: Option<NonZeroU32>) -> Self {
        Self {
            threads,
            machine_pacer: machine_rate.map(|rate| Arc::new(Pacer::new(rate))),
            runs: Mutex::new(HashMap::new()),
        }
    }

    /// The pace of a chunk of `run` on thread number `thread`. All chunks of a run share one bucket, with the `rate` of
    /// the first chunk. It is dropped when no chunk of the run is in hand and the bucket is full again.
    #[must_use]
    pub fn pace(&self, run: Uuid, rate: Option<NonZeroU32>, thread: usize) -> Pace {
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
                    Duration::from_secs(1) * REPEAT_DIVISOR
                        / rate.unwrap_or(RATE_OF_UNLIMITED).get(),
                ),
                turns: (0..self.threads)
                    .map(|_| tokio::sync::Mutex::new(()))
                    .collect(),
            })
        });
        Pace {
            run: Arc::clone(entry),
            machine_pacer: self.machine_pacer.clone(),
            thread,
        }
    }
}

/// The pace of one chunk: the buckets of its run and of the machine.
#[derive(Debug, Clone)]
pub struct Pace {
    run: Arc<RunPacer>,
    machine_pacer: Option<Arc<Pacer>>,
    thread: usize,
}

impl Pace {
    /// A pace that never waits.
    #[must_use]
    pub fn unlimited() -> Self {
        Paces::new(1, None).pace(Uuid::nil(), None, 0)
    }

    /// Waits until one request may leave. Cancel-safe: the token is taken when this returns. The waiters of one thread
    /// are served in the order of their calls.
    pub async fn acquire(&self) {
        if self.run.pacer.is_none() && self.machine_pacer.is_none() {
            return;
        }
        let _turn = self.run.turns[self.thread].lock().await;
        while let Err(at) = self.take(now()) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Takes one token of each bucket, or returns when to try again. Never waits.
    ///
    /// # Errors
    /// The earliest moment at which both buckets have a token.
    pub fn take(&self, now: Instant) -> Result<(), Instant> {
        self.take_of(None, now)
    }

    /// As [`Self::take`], for the next attempt at a target whose answer this machine may have lost. These requests leave
    /// at a quarter of the rate, over all chunks of the run.
    ///
    /// # Errors
    /// The earliest moment at which all buckets have a token.
    pub fn take_for_repeat(&self, now: Instant) -> Result<(), Instant> {
        self.take_of(Some(&self.run.repeats), now)
    }

    /// `requests` that had tokens left at `at`. The next ones are paced from then on. Otherwise a wait for a processor
    /// between token and departure would be followed by more than a full bucket.
    pub fn left(&self, requests: u32, at: Instant) {
        let pacers = [self.run.pacer.as_ref(), self.machine_pacer.as_deref()];
        for pacer in pacers.into_iter().flatten() {
            let mut planned = pacer.lock();
            *planned = (*planned).max(Some(at + pacer.gap * requests));
        }
    }

    /// Whether both are paces of the same run.
    #[must_use]
    pub fn is_of_same_run(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    fn take_of(&self, repeats: Option<&Pacer>, now: Instant) -> Result<(), Instant> {
        // The locks are always taken in this order, so two threads cannot deadlock.
        let pacers = [
            repeats,
            self.run.pacer.as_ref(),
            self.machine_pacer.as_deref(),
        ];
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
