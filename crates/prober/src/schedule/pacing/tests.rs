//! Pacing under the runtime's paused clock.

use std::cell::RefCell;

use futures_util::future::join_all;

use super::*;

fn per_second(rate: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(rate)
}

/// Requests that may leave together: forty, but no more than ten and no less than two milliseconds of the rate. Below 200
/// a second it is one request, and the next one leaves at most ten milliseconds early.
fn bucket(rate: u32) -> f64 {
    let rate = f64::from(rate);
    let requests = f64::min(40.0, rate * 0.010).max(rate * 0.002);
    requests.max(1.0 + requests.min(1.0))
}

async fn departures(pace: &Pace, requests: usize) -> Vec<Instant> {
    let mut departures = Vec::with_capacity(requests);
    for _ in 0..requests {
        pace.acquire().await;
        departures.push(now());
    }
    departures
}

/// No span of time holds more requests than the rate allows, plus one bucket.
fn assert_within(departures: &[Instant], rate: u32) {
    for (first, from) in departures.iter().enumerate() {
        for (last, until) in departures.iter().enumerate().skip(first) {
            let within = (last - first + 1) as f64;
            let allowed = f64::from(rate) * (*until - *from).as_secs_f64() + bucket(rate);
            assert!(
                within <= allowed + 1e-6,
                "{within} requests in {:?} at {rate}/s, {allowed} allowed",
                *until - *from
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_time_span_exceeds_the_rate_by_more_than_one_bucket() {
    for rate in [1, 7, 99, 150, 333, 1000, 1500, 5000, 20_000, 100_000] {
        let pace = Paces::new(1, None).pace(Uuid::from_u128(1), per_second(rate), 0);
        let requests = (rate as usize).clamp(20, 2000);
        let departures = departures(&pace, requests).await;
        assert_within(&departures, rate);
        // The rate is also reached: a second's requests take a second.
        let took = *departures.last().unwrap() - departures[0];
        let ideal = requests as f64 / f64::from(rate);
        assert!(
            took.as_secs_f64() <= ideal + 0.002,
            "{requests} requests at {rate}/s took {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_not_caught_up() {
    let pace = Paces::new(1, None).pace(Uuid::from_u128(1), per_second(10_000), 0);
    let mut all = departures(&pace, 500).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    all.extend(departures(&pace, 500).await);
    assert_within(&all, 10_000);
}

#[test]
fn timers_as_late_as_on_a_busy_machine_cost_no_token() {
    const LATE: [u64; 5] = [0, 3, 8, 1, 7];
    for rate in [100, 500, 1000, 4000] {
        let pace = Paces::new(1, None).pace(Uuid::from_u128(1), per_second(rate), 0);
        let start = Instant::now();
        let (mut now, mut sent, mut timers) = (start, 0, 0);
        while now < start + Duration::from_secs(2) {
            match pace.take(now) {
                Ok(()) => sent += 1,
                Err(at) => {
                    now = at + Duration::from_millis(LATE[timers % LATE.len()]);
                    timers += 1;
                }
            }
        }
        assert!(sent >= 2 * rate, "{sent} at {rate}/s");
    }
}

#[tokio::test(start_paused = true)]
async fn chunks_on_all_threads_share_the_rate_of_their_run() {
    let paces = Paces::new(2, None);
    let run = Uuid::from_u128(1);
    let all = RefCell::new(Vec::new());
    let chunk = async |thread| {
        let pace = paces.pace(run, per_second(2000), thread);
        for _ in 0..200 {
            pace.acquire().await;
            all.borrow_mut().push(now());
        }
    };
    join_all([0, 1, 0, 1].map(chunk)).await;
    let all = all.into_inner();
    assert_eq!(all.len(), 800);
    assert_within(&all, 2000);
}

#[tokio::test(start_paused = true)]
async fn the_lower_of_the_rates_of_run_and_machine_holds() {
    for (run_rate, machine_rate, expected) in [(5000, 1000, 1000), (1000, 5000, 1000)] {
        let paces = Paces::new(1, per_second(machine_rate));
        let pace = paces.pace(Uuid::from_u128(1), per_second(run_rate), 0);
        assert_within(&departures(&pace, 300).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn all_runs_together_stay_below_the_rate_of_the_machine() {
    let paces = Paces::new(1, per_second(1000));
    let all = RefCell::new(Vec::new());
    let run = async |id| {
        let pace = paces.pace(Uuid::from_u128(id), None, 0);
        for _ in 0..200 {
            pace.acquire().await;
            all.borrow_mut().push(now());
        }
    };
    join_all([1, 2, 3].map(run)).await;
    assert_within(&all.into_inner(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_run_of_one_chunk_after_another_keeps_its_rate() {
    let paces = Paces::new(1, None);
    let mut all = Vec::new();
    for _ in 0..20 {
        let pace = paces.pace(Uuid::from_u128(1), per_second(2), 0);
        all.extend(departures(&pace, 1).await);
    }
    assert_within(&all, 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_without_chunks_is_forgotten() {
    let paces = Paces::new(1, None);
    for run in 0..100 {
        let pace = paces.pace(Uuid::from_u128(run), per_second(1000), 0);
        departures(&pace, 1).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(paces.runs.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gives_up_takes_no_token() {
    let pace = Paces::new(1, None).pace(Uuid::from_u128(1), per_second(1), 0);
    pace.acquire().await;
    for _ in 0..50 {
        let given_up = tokio::time::timeout(Duration::from_millis(10), pace.acquire()).await;
        assert!(given_up.is_err());
    }
    let started = now();
    pace.acquire().await;
    assert!(now() - started <= Duration::from_millis(501));
}

/// Repeats of a whole run that leave within as many seconds as its first attempts took.
fn repeats_of_all(rate: Option<NonZeroU32>, sent_a_second: u32, repeated: u32) -> u32 {
    const SECONDS: u64 = 2;
    let pace = Paces::new(1, None).pace(Uuid::new_v4(), rate, 0);
    let targets = sent_a_second * SECONDS as u32;
    pace.began(targets);
    let start = Instant::now();
    for millisecond in 0..SECONDS * 1000 {
        pace.left(
            sent_a_second / 1000,
            start + Duration::from_millis(millisecond),
        );
    }
    (0..repeated).for_each(|_| pace.began_again());
    let start = start + Duration::from_secs(SECONDS + 1);
    let mut repeats = 0;
    for step in 0..SECONDS * 10_000 {
        let now = start + Duration::from_micros(step * 100);
        while repeats < repeated && pace.take_for_repeat(now).is_ok() {
            repeats += 1;
        }
    }
    repeats
}

#[test]
fn all_targets_are_probed_again_in_the_time_of_the_first_attempts() {
    for rate in [per_second(20_000), None] {
        for (repeated, at_least) in [(40_000, 39_000), (20_000, 19_500), (5_000, 5_000)] {
            let repeats = repeats_of_all(rate, 20_000, repeated);
            assert!(repeats >= at_least, "{repeats} of {repeated}");
        }
    }
    // Faster than a run without a rate counts as at least.
    let repeats = repeats_of_all(None, 200_000, 400_000);
    assert!(repeats >= 380_000, "{repeats}");
}

#[test]
fn a_token_that_is_given_back_is_taken_again() {
    let pace = Paces::new(1, None).pace(Uuid::new_v4(), per_second(10), 0);
    let now = Instant::now();
    for is_repeat in [false, true] {
        let take = || {
            if is_repeat {
                pace.take_for_repeat(now)
            } else {
                pace.take(now)
            }
        };
        for _ in 0..1000 {
            assert_eq!(take(), Ok(()));
            pace.give_back(is_repeat);
        }
    }
    assert_eq!(pace.take(now), Ok(()));
    assert!(pace.take(now).is_err());
}

#[test]
fn each_cause_is_reported_once_a_run() {
    let paces = Paces::new(1, None);
    let pace = paces.pace(Uuid::new_v4(), None, 0);
    assert!(pace.is_first_report(LocalLoss::NO_ROUTE));
    assert!(!pace.is_first_report(LocalLoss::NO_ROUTE));
    assert!(pace.is_first_report(LocalLoss::NO_ROUTE.and(LocalLoss::LINK_DOWN)));
    let other = paces.pace(Uuid::new_v4(), None, 0);
    assert!(other.is_first_report(LocalLoss::NO_ROUTE));
}

#[test]
fn repeats_leave_at_a_quarter_of_the_rate_over_all_chunks() {
    let paces = Paces::new(1, None);
    let run = Uuid::new_v4();
    let chunks = [0, 1].map(|_| paces.pace(run, NonZeroU32::new(1000), 0));
    assert!(chunks[0].is_of_same_run(&chunks[1]));
    assert!(!chunks[0].is_of_same_run(&paces.pace(Uuid::new_v4(), None, 0)));
    let start = Instant::now();
    let (mut repeats, mut first) = (0, 0);
    for step in 0..10_000 {
        let now = start + Duration::from_micros(step * 200);
        let chunk = &chunks[(step % 2) as usize];
        repeats += u32::from(chunk.take_for_repeat(now).is_ok());
        first += u32::from(chunk.take(now).is_ok());
    }
    // Both together leave at 1,000 a second for two seconds; a quarter of them are repeats.
    assert!((495..=505).contains(&repeats), "{repeats}");
    assert!(
        (1990..=2010).contains(&(repeats + first)),
        "{first} + {repeats}"
    );
}

#[test]
fn late_departures_are_followed_by_at_most_one_full_bucket() {
    let pace = Paces::new(1, None).pace(Uuid::from_u128(1), per_second(20_000), 0);
    let mut now = Instant::now();
    let mut left = Vec::new();
    for late in [0, 100, 30_000, 0, 0, 700, 5_000, 0, 40] {
        let mut taken = 0;
        while pace.take(now).is_ok() {
            taken += 1;
        }
        now += Duration::from_micros(late);
        pace.left(taken, now);
        left.extend((0..taken).map(|_| now));
        now += Duration::from_micros(500);
    }
    for (first, from) in left.iter().enumerate() {
        for (more, at) in left[first..].iter().enumerate() {
            // A full bucket is 40 requests beside the first one.
            let most = (*at - *from).as_micros() as usize / 50 + 40;
            assert!(more <= most, "{more} in {:?}", *at - *from);
        }
    }
}
