//! Deadlines, at most one for each target. Setting and clearing one costs the same with any number of targets. Invariant:
//! a deadline never expires early. Pure: no I/O and no clock.
//!
//! A hashed timing wheel (Varghese and Lauck, 1987, scheme 6) of doubly linked lists in one array that is indexed by
//! target.

use std::time::{Duration, Instant};

/// Width of a slot in milliseconds: the resolution of the runtime's timers.
const TICK_MS: u64 = 1;

/// Number of slots. A deadline further away than this many ticks is skipped until the wheel comes round to it.
const SLOTS: usize = 8192;

/// No link.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Instant,
    slot: u32,
    before: u32,
    after: u32,
}

/// The deadlines of all targets.
#[derive(Debug)]
pub(super) struct TimerWheel {
    start: Instant,
    /// The first tick that has not fully expired.
    tick: u64,
    heads: Box<[u32]>,
    links: Vec<Option<Entry>>,
    set: usize,
}

impl TimerWheel {
    /// An empty wheel; its ticks are counted from `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            tick: 0,
            heads: vec![NONE; SLOTS].into(),
            links: Vec::new(),
            set: 0,
        }
    }

    /// Sets the deadline of a target. It replaces an earlier one.
    pub(super) fn set(&mut self, target: u32, at: Instant) {
        self.clear(target);
        let index = target as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, None);
        }
        // A deadline in the past expires with the next tick.
        let slot = (self.tick_of(at).max(self.tick) % SLOTS as u64) as u32;
        let after = std::mem::replace(&mut self.heads[slot as usize], target);
        if let Some(Some(link)) = self.links.get_mut(after as usize) {
            link.before = target;
        }
        self.links[index] = Some(Entry {
            at,
            slot,
            before: NONE,
            after,
        });
        self.set += 1;
    }

    /// Clears the deadline of a target, if it has one.
    pub(super) fn clear(&mut self, target: u32) {
        let Some(link) = self.links.get_mut(target as usize).and_then(Option::take) else {
            return;
        };
        match self.links.get_mut(link.before as usize) {
            Some(Some(before)) => before.after = link.after,
            _ => self.heads[link.slot as usize] = link.after,
        }
        if let Some(Some(after)) = self.links.get_mut(link.after as usize) {
            after.before = link.before;
        }
        self.set -= 1;
    }

    /// Appends targets whose deadline is `now` or earlier to `due`, and clears their deadlines, until `due` holds `max`.
    /// The others stay, and [`Self::next`] accounts for them.
    pub(super) fn expire(&mut self, now: Instant, due: &mut Vec<u32>, max: usize) {
        let last = self.tick_of(now);
        // After a long pause each slot is still visited only once.
        let first = self.tick.max((last + 1).saturating_sub(SLOTS as u64));
        for tick in first..=last {
            self.tick = tick;
            let mut next = self.heads[(tick % SLOTS as u64) as usize];
            while let Some(Some(link)) = self.links.get(next as usize) {
                let (target, at) = (next, link.at);
                next = link.after;
                if at <= now {
                    if due.len() == max {
                        return;
                    }
                    self.clear(target);
                    due.push(target);
                }
            }
        }
    }

    /// When to call [`Self::expire`] next: at most one tick after the next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.set == 0 {
            return None;
        }
        let ahead = (self.tick..self.tick + SLOTS as u64)
            .find(|tick| self.heads[(tick % SLOTS as u64) as usize] != NONE)?;
        // The slot may hold only deadlines of later rounds: then nothing expires.
        Some(self.start + Duration::from_millis((ahead + 1) * TICK_MS))
    }

    fn tick_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        since.as_millis() as u64 / TICK_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deadline_expires_once_and_never_early() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let mut random = fastrand::Rng::with_seed(1);
        let mut deadlines: Vec<_> = (0..5000)
            .map(|_| start + Duration::from_micros(random.u64(..9_000_000)))
            .collect();
        for (target, at) in (0..).zip(&deadlines) {
            wheel.set(target, *at);
        }
        // Some are set again, some are cleared.
        for target in (0..5000).step_by(7) {
            deadlines[target as usize] += Duration::from_secs(3);
            wheel.set(target, deadlines[target as usize]);
        }
        let mut expired = vec![0; 5000];
        for target in (0..5000).step_by(11) {
            wheel.clear(target);
            expired[target as usize] = 1;
        }
        let mut now = start;
        while now < start + Duration::from_secs(13) {
            let next = wheel.next();
            now += Duration::from_micros(random.u64(1..70_000));
            let mut due = Vec::new();
            wheel.expire(now, &mut due, usize::MAX);
            for target in &due {
                assert!(deadlines[*target as usize] <= now);
                let latest = deadlines[*target as usize] + Duration::from_millis(TICK_MS);
                assert!(next.is_some_and(|next| next <= latest));
                expired[*target as usize] += 1;
            }
            let missed =
                (0..5000).find(|target| expired[*target] == 0 && deadlines[*target] <= now);
            assert_eq!(missed, None);
        }
        assert!(expired.iter().all(|times| *times == 1));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_deadline_in_the_past_expires_next() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let mut due = Vec::new();
        wheel.expire(start + Duration::from_secs(5), &mut due, 1);
        wheel.set(3, start);
        let soon = start + Duration::from_millis(5000 + TICK_MS);
        assert!(wheel.next().is_some_and(|next| next <= soon));
        wheel.expire(start + Duration::from_secs(5), &mut due, 1);
        assert_eq!(due, [3]);
    }
}
