//! Requests that the kernel refuses because of this machine's own path: it has no route, no address or no link, or a
//! filter of its own is in the way. Such a request never left, so it is no answer of the network: its target waits and is
//! tried again. Pure: no I/O and no clock.
//!
//! A target that is refused alone must not stop the others of its socket, and a path that is away must not use up the list.
//! Both look alike, so other targets are tried: the path counts as refused after [`MAX_TRIED`] refusals in a row. The socket
//! then pauses, and tries one more target after each pause.

use std::time::{Duration, Instant};

use nix::errno::Errno;

/// A target waits this long for its path, and a socket pauses no longer for it.
pub(in crate::linux) const MAX_WAIT: Duration = Duration::from_secs(3);

/// A target waits no longer than this while a filter admits other targets, but only a few.
const MAX_SLOW_WAIT: Duration = Duration::from_mins(1);

/// Targets that are tried before the path of the socket counts as refused.
const MAX_TRIED: u32 = 4;

/// A target is refused alone when this many of its refusals came while others were accepted.
const MIN_ALONE: u8 = 6;

/// The shortest and the longest time until a refused target is tried again. It doubles with each refusal.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// The shortest and the longest pause of a socket. It doubles while nothing is accepted.
const PAUSE: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];

/// A socket may pause for this part of the time, besides [`MAX_WAIT`].
const PAUSE_DIVISOR: u32 = 4;

/// Whether this errno of a send is about the path of this machine, and may be gone a moment later. Any other errno is about
/// the request itself, or about an earlier one.
///
/// Source: Linux `ip_route_output_key_hash_rcu` (`net/ipv4/route.c`), `fib_props` (`net/ipv4/fib_semantics.c`: a blackhole
/// route gives EINVAL), `ip6_dst_lookup_tail`, `nf_hook_slow` (a filter that drops gives EPERM).
pub(in crate::linux) fn is_of_path(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::EINVAL
            | Errno::EPERM
            | Errno::EACCES
            | Errno::ENETDOWN
            | Errno::ENODEV
            | Errno::ENXIO
            | Errno::EADDRNOTAVAIL
    )
}

/// A target whose last request was refused because of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::linux) struct Refused {
    since: Instant,
    refusals: u8,
    /// Refusals while requests to other targets were accepted.
    alone: u8,
    /// Whether a filter refused it the last time.
    by_filter: bool,
}

impl Refused {
    /// Refused for the first time at `now`.
    pub(in crate::linux) fn at(now: Instant) -> Self {
        Self {
            since: now,
            refusals: 0,
            alone: 0,
            by_filter: false,
        }
    }

    /// Refused once more, with `errno`.
    pub(in crate::linux) fn count(&mut self, errno: Errno) {
        self.refusals = self.refusals.saturating_add(1);
        self.by_filter = errno == Errno::EPERM;
    }

    /// Whether a filter refused it the last time.
    pub(in crate::linux) fn is_by_filter(&self) -> bool {
        self.by_filter
    }

    /// Others were accepted at the time of the last refusal.
    pub(in crate::linux) fn was_alone(&mut self) {
        self.alone = self.alone.saturating_add(1);
    }

    /// Whether others were accepted at the time of half of its refusals or more.
    fn is_alone(&self) -> bool {
        self.alone > 0 && self.alone >= self.refusals / 2
    }

    /// When it is tried again.
    pub(in crate::linux) fn retry_at(&self, now: Instant) -> Instant {
        let [shortest, longest] = RETRY;
        let doublings = u32::from(self.refusals.saturating_sub(1)).min(8);
        now + (shortest * (1 << doublings)).min(longest)
    }
}

/// What is known of the routes to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::linux) struct KnownRoute {
    /// There was one since the prober began.
    pub(in crate::linux) was_there: bool,
    /// One refuses now what is sent.
    pub(in crate::linux) refuses: bool,
    /// Up to when changes of the routes are known; `None` if they are not watched.
    pub(in crate::linux) known_until: Option<Instant>,
}

/// What is to be done about a refused target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::linux) enum Verdict {
    /// It is tried again.
    Wait,
    /// The path stayed away: its answer is lost on this machine.
    Lost,
    /// It never had a way out, while others had, or nothing ever had.
    SendFailed,
}

/// The path of one socket.
#[derive(Debug)]
pub(in crate::linux) struct RefusedPath {
    /// Refusals in a row.
    tried: u32,
    /// When the first of them came.
    since: Option<Instant>,
    /// The last pause, if nothing was accepted after it.
    pause: Option<Duration>,
    /// How long it has paused, less what time has given back.
    paused: Duration,
    paused_at: Option<Instant>,
    accepted_at: Option<Instant>,
    /// A filter has accepted a target that it refused before.
    filter_limits_rate: bool,
}

impl RefusedPath {
    /// Nothing was refused, and nothing was accepted.
    pub(in crate::linux) fn new() -> Self {
        Self {
            tried: 0,
            since: None,
            pause: None,
            paused: Duration::ZERO,
            paused_at: None,
            accepted_at: None,
            filter_limits_rate: false,
        }
    }

    /// A filter has accepted a target that it refused before: it limits the rate, and does not choose by the destination.
    pub(in crate::linux) fn filter_gave_way(&mut self) {
        self.filter_limits_rate = true;
    }

    /// Whether a filter limits the rate of this socket.
    pub(in crate::linux) fn filter_limits_rate(&self) -> bool {
        self.filter_limits_rate
    }

    /// The kernel accepted requests. Returns whether the path was refused before.
    pub(in crate::linux) fn accepted(&mut self, now: Instant) -> bool {
        self.accepted_at = Some(now);
        self.tried = 0;
        self.since = None;
        self.pause.take().is_some()
    }

    /// Whether the path is refused: other targets than the refused ones are tried first.
    pub(in crate::linux) fn is_refused(&self) -> bool {
        self.pause.is_some()
    }

    /// When the first of the refusals in a row came, if the last request was refused.
    pub(in crate::linux) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether requests were accepted a short time before `now`: a filter that refuses now has let others through.
    pub(in crate::linux) fn is_in_use(&self, now: Instant) -> bool {
        self.accepted_at.is_some_and(|at| now < at + MAX_WAIT)
    }

    /// The kernel refused a request. Returns how long the socket pauses, if the path counts as refused and may still be
    /// waited for.
    pub(in crate::linux) fn refused(&mut self, now: Instant) -> Option<Duration> {
        self.tried += 1;
        self.since.get_or_insert(now);
        if self.tried < MAX_TRIED && self.pause.is_none() {
            return None;
        }
        let [shortest, longest] = PAUSE;
        let given_back = self.paused_at.replace(now);
        let given_back = given_back.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.paused = self.paused.saturating_sub(given_back / PAUSE_DIVISOR);
        // The first pause is free: it is short, and a filter that limits the rate causes many.
        let Some(before) = self.pause else {
            self.pause = Some(shortest);
            return Some(shortest);
        };
        let pause = (before * 2).min(longest);
        self.pause = Some(pause);
        let after = self.paused + pause;
        (after <= MAX_WAIT).then(|| {
            self.paused = after;
            pause
        })
    }

    /// What is to be done at `now` about a target that was refused with `errno`. `is_admitted` says whether the kernel has
    /// accepted an earlier request to it.
    pub(in crate::linux) fn judge(
        &self,
        refused: &Refused,
        errno: Errno,
        is_admitted: bool,
        route: KnownRoute,
        now: Instant,
    ) -> Verdict {
        let waited = now.saturating_duration_since(refused.since);
        let is_over = waited >= MAX_WAIT && (refused.alone >= MIN_ALONE || !self.is_in_use(now));
        if !is_over && waited < MAX_SLOW_WAIT {
            return Verdict::Wait;
        }
        // Others were accepted while this one never was.
        let is_alone = match errno {
            Errno::EPERM if self.filter_limits_rate => false,
            Errno::EPERM => {
                refused.is_alone() || self.accepted_at.is_none_or(|at| at >= refused.since)
            }
            // It had a route, which is gone or refuses now. EINVAL and EACCES may be about the request itself as well.
            Errno::ENETUNREACH | Errno::EHOSTUNREACH if route.was_there => false,
            _ if route.was_there && route.refuses => false,
            _ => refused.is_alone(),
        };
        let had_way = self.accepted_at.is_some() || route.was_there && errno != Errno::EPERM;
        let is_known = route.known_until.is_none_or(|until| until >= refused.since);
        if is_admitted || !is_alone && had_way {
            Verdict::Lost
        } else if !is_known && waited < MAX_SLOW_WAIT {
            Verdict::Wait
        } else {
            Verdict::SendFailed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(was_there: bool, refuses: bool) -> KnownRoute {
        KnownRoute {
            was_there,
            refuses,
            known_until: None,
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn one_refused_target_pauses_nothing_and_a_refused_path_pauses_a_few_seconds() {
        let mut now = Instant::now();
        let mut path = RefusedPath::new();
        for _ in 0..100 {
            assert_eq!(path.refused(now), None);
            assert!(!path.accepted(now));
        }
        for _ in 1..MAX_TRIED {
            assert_eq!(path.refused(now), None);
        }
        let mut pauses = Vec::new();
        while let Some(pause) = path.refused(now) {
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(pauses[..3], [ms(2), ms(4), ms(8)]);
        assert_eq!(pauses.last(), Some(&ms(100)));
        let all: Duration = pauses.iter().sum();
        // A quarter of the time is given back meanwhile.
        assert!(all > MAX_WAIT && all < MAX_WAIT * 3 / 2, "{all:?}");
        assert!(path.is_refused() && path.accepted(now) && !path.is_refused());
    }

    #[test]
    fn a_path_that_comes_and_goes_is_always_waited_for() {
        let mut now = Instant::now();
        let mut path = RefusedPath::new();
        for _ in 0..1000 {
            now += ms(1000);
            path.accepted(now);
            let until = now + ms(200);
            let mut tried = 0;
            while now < until {
                match path.refused(now) {
                    Some(pause) => now += pause,
                    None => tried += 1,
                }
                assert!(tried < MAX_TRIED, "it no longer pauses");
            }
        }
    }

    #[test]
    fn a_refused_target_waits_and_is_lost_or_failed_by_what_became_of_the_others() {
        let start = Instant::now();
        let first = start + ms(1);
        let end = first + MAX_WAIT;
        let mut refused = Refused::at(first);
        refused.count(Errno::ENETUNREACH);
        let judge = |path: &RefusedPath, refused: &Refused, errno, admitted, had_route, at| {
            path.judge(refused, errno, admitted, known(had_route, false), at)
        };
        let route = Errno::ENETUNREACH;
        let never = RefusedPath::new();
        assert_eq!(
            judge(&never, &refused, route, false, true, start),
            Verdict::Wait
        );
        assert_eq!(
            judge(&never, &refused, route, false, true, end),
            Verdict::Lost
        );
        assert_eq!(
            judge(&never, &refused, route, false, false, end),
            Verdict::SendFailed
        );
        assert_eq!(
            judge(&never, &refused, route, true, false, end),
            Verdict::Lost
        );
        assert_eq!(
            judge(&never, &refused, Errno::EPERM, false, true, end),
            Verdict::SendFailed
        );
        // It worked before, and never since.
        let mut before = RefusedPath::new();
        before.accepted(start);
        assert_eq!(
            judge(&before, &refused, route, false, false, end),
            Verdict::Lost
        );
        assert_eq!(
            judge(&before, &refused, Errno::EPERM, false, false, end),
            Verdict::Lost
        );
    }

    #[test]
    fn a_target_that_is_refused_while_others_are_accepted_is_lost_if_it_had_a_route() {
        let start = Instant::now();
        let end = start + MAX_WAIT;
        let mut refused = Refused::at(start);
        refused.count(Errno::ENETUNREACH);
        let mut used = RefusedPath::new();
        used.accepted(end);
        let judge = |refused: &Refused, errno, admitted, had_route| {
            used.judge(refused, errno, admitted, known(had_route, false), end)
        };
        let route = Errno::ENETUNREACH;
        assert_eq!(judge(&refused, route, false, true), Verdict::Wait);
        for _ in 0..MIN_ALONE {
            refused.was_alone();
            refused.count(route);
        }
        assert_eq!(judge(&refused, route, false, true), Verdict::Lost);
        assert_eq!(judge(&refused, route, false, false), Verdict::SendFailed);
        assert_eq!(judge(&refused, route, true, false), Verdict::Lost);
        // What is wrong with the request itself has the same errno as a route that refuses.
        let request = Errno::EINVAL;
        assert_eq!(judge(&refused, request, false, true), Verdict::SendFailed);
        for (was_there, verdict) in [(true, Verdict::Lost), (false, Verdict::SendFailed)] {
            let route = known(was_there, true);
            assert_eq!(used.judge(&refused, request, false, route, end), verdict);
        }
        // The routes were read before.
        let since = |known_until| KnownRoute {
            known_until: Some(known_until),
            ..known(true, false)
        };
        let before = start.checked_sub(ms(1)).expect("a moment before");
        for (known_until, verdict) in [(before, Verdict::Wait), (start, Verdict::SendFailed)] {
            let route = since(known_until);
            assert_eq!(used.judge(&refused, request, false, route, end), verdict);
        }
        let later = start + MAX_SLOW_WAIT;
        let route = since(before);
        let verdict = used.judge(&refused, request, false, route, later);
        assert_eq!(verdict, Verdict::SendFailed);
    }

    #[test]
    fn a_filter_that_limits_the_rate_loses_a_target_and_one_for_its_destination_refuses_it() {
        let start = Instant::now();
        let end = start + MAX_SLOW_WAIT;
        let mut refused = Refused::at(start);
        refused.count(Errno::EPERM);
        assert!(refused.is_by_filter());
        let mut path = RefusedPath::new();
        path.accepted(end);
        let judge =
            |path: &RefusedPath| path.judge(&refused, Errno::EPERM, false, known(true, false), end);
        assert_eq!(judge(&path), Verdict::SendFailed);
        path.filter_gave_way();
        assert_eq!(judge(&path), Verdict::Lost);
    }

    #[test]
    fn a_refused_target_is_tried_at_growing_intervals() {
        let start = Instant::now();
        let mut refused = Refused::at(start);
        let mut after = Vec::new();
        for _ in 0..300 {
            refused.count(Errno::ENETUNREACH);
            after.push((refused.retry_at(start) - start).as_millis());
        }
        assert_eq!(after[..6], [20, 40, 80, 160, 320, 500]);
        assert_eq!(after.last(), Some(&500));
    }
}
