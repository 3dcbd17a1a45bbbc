//! All probes of a socket without the socket: what comes back is made here, and time is a number.

use pingfleet_wire::{Outcome, Status};
use proptest::{collection::vec, prelude::*};
use socket2::Type;

use super::*;
use crate::{linux::message::HEADER, prober::Finding, socket::Egress};

const PAYLOAD: usize = 24;

/// What happens to one request, or what comes back.
#[derive(Debug, Clone, Copy)]
enum RequestEvent {
    Silence,
    Refused,
    /// The kernel has no room for it, and takes it the next time.
    PutBack,
    /// An answer with so many bytes of payload, after so many milliseconds.
    Answered(usize, u64),
    Changed,
    FromAnother,
    Error(u8, u8),
    /// An ICMP error of this machine itself.
    OwnError(u8, u8),
    ShortQuote,
}

fn event() -> impl Strategy<Value = RequestEvent> {
    use RequestEvent::*;
    prop_oneof![
        3 => Just(Silence),
        3 => Just(Refused),
        1 => Just(PutBack),
        2 => (0..40_usize, 0..3000_u64).prop_map(|(bytes, after)| Answered(bytes, after)),
        1 => Just(Changed),
        1 => Just(FromAnother),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(icmp_type, code)| Error(icmp_type, code)),
        1 => (1..4_u8, 0..4_u8).prop_map(|(icmp_type, code)| OwnError(icmp_type, code)),
        1 => Just(ShortQuote),
    ]
}

/// What this machine loses in an attempt.
#[derive(Debug, Clone, Copy)]
enum Loss {
    None,
    Drops,
    FullBuffer,
    SendPath,
    Canary,
    Stall,
}

fn loss() -> impl Strategy<Value = Loss> {
    use Loss::*;
    prop_oneof![
        2 => Just(None),
        1 => Just(Drops),
        1 => Just(FullBuffer),
        1 => Just(SendPath),
        1 => Just(Canary),
        1 => Just(Stall),
    ]
}

/// One attempt: what happens to its requests, and what is lost. Of some attempts the kernel refuses every request.
type Attempt = (Vec<RequestEvent>, bool, Loss);

thread_local! {
    /// One for all cases of a test. Its sockets are opened on a runtime, and then used without it.
    static DETECTOR: Rc<LossDetector> = {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async { LossDetector::watch(Type::DGRAM) })
    };
}

struct Rig {
    probes: Probes,
    outgoing: Outgoing,
    to: IpAddr,
    other: IpAddr,
    own: IpAddr,
    now: Instant,
    drops: u32,
    /// Whether a request was put back just before.
    is_put_back: bool,
    /// Replies on their way.
    coming: Vec<(Instant, IpAddr, Vec<u8>)>,
}

impl Rig {
    fn new(v6: bool, now: Instant) -> Self {
        let key = SocketKey {
            egress: Egress::plain(v6),
            next_hop: NextHop::Other,
        };
        let echo = EchoFormat::new(v6, false, 77);
        let detector = DETECTOR.with(Rc::clone);
        let counters = Arc::default();
        let threads = NonZeroUsize::MIN;
        let addresses = if v6 {
            ["2001:db8::1", "2001:db8::2", "::1"]
        } else {
            ["198.51.100.1", "198.51.100.2", "127.0.0.1"]
        };
        let [to, other, own] = addresses.map(|address| address.parse().unwrap());
        Self {
            probes: Probes::new(&key, echo, detector, counters, threads, now),
            outgoing: Outgoing::new(),
            to,
            other,
            own,
            now,
            drops: 0,
            is_put_back: false,
            coming: Vec::new(),
        }
    }

    /// The bytes of a request, which are those of its reply with another type.
    fn message(&self, request_id: u32, is_reply: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let echo = &self.probes.echo;
        echo.write(&mut bytes, request_id, self.to, PAYLOAD);
        if is_reply {
            bytes[0] = if self.probes.v6 { 129 } else { 0 };
        }
        bytes
    }

    fn handle(&mut self, staged: Staged, event: RequestEvent) {
        let now = self.now;
        match event {
            RequestEvent::Refused => return self.probes.refused(staged, now, 101),
            RequestEvent::PutBack if !self.is_put_back => {
                self.is_put_back = true;
                return self.probes.put_back(staged);
            }
            _ => {}
        }
        self.is_put_back = false;
        self.probes.sent(&[staged], now, now);
        let mut reply = self.message(staged.request_id, true);
        let quoted = self.message(staged.request_id, false);
        match event {
            RequestEvent::Silence | RequestEvent::Refused | RequestEvent::PutBack => {}
            RequestEvent::Answered(bytes, after) => {
                reply.resize(HEADER + bytes, 0);
                let at = now + Duration::from_millis(after);
                self.coming.push((at, self.to, reply));
            }
            RequestEvent::Changed => {
                reply[HEADER] ^= 1;
                self.coming.push((now, self.to, reply));
            }
            RequestEvent::FromAnother => self.coming.push((now, self.other, reply)),
            RequestEvent::Error(icmp_type, code) => {
                self.error(&quoted, icmp_type, code, self.other);
            }
            RequestEvent::OwnError(icmp_type, code) => {
                self.error(&quoted, icmp_type, code, self.own);
            }
            RequestEvent::ShortQuote => self.error(&quoted[..HEADER], 3, 1, self.other),
        }
    }

    fn error(&mut self, quoted: &[u8], icmp_type: u8, code: u8, reporter: IpAddr) {
        let error = NetworkError {
            quoted,
            to: (self.to, 0).into(),
            icmp_type,
            code,
            reporter: (reporter, 0).into(),
        };
        self.probes.icmp_error(&error, self.now);
    }

    /// Reads what has arrived, and judges what is due.
    fn judge(&mut self, loss: Loss) {
        let now = self.now;
        for (at, from, bytes) in std::mem::take(&mut self.coming) {
            if at <= now {
                self.probes.answered((from, 0).into(), &bytes, || at);
            } else {
                self.coming.push((at, from, bytes));
            }
        }
        let losses = self.probes.local_losses();
        match loss {
            Loss::None => {}
            Loss::Drops => {
                self.drops += 1;
                losses.drops_counted(self.drops, now);
            }
            Loss::FullBuffer => losses.receive_buffer_full(now),
            Loss::SendPath => losses.lost(LocalLoss::SEND_PATH, now),
            Loss::Canary => losses.lost(LocalLoss::CANARY, now),
            Loss::Stall => losses.stalled(Duration::from_secs(1), now),
        }
        self.probes.set_read_until(now);
        self.probes.set_losses_known_until(now);
        self.probes.judge();
    }
}

/// Probes one target, and returns its finding.
fn play(v6: bool, probing: &Probing, attempts: &[Attempt]) -> Finding {
    let mut rig = Rig::new(v6, Instant::now());
    rig.probes.local_losses().drops_counted(0, rig.now);
    let findings = Rc::new(ChunkFindings::new(1));
    let destination = (0, Destination::from(rig.to));
    let schedule = Schedule::of(probing);
    let pace = Pace::unlimited();
    rig.probes.enter(
        &findings,
        &schedule,
        probing,
        &pace,
        std::iter::once(destination),
    );
    let mut turns = 0;
    while !findings.is_complete() {
        turns += 1;
        assert!(turns < 10_000, "the target is never settled");
        // The target has index 0: it is the only one.
        let number = usize::from(rig.probes.table.target(0).attempts) - 1;
        let (events, is_refused, loss) = &attempts[number.min(attempts.len() - 1)];
        match rig.probes.stage(rig.now, &mut rig.outgoing) {
            Ok(staged) => {
                let event = events[staged.request % events.len()];
                rig.handle(
                    staged,
                    if *is_refused {
                        RequestEvent::Refused
                    } else {
                        event
                    },
                );
            }
            Err(NotStaged::NotBefore(at)) => rig.now = rig.now.max(at),
            Err(NotStaged::Nothing | NotStaged::BatchFull) => {
                let next = rig.probes.next_deadline();
                rig.now = rig.now.max(next.unwrap_or(rig.now)) + Duration::from_millis(1);
                rig.judge(*loss);
            }
        }
    }
    let all = futures_util::FutureExt::now_or_never(findings.complete());
    all.expect("it is complete").remove(0)
}

fn check(finding: &Finding) -> Result<(), String> {
    let outcome = Outcome {
        status: finding.status,
        address: None,
        sent: finding.sent,
        received: finding.received,
        rtt: finding.rtt,
        attempts: finding.attempts,
        probed_after_us: 0,
    };
    outcome.check()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_finding_of_every_sequence_of_attempts_passes_the_decoder(
        v6 in any::<bool>(),
        attempts in vec((vec(event(), 1..5), any::<bool>(), loss()), 1..4),
        count in 1..3_u16,
        retries in 0..3_u16,
    ) {
        let probing = Probing {
            count,
            retries,
            size: PAYLOAD as u16,
            rate: None,
            ..Probing::default()
        };
        let finding = play(v6, &probing, &attempts);
        prop_assert_eq!(check(&finding), Ok(()), "{:?}", finding);
    }
}

/// A router says unreachable, the link is lost, and then the kernel refuses every request.
#[test]
fn an_unreachable_target_stays_unreachable_when_its_repeat_is_refused() {
    let attempts = [
        (vec![RequestEvent::Error(3, 1)], false, Loss::SendPath),
        (vec![RequestEvent::Refused], true, Loss::None),
    ];
    let probing = Probing {
        retries: 0,
        size: PAYLOAD as u16,
        rate: None,
        ..Probing::default()
    };
    let finding = play(false, &probing, &attempts);
    assert!(matches!(finding.status, Status::Unreachable { .. }));
    assert_eq!((finding.sent, finding.attempts), (1, 2));
    assert_eq!(check(&finding), Ok(()));
}

/// Forgeries without the cookie, from the target's address and from another one, come before and after the genuine reply.
#[test]
fn forged_replies_plant_no_address_and_hide_no_answer() {
    let probing = Probing {
        retries: 0,
        size: PAYLOAD as u16,
        rate: None,
        ..Probing::default()
    };
    for (v6, is_answered) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = Rig::new(v6, Instant::now());
        let findings = Rc::new(ChunkFindings::new(1));
        let destination = std::iter::once((0, Destination::from(rig.to)));
        let schedule = Schedule::of(&probing);
        let pace = Pace::unlimited();
        rig.probes
            .enter(&findings, &schedule, &probing, &pace, destination);
        let staged = rig.probes.stage(rig.now, &mut rig.outgoing).unwrap();
        rig.handle(staged, RequestEvent::Silence);
        let genuine = rig.message(staged.request_id, true);
        let mut forged = genuine.clone();
        forged[HEADER..].fill(0);
        let now = rig.now;
        let mut arrive = |from: IpAddr, bytes: &[u8]| {
            rig.probes.answered((from, 0).into(), bytes, || now);
        };
        let (to, other) = (rig.to, rig.other);
        arrive(other, &forged);
        let mut expected = Status::DOWN;
        if is_answered {
            arrive(to, &forged);
            arrive(to, &genuine);
            expected = Status::Up;
        }
        if !findings.is_complete() {
            rig.now += Duration::from_secs(5);
            rig.judge(Loss::None);
            rig.now += Duration::from_secs(1);
            rig.judge(Loss::None);
        }
        let found = futures_util::FutureExt::now_or_never(findings.complete());
        assert_eq!(found.expect("it is complete")[0].status, expected);
    }
}

#[test]
fn all_threads_share_the_bound_for_neighbours() {
    for threads in 1..=64 {
        let each = max_unanswered(true, NonZeroUsize::new(threads).unwrap());
        let all = each * threads;
        assert!(
            all <= MAX_UNANSWERED_NEIGHBOURS && all > MAX_UNANSWERED_NEIGHBOURS - threads,
            "{threads}"
        );
    }
}

/// Eight requests to hosts of their own, sent in one call that took 100 ms; the answer to each comes 1 ms after the call
/// began. When the thread was stopped within the call is not known.
#[test]
fn a_stall_while_requests_are_sent_makes_no_round_trip_too_short() {
    const REQUESTS: u32 = 8;
    let probing = Probing {
        retries: 0,
        size: PAYLOAD as u16,
        rate: None,
        ..Probing::default()
    };
    let mut rig = Rig::new(false, Instant::now());
    let findings = Rc::new(ChunkFindings::new(REQUESTS as usize));
    let address = |host: u32| IpAddr::from([198, 51, 100, host as u8]);
    let destinations = (0..REQUESTS).map(|host| (host, Destination::from(address(host))));
    let (schedule, pace) = (Schedule::of(&probing), Pace::unlimited());
    rig.probes
        .enter(&findings, &schedule, &probing, &pace, destinations);
    let staged: Vec<_> =
        std::iter::from_fn(|| rig.probes.stage(rig.now, &mut rig.outgoing).ok()).collect();
    assert_eq!(staged.len(), REQUESTS as usize);
    let (from, by) = (rig.now, rig.now + Duration::from_millis(100));
    rig.probes.sent(&staged, from, by);
    let after = Duration::from_millis(1);
    for (host, staged) in (0..).zip(&staged) {
        rig.to = address(host);
        let reply = rig.message(staged.request_id, true);
        let answer = (rig.to, 0).into();
        rig.probes.answered(answer, &reply, || from + after);
    }
    let found = futures_util::FutureExt::now_or_never(findings.complete());
    for finding in found.expect("all are answered") {
        let rtt = finding.rtt.expect("it is answered").min_ns;
        assert!(u128::from(rtt) >= after.as_nanos(), "{rtt} ns");
    }
}

/// The kernel says that the request left 70 us after its call began, and a reply comes before or after that is read.
#[test]
fn a_round_trip_begins_with_the_stamp_of_its_request() {
    let us = Duration::from_micros;
    for is_stamped in [true, false] {
        let probing = Probing {
            retries: 0,
            size: PAYLOAD as u16,
            rate: None,
            ..Probing::default()
        };
        let mut rig = Rig::new(true, Instant::now());
        let findings = Rc::new(ChunkFindings::new(1));
        let destination = std::iter::once((0, Destination::from(rig.to)));
        let (schedule, pace) = (Schedule::of(&probing), Pace::unlimited());
        rig.probes
            .enter(&findings, &schedule, &probing, &pace, destination);
        let staged = rig.probes.stage(rig.now, &mut rig.outgoing).unwrap();
        let from = rig.now;
        rig.probes.sent(&[staged], from, from + us(90));
        rig.probes.await_stamp(staged, from, from + us(90));
        if is_stamped {
            rig.probes.stamped(0, |earliest| Some(earliest + us(70)));
        }
        let reply = rig.message(staged.request_id, true);
        let answer = (rig.to, 0).into();
        rig.probes.answered(answer, &reply, || from + us(100));
        // The target has left, and so has its request.
        rig.probes.stamped(0, |earliest| Some(earliest + us(70)));
        let found = futures_util::FutureExt::now_or_never(findings.complete());
        let rtt = found.expect("it is answered")[0].rtt.unwrap().min_ns;
        assert_eq!(rtt, if is_stamped { 30_000 } else { 100_000 });
    }
}
