//! Exact sending: how many requests leave, when, and never faster than asked. Judged by the kernel's timestamps of the
//! requests, as they leave the prober's namespace.
//!
//! Tolerances: between the prober's clock and the kernel's timestamp the prober sometimes waits for a processor. That makes
//! one request late, and the next one early by as much. So a single request may be early by [`EARLY`], which every wrong
//! schedule exceeds, and the median of all is bounded narrowly: 1 ms early, 100 ms late.

use std::{cell::RefCell, collections::HashSet, num::NonZeroU32, thread, time::Duration};

use pingfleet_testbed::simnet::{ObservedRequest, Script, SimNet, Traffic};
use pingfleet_wire::{Outcome, Probing, Status};

use crate::{
    engines::{ENGINES, Engine},
    judging::{EARLY, due},
    probing::{Found, Plan},
    scenario::Variant,
    variants,
};

/// By how much the median of all requests may be late. Every wrong schedule exceeds this.
const MEDIAN_LATE: Duration = Duration::from_millis(100);

/// By how much the median may be early.
const MEDIAN_EARLY: Duration = Duration::from_millis(1);

/// Runs a plan in every variant, one after the other, because other load makes requests late.
fn each(script: &Script, plan: &Plan, judge: impl Fn(Variant, &[Outcome], &Traffic)) {
    for variant in variants() {
        let (outcomes, traffic) = run(script, plan, variant);
        judge(variant, &outcomes, &traffic);
    }
}

fn run(script: &Script, plan: &Plan, variant: Variant) -> (Vec<Outcome>, Traffic) {
    let net = SimNet::start(script.clone()).expect("root makes networks");
    let Found { outcomes, .. } = plan.run(&net, variant).expect("the prober runs");
    let traffic = net.stop().expect("the network runs");
    assert_eq!(traffic.lost_before, 0, "{variant}");
    (outcomes, traffic)
}

/// Every host of the plan was sent `requests` requests, and no other host any.
fn assert_requests(plan: &Plan, traffic: &Traffic, requests: usize, variant: Variant) {
    let departures = traffic.departures();
    assert_eq!(departures.len(), plan.hosts.len(), "{variant}");
    for host in &plan.hosts {
        let left = departures.get(host).map_or(0, Vec::len);
        assert_eq!(left, requests, "{variant}: host {host}");
    }
}

#[test]
fn silent_targets_are_sent_the_count_and_all_retries_when_they_are_due() {
    let probing = Probing {
        count: 3,
        interval: Duration::from_millis(100),
        retries: 3,
        timeout: Duration::from_millis(150),
        backoff_permille: 2000,
        rate: None,
        ..Probing::default()
    };
    let plan = Plan {
        probing,
        hosts: (1..=50).collect(),
        chunks: 2,
        threads: 1,
        stall: None,
        receive_buffer: None,
    };
    let undisturbed = RefCell::new(HashSet::new());
    each(&Script::default(), &plan, |variant, outcomes, traffic| {
        let is_whole = |outcome: &Outcome| outcome.sent == 6;
        assert!(outcomes.iter().all(is_whole), "{variant}");
        // After a stall on a busy machine the prober makes another attempt, with a schedule of its own.
        if outcomes.iter().any(|outcome| outcome.attempts > 1) {
            return;
        }
        undisturbed.borrow_mut().insert(variant.engine.name);
        assert_requests(&plan, traffic, 6, variant);
        let departures = traffic.departures();
        let late = departures.values().flat_map(|departures| {
            (1..departures.len()).map(|request| {
                let due = due(&plan.probing, &departures[..request]);
                departures[request] as i64 - due as i64
            })
        });
        assert_on_time(late.collect(), variant);
    });
    // Each prober must have been judged at least once.
    for Engine { name, .. } in ENGINES {
        let is_judged = undisturbed.borrow().contains(name);
        assert!(is_judged, "{name} was disturbed every time");
    }
}

/// Judges by how many nanoseconds the requests were late.
fn assert_on_time(mut late: Vec<i64>, variant: Variant) {
    let nanos = |duration: Duration| duration.as_nanos() as i64;
    late.sort_unstable();
    let (first, median) = (late[0], late[late.len() / 2]);
    assert!(first >= -nanos(EARLY), "{variant}: {first} ns late");
    let bounds = -nanos(MEDIAN_EARLY)..=nanos(MEDIAN_LATE);
    assert!(bounds.contains(&median), "{variant}: {median} ns late");
}

#[test]
fn answering_targets_are_sent_the_count_alone_at_its_interval() {
    let probing = Probing {
        count: 5,
        interval: Duration::from_millis(150),
        rate: None,
        ..Probing::default()
    };
    let plan = Plan {
        probing,
        hosts: (1..=100).collect(),
        chunks: 1,
        threads: 1,
        stall: None,
        receive_buffer: None,
    };
    each(&Script::alive(1..=100), &plan, |variant, _, traffic| {
        assert_requests(&plan, traffic, 5, variant);
        let departures = traffic.departures();
        let interval = plan.probing.interval.as_nanos() as i64;
        let late = departures
            .values()
            .flat_map(|departures| departures.windows(2))
            .map(|pair| (pair[1] - pair[0]) as i64 - interval);
        assert_on_time(late.collect(), variant);
    });
}

/// Probes hosts that answer, at a rate.
fn at_rate(rate: u32, hosts: u32, chunks: usize, threads: usize) -> Plan {
    Plan {
        probing: Probing {
            retries: 0,
            rate: NonZeroU32::new(rate),
            ..Probing::default()
        },
        hosts: (1..=hosts).collect(),
        chunks,
        threads,
        stall: None,
        receive_buffer: None,
    }
}

#[test]
fn chunks_on_several_threads_share_one_rate_in_every_second() {
    const RATE: u32 = 2000;
    let plan = at_rate(RATE, 6000, 6, 2);
    each(&Script::alive(1..=6000), &plan, |variant, _, traffic| {
        assert_requests(&plan, traffic, 1, variant);
        let most = traffic.busiest(Duration::from_secs(1));
        assert!(most as u32 <= RATE + RATE / 20, "{variant}: {most}");
        // The rate is also used: requests for three seconds take at most six.
        let seconds = traffic.per_second();
        assert!(seconds.len() <= 6, "{variant}: {seconds:?}");
    });
}

/// Between taking a token and sending its request lies a system call that may send many requests. A request that leaves
/// this late is followed by the next ones sooner.
const SENDING: Duration = Duration::from_micros(250);

/// After a wait for a processor the requests of each thread leave together, so a burst may hold one bucket for each thread.
/// A thread may wait after it has taken a bucket and then find another full one: so one request in a hundred may be in a
/// burst with one bucket more.
#[test]
fn a_burst_is_at_most_one_bucket_for_each_thread() {
    let cases = [
        (1000, 10.0, 1500, 1),
        (20_000, 40.0, 20_000, 1),
        (20_000, 40.0, 8000, 2),
    ];
    for (rate, bucket, hosts, threads) in cases {
        let plan = at_rate(rate, hosts, 4, threads);
        each(&Script::alive(1..=hosts), &plan, |variant, _, traffic| {
            assert_requests(&plan, traffic, 1, variant);
            let bursts = bursts(traffic, rate);
            let (usual, most) = (bursts[bursts.len() * 99 / 100], bursts[bursts.len() - 1]);
            let slack = 1.0 + f64::from(rate) * SENDING.as_secs_f64();
            let threads = threads as f64;
            let bounds = [threads * bucket + slack, (threads + 1.0) * bucket + slack];
            let is_within = usual <= bounds[0] && most <= bounds[1];
            assert!(
                is_within,
                "{variant} at {rate} by {threads}: {usual}, {most}"
            );
        });
    }
}

/// For each request, the largest excess over the rate, in requests, of a period of up to 50 ms that begins with it; sorted.
/// [`Traffic::busiest`] judges longer periods.
fn bursts(traffic: &Traffic, rate: u32) -> Vec<f64> {
    const LONGEST: f64 = 50e6;
    let gap = 1e9 / f64::from(rate);
    let burst = |first: usize| {
        let period = traffic.requests[first..].iter().enumerate();
        period
            .map(|(more, request)| (more + 1, request.at_ns - traffic.requests[first].at_ns))
            .take_while(|(_, time)| (*time as f64) < LONGEST)
            .map(|(requests, time)| requests as f64 - time as f64 / gap)
            .fold(0.0, f64::max)
    };
    let mut bursts: Vec<_> = (0..traffic.requests.len()).map(burst).collect();
    bursts.sort_by(f64::total_cmp);
    bursts
}

/// Sequence numbers repeat after 65,536 requests. A prober may promise to have more unanswered at once. Another one lets
/// the rest wait, and finds the same.
#[test]
fn more_requests_than_sequence_numbers_can_be_unanswered() {
    const HOSTS: u32 = 70_000;
    const OPENING: Duration = Duration::from_millis(900);
    let plan = |variant: Variant| Plan {
        probing: Probing {
            retries: 0,
            timeout: Duration::from_secs(if variant.engine.is_wide { 6 } else { 1 }),
            rate: None,
            ..Probing::default()
        },
        hosts: (1..=HOSTS).collect(),
        chunks: 14,
        threads: 1,
        stall: None,
        receive_buffer: None,
    };
    let run_one = |variant: Variant| {
        let plan = plan(variant);
        let (outcomes, traffic) = run(&Script::default(), &plan, variant);
        let down = Status::DOWN;
        let wrong = outcomes.iter().find(|outcome| outcome.status != down);
        assert_eq!(wrong, None, "{variant}");
        assert_requests(&plan, &traffic, 1, variant);
        let most = traffic.busiest(plan.probing.timeout);
        assert!(
            most > 65_535 || !variant.engine.is_wide,
            "{variant}: {most}"
        );
        // Nothing answers, so the window stays at its initial size for a second.
        let first = traffic.requests[0].at_ns;
        let opening =
            |request: &&ObservedRequest| request.at_ns - first < OPENING.as_nanos() as u64;
        let early = traffic.requests.iter().filter(opening).count();
        assert!(early <= 64, "{variant}: {early} in the first {OPENING:?}");
    };
    // Both families at once; more would only compete for the processor.
    for pair in variants().collect::<Vec<_>>().chunks(2) {
        thread::scope(|scope| {
            for variant in pair {
                scope.spawn(|| run_one(*variant));
            }
        });
    }
}
