//! Scenarios as data: what the network and the kernel do to each request, and the expected result. All times are in
//! milliseconds from the start.

use super::*;

/// What happens to one request.
#[derive(Debug, Clone, Copy)]
enum RequestFate {
    /// Nothing comes back.
    Silence,
    /// Echo replies come back after these times.
    Replies(&'static [u64]),
    /// An ICMP error comes back after this time.
    Error(u64),
    /// The kernel refuses to send it.
    Refused,
    /// This machine may have lost the answer.
    LostHere,
}

use RequestFate::{Error, LostHere, Refused, Replies, Silence};

#[derive(Debug)]
struct Scenario {
    name: &'static str,
    count: u16,
    retries: u16,
    late_window: u64,
    /// One for each request; the test fails when there are more or fewer requests.
    fates: &'static [RequestFate],
    /// When each request leaves.
    leaves: &'static [u64],
    settled: u64,
    status: Status,
    sent: u16,
    received: u16,
}

const TIMEOUT: u64 = 1000;
const INTERVAL: u64 = 400;

const UNREACHABLE: Unreachable = Unreachable {
    icmp_type: 3,
    code: 13,
    reporter: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
};

const UNREACHABLE_STATUS: Status = Status::Unreachable {
    icmp_type: UNREACHABLE.icmp_type,
    code: UNREACHABLE.code,
    reporter: UNREACHABLE.reporter,
};

const DOWN: Status = Status::DOWN;

/// One request, two retries, timeout 1,000 x 1.5^k: the defaults of the command line.
const PLAIN: Scenario = Scenario {
    name: "",
    count: 1,
    retries: 2,
    late_window: 0,
    fates: &[],
    leaves: &[],
    settled: 0,
    status: DOWN,
    sent: 0,
    received: 0,
};

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an answer in time settles at once",
        fates: &[Replies(&[30])],
        leaves: &[0],
        settled: 30,
        status: Status::Up,
        sent: 1,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "an answer exactly at the timeout is in time",
        fates: &[Replies(&[1000])],
        leaves: &[0],
        settled: 1000,
        status: Status::Up,
        sent: 1,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "silence: retries leave when the previous request timed out, with backoff",
        fates: &[Silence, Silence, Silence],
        leaves: &[0, 1000, 2500],
        settled: 4750,
        status: DOWN,
        sent: 3,
        received: 0,
        ..PLAIN
    },
    Scenario {
        name: "an answer to the first request that arrives during the retry is late",
        fates: &[Replies(&[1200]), Silence],
        leaves: &[0, 1000],
        settled: 1200,
        status: Status::Late,
        sent: 2,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "a very late answer to the first request counts until the target is settled",
        fates: &[Replies(&[4700]), Silence, Silence],
        leaves: &[0, 1000, 2500],
        settled: 4700,
        status: Status::Late,
        sent: 3,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "an answer to a retry within its longer timeout is up",
        fates: &[Silence, Replies(&[1400])],
        leaves: &[0, 1000],
        settled: 2400,
        status: Status::Up,
        sent: 2,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "an answer after the target is settled does not count",
        retries: 0,
        fates: &[Replies(&[1500])],
        leaves: &[0],
        settled: 1000,
        sent: 1,
        ..PLAIN
    },
    Scenario {
        name: "an answer in the late window counts as late",
        retries: 0,
        late_window: 2000,
        fates: &[Replies(&[1500])],
        leaves: &[0],
        settled: 1500,
        status: Status::Late,
        sent: 1,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "the late window adds a wait at the end and nothing else",
        late_window: 2000,
        fates: &[Silence, Silence, Silence],
        leaves: &[0, 1000, 2500],
        settled: 6750,
        sent: 3,
        ..PLAIN
    },
    Scenario {
        name: "duplicates count once",
        count: 2,
        fates: &[Replies(&[10, 20, 500]), Replies(&[30])],
        leaves: &[0, 400],
        settled: 430,
        status: Status::Up,
        sent: 2,
        received: 2,
        ..PLAIN
    },
    Scenario {
        name: "three requests leave an interval apart, answered or not; a lost one is waited for, not retried",
        count: 3,
        fates: &[Replies(&[10]), Silence, Replies(&[10])],
        leaves: &[0, 400, 800],
        settled: 1400,
        status: Status::Up,
        sent: 3,
        received: 2,
        ..PLAIN
    },
    Scenario {
        name: "three answered requests settle with the last answer",
        count: 3,
        fates: &[Replies(&[900]), Replies(&[10]), Replies(&[10])],
        leaves: &[0, 400, 800],
        settled: 900,
        status: Status::Up,
        sent: 3,
        received: 3,
        ..PLAIN
    },
    Scenario {
        name: "with several requests a retry leaves only when none was answered in time",
        count: 2,
        retries: 1,
        fates: &[Silence, Silence, Replies(&[10])],
        leaves: &[0, 400, 1400],
        settled: 1410,
        status: Status::Up,
        sent: 3,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "a late answer to one of several requests does not stop the retry",
        count: 2,
        retries: 1,
        fates: &[Replies(&[1100]), Silence, Silence],
        leaves: &[0, 400, 1400],
        settled: 2900,
        status: Status::Late,
        sent: 3,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "the target is settled when all first requests are answered late",
        count: 2,
        fates: &[Replies(&[1100]), Replies(&[1100]), Silence],
        leaves: &[0, 400, 1400],
        settled: 1500,
        status: Status::Late,
        sent: 3,
        received: 2,
        ..PLAIN
    },
    Scenario {
        name: "every request refused: the retries leave no sooner, and the last refusal settles the target",
        fates: &[Refused, Refused, Refused],
        leaves: &[0, 1000, 2500],
        settled: 2500,
        status: Status::SendFailed { errno: 101 },
        sent: 0,
        ..PLAIN
    },
    Scenario {
        name: "a refused request does not count as lost",
        fates: &[Refused, Replies(&[20])],
        leaves: &[0, 1000],
        settled: 1020,
        status: Status::Up,
        sent: 1,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "some requests left and some were refused: neither send_failed nor down",
        fates: &[Refused, Silence, Refused],
        leaves: &[0, 1000, 2500],
        settled: 2500,
        status: Status::Unknown(LocalLoss::SEND_PATH),
        sent: 1,
        ..PLAIN
    },
    Scenario {
        name: "an ICMP error stops no retry",
        fates: &[Error(5), Error(5), Error(5)],
        leaves: &[0, 1000, 2500],
        settled: 4750,
        status: UNREACHABLE_STATUS,
        sent: 3,
        ..PLAIN
    },
    Scenario {
        name: "an answer after an ICMP error wins",
        fates: &[Error(5), Replies(&[10])],
        leaves: &[0, 1000],
        settled: 1010,
        status: Status::Up,
        sent: 2,
        received: 1,
        ..PLAIN
    },
    Scenario {
        name: "a target whose answer this machine may have lost is not down",
        fates: &[LostHere, Silence, Silence],
        leaves: &[0, 1000, 2500],
        settled: 4750,
        status: Status::Unknown(LocalLoss::INTERRUPTED),
        sent: 3,
        ..PLAIN
    },
    Scenario {
        name: "an ICMP error decides even if this machine may have lost an answer",
        fates: &[LostHere, Error(5), Silence],
        leaves: &[0, 1000, 2500],
        settled: 4750,
        status: UNREACHABLE_STATUS,
        sent: 3,
        ..PLAIN
    },
];

struct Run {
    leaves: Vec<u64>,
    settled: u64,
    finding: Finding,
}

/// Plays a scenario. Time jumps to the next moment at which something is due or arrives.
fn play(scenario: &Scenario) -> Run {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let probing = Probing {
        count: scenario.count,
        retries: scenario.retries,
        interval: Duration::from_millis(INTERVAL),
        timeout: Duration::from_millis(TIMEOUT),
        late_window: Duration::from_millis(scenario.late_window),
        ..Probing::default()
    };
    let mut state = TargetState::new(Schedule::of(&probing));
    let mut arrivals: Vec<(u64, usize, RequestFate)> = Vec::new();
    let mut leaves = Vec::new();
    let mut now = 0;
    loop {
        arrivals.sort_by_key(|(arrival, ..)| *arrival);
        while let Some((arrival, request, fate)) = arrivals.first().copied()
            && arrival <= now
        {
            arrivals.remove(0);
            match fate {
                Error(_) => state.unreachable(UNREACHABLE),
                LostHere => state.local_loss(LocalLoss::INTERRUPTED),
                _ => {
                    let rtt = Duration::from_millis(now - leaves[request]);
                    state.answered(request, rtt);
                }
            }
        }
        state.expire(at(now));
        match state.step(at(now)) {
            Step::Settled => {
                let finding = state.finding(1, at(now));
                return Run {
                    leaves,
                    settled: now,
                    finding,
                };
            }
            Step::Send(request) => {
                assert_eq!(request, leaves.len());
                leaves.push(now);
                let fate = scenario.fates[request];
                match fate {
                    Refused => state.refused(request, at(now), 101),
                    _ => state.sent(request, at(now)),
                }
                match fate {
                    Replies(after) => {
                        arrivals.extend(after.iter().map(|ms| (now + ms, request, fate)));
                    }
                    Error(after) => arrivals.push((now + after, request, fate)),
                    LostHere => arrivals.push((now, request, fate)),
                    Silence | Refused => {}
                }
            }
            Step::Wait => {
                let by_time = state
                    .wake_at(at(now))
                    .map(|wake| (wake - start).as_millis() as u64);
                let by_arrival = arrivals.first().map(|(arrival, ..)| *arrival);
                now = by_time
                    .into_iter()
                    .chain(by_arrival)
                    .min()
                    .expect("a waiting target has something to wait for");
            }
        }
    }
}

#[test]
fn each_scenario_ends_as_expected() {
    for scenario in SCENARIOS {
        let run = play(scenario);
        let name = scenario.name;
        assert_eq!(run.leaves, scenario.leaves, "requests of: {name}");
        assert_eq!(run.settled, scenario.settled, "settling of: {name}");
        assert_eq!(run.finding.status, scenario.status, "status of: {name}");
        let counted = (run.finding.sent, run.finding.received);
        assert_eq!(
            counted,
            (scenario.sent, scenario.received),
            "sent and received of: {name}"
        );
        assert_eq!(
            run.finding.rtt.is_some(),
            scenario.received > 0,
            "RTT of: {name}"
        );
    }
}

#[test]
fn no_target_takes_longer_than_its_plan_says() {
    let probing = Probing {
        count: 4,
        retries: 3,
        late_window: Duration::from_millis(700),
        interval: Duration::from_millis(INTERVAL),
        timeout: Duration::from_millis(TIMEOUT),
        ..Probing::default()
    };
    let silent = Scenario {
        count: probing.count,
        retries: probing.retries,
        late_window: 700,
        fates: &[Silence; 7],
        ..PLAIN
    };
    let settled = Duration::from_millis(play(&silent).settled);
    assert_eq!(settled, probing.worst_target());
    assert_eq!(Schedule::of(&probing).longest_after(0), settled);
}

#[test]
fn a_reply_that_is_read_late_counts_by_its_round_trip_time() {
    let start = Instant::now();
    let mut state = TargetState::new(Schedule::of(&Probing::default()));
    state.sent(0, start);
    assert_eq!(state.expire(start + Duration::from_secs(3)), 1);
    let credit = state.answered(0, Duration::from_millis(10));
    assert_eq!(credit, Credit::Expired);
    assert_eq!(state.finding(1, start).status, Status::Up);
}

#[test]
fn a_request_that_left_late_has_its_full_timeout() {
    let start = Instant::now();
    let held_up = start + Duration::from_secs(30);
    let mut state = TargetState::new(Schedule::of(&Probing::default()));
    assert_eq!(state.step(held_up), Step::Send(0));
    state.sent(0, held_up);
    assert_eq!(
        state.wake_at(held_up),
        Some(held_up + Duration::from_secs(1))
    );
}

#[test]
fn an_arp_failure_is_down_with_its_reason() {
    let start = Instant::now();
    let mut state = TargetState::new(Schedule::of(&Probing {
        retries: 0,
        ..Probing::default()
    }));
    state.sent(0, start);
    state.no_arp();
    let end = start + Duration::from_secs(1);
    state.expire(end);
    assert_eq!(state.step(end), Step::Settled);
    assert_eq!(
        state.finding(1, end).status,
        Status::Down(DownReason::NoArp)
    );
}

#[test]
fn an_answer_counts_while_the_requests_of_other_targets_hold_up_the_next_one() {
    // Its plan allows 4.75 s for a target, and the retry waits for its turn for much longer.
    let start = Instant::now();
    let slow = Duration::from_secs(200);
    let state = || {
        let mut state = TargetState::new(Schedule::of(&Probing::default()));
        state.sent(0, start);
        assert_eq!(state.expire(start + slow), 1);
        state
    };
    let mut answered = state();
    assert_eq!(answered.answered(0, slow), Credit::Expired);
    let finding = answered.finding(1, start + slow);
    assert_eq!(finding.status, Status::Late);
    assert_eq!(finding.rtt.map(|rtt| rtt.max_ns), Some(200_000_000_000));
    // What takes longer than any target may is not believed.
    let mut too_late = state();
    let longest = MAX_TARGET_TIME + Duration::from_nanos(1);
    assert_eq!(too_late.answered(0, longest), Credit::None);
    assert!(too_late.is_silent());
    assert_eq!(state().answered(0, MAX_TARGET_TIME), Credit::Expired);
}
