//! Sequences of attempts: whatever happens to the requests of each, the finding passes the decoder of the wire format.

use pingfleet_wire::{LinkAddress, Outcome};
use proptest::{collection::vec, prelude::*};

use super::*;

/// What happens to one request, or what follows it.
#[derive(Debug, Clone, Copy)]
enum RequestEvent {
    Silence,
    Refused,
    /// The answer comes after this share of the timeout, in percent.
    Answered(u64),
    Error(u8),
    /// An ICMP error, and then an answer.
    ErrorAndAnswer,
    NoArp,
    ArpAnswered,
    PayloadChanged,
    AnsweredBy,
    /// The prober notices at once that it lost an answer, as the one that uses surge-ping does.
    LostHere(u16),
}

fn event() -> impl Strategy<Value = RequestEvent> {
    use RequestEvent::*;
    prop_oneof![
        2 => Just(Silence),
        4 => Just(Refused),
        1 => (1..300_u64).prop_map(Answered),
        2 => (0..16_u8).prop_map(Error),
        1 => Just(ErrorAndAnswer),
        1 => Just(NoArp),
        1 => Just(ArpAnswered),
        1 => Just(PayloadChanged),
        1 => Just(AnsweredBy),
        1 => (0..2048_u16).prop_map(LostHere),
    ]
}

/// One attempt: what happens to its requests, and the local loss that is found at its end; 0 is none.
#[derive(Debug, Clone)]
struct Attempt {
    events: Vec<RequestEvent>,
    /// Whether the kernel refuses all of its requests.
    is_refused: bool,
    cause: u16,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    (vec(event(), 1..6), any::<bool>(), 0..2048_u16).prop_map(|(events, is_refused, cause)| {
        Attempt {
            events,
            is_refused,
            cause,
        }
    })
}

fn reporter() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

fn apply(
    state: &mut TargetState,
    request: usize,
    now: Instant,
    timeout: Duration,
    event: RequestEvent,
) {
    if let RequestEvent::Refused = event {
        return state.refused(request, now, 101);
    }
    state.sent(request, now);
    let error = |code| Unreachable {
        icmp_type: 3,
        code,
        reporter: reporter(),
    };
    match event {
        RequestEvent::Silence | RequestEvent::Refused => {}
        RequestEvent::Answered(percent) => {
            state.answered(request, timeout * percent as u32 / 100);
        }
        RequestEvent::Error(code) => state.unreachable(error(code)),
        RequestEvent::ErrorAndAnswer => {
            state.unreachable(error(1));
            state.answered(request, timeout / 2);
        }
        RequestEvent::NoArp => state.no_arp(),
        RequestEvent::ArpAnswered => {
            let link_address = LinkAddress::new(&[2, 0, 0, 0, 0, 1]).unwrap();
            state.down_because(DownReason::ArpAnswered(link_address));
        }
        RequestEvent::PayloadChanged => state.down_because(DownReason::PayloadChanged),
        RequestEvent::AnsweredBy => state.down_because(DownReason::AnsweredBy(reporter())),
        RequestEvent::LostHere(cause) => state.local_loss(LocalLoss(cause)),
    }
}

/// Plays attempts, of which there are at most `max_attempts`, as the probers do: a silent target is probed again after a
/// local loss. Returns the finding, and whether the kernel accepted a request in any attempt.
fn play(probing: &Probing, attempts: &[Attempt], max_attempts: u8) -> (Finding, bool) {
    let mut now = Instant::now();
    let mut state = TargetState::new(Schedule::of(probing));
    let mut number = 1;
    let mut was_sent = false;
    loop {
        let attempt = &attempts[(usize::from(number) - 1).min(attempts.len() - 1)];
        let mut requests = 0;
        loop {
            state.expire(now);
            match state.step(now) {
                Step::Send(request) => {
                    let mut event = attempt.events[request % attempt.events.len()];
                    if attempt.is_refused {
                        event = RequestEvent::Refused;
                    }
                    was_sent |= !matches!(event, RequestEvent::Refused);
                    let timeout = probing.wait(request as u32);
                    apply(&mut state, request, now, timeout, event);
                    requests += 1;
                    assert!(requests <= probing.most_requests());
                }
                Step::Wait => now = state.wake_at(now).expect("it waits for something"),
                Step::Settled => break,
            }
        }
        let cause = LocalLoss(attempt.cause).and(state.refused_in_part());
        if state.is_silent() && cause != LocalLoss::default() {
            if number < max_attempts {
                state = state.next_attempt(cause);
                number += 1;
                continue;
            }
            state.local_loss(cause);
        }
        return (state.finding(number, now), was_sent);
    }
}

fn outcome(finding: &Finding) -> Outcome {
    Outcome {
        status: finding.status,
        address: None,
        sent: finding.sent,
        received: finding.received,
        rtt: finding.rtt,
        attempts: finding.attempts,
        probed_after_us: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The Linux prober makes up to three attempts, the one that uses surge-ping makes one.
    #[test]
    fn every_finding_passes_the_decoder(
        attempts in vec(attempt(), 1..4),
        count in 1..4_u16,
        retries in 0..3_u16,
        late_window in 0..2_u64,
    ) {
        let probing = Probing {
            count,
            retries,
            late_window: Duration::from_secs(late_window),
            ..Probing::default()
        };
        for max_attempts in [3, 1] {
            let (finding, was_sent) = play(&probing, &attempts, max_attempts);
            let checked = outcome(&finding).check();
            prop_assert_eq!(checked, Ok(()), "{:?}", finding);
            // `send_failed` says that the kernel refused every request, of all attempts.
            let refused = matches!(finding.status, Status::SendFailed { .. });
            prop_assert_eq!(refused, !was_sent, "{:?}", finding);
        }
    }
}

/// A router says unreachable, the link is lost, and then the kernel refuses every request.
#[test]
fn an_error_of_an_earlier_attempt_keeps_the_counts_of_that_attempt() {
    let attempts = [
        Attempt {
            events: vec![RequestEvent::Error(1), RequestEvent::Silence],
            is_refused: false,
            cause: LocalLoss::SEND_PATH.0,
        },
        Attempt {
            events: vec![RequestEvent::Refused],
            is_refused: true,
            cause: 0,
        },
    ];
    let probing = Probing {
        count: 1,
        retries: 1,
        ..Probing::default()
    };
    let (finding, _) = play(&probing, &attempts, 3);
    assert!(matches!(
        finding.status,
        Status::Unreachable { code: 1, .. }
    ));
    assert_eq!((finding.sent, finding.attempts), (2, 2));
    assert_eq!(outcome(&finding).check(), Ok(()));
}

/// The kernel accepted the first request: the target is not `send_failed`.
#[test]
fn a_lost_attempt_that_is_followed_by_a_refused_one_is_unknown() {
    let attempts = [
        Attempt {
            events: vec![RequestEvent::Silence],
            is_refused: false,
            cause: LocalLoss::STALLED.0,
        },
        Attempt {
            events: vec![RequestEvent::Refused],
            is_refused: true,
            cause: 0,
        },
    ];
    let (finding, _) = play(&Probing::default(), &attempts, 3);
    let causes = LocalLoss::STALLED.and(LocalLoss::SEND_PATH);
    assert_eq!(finding.status, Status::Unknown(causes));
    assert_eq!((finding.sent, finding.attempts), (0, 2));
}

/// The reply came from the network, as an ICMP error does; what the kernel knows of the link is asked again.
#[test]
fn a_reply_that_does_not_count_is_remembered_in_the_next_attempt() {
    let silent = |event, cause| Attempt {
        events: vec![event],
        is_refused: false,
        cause,
    };
    for (event, reason) in [
        (RequestEvent::PayloadChanged, DownReason::PayloadChanged),
        (RequestEvent::AnsweredBy, DownReason::AnsweredBy(reporter())),
        (RequestEvent::NoArp, DownReason::NoAnswer),
        (RequestEvent::ArpAnswered, DownReason::NoAnswer),
    ] {
        let attempts = [silent(event, 4), silent(RequestEvent::Silence, 0)];
        let (finding, _) = play(&Probing::default(), &attempts, 3);
        assert_eq!(finding.status, Status::Down(reason));
    }
}
