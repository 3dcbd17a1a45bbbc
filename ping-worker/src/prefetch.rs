//! How many chunks a worker takes ahead. No I/O.
//!
//! Slow start: 1 until the first chunk of a session is settled, so that a chunk which kills whatever takes it burns
//! only its own deliveries; then what the rate of the run needs. As long as what comes was returned by somebody, one of
//! them may be such a chunk, so the window only doubles, each time that all of it was settled: of what came before that
//! chunk, half at least is settled at each start, and few are with it when it kills again. It only ever widens: runs
//! that come interleaved share the widest window.

use std::num::{NonZeroU16, NonZeroU32};

use pingfleet_settings::Rate;
use pingfleet_wire::{MAX_IN_HAND as MOST_IN_HAND, Probing, WorkChunk};

/// The largest prefetch.
pub(crate) const MOST: u16 = 256;

/// The first prefetch of an unlimited run; it doubles while the worker idles.
const UNLIMITED_START: u16 = 4;

/// The same when nobody else could take the chunks. Not all of them at once: a thread that is faster than another takes
/// more of them.
const ALONE_START: u16 = 32;

/// The last chunk in hand is settled within this many seconds, half of the broker's consumer timeout.
const SETTLED_WITHIN_S: f64 = 900.0;

/// The prefetch of one session.
#[derive(Debug)]
pub(crate) struct Prefetch {
    size: u16,
    fixed: Option<NonZeroU16>,
    box_rate: Rate,
    unlimited: bool,
    /// Of the window, as long as only returned chunks have come: how many are to be settled before it doubles.
    trial: Option<u16>,
}

impl Prefetch {
    pub(crate) fn slow_start(fixed: Option<NonZeroU16>, box_rate: Rate) -> Self {
        Self {
            size: 1,
            fixed,
            box_rate,
            unlimited: false,
            trial: Some(1),
        }
    }

    /// A chunk like `chunk` was taken, and nobody else could take it: the prefetch to change to at once.
    pub(crate) fn alone(&mut self, chunk: &WorkChunk, in_hand: usize) -> Option<u16> {
        self.trial = None;
        let wanted = self.wanted(chunk, ALONE_START);
        self.widen(wanted, in_hand)
    }

    /// A chunk like `chunk` was settled, with `in_hand` left: the prefetch to change to, if it is another one.
    /// `returned` says that it had been delivered to a process before that did not settle it.
    pub(crate) fn settled(
        &mut self,
        chunk: &WorkChunk,
        returned: bool,
        in_hand: usize,
    ) -> Option<u16> {
        let wanted = self.wanted(chunk, UNLIMITED_START);
        if !returned {
            // What was returned comes first, so nothing of it is left.
            self.trial = None;
        }
        let Some(left) = self.trial else {
            return self.widen(wanted, in_hand);
        };
        let left = left.saturating_sub(1);
        self.trial = Some(left);
        if left > 0 {
            return None;
        }
        let most = if self.unlimited { MOST } else { wanted };
        let doubled = self.widen(self.size.saturating_mul(2).min(most), in_hand);
        self.trial = Some(self.size);
        doubled
    }

    /// What chunks like `chunk` need from the beginning: `unlimited` of them when no rate bounds the run.
    fn wanted(&mut self, chunk: &WorkChunk, unlimited: u16) -> u16 {
        match (self.fixed, lower(chunk.probing.rate, self.box_rate)) {
            (Some(fixed), _) => fixed.get(),
            (None, Some(rate)) => for_rate(&chunk.probing, chunk.targets.len(), rate),
            (None, None) => {
                self.unlimited = true;
                unlimited
            }
        }
    }

    /// Whether it may grow further when the worker idles.
    pub(crate) fn may_grow(&self, in_hand: usize) -> bool {
        self.unlimited
            && self.trial.is_none()
            && self.size < MOST
            && in_hand >= usize::from(self.size)
    }

    /// The worker idles with everything in hand: twice as much, if that is possible.
    pub(crate) fn idle(&mut self, in_hand: usize) -> Option<u16> {
        self.widen(self.size.saturating_mul(2).min(MOST), in_hand)
    }

    /// Chunks of lost sessions are in hand beside those of this one, and all of them are bounded.
    fn widen(&mut self, wanted: u16, in_hand: usize) -> Option<u16> {
        let room = in_hand + usize::from(wanted) <= MOST_IN_HAND;
        (wanted > self.size && room).then(|| {
            self.size = wanted;
            wanted
        })
    }
}

/// The window that keeps a rate busy while chunks wait for their last answers.
fn for_rate(probing: &Probing, targets: usize, rate: NonZeroU32) -> u16 {
    let rate = f64::from(rate.get());
    let targets = targets.max(1) as f64;
    let worst = probing.worst_target().as_secs_f64();
    let busy = (rate * worst / targets).ceil() + 2.0;
    let sending = targets * f64::from(probing.most_requests()) / rate;
    let in_time = ((SETTLED_WITHIN_S - worst) / sending).floor();
    // Out of range casts saturate.
    busy.min(in_time).clamp(1.0, f64::from(MOST)) as u16
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
    fn window_of_the_defaults() {
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
    fn interleaved_runs_share_the_widest_window() {
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
    fn a_worker_that_is_alone_has_no_slow_start() {
        let unlimited = chunk(Probing {
            rate: None,
            ..Probing::default()
        });
        let mut prefetch = Prefetch::slow_start(None, None);
        assert_eq!(prefetch.alone(&unlimited, 1), Some(ALONE_START));
        assert_eq!(prefetch.alone(&unlimited, 2), None);
        assert!(prefetch.may_grow(ALONE_START.into()));
        assert_eq!(
            prefetch.idle(ALONE_START.into()),
            Some(2 * ALONE_START),
            "where nothing answers, much is unanswered at once"
        );
        let mut limited = Prefetch::slow_start(None, None);
        assert_eq!(limited.alone(&chunk(Probing::default()), 1), Some(21));
        let mut fixed = Prefetch::slow_start(NonZeroU16::new(7), None);
        assert_eq!(fixed.alone(&unlimited, 1), Some(7));
    }

    #[test]
    fn no_wider_window_while_too_much_is_in_hand() {
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
    fn returned_chunks_double_the_window_each_time_that_all_of_it_is_settled() {
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
    fn an_idle_unlimited_worker_does_not_grow_into_returned_chunks() {
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
    fn window_is_bounded() {
        assert_eq!(for_rate(&Probing::default(), 1, rate(1_000_000)), MOST);
        assert_eq!(for_rate(&Probing::default(), 10_000, rate(1)), 1);
    }
}
