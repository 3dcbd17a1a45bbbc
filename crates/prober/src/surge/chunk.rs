//! The probing of one chunk: one loop that sends what is due, receives answers and judges timeouts. Each request is a future
//! of its own, so a late answer to an earlier request is received while a retry is in flight.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
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
    client::{ReadUntil, Share, now},
    meaning::{Meaning, meaning},
};
use crate::{
    prober::{Destination, Finding, ProbeCounters},
    schedule::{
        pacing::Pace,
        target_state::{Credit, Schedule, Step, TargetState},
    },
    socket::{INVALID, errno, is_back_pressure},
};

/// The pause after the kernel had no memory for a request.
const BACK_PRESSURE_PAUSE: Duration = Duration::from_millis(5);

/// A request can be answered for this much longer than its schedule needs, because the pace may delay the later requests.
const EXTRA_LIFETIME: Duration = Duration::from_mins(1);

/// How a request has ended.
struct RequestEnd {
    target: usize,
    request: usize,
    result: Result<(IcmpPacket, Duration), SurgeError>,
}

type PendingRequest = Pin<Box<dyn Future<Output = RequestEnd>>>;

/// The shares of one chunk, for IPv4 and IPv6: `None` without such a destination, the errno without a socket.
pub(super) struct Shares(pub(super) [Option<Result<Share, i32>>; 2]);

impl Shares {
    fn of(&self, to: Destination) -> Result<&Share, i32> {
        let share = self.0[usize::from(to.address.is_ipv6())].as_ref();
        let share = share.expect("a share was taken for every family in the chunk");
        share.as_ref().map_err(|errno| *errno)
    }

    fn read_until(&self, moment: Instant, now: Instant) -> ReadUntil {
        let mut until = now;
        for share in self.0.iter().flatten().flatten() {
            match share.client.read(moment, now) {
                ReadUntil::Moment(read) => until = until.min(read),
                other => return other,
            }
        }
        ReadUntil::Moment(until)
    }
}

pub(super) struct ChunkProbing<'a> {
    destinations: &'a [Destination],
    shares: &'a Shares,
    counters: &'a ProbeCounters,
    schedule: Arc<Schedule>,
    payload: Rc<[u8]>,
    targets: Vec<TargetProgress>,
    unsettled: usize,
    /// Targets whose next request is due, in the order in which it became due.
    waiting: VecDeque<usize>,
    deadlines: BinaryHeap<Reverse<(Instant, usize)>>,
    pending: FuturesUnordered<PendingRequest>,
    /// Everything that arrived before this has been read. No later timeout is judged.
    read_until: Instant,
    /// No request is sent before this, because the kernel had no memory for one.
    resume_at: Option<Instant>,
}

struct TargetProgress {
    state: TargetState,
    queued: bool,
    settled: bool,
    timer: Option<Instant>,
}

impl<'a> ChunkProbing<'a> {
    pub(super) fn new(
        probing: &Probing,
        destinations: &'a [Destination],
        shares: &'a Shares,
        counters: &'a ProbeCounters,
    ) -> Self {
        let schedule = Schedule::of(probing);
        let target = |_| TargetProgress {
            state: TargetState::new(Arc::clone(&schedule)),
            queued: false,
            settled: false,
            timer: None,
        };
        Self {
            destinations,
            shares,
            counters,
            targets: destinations.iter().map(target).collect(),
            schedule,
            payload: vec![0; usize::from(probing.size)].into(),
            unsettled: destinations.len(),
            waiting: VecDeque::with_capacity(destinations.len()),
            deadlines: BinaryHeap::new(),
            pending: FuturesUnordered::new(),
            read_until: now(),
            resume_at: None,
        }
    }

    /// Probes all destinations. Dropping the future gives up all requests.
    pub(super) async fn run(mut self, pace: &Pace) -> Vec<Finding> {
        for target in 0..self.targets.len() {
            if self.shares.of(self.destinations[target]).is_ok() {
                self.update(target, false);
            } else {
                self.settle(target);
            }
        }
        let mut admission = pin!(Fuse::terminated());
        let mut timer = pin!(sleep_until(now().into()));
        loop {
            match self.due_until() {
                Some(read) => self.expire(read),
                // The reader of the socket has to run first.
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
            let has_deadline = self.set_timer(timer.as_mut());
            tokio::select! {
                biased;
                Some(end) = self.pending.next() => self.handle_end(end),
                admitted = &mut admission, if !admission.is_terminated() => {
                    self.send(admitted).await;
                }
                () = &mut timer, if has_deadline => {}
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

    /// Up to when deadlines can be judged, if one is due. `None` when the socket has not been read that far.
    fn due_until(&self) -> Option<ReadUntil> {
        let now = now();
        let due = self.deadlines.peek().map(|Reverse((first, _))| *first);
        match due.filter(|first| *first <= now) {
            Some(first) => {
                Some(self.shares.read_until(first, now)).filter(|read| *read != ReadUntil::NotYet)
            }
            None => Some(ReadUntil::Moment(self.read_until)),
        }
    }

    /// Updates every target whose deadline has passed, as far as replies have been read.
    fn expire(&mut self, read: ReadUntil) {
        let (until, stuck) = match read {
            ReadUntil::Moment(until) => (until, false),
            ReadUntil::Stuck | ReadUntil::NotYet => (now(), true),
        };
        if until <= self.read_until {
            return;
        }
        // What was read has reached the pending futures, but not yet the states.
        while let Some(Some(end)) = self.pending.next().now_or_never() {
            self.handle_end(end);
        }
        self.read_until = until;
        while let Some(&Reverse((at, number))) = self.deadlines.peek()
            && at <= self.read_until
        {
            self.deadlines.pop();
            let target = &mut self.targets[number];
            if target.timer == Some(at) {
                target.timer = None;
                self.update(number, stuck);
            }
        }
    }

    /// Sets the timer to the next deadline. Returns whether there is one.
    fn set_timer(&self, timer: Pin<&mut Sleep>) -> bool {
        let Some(Reverse((at, _))) = self.deadlines.peek() else {
            return false;
        };
        if timer.deadline() != (*at).into() {
            timer.reset((*at).into());
        }
        true
    }

    /// Handles what is due for a target: a timeout, the next request, or the end.
    fn update(&mut self, number: usize, stuck: bool) {
        let target = &mut self.targets[number];
        if target.settled {
            return;
        }
        let expired = target.state.expire(self.read_until);
        if stuck && expired > 0 {
            warn!(address = %self.destinations[number].address, "replies are not read in time");
            target.state.local_loss(LocalLoss::STALLED);
        }
        let step = target.state.step(self.read_until);
        let timer = target.state.wake_at(self.read_until);
        if let Some(at) = timer
            && target.timer != timer
        {
            target.timer = timer;
            self.deadlines.push(Reverse((at, number)));
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
        let (false, Step::Send(request)) = (target.settled, target.state.step(self.read_until))
        else {
            // It was answered while its next request was queued.
            share.release(1);
            return self.update(number, false);
        };
        let taken = match admitted {
            Ok(()) => self.start_request(share, to, number, request).await,
            Err(error) => Err(SurgeError::IOError(error)),
        };
        let target = &mut self.targets[number];
        match taken {
            Ok(request_future) => {
                target.state.sent(request, now());
                self.counters.add_requests(1);
                self.pending.push(request_future);
                return self.update(number, false);
            }
            Err(SurgeError::IOError(error)) if is_back_pressure(&error) => {
                debug!(address = %to.address, %error, "the kernel accepts no request now");
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
        self.update(number, false);
    }

    /// Hands a request to surge-ping, which sends it at once. Returns the future of its end, or why it was not sent.
    async fn start_request(
        &self,
        share: &Share,
        to: Destination,
        target: usize,
        request: usize,
    ) -> Result<PendingRequest, SurgeError> {
        let life = self.schedule.longest_after(request) + EXTRA_LIFETIME;
        loop {
            let mut pinger = share.client.pinger(to, life).await;
            let sequence = share.client.next_sequence();
            let payload = Rc::clone(&self.payload);
            let mut request_future: PendingRequest = Box::pin(unconstrained(async move {
                RequestEnd {
                    target,
                    request,
                    result: pinger.ping(sequence, &payload).await,
                }
            }));
            match poll!(request_future.as_mut()) {
                Poll::Pending => return Ok(request_future),
                Poll::Ready(end) => match end.result {
                    // This number is still in flight to the same address.
                    Err(SurgeError::IdenticalRequests { .. }) => {}
                    Err(error) => return Err(error),
                    Ok(_) => return Ok(Box::pin(ready(end))),
                },
            }
        }
    }

    /// Handles the end of a request that was sent.
    fn handle_end(&mut self, end: RequestEnd) {
        let to = self.destinations[end.target];
        let target = &mut self.targets[end.target];
        let Ok(share) = self.shares.of(to) else {
            return;
        };
        if target.settled {
            return;
        }
        match end.result {
            Ok((packet, rtt)) => match meaning(&packet, to) {
                Meaning::Reply => match target.state.answered(end.request, rtt) {
                    Credit::InFlight => share.answered(rtt),
                    Credit::Expired => share.traffic_seen(),
                    Credit::None => {}
                },
                Meaning::Unreachable(error) => {
                    share.traffic_seen();
                    target.state.unreachable(error);
                }
                Meaning::NoArp => target.state.no_arp(),
                // surge-ping has returned this message and no longer waits for the reply.
                Meaning::Other => target.state.local_loss(LocalLoss::INTERRUPTED),
            },
            Err(SurgeError::Timeout { .. }) => {}
            Err(error) => {
                warn!(address = %to.address, %error, "a request was given up by surge-ping");
                target.state.local_loss(LocalLoss::INTERRUPTED);
            }
        }
        self.update(end.target, false);
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
