//! How many chunks a worker takes ahead. No I/O.
//!
//! Slow start: the prefetch is 1 until the first chunk of a session is settled, so a chunk that kills its worker costs
//! no other chunk a delivery. Then it is what the rate of the run needs.
//!
//! Probation: while only redelivered chunks arrive, any of them may be such a chunk. So the prefetch only doubles, each
//! time that as many chunks were settled as it allows. Then few other chunks are in hand when the worker is killed again.
//!
//! Within a session the prefetch is never lowered: interleaved runs share the highest one.

use std::num::{NonZeroU16, NonZeroU32};

use pingfleet_settings::Rate;
use pingfleet_wire::{
    MAX_IN_HAND, MAX_PREFETCH, Probing, WorkChunk, timing::BROKER_CONSUMER_TIMEOUT,
};

/// The first prefetch of a run without a rate. It doubles while the worker idles.
const UNLIMITED_START: u16 = 4;

/// The same for an exclusive worker. Not all chunks at once: a faster thread takes more of them than a slower one.
const EXCLUSIVE_START: u16 = 32;

/// The last chunk in hand is settled within this many seconds.
const SETTLED_WITHIN_S: f64 = (BROKER_CONSUMER_TIMEOUT.as_secs() / 2) as f64;

/// The prefetch of one session.
#[derive(Debug)]
pub(crate) struct Prefetch {
    size: u16,
    fixed: Option<NonZeroU16>,
    worker_rate: Rate,
    unlimited: bool,
    /// While only redelivered chunks arrive: how many must be settled before the prefetch doubles.
    probation: Option<u16>,
}

impl Prefetch {
    pub(crate) fn slow_start(fixed: Option<NonZeroU16>, worker_rate: Rate) -> Self {
        Self {
            size: 1,
            fixed,
            worker_rate,
            unlimited: false,
            probation: Some(1),
        }
    }

    /// An exclusive worker took a chunk like `chunk`: the prefetch to raise to at once.
    pub(crate) fn exclusive(&mut self, chunk: &WorkChunk, in_hand: usize) -> Option<u16> {
        self.probation = None;
        let wanted = self.wanted(chunk, EXCLUSIVE_START);
        self.raise(wanted, in_hand)
    }

    /// A chunk like `chunk` was settled, and `in_hand` chunks are left: the prefetch to raise to, if it is higher.
    /// `redelivered`: another process had the chunk before and did not settle it.
    pub(crate) fn settled(
        &mut self,
        chunk: &WorkChunk,
        redelivered: bool,
        in_hand: usize,
    ) -> Option<u16> {
        let wanted = self.wanted(chunk, UNLIMITED_START);
        if !redelivered {
            // The queue delivers returned chunks first, so none is left.
            self.probation = None;
        }
        let Some(left) = self.probation else {
            return self.raise(wanted, in_hand);
        };
        let left = left.saturating_sub(1);
        self.probation = Some(left);
        if left > 0 {
            return None;
        }
        let most = if self.unlimited { MAX_PREFETCH } else { wanted };
        let doubled = self.raise(self.size.saturating_mul(2).min(most), in_hand);
        self.probation = Some(self.size);
        doubled
    }

    /// The prefetch that chunks like `chunk` need: `unlimited` when the run has no rate.
    fn wanted(&mut self, chunk: &WorkChunk, unlimited: u16) -> u16 {
        match (self.fixed, lower(chunk.probing.rate, self.worker_rate)) {
            (Some(fixed), _) => fixed.get(),
            (None, Some(rate)) => for_rate(&chunk.probing, chunk.targets.len(), rate),
            (None, None) => {
                self.unlimited = true;
                unlimited
            }
        }
    }

    /// The prefetch of the session at the moment.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Whether it may double when the worker idles.
    pub(crate) fn may_grow(&self, in_hand: usize) -> bool {
        self.unlimited
            && self.probation.is_none()
            && self.size < MAX_PREFETCH
            && in_hand >= usize::from(self.size)
    }

    /// The worker idles with everything in hand: twice as much, within the limits.
    pub(crate) fn idle(&mut self, in_hand: usize) -> Option<u16> {
        self.raise(self.size.saturating_mul(2).min(MAX_PREFETCH), in_hand)
    }

    /// Chunks of lost sessions may be in hand beside those of this one; [`MAX_IN_HAND`] bounds all together.
    fn raise(&mut self, wanted: u16, in_hand: usize) -> Option<u16> {
        let room = in_hand + usize::from(wanted) <= MAX_IN_HAND;
        (wanted > self.size && room).then(|| {
            self.size = wanted;
            wanted
        })
    }
}

/// The prefetch that keeps the worker sending at `rate` while chunks wait for their last answers.
fn for_rate(probing: &Probing, targets: usize, rate: NonZeroU32) -> u16 {
    let rate = f64::from(rate.get());
    let targets = targets.max(1) as f64;
    let worst = probing.worst_target().as_secs_f64();
    let busy = (rate * worst / targets).ceil() + 2.0;
    let sending = targets * f64::from(probing.most_requests()) / rate;
    let in_time = ((SETTLED_WITHIN_S - worst) / sending).floor();
    // Casts out of range saturate.
    busy.min(in_time).clamp(1.0, f64::from(MAX_PREFETCH)) as u16
}

/// The lower of two rates.
fn lower(one: Rate, other: Rate) -> Rate {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use pingfleet_wire::{ChunkKey, Target, Token, Version};
    use uuid::Uuid;

    use super::*;

    fn chunk(probing: Probing) -> WorkChunk {
        WorkChunk {
            version: Version,
            database: Uuid::nil(),
            key: ChunkKey {
                run: Uuid::nil(),
                chunk: 0,
            },
            token: Token(Uuid::nil()),
            probing,
            targets: vec![Target::Address([127, 0, 0, 1].into()); 250],
        }
    }

    fn rate(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).unwrap()
    }

    #[test]
    fn prefetch_of_the_defaults() {
        // 1,000 requests a second x 4.75 s / 250 targets = 19, and two more.
        assert_eq!(for_rate(&Probing::default(), 250, rate(1000)), 21);
    }

    #[test]
    fn last_chunk_of_a_slow_run_is_settled_in_time() {
        let slow = for_rate(&Probing::default(), 200, rate(10));
        let sending = f64::from(slow) * 200.0 * 3.0 / 10.0;
        assert!(sending <= SETTLED_WITHIN_S, "{slow}");
    }

    #[test]
    fn interleaved_runs_share_the_highest_prefetch() {
        let mut prefetch = Prefetch::slow_start(None, None);
        let fast = chunk(Probing::default());
        let slow = chunk(Probing {
            rate: NonZeroU32::new(100),
            ..Probing::default()
        });
        assert_eq!(prefetch.settled(&slow, false, 0), Some(4));
        assert_eq!(prefetch.settled(&fast, false, 3), Some(21));
        for _ in 0..100 {
            assert_eq!(prefetch.settled(&slow, false, 20), None);
            assert_eq!(prefetch.settled(&fast, false, 20), None);
        }
    }

    #[test]
    fn an_idle_unlimited_worker_takes_more_up_to_the_bound() {
        let mut prefetch = Prefetch::slow_start(None, None);
        let unlimited = chunk(Probing {
            rate: None,
            ..Probing::default()
        });
        assert_eq!(prefetch.settled(&unlimited, false, 0), Some(4));
        assert!(!prefetch.may_grow(3));
        let mut sizes = Vec::new();
        while prefetch.may_grow(usize::from(prefetch.size)) {
            sizes.extend(prefetch.idle(usize::from(prefetch.size)));
        }
        assert_eq!(sizes, [8, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn an_exclusive_worker_has_no_slow_start() {
        let unlimited = chunk(Probing {
            rate: None,
            ..Probing::default()
        });
        let mut prefetch = Prefetch::slow_start(None, None);
        assert_eq!(prefetch.exclusive(&unlimited, 1), Some(EXCLUSIVE_START));
        assert_eq!(prefetch.exclusive(&unlimited, 2), None);
        assert!(prefetch.may_grow(EXCLUSIVE_START.into()));
        assert_eq!(
            prefetch.idle(EXCLUSIVE_START.into()),
            Some(2 * EXCLUSIVE_START),
            "targets that do not answer are in hand for longer"
        );
        let mut limited = Prefetch::slow_start(None, None);
        assert_eq!(limited.exclusive(&chunk(Probing::default()), 1), Some(21));
        let mut fixed = Prefetch::slow_start(NonZeroU16::new(7), None);
        assert_eq!(fixed.exclusive(&unlimited, 1), Some(7));
    }

    #[test]
    fn no_higher_prefetch_while_too_much_is_in_hand() {
        let mut prefetch = Prefetch::slow_start(NonZeroU16::new(200), None);
        assert_eq!(
            prefetch.settled(&chunk(Probing::default()), false, 313),
            None
        );
        assert_eq!(
            prefetch.settled(&chunk(Probing::default()), false, 312),
            Some(200)
        );
    }

    #[test]
    fn redelivered_chunks_double_the_prefetch_each_time_that_all_of_it_is_settled() {
        let usual = chunk(Probing::default());
        let mut prefetch = Prefetch::slow_start(None, None);
        let mut settled = Vec::new();
        for number in 1..=40 {
            if let Some(window) = prefetch.settled(&usual, true, 0) {
                settled.push((number, window));
            }
        }
        // 21 is what the rate needs.
        assert_eq!(settled, [(1, 2), (3, 4), (7, 8), (15, 16), (31, 21)]);
        let mut prefetch = Prefetch::slow_start(None, None);
        assert_eq!(prefetch.settled(&usual, true, 0), Some(2));
        assert_eq!(prefetch.settled(&usual, false, 0), Some(21));
    }

    #[test]
    fn an_idle_unlimited_worker_does_not_grow_on_probation() {
        let mut prefetch = Prefetch::slow_start(None, None);
        let unlimited = chunk(Probing {
            rate: None,
            ..Probing::default()
        });
        assert_eq!(prefetch.settled(&unlimited, true, 0), Some(2));
        assert!(!prefetch.may_grow(2));
        assert_eq!(prefetch.settled(&unlimited, false, 0), Some(4));
        assert!(prefetch.may_grow(4));
    }

    #[test]
    fn prefetch_is_bounded() {
        assert_eq!(
            for_rate(&Probing::default(), 1, rate(1_000_000)),
            MAX_PREFETCH
        );
        assert_eq!(for_rate(&Probing::default(), 10_000, rate(1)), 1);
    }
}
