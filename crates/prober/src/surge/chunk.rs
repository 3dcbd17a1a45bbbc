//! The probing of one chunk: one loop that sends what is due, hears what comes back and judges what timed out. Each
//! request is a future of its own, so that a late answer to an older one is heard while a retry is out.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture, ready},
    poll,
    stream::FuturesUnordered,
};
use pingfleet_wire::{LocalLoss, Probing};
use surge_ping::{IcmpPacket, SurgeError};
use tokio::{
    task::{coop::unconstrained, yield_now},
    time::{Sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{
    client::{Read, Share, now},
    errno, is_own,
};
use crate::{
    prober::{Destination, Finding, RequestsSent},
    schedule::pacing::Pace,
    schedule::target_state::{Credit, Schedule, Step, TargetState, Unreachable},
};

/// How long a request is left alone after the kernel had no memory for it.
const BACK_PRESSURE_PAUSE: Duration = Duration::from_millis(5);

/// A request is listened for this much longer than its target can stay unsettled by its schedule: the pace may hold
/// up what follows it.
const PATIENCE: Duration = Duration::from_mins(1);

/// "No buffer space available" (ENOBUFS), which std has no kind for.
const NO_BUFFER_SPACE: i32 = if cfg!(windows) { 10055 } else { 105 };

/// The errno of a request that makes no sense (EINVAL).
const INVALID: i32 = 22;

/// What came of one request.
struct Landed {
    target: usize,
    request: usize,
    result: Result<(IcmpPacket, Duration), SurgeError>,
}

type Flight = Pin<Box<dyn Future<Output = Landed>>>;

/// The shares of one chunk, for IPv4 and IPv6: none where it has no such destination, the errno where there is no
/// socket.
pub(super) struct Shares(pub(super) [Option<Result<Share, i32>>; 2]);

impl Shares {
    fn of(&self, to: Destination) -> Result<&Share, i32> {
        let share = self.0[usize::from(to.address.is_ipv6())].as_ref();
        let share = share.expect("a share was taken for every family in the chunk");
        share.as_ref().map_err(|errno| *errno)
    }

    fn read(&self, moment: Instant, now: Instant) -> Read {
        let mut until = now;
        for share in self.0.iter().flatten().flatten() {
            match share.client.read(moment, now) {
                Read::Until(read) => until = until.min(read),
                other => return other,
            }
        }
        Read::Until(until)
    }
}

pub(super) struct Chunk<'a> {
    destinations: &'a [Destination],
    shares: &'a Shares,
    requests_sent: &'a RequestsSent,
    schedule: Arc<Schedule>,
    payload: Rc<[u8]>,
    targets: Vec<Target>,
    unsettled: usize,
    /// Targets whose next request is due, in the order in which it became so.
    waiting: VecDeque<usize>,
    alarms: BinaryHeap<Reverse<(Instant, usize)>>,
    flights: FuturesUnordered<Flight>,
    /// Up to when all replies have been read: no later timeout is judged.
    seen: Instant,
    /// Not before this does the kernel get another request, after it had no memory for one.
    resume_at: Option<Instant>,
}

struct Target {
    state: TargetState,
    queued: bool,
    settled: bool,
    alarm: Option<Instant>,
}

impl<'a> Chunk<'a> {
    pub(super) fn new(
        probing: &Probing,
        destinations: &'a [Destination],
        shares: &'a Shares,
        requests_sent: &'a RequestsSent,
    ) -> Self {
        let schedule = Schedule::of(probing);
        let target = |_| Target {
            state: TargetState::new(Arc::clone(&schedule)),
            queued: false,
            settled: false,
            alarm: None,
        };
        Self {
            destinations,
            shares,
            requests_sent,
            targets: destinations.iter().map(target).collect(),
            schedule,
            payload: vec![0; usize::from(probing.size)].into(),
            unsettled: destinations.len(),
            waiting: VecDeque::with_capacity(destinations.len()),
            alarms: BinaryHeap::new(),
            flights: FuturesUnordered::new(),
            seen: now(),
            resume_at: None,
        }
    }

    /// Probes all destinations. Cancel-safe in so far as dropping it gives everything up.
    pub(super) async fn run(mut self, pace: &Pace) -> Vec<Finding> {
        for target in 0..self.targets.len() {
            if self.shares.of(self.destinations[target]).is_ok() {
                self.attend(target, false);
            } else {
                self.settle(target);
            }
        }
        let mut admission = pin!(Fuse::terminated());
        let mut alarm = pin!(sleep_until(now().into()));
        loop {
            match self.read_until() {
                Some(read) => self.ring(read),
                // The reader of the socket has to go first.
                None => yield_now().await,
            }
            if self.unsettled == 0 {
                break;
            }
            if admission.is_terminated()
                && let Some(share) = self.next_share()
            {
                let size = self.payload.len() as u16;
                admission.set(admit(share, size, pace, self.resume_at.take()).fuse());
            }
            let ringing = self.set_alarm(alarm.as_mut());
            tokio::select! {
                biased;
                Some(landed) = self.flights.next() => self.land(landed),
                admitted = &mut admission, if !admission.is_terminated() => {
                    self.send(admitted).await;
                }
                () = &mut alarm, if ringing => {}
            }
        }
        let now = now();
        self.targets
            .iter()
            .zip(self.destinations)
            .map(|(target, to)| match self.shares.of(*to) {
                Ok(_) => target.state.finding(1, now),
                Err(errno) => Finding::refused(errno, now),
            })
            .collect()
    }

    fn next_share(&self) -> Option<&'a Share> {
        let target = *self.waiting.front()?;
        self.shares.of(self.destinations[target]).ok()
    }

    /// Up to when timeouts can be judged, if any is due: the socket has been read up to then. `None` when it has not
    /// been read that far.
    fn read_until(&self) -> Option<Read> {
        let now = now();
        let due = self.alarms.peek().map(|Reverse((first, _))| *first);
        match due.filter(|first| *first <= now) {
            Some(first) => Some(self.shares.read(first, now)).filter(|read| *read != Read::NotYet),
            None => Some(Read::Until(self.seen)),
        }
    }

    /// Attends to every target whose alarm is due, as far as replies have been read.
    fn ring(&mut self, read: Read) {
        let (until, stuck) = match read {
            Read::Until(until) => (until, false),
            Read::Stuck | Read::NotYet => (now(), true),
        };
        if until <= self.seen {
            return;
        }
        // What was read has reached the flights, not yet the state.
        while let Some(Some(landed)) = self.flights.next().now_or_never() {
            self.land(landed);
        }
        self.seen = until;
        while let Some(&Reverse((at, number))) = self.alarms.peek()
            && at <= self.seen
        {
            self.alarms.pop();
            let target = &mut self.targets[number];
            if target.alarm == Some(at) {
                target.alarm = None;
                self.attend(number, stuck);
            }
        }
    }

    /// Lets the alarm ring when time alone changes something next. Returns whether there is such a moment.
    fn set_alarm(&self, alarm: Pin<&mut Sleep>) -> bool {
        let Some(Reverse((at, _))) = self.alarms.peek() else {
            return false;
        };
        if alarm.deadline() != (*at).into() {
            alarm.reset((*at).into());
        }
        true
    }

    /// Does what has become due for a target: gives up what timed out, queues its next request, or settles it.
    fn attend(&mut self, number: usize, stuck: bool) {
        let target = &mut self.targets[number];
        if target.settled {
            return;
        }
        let expired = target.state.expire(self.seen);
        if stuck && expired > 0 {
            warn!(address = %self.destinations[number].address, "replies are not read in time");
            target.state.local_loss(LocalLoss::STALLED);
        }
        let step = target.state.step(self.seen);
        let alarm = target.state.wake_at(self.seen);
        if let Some(at) = alarm
            && target.alarm != alarm
        {
            target.alarm = alarm;
            self.alarms.push(Reverse((at, number)));
        }
        if matches!(step, Step::Send(_)) && !target.queued {
            target.queued = true;
            self.waiting.push_back(number);
        }
        if let Ok(share) = self.shares.of(self.destinations[number]) {
            share.release(expired);
        }
        if step == Step::Settled {
            self.settle(number);
        }
    }

    fn settle(&mut self, number: usize) {
        let target = &mut self.targets[number];
        target.settled = true;
        self.unsettled -= 1;
        if let Ok(share) = self.shares.of(self.destinations[number]) {
            share.release(target.state.in_flight());
        }
    }

    /// Sends the request of the target that has waited longest.
    async fn send(&mut self, admitted: io::Result<()>) {
        let Some(number) = self.waiting.pop_front() else {
            return;
        };
        let to = self.destinations[number];
        let Ok(share) = self.shares.of(to) else {
            return;
        };
        let target = &mut self.targets[number];
        target.queued = false;
        let (false, Step::Send(request)) = (target.settled, target.state.step(self.seen)) else {
            // Answered while its request was waiting to leave.
            share.release(1);
            return self.attend(number, false);
        };
        let taken = match admitted {
            Ok(()) => self.take_off(share, to, number, request).await,
            Err(error) => Err(SurgeError::IOError(error)),
        };
        let target = &mut self.targets[number];
        match taken {
            Ok(flight) => {
                target.state.sent(request, now());
                self.requests_sent.add(1);
                self.flights.push(flight);
                return self.attend(number, false);
            }
            Err(SurgeError::IOError(error)) if is_back_pressure(&error) => {
                debug!(address = %to.address, %error, "the kernel takes no request now");
                self.resume_at = Some(now() + BACK_PRESSURE_PAUSE);
            }
            Err(SurgeError::NetworkError | SurgeError::ClientDestroyed) => {
                target.state.refused(request, now(), 0);
                target.state.local_loss(LocalLoss::INTERRUPTED);
            }
            Err(SurgeError::IOError(error)) => {
                target.state.refused(request, now(), errno(&error));
            }
            Err(error) => {
                warn!(address = %to.address, %error, "surge-ping cannot send");
                target.state.refused(request, now(), INVALID);
            }
        }
        share.release(1);
        self.attend(number, false);
    }

    /// Hands a request to surge-ping, which hands it to the kernel at once: the error, or the future of its answer.
    async fn take_off(
        &self,
        share: &Share,
        to: Destination,
        target: usize,
        request: usize,
    ) -> Result<Flight, SurgeError> {
        let life = self.schedule.longest_after(request) + PATIENCE;
        loop {
            let mut pinger = share.client.pinger(to, life).await;
            let sequence = share.client.next_sequence();
            let payload = Rc::clone(&self.payload);
            let mut flight: Flight = Box::pin(unconstrained(async move {
                Landed {
                    target,
                    request,
                    result: pinger.ping(sequence, &payload).await,
                }
            }));
            match poll!(flight.as_mut()) {
                Poll::Pending => return Ok(flight),
                Poll::Ready(landed) => match landed.result {
                    // This number is still in flight to the same address.
                    Err(SurgeError::IdenticalRequests { .. }) => {}
                    Err(error) => return Err(error),
                    Ok(_) => return Ok(Box::pin(ready(landed))),
                },
            }
        }
    }

    /// Takes in what came of a request that the kernel took.
    fn land(&mut self, landed: Landed) {
        let to = self.destinations[landed.target];
        let target = &mut self.targets[landed.target];
        let Ok(share) = self.shares.of(to) else {
            return;
        };
        if target.settled {
            return;
        }
        match landed.result {
            Ok((packet, rtt)) => match meaning(&packet, to) {
                Meaning::Reply => match target.state.answered(landed.request, rtt) {
                    Credit::InFlight => share.answered(rtt),
                    Credit::Expired => share.traffic_seen(),
                    Credit::None => {}
                },
                Meaning::Unreachable(error) => {
                    share.traffic_seen();
                    target.state.unreachable(error);
                }
                Meaning::NoArp => target.state.no_arp(),
                // surge-ping has handed us this message and listens no longer for the reply.
                Meaning::Other => target.state.local_loss(LocalLoss::INTERRUPTED),
            },
            Err(SurgeError::Timeout { .. }) => {}
            Err(error) => {
                warn!(address = %to.address, %error, "a request was given up by surge-ping");
                target.state.local_loss(LocalLoss::INTERRUPTED);
            }
        }
        self.attend(landed.target, false);
    }
}

async fn admit(
    share: &Share,
    size: u16,
    pace: &Pace,
    resume_at: Option<Instant>,
) -> io::Result<()> {
    if let Some(at) = resume_at {
        sleep_until(at.into()).await;
    }
    share.admit(size, pace).await
}

/// Whether the kernel took nothing for want of memory, and will take it later.
fn is_back_pressure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory
    ) || error.raw_os_error() == Some(NO_BUFFER_SPACE)
}

/// What a message that belongs to a request says.
enum Meaning {
    Reply,
    Unreachable(Unreachable),
    NoArp,
    Other,
}

fn meaning(packet: &IcmpPacket, to: Destination) -> Meaning {
    let (icmp_type, code, reporter) = match packet {
        IcmpPacket::V4(packet) => (
            packet.get_icmp_type().0,
            packet.get_icmp_code().0,
            IpAddr::V4(packet.get_source()),
        ),
        IcmpPacket::V6(packet) => (
            packet.get_icmpv6_type().0,
            packet.get_icmpv6_code().0,
            IpAddr::V6(packet.get_source()),
        ),
    };
    let v6 = to.address.is_ipv6();
    match (v6, icmp_type) {
        // Echo reply (RFC 792, RFC 4443).
        (false, 0) | (true, 129) => Meaning::Reply,
        // Host or address unreachable, from ourselves: our own neighbour discovery failed.
        (false, 3) | (true, 1) if code == if v6 { 3 } else { 1 } && is_own(reporter) => {
            Meaning::NoArp
        }
        // Unreachable, time exceeded, parameter problem, and for IPv6 packet too big.
        (false, 3 | 11 | 12) | (true, 1..=4) => Meaning::Unreachable(Unreachable {
            icmp_type,
            code,
            reporter,
        }),
        // Source quench and redirect are no errors of the target.
        _ => Meaning::Other,
    }
}
