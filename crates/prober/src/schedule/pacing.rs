//! Pacing: when the next request may leave. Each run has a bucket of tokens, shared by its chunks on all probing threads,
//! and the machine has one; a request needs a token of both. Invariant: in any time `t` at most `rate * t` requests leave,
//! plus one full bucket. Tokens that a stall left unused are lost.
//!
//! A bucket is a virtual schedule (the generic cell rate algorithm, ITU-T I.371): it is one instant, and needs no timer
//! for each token. Waits use the runtime's clock.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pingfleet_wire::LocalLoss;
use uuid::Uuid;

/// How many requests a full bucket holds, within the limits of [`BUCKET_TIME`]. Requests that a late timer delayed may
/// leave together.
const BUCKET_REQUESTS: u32 = 40;

/// The shortest and the longest time that it takes to fill a bucket. A timer that is no later than this costs no token:
/// the runtime's are up to 2 ms late, and on a machine that is busy with something else up to about 10 ms.
const BUCKET_TIME: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(10);

/// The next attempts at targets whose answer this machine may have lost leave at this part of the run's rate at least, and
/// at the whole rate if all targets are probed again: they take no longer than the first attempts.
const MIN_REPEAT_SHARE: f64 = 0.25;

/// The lowest rate that a run without one counts as, in requests a second.
const MIN_RATE_OF_UNLIMITED: f64 = 40_000.0;

/// How often the rate of a run without one is measured. The highest counts.
const MEASURE_INTERVAL: Duration = Duration::from_millis(100);

/// The size of a bucket of tokens.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The gap between requests.
    gap: Duration,
    /// How much earlier than planned a request may leave.
    tolerance: Duration,
}

/// A bucket of tokens.
#[derive(Debug)]
struct Pacer {
    bucket: Bucket,
    /// When the next request is planned. `None` before the first one.
    planned: Mutex<Option<Instant>>,
}

impl Bucket {
    /// For one request in each `gap`.
    fn with_gap(gap: Duration) -> Self {
        let full = gap
            .saturating_mul(BUCKET_REQUESTS)
            .clamp(*BUCKET_TIME.start(), *BUCKET_TIME.end());
        Self {
            gap,
            // A full bucket lets `1 + tolerance / gap` requests leave together. For slow rates, where that is less than
            // two, the tolerance stays just below one gap: a late request then delays the next ones as little as
            // possible, and no two leave together.
            tolerance: full
                .saturating_sub(gap)
                .max(full.min(gap.saturating_sub(Duration::from_nanos(1)))),
        }
    }

    /// When a request may leave; `None` means now.
    fn open_at(self, planned: Option<Instant>, now: Instant) -> Option<Instant> {
        planned?
            .saturating_duration_since(now)
            .checked_sub(self.tolerance)
            .filter(|wait| !wait.is_zero())
            .map(|wait| now + wait)
    }

    fn take(self, planned: &mut Option<Instant>, now: Instant) {
        *planned = Some(planned.map_or(now, |planned| planned.max(now)) + self.gap);
    }

    fn give_back(self, planned: &mut Option<Instant>) {
        *planned = planned.and_then(|planned| planned.checked_sub(self.gap));
    }
}

impl Pacer {
    fn new(rate: NonZeroU32) -> Self {
        Self {
            bucket: Bucket::with_gap(Duration::from_secs(1) / rate.get()),
            planned: Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        lock(&self.planned)
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
    repeats: Repeats,
    /// One lock for each probing thread. The chunks of a thread queue for it, so that only one of them waits on a timer,
    /// and a bucket never wakes more waiters than there are threads.
    turns: Box<[tokio::sync::Mutex<()>]>,
    /// The local losses that were reported, as bits of [`LocalLoss`].
    reported: AtomicU16,
}

/// The pace of the next attempts of a run.
#[derive(Debug)]
struct Repeats {
    /// The rate of the run, in requests a second; `None`: unlimited.
    rate: Option<NonZeroU32>,
    /// Targets that began their first attempt, and next attempts that began.
    began: AtomicU64,
    began_again: AtomicU64,
    measured: Mutex<Measured>,
    /// When the next request is planned. `None` before the first one.
    planned: Mutex<Option<Instant>>,
}

/// How fast a run without a rate has sent.
#[derive(Debug, Default)]
struct Measured {
    interval_began: Option<Instant>,
    requests: u32,
    /// Of the fastest interval, in requests a second.
    highest: f64,
}

impl Repeats {
    fn new(rate: Option<NonZeroU32>) -> Self {
        Self {
            rate,
            began: AtomicU64::new(0),
            began_again: AtomicU64::new(0),
            measured: Mutex::default(),
            planned: Mutex::default(),
        }
    }

    /// The bucket, by the part of the targets that is probed again.
    fn bucket(&self) -> Bucket {
        let rate = self.rate.map_or_else(
            || lock(&self.measured).highest.max(MIN_RATE_OF_UNLIMITED),
            |rate| rate.get().into(),
        );
        let [targets, repeats] =
            [&self.began, &self.began_again].map(|n| n.load(Ordering::Relaxed));
        let share = repeats as f64 / targets.max(1) as f64;
        let rate = rate * share.clamp(MIN_REPEAT_SHARE, 1.0);
        Bucket::with_gap(Duration::from_secs_f64(1.0 / rate))
    }

    /// Requests of a run without a rate have left.
    fn left(&self, requests: u32, at: Instant) {
        let mut measured = lock(&self.measured);
        measured.requests += requests;
        let began = *measured.interval_began.get_or_insert(at);
        let elapsed = at.saturating_duration_since(began);
        if elapsed >= MEASURE_INTERVAL {
            let rate = f64::from(measured.requests) / elapsed.as_secs_f64();
            *measured = Measured {
                interval_began: Some(at),
                requests: 0,
                highest: measured.highest.max(rate),
            };
        }
    }
}

/// The value is written in one step, so it is valid even after a panic elsewhere.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
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
                repeats: Repeats::new(rate),
                turns: (0..self.threads)
                    .map(|_| tokio::sync::Mutex::new(()))
                    .collect(),
                reported: AtomicU16::new(0),
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
        // The locks are always taken in this order, so two threads cannot deadlock.
        let pacers = [self.run.pacer.as_ref(), self.machine_pacer.as_deref()];
        let mut taken = pacers.map(|pacer| pacer.map(|pacer| (pacer, pacer.lock())));
        let open_at = taken
            .iter()
            .flatten()
            .filter_map(|(pacer, planned)| pacer.bucket.open_at(**planned, now))
            .max();
        if let Some(at) = open_at {
            return Err(at);
        }
        for (pacer, planned) in taken.iter_mut().flatten() {
            pacer.bucket.take(planned, now);
        }
        Ok(())
    }

    /// `targets` begin their first attempt.
    pub fn began(&self, targets: u32) {
        let all = &self.run.repeats.began;
        all.fetch_add(targets.into(), Ordering::Relaxed);
    }

    /// A target begins its next attempt.
    pub fn began_again(&self) {
        self.run.repeats.began_again.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`Self::take`], for the next attempt at a target whose answer this machine may have lost. These requests leave
    /// at a quarter of the rate, or faster if more targets are probed again, over all chunks of the run.
    ///
    /// # Errors
    /// The earliest moment at which all buckets have a token.
    pub fn take_for_repeat(&self, now: Instant) -> Result<(), Instant> {
        let repeats = &self.run.repeats;
        let bucket = repeats.bucket();
        let mut planned = lock(&repeats.planned);
        if let Some(at) = bucket.open_at(*planned, now) {
            return Err(at);
        }
        self.take(now)?;
        bucket.take(&mut planned, now);
        Ok(())
    }

    /// `requests` that had tokens left at `at`. The next ones are paced from then on. Otherwise a wait for a processor
    /// between token and departure would be followed by more than a full bucket.
    pub fn left(&self, requests: u32, at: Instant) {
        if self.run.repeats.rate.is_none() {
            self.run.repeats.left(requests, at);
        }
        let pacers = [self.run.pacer.as_ref(), self.machine_pacer.as_deref()];
        for pacer in pacers.into_iter().flatten() {
            let mut planned = pacer.lock();
            *planned = (*planned).max(Some(at + pacer.bucket.gap * requests));
        }
    }

    /// A request that had taken a token did not leave: it gives it back. `is_repeat` says by which call it was taken.
    pub fn give_back(&self, is_repeat: bool) {
        if is_repeat {
            let repeats = &self.run.repeats;
            let bucket = repeats.bucket();
            bucket.give_back(&mut lock(&repeats.planned));
        }
        let pacers = [self.run.pacer.as_ref(), self.machine_pacer.as_deref()];
        for pacer in pacers.into_iter().flatten() {
            pacer.bucket.give_back(&mut pacer.lock());
        }
    }

    /// Whether any cause of `loss` is reported for the first time in this run. From now on they count as reported.
    #[must_use]
    pub fn is_first_report(&self, loss: LocalLoss) -> bool {
        let before = self.run.reported.fetch_or(loss.0, Ordering::Relaxed);
        loss.0 & !before != 0
    }

    /// Whether both are paces of the same run.
    #[must_use]
    pub fn is_of_same_run(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
