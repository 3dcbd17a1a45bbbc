//! How many requests of one socket may be unanswered at once. The window starts small: while the link address of the
//! next hop is being resolved, the kernel silently drops what does not fit its queue. It stays bounded, because more
//! requests in flight only cost memory and cache. Pure: no I/O and no clock.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

/// Size until something has come back, over all windows that use the same next hop. The queue of an unresolved next hop
/// holds more than that (Linux: `unres_qlen_bytes` of 212,992).
const INITIAL_SIZE: usize = 64;

/// The default bound. It allows 16,384 silent targets a second and thread at a timeout of 1 s. It is a quarter of all
/// sequence numbers, so that none is used again for an address while its request is in flight.
const DEFAULT_MAX_UNANSWERED: usize = 16_384;

/// The window opens after this time even if nothing has come back.
const SILENCE: Duration = Duration::from_secs(1);

/// The kernel gives up resolving a next hop before this: it asks three times, a second apart (`arp(7)`,
/// `mcast_solicit`).
const MAX_RESOLUTION: Duration = Duration::from_secs(4);

/// Length of a round: an open window doubles this often while nothing answers. A round ends earlier when the window is
/// full and a request of this round was answered, which shows that the requests of this size arrive.
const ROUND: Duration = Duration::from_millis(50);

/// After this time without a request the next hop may have to be resolved again, so the window starts over.
const IDLE: Duration = Duration::from_secs(30);

/// The window of one socket.
#[derive(Debug)]
pub struct Window {
    initial: usize,
    max: usize,
    size: usize,
    in_flight: usize,
    /// Whether a request that left in this round was answered.
    answered: bool,
    /// Whether something came back, or [`SILENCE`] has passed.
    open: bool,
    round_since: Option<Instant>,
    first_used: Option<Instant>,
    used: Option<Instant>,
    /// When the next hop was last lost or found again.
    restarted: Option<Instant>,
}

impl Default for Window {
    fn default() -> Self {
        Self::up_to(DEFAULT_MAX_UNANSWERED, NonZeroUsize::MIN)
    }
}

impl Window {
    /// A window of at most `max` requests, one of `windows` that may use the same next hop.
    #[must_use]
    pub fn up_to(max: usize, windows: NonZeroUsize) -> Self {
        Self::of((INITIAL_SIZE / windows).clamp(1, max.max(1)), max)
    }

    fn of(initial: usize, max: usize) -> Self {
        Self {
            initial,
            max,
            size: initial,
            in_flight: 0,
            answered: false,
            open: false,
            round_since: None,
            first_used: None,
            used: None,
            restarted: None,
        }
    }

    /// Reserves room for one request.
    ///
    /// # Errors
    /// The window is full. The moment at which it grows by itself, or `None` at its largest size. Room may be released
    /// before.
    pub fn try_reserve(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let idle = self.in_flight == 0 && self.used.is_some_and(|used| now >= used + IDLE);
        if idle {
            *self = Self::of(self.initial, self.max);
        }
        let round_is_over = self.grows_at().is_some_and(|at| at <= now);
        if round_is_over || self.answered && self.in_flight >= self.size {
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

    /// A request that left at `sent` was answered: releases its room.
    pub fn answered(&mut self, sent: Instant, now: Instant) {
        self.release(1);
        self.answered |= self.round_since.is_some_and(|since| sent > since);
        if self.restarted.is_none_or(|restarted| sent >= restarted) {
            self.traffic_seen(now);
        }
    }

    /// The next hop was lost, or is back after that, and may have to be resolved again: from now on as many more requests may
    /// leave as at the start, until one of them is answered.
    pub fn restart(&mut self, now: Instant) {
        self.size = (self.in_flight + self.initial).min(self.max);
        self.open = false;
        self.answered = false;
        self.round_since = Some(now);
        self.first_used = Some(now);
        self.restarted = Some(now);
    }

    /// Something came back, such as an ICMP error, so requests do leave. Releases no room.
    pub fn traffic_seen(&mut self, now: Instant) {
        if !self.open {
            self.open = true;
            self.grow(now);
        }
    }

    /// Requests still wait in the kernel: the next hop may yet be resolved, so `SILENCE` begins again.
    pub fn delay_opening(&mut self, now: Instant) {
        if !self.open
            && self
                .first_used
                .is_some_and(|first| now < first + MAX_RESOLUTION)
        {
            self.round_since = Some(now);
        }
    }

    /// Releases the room of `requests` that timed out or never left.
    pub fn release(&mut self, requests: usize) {
        self.in_flight = self.in_flight.saturating_sub(requests);
    }

    /// Requests that have room reserved.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn grow(&mut self, now: Instant) {
        self.size = (self.size * 2).min(self.max);
        self.answered = false;
        self.round_since = Some(now);
    }

    fn grows_at(&self) -> Option<Instant> {
        let after = if self.open { ROUND } else { SILENCE };
        self.round_since
            .filter(|_| self.size < self.max)
            .map(|since| since + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(window: &mut Window, now: Instant) -> usize {
        reservations(window, now).count()
    }

    fn reservations(window: &mut Window, now: Instant) -> impl Iterator<Item = ()> {
        std::iter::from_fn(move || window.try_reserve(now).ok())
    }

    #[test]
    fn nothing_answered_keeps_64_in_flight_for_a_second_and_doubles_then() {
        let start = Instant::now();
        let mut window = Window::default();
        assert_eq!(fill(&mut window, start), 64);
        assert_eq!(window.try_reserve(start), Err(Some(start + SILENCE)));
        assert_eq!(fill(&mut window, start + Duration::from_millis(999)), 0);
        assert_eq!(fill(&mut window, start + SILENCE), 64);
        assert_eq!(fill(&mut window, start + SILENCE + ROUND), 128);
    }

    #[test]
    fn it_stays_closed_while_the_next_hop_is_being_resolved() {
        let start = Instant::now();
        let mut window = Window::default();
        fill(&mut window, start);
        window.delay_opening(start + SILENCE);
        assert_eq!(fill(&mut window, start + SILENCE), 0);
        assert_eq!(fill(&mut window, start + 2 * SILENCE), 64);
        // An open window stays open.
        window.delay_opening(start + 2 * SILENCE);
        assert_eq!(fill(&mut window, start + 2 * SILENCE + ROUND), 128);
        let mut window = Window::default();
        fill(&mut window, start);
        window.delay_opening(start + MAX_RESOLUTION);
        assert_eq!(fill(&mut window, start + MAX_RESOLUTION), 64);
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
        // That request left before the window grew, so it shows nothing about the later ones.
        window.answered(start, start + 3 * TICK);
        assert_eq!(fill(&mut window, start + 3 * TICK), 1);
        // A request of this round was answered: the window doubles once. At 256 no request of the new round was.
        window.answered(start + 2 * TICK, start + 4 * TICK);
        assert_eq!(fill(&mut window, start + 4 * TICK), 129);
        assert_eq!(window.in_flight(), 256);
        assert_eq!(
            window.try_reserve(start + 5 * TICK),
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
            window.try_reserve(now).unwrap();
            window.answered(now, now + TICK);
        }
        // The first answer opened the window. The others let it double once, when it is full.
        assert_eq!(fill(&mut window, start + 40 * TICK), 256);
    }

    #[test]
    fn it_never_exceeds_its_bound() {
        let mut now = Instant::now();
        let mut window = Window::default();
        let mut in_flight = 0;
        for _ in 0..40 {
            in_flight += fill(&mut window, now);
            now += SILENCE;
        }
        assert_eq!(in_flight, DEFAULT_MAX_UNANSWERED);
        assert_eq!(window.try_reserve(now), Err(None));
        window.release(3);
        assert_eq!(fill(&mut window, now), 3);
    }

    #[test]
    fn a_smaller_bound_holds_too() {
        let start = Instant::now();
        let mut window = Window::up_to(100, NonZeroUsize::MIN);
        assert_eq!(fill(&mut window, start), 64);
        assert_eq!(fill(&mut window, start + SILENCE), 36);
        assert_eq!(window.try_reserve(start + 2 * SILENCE), Err(None));
        let mut window = Window::up_to(10, NonZeroUsize::MIN);
        assert_eq!(fill(&mut window, start), 10);
    }

    #[test]
    fn windows_of_one_next_hop_share_the_initial_size() {
        let start = Instant::now();
        for (windows, first) in [(1, 64), (2, 32), (3, 21), (4, 16), (100, 1)] {
            let mut window =
                Window::up_to(DEFAULT_MAX_UNANSWERED, NonZeroUsize::new(windows).unwrap());
            assert_eq!(fill(&mut window, start), first);
            // The same again after a pause.
            window.release(first);
            assert_eq!(fill(&mut window, start + IDLE), first);
        }
    }

    #[test]
    fn a_lost_next_hop_takes_few_more_until_a_later_request_is_answered() {
        let start = Instant::now();
        let ms = |millis| start + Duration::from_millis(millis);
        let mut window = Window::default();
        fill(&mut window, start);
        window.answered(start, ms(1));
        fill(&mut window, ms(1));
        let in_flight = window.in_flight();
        window.restart(ms(10));
        assert_eq!(fill(&mut window, ms(10)), 64);
        // It left before the loss.
        window.answered(ms(1), ms(11));
        assert_eq!(fill(&mut window, ms(11)), 1);
        assert_eq!(window.in_flight(), in_flight + 64);
        window.answered(ms(10), ms(12));
        assert!(fill(&mut window, ms(12)) > 64);
        // A silent network.
        window.restart(ms(20));
        fill(&mut window, ms(20));
        assert_eq!(fill(&mut window, ms(19) + SILENCE), 0);
        assert!(fill(&mut window, ms(20) + SILENCE) > 64);
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
