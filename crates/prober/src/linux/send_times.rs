//! When requests left. The kernel takes several in one call, and the thread may lose its processor at any moment of that
//! call, or after it: what is certain is the moment before the call. Invariant: a request is recorded later than that only
//! by what sampled requests took at least. So a stall makes a round trip too long and never too short.
//!
//! A sampled request has a call of its own, and the kernel stamps it when it leaves. That stamp counts for the request
//! itself. For the others the samples show how long a request takes to the stamp, and until the kernel is ready for the
//! next one. No I/O.
//!
//! Source: Linux, Documentation/networking/timestamping.rst, sections 1.3.1 and 1.3.3; the stamp is taken in
//! `skb_tx_timestamp`, when the driver gets the message.

use std::time::{Duration, Instant};

/// The shortest time between two samples of a socket. A sample costs about as much as one request, and divides a batch into
/// three calls: the thread may lose its processor between two of them, and then the rest of the batch leaves together with the
/// next one.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// How long a stamp may take: a request may wait until a link address is resolved, which takes 3 s at most.
const STAMP_WAIT: Duration = Duration::from_secs(5);

/// The most requests in one call. What stalls a call makes the round trips of its later requests too long, and the moment
/// before the next call is certain again. `cargo bench -p pingfleet --bench peers -- capture` measures what it is worth.
const REQUESTS_PER_CALL: usize = 4;

/// How many samples are compared.
const SAMPLES: usize = 8;

/// The departures of one socket's requests.
#[derive(Debug)]
pub(super) struct SendTimes {
    next_sample: Instant,
    /// The key of the next stamp. The kernel counts the stamped requests of a socket from 0.
    next_key: u32,
    awaited: Option<AwaitedStamp>,
    /// From before the call until the request left.
    delays: Shortest,
    /// From before the call until after it.
    costs: Shortest,
}

/// A sampled request whose stamp has not been read.
#[derive(Debug, Clone, Copy)]
struct AwaitedStamp {
    key: u32,
    request_id: u32,
    /// The moments before and after its call.
    from: Instant,
    by: Instant,
}

/// The shortest of the last samples; zero until there are enough.
#[derive(Debug, Default)]
struct Shortest {
    samples: [Duration; SAMPLES],
    next: usize,
}

impl Shortest {
    fn add(&mut self, sample: Duration) {
        self.samples[self.next] = sample;
        self.next = (self.next + 1) % SAMPLES;
    }

    fn get(&self) -> Duration {
        self.samples.into_iter().min().unwrap_or_default()
    }
}

impl SendTimes {
    /// Nothing has been sent.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next_sample: now,
            next_key: 0,
            awaited: None,
            delays: Shortest::default(),
            costs: Shortest::default(),
        }
    }

    /// Which request of a batch is to be sampled, if one is due: any, because the first one of a batch takes longer than
    /// the others.
    pub(super) fn choose(&mut self, batch: usize, now: Instant) -> Option<usize> {
        if batch == 0 || now < self.next_sample {
            return None;
        }
        self.next_sample = now + SAMPLE_INTERVAL;
        Some(fastrand::usize(..batch))
    }

    /// Whether a sampled request may be stamped: the stamp of the one before it has come, or is not expected any more, as
    /// for a driver that does not stamp.
    pub(super) fn may_stamp(&mut self, now: Instant) -> bool {
        if self
            .awaited
            .take_if(|awaited| now >= awaited.from + STAMP_WAIT)
            .is_some()
        {
            self.delays = Shortest::default();
        }
        self.awaited.is_none()
    }

    /// A sampled request had a call of its own between `from` and `by`.
    pub(super) fn sampled(&mut self, from: Instant, by: Instant) {
        self.costs.add(by.saturating_duration_since(from));
    }

    /// The kernel will stamp request `request_id`, which had a call of its own between `from` and `by`.
    pub(super) fn await_stamp(&mut self, request_id: u32, from: Instant, by: Instant) {
        self.awaited = Some(AwaitedStamp {
            key: self.next_key,
            request_id,
            from,
            by,
        });
        self.next_key = self.next_key.wrapping_add(1);
    }

    /// From now on the kernel counts from 0 again.
    pub(super) fn keys_restarted(&mut self) {
        self.next_key = 0;
    }

    /// A stamp arrived. Returns the id of its request with the moment at which it left, which `departure` computes from the
    /// earliest possible one.
    pub(super) fn stamped(
        &mut self,
        key: u32,
        departure: impl FnOnce(Instant) -> Option<Instant>,
    ) -> Option<(u32, Instant)> {
        let awaited = self.awaited.take_if(|awaited| awaited.key == key)?;
        let left = departure(awaited.from)?;
        // One that waited for its link, or for a link address, says nothing of the others.
        if left <= awaited.by {
            self.delays.add(left.duration_since(awaited.from));
        }
        Some((awaited.request_id, left))
    }

    /// When each of `requests` requests left that the kernel accepted in one call between `from` and `by`, in their order.
    pub(super) fn departures(
        &self,
        requests: usize,
        from: Instant,
        by: Instant,
    ) -> impl Iterator<Item = Instant> + use<> {
        let each = by.saturating_duration_since(from) / requests.max(1) as u32;
        let each = each.min(self.costs.get());
        let first = from + self.delays.get();
        (0..requests as u32).map(move |order| (first + each * order).min(by))
    }
}

/// Where the call ends that begins with request `first` of a batch: a request that is to be sampled has one of its own.
pub(super) fn end_of_call(first: usize, batch: usize, sample: Option<usize>) -> usize {
    let end = batch.min(first + REQUESTS_PER_CALL);
    match sample {
        Some(at) if at == first => first + 1,
        Some(at) if at > first => end.min(at),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of one call.
    const REQUESTS: usize = 8;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// After samples of which each took `delay` until the request left, and `cost` in all.
    fn after_samples(start: Instant, delay: Duration, cost: Duration) -> SendTimes {
        let mut times = SendTimes::new(start);
        for sample in 0..SAMPLES as u32 {
            let from = start + SAMPLE_INTERVAL * sample;
            times.sampled(from, from + cost);
            times.await_stamp(sample, from, from + cost);
            let stamped = times.stamped(sample, |earliest| Some(earliest + delay));
            assert_eq!(stamped, Some((sample, from + delay)));
        }
        times
    }

    fn departures(times: &SendTimes, start: Instant, took: Duration) -> Vec<Duration> {
        let all = times.departures(REQUESTS, start, start + took);
        all.map(|at| at - start).collect()
    }

    #[test]
    fn without_samples_a_request_leaves_when_its_call_begins() {
        let start = Instant::now();
        let mut times = SendTimes::new(start);
        assert_eq!(departures(&times, start, us(80)), [us(0); REQUESTS]);
        // A few samples may all have been interrupted.
        for _ in 1..SAMPLES {
            times.sampled(start, start + us(900));
        }
        assert_eq!(departures(&times, start, us(80)), [us(0); REQUESTS]);
    }

    #[test]
    fn an_undisturbed_call_is_divided_among_its_requests() {
        let start = Instant::now();
        let times = after_samples(start, us(2), us(6));
        let left = departures(&times, start, us(40));
        assert_eq!(
            left,
            (0..8).map(|order| us(2 + order * 5)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_stall_in_a_call_is_divided_among_none() {
        let start = Instant::now();
        let times = after_samples(start, us(2), us(6));
        for stall in [1, 10, 1000] {
            let left = departures(&times, start, us(40) + Duration::from_millis(stall));
            assert_eq!(
                left,
                (0..8).map(|order| us(2 + order * 6)).collect::<Vec<_>>()
            );
        }
        // The call is shorter than a sample: nothing leaves after it.
        assert_eq!(departures(&times, start, us(1)), [us(1); REQUESTS]);
    }

    #[test]
    fn a_stall_in_a_sample_corrects_nothing() {
        let start = Instant::now();
        let mut times = after_samples(start, us(2), us(6));
        let expected = departures(&times, start, us(40));
        for sample in 0..SAMPLES as u32 - 1 {
            times.sampled(start, start + Duration::from_secs(1));
            times.await_stamp(sample, start, start + Duration::from_secs(1));
            let key = SAMPLES as u32 + sample;
            let stamped = times.stamped(key, |earliest| Some(earliest + us(9000)));
            assert!(stamped.is_some());
        }
        assert_eq!(departures(&times, start, us(40)), expected);
    }

    #[test]
    fn a_request_that_waited_for_its_link_address_delays_no_other() {
        let start = Instant::now();
        let mut times = after_samples(start, us(2), us(6));
        let expected = departures(&times, start, us(40));
        for sample in 0..SAMPLES as u32 {
            let key = SAMPLES as u32 + sample;
            times.await_stamp(key, start, start + us(6));
            let left = start + Duration::from_millis(3);
            assert_eq!(times.stamped(key, |_| Some(left)), Some((key, left)));
        }
        assert_eq!(departures(&times, start, us(40)), expected);
    }

    #[test]
    fn a_stamp_counts_for_its_own_request_only() {
        let start = Instant::now();
        let mut times = SendTimes::new(start);
        let left = |earliest: Instant| Some(earliest + us(1));
        times.await_stamp(70, start, start + us(2));
        assert!(!times.may_stamp(start), "one is awaited");
        assert_eq!(times.stamped(1, left), None);
        assert_eq!(times.stamped(0, left), Some((70, start + us(1))));
        assert_eq!(times.stamped(0, left), None, "a second one");
        assert!(times.may_stamp(start));
        // The wall clock was set in between.
        times.await_stamp(71, start, start + us(2));
        assert_eq!(times.stamped(1, |_| None), None);
        // Refused, so that the kernel may have counted it or not.
        times.keys_restarted();
        times.await_stamp(72, start, start + us(2));
        assert_eq!(times.stamped(0, left), Some((72, start + us(1))));
    }

    #[test]
    fn a_stamp_that_never_comes_is_waited_for_in_vain_and_takes_the_correction_with_it() {
        let start = Instant::now();
        let mut times = after_samples(start, us(2), us(6));
        times.await_stamp(9, start, start + us(6));
        assert!(!times.may_stamp(start + us(4_999_999)));
        assert_eq!(departures(&times, start, us(40))[0], us(2));
        assert!(times.may_stamp(start + STAMP_WAIT));
        assert_eq!(departures(&times, start, us(40))[0], us(0));
        assert_eq!(times.stamped(SAMPLES as u32, Some), None);
    }

    #[test]
    fn each_request_of_a_batch_may_be_sampled_and_has_a_call_of_its_own_then() {
        let mut now = Instant::now();
        let mut times = SendTimes::new(now);
        assert_eq!(times.choose(0, now), None);
        let mut chosen = [false; 3];
        while chosen != [true; 3] {
            let sample = times.choose(3, now).expect("one is due");
            chosen[sample] = true;
            assert_eq!(times.choose(3, now + SAMPLE_INTERVAL / 2), None);
            now += SAMPLE_INTERVAL;
        }
        let calls = |batch, sample: Option<usize>| {
            let mut ends = Vec::new();
            while ends.last() != Some(&batch) {
                let first = ends.last().copied().unwrap_or(0);
                let sample = sample.filter(|at| *at >= first);
                ends.push(end_of_call(first, batch, sample));
            }
            ends
        };
        assert_eq!(calls(20, None), [4, 8, 12, 16, 20]);
        assert_eq!(calls(20, Some(0)), [1, 5, 9, 13, 17, 20]);
        assert_eq!(calls(20, Some(10)), [4, 8, 10, 11, 15, 19, 20]);
        assert_eq!(calls(20, Some(19)), [4, 8, 12, 16, 19, 20]);
        assert_eq!(calls(1, Some(0)), [1]);
    }
}
