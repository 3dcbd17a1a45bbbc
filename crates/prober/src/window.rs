//! How many requests of one socket may be unanswered at once. It starts small, because a next hop whose address is
//! still being resolved drops what does not fit its queue, without an error; and it stays bounded, because more in
//! flight only costs memory and cache. Pure: no I/O and no clock.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

/// Unanswered requests until the way out has shown that it works, of all that send by the same next hop. Its queue holds
/// more than that (Linux: `unres_qlen_bytes` of 212,992).
const FIRST: usize = 64;

/// The most unanswered requests of one socket. Enough for 16,384 silent targets a second and thread at a timeout of
/// 1 s, and a quarter of the sequence numbers, so that none returns to an address while its request is in flight.
const MOST: usize = 16_384;

/// Without any answer the way out counts as working after this.
const SILENCE: Duration = Duration::from_secs(1);

/// A next hop that has not said its link address by then never will: the kernel asks three times, a second apart
/// (`arp(7)`, `mcast_solicit`).
const RESOLVED: Duration = Duration::from_secs(4);

/// A round: the window grows this often while nothing answers. A round also ends when the window is full and one of
/// its own requests was answered: what was sent since the window grew does arrive.
const ROUND: Duration = Duration::from_millis(50);

/// Unused for this long, the next hop may have to be resolved again: it starts over.
const IDLE: Duration = Duration::from_secs(30);

/// The window of one socket.
#[derive(Debug)]
pub struct Window {
    first: usize,
    most: usize,
    size: usize,
    in_flight: usize,
    /// Whether a request that left in this round was answered.
    answered: bool,
    /// Whether an answer or [`SILENCE`] has shown that requests leave.
    open: bool,
    round_since: Option<Instant>,
    first_used: Option<Instant>,
    used: Option<Instant>,
}

impl Default for Window {
    fn default() -> Self {
        Self::up_to(MOST, NonZeroUsize::MIN)
    }
}

impl Window {
    /// A window that opens to `most` places, one of `windows` that may be in use by the same next hop.
    #[must_use]
    pub fn up_to(most: usize, windows: NonZeroUsize) -> Self {
        Self::of((FIRST / windows).clamp(1, most.max(1)), most)
    }

    fn of(first: usize, most: usize) -> Self {
        Self {
            first,
            most,
            size: first,
            in_flight: 0,
            answered: false,
            open: false,
            round_since: None,
            first_used: None,
            used: None,
        }
    }

    /// Takes a place for one request.
    ///
    /// # Errors
    /// The window is full: when it will grow by itself. A place may be given back before. `None` when it is at its
    /// largest.
    pub fn enter(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let idle = self.in_flight == 0 && self.used.is_some_and(|used| now >= used + IDLE);
        if idle {
            *self = Self::of(self.first, self.most);
        }
        let over = self.grows_at().is_some_and(|at| at <= now);
        if over || self.answered && self.in_flight >= self.size {
            self.open = true;
            self.grow(now);
        }
        if self.in_flight >= self.size {
            return Err(self.grows_at());
        }
        self.round_since.get_or_insert(now);
        self.first_used.get_or_insert(now);
        self.used = Some(now);
        self.in_flight += 1;
        Ok(())
    }

    /// Gives a place back because its request, which left at `sent`, was answered.
    pub fn answered(&mut self, sent: Instant, now: Instant) {
        self.leave(1);
        self.answered |= self.round_since.is_some_and(|since| sent > since);
        self.heard(now);
    }

    /// Something came back, if only an ICMP error: requests do leave. Gives no place back.
    pub fn heard(&mut self, now: Instant) {
        if !self.open {
            self.open = true;
            self.grow(now);
        }
    }

    /// Requests wait on their way out: silence shows nothing as long as the next hop may still be found.
    pub fn hold(&mut self, now: Instant) {
        if !self.open && self.first_used.is_some_and(|first| now < first + RESOLVED) {
            self.round_since = Some(now);
        }
    }

    /// Gives back the places of `requests` that timed out or never left.
    pub fn leave(&mut self, requests: usize) {
        self.in_flight = self.in_flight.saturating_sub(requests);
    }

    /// Places that are taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn grow(&mut self, now: Instant) {
        self.size = (self.size * 2).min(self.most);
        self.answered = false;
        self.round_since = Some(now);
    }

    fn grows_at(&self) -> Option<Instant> {
        let after = if self.open { ROUND } else { SILENCE };
        self.round_since
            .filter(|_| self.size < self.most)
            .map(|since| since + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(window: &mut Window, now: Instant) -> usize {
        iter_enter(window, now).count()
    }

    fn iter_enter(window: &mut Window, now: Instant) -> impl Iterator<Item = ()> {
        std::iter::from_fn(move || window.enter(now).ok())
    }

    #[test]
    fn nothing_answered_keeps_64_in_flight_for_a_second_and_doubles_then() {
        let start = Instant::now();
        let mut window = Window::default();
        assert_eq!(fill(&mut window, start), 64);
        assert_eq!(window.enter(start), Err(Some(start + SILENCE)));
        assert_eq!(fill(&mut window, start + Duration::from_millis(999)), 0);
        assert_eq!(fill(&mut window, start + SILENCE), 64);
        assert_eq!(fill(&mut window, start + SILENCE + ROUND), 128);
    }

    #[test]
    fn it_stays_closed_while_the_next_hop_is_asked_for() {
        let start = Instant::now();
        let mut window = Window::default();
        fill(&mut window, start);
        window.hold(start + SILENCE);
        assert_eq!(fill(&mut window, start + SILENCE), 0);
        assert_eq!(fill(&mut window, start + 2 * SILENCE), 64);
        // Once it is open, it stays so.
        window.hold(start + 2 * SILENCE);
        assert_eq!(fill(&mut window, start + 2 * SILENCE + ROUND), 128);
        let mut window = Window::default();
        fill(&mut window, start);
        window.hold(start + RESOLVED);
        assert_eq!(fill(&mut window, start + RESOLVED), 64);
    }

    #[test]
    fn an_answer_opens_it_at_once() {
        let start = Instant::now();
        let mut window = Window::default();
        fill(&mut window, start);
        window.answered(start, start);
        assert_eq!(fill(&mut window, start), 65);
    }

    #[test]
    fn it_doubles_when_it_is_full_and_one_of_the_round_was_answered() {
        const TICK: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let mut window = Window::default();
        fill(&mut window, start);
        window.answered(start, start + TICK);
        assert_eq!(fill(&mut window, start + 2 * TICK), 65);
        // That one left before the window grew, so it says nothing of those that came after.
        window.answered(start, start + 3 * TICK);
        assert_eq!(fill(&mut window, start + 3 * TICK), 1);
        // One of the round, and the window doubles once: at 256 nothing of that round was answered.
        window.answered(start + 2 * TICK, start + 4 * TICK);
        assert_eq!(fill(&mut window, start + 4 * TICK), 129);
        assert_eq!(window.in_flight(), 256);
        assert_eq!(
            window.enter(start + 5 * TICK),
            Err(Some(start + 4 * TICK + ROUND))
        );
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_full() {
        const TICK: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let mut window = Window::default();
        for tick in 1..40 {
            let now = start + tick * TICK;
            window.enter(now).unwrap();
            window.answered(now, now + TICK);
        }
        // The first answer opened it, and the others count once, when it is full.
        assert_eq!(fill(&mut window, start + 40 * TICK), 256);
    }

    #[test]
    fn it_never_passes_its_bound() {
        let mut now = Instant::now();
        let mut window = Window::default();
        let mut in_flight = 0;
        for _ in 0..40 {
            in_flight += fill(&mut window, now);
            now += SILENCE;
        }
        assert_eq!(in_flight, MOST);
        assert_eq!(window.enter(now), Err(None));
        window.leave(3);
        assert_eq!(fill(&mut window, now), 3);
    }

    #[test]
    fn a_smaller_bound_holds_too() {
        let start = Instant::now();
        let mut window = Window::up_to(100, NonZeroUsize::MIN);
        assert_eq!(fill(&mut window, start), 64);
        assert_eq!(fill(&mut window, start + SILENCE), 36);
        assert_eq!(window.enter(start + 2 * SILENCE), Err(None));
        let mut window = Window::up_to(10, NonZeroUsize::MIN);
        assert_eq!(fill(&mut window, start), 10);
    }

    #[test]
    fn windows_beside_each_other_share_the_opening() {
        let start = Instant::now();
        for (windows, first) in [(1, 64), (2, 32), (3, 21), (4, 16), (100, 1)] {
            let mut window = Window::up_to(MOST, NonZeroUsize::new(windows).unwrap());
            assert_eq!(fill(&mut window, start), first);
            // As before after a pause.
            window.leave(first);
            assert_eq!(fill(&mut window, start + IDLE), first);
        }
    }

    #[test]
    fn after_a_pause_it_starts_over() {
        let start = Instant::now();
        let mut window = Window::default();
        fill(&mut window, start);
        (0..64).for_each(|_| window.answered(start, start));
        assert_eq!(fill(&mut window, start + IDLE), 64);
    }
}
