//! All probes of one socket, without the socket: which request is sent next, what a reply or an ICMP error counts as, what
//! is due. No I/O.
//!
//! Invariants: a reply or an error belongs to a request only if it echoes or quotes that request. A silent target is
//! settled only after everything that arrived before its last timeout has been read.

mod chunk_findings;
mod departures;
mod replies;
mod send_path;
mod sequence;
mod target_table;
mod timer_wheel;

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::{DownReason, LocalLoss, MAX_ATTEMPTS, Probing};

pub(super) use self::chunk_findings::ChunkFindings;
use self::{
    send_path::SendPath,
    sequence::{InFlight, SequenceMap},
    target_table::{NextSend, TargetTable},
    timer_wheel::TimerWheel,
};
use super::{
    SocketKey,
    local_loss::{LocalLossLog, LossDetector},
    message::EchoFormat,
    network::{NeighbourState, NextHop},
    send_times::SendTimes,
    syscall::{NetworkError, Outgoing},
};
use crate::{
    prober::{Destination, ProbeCounters},
    schedule::{
        pacing::Pace,
        target_state::{Schedule, Step, Unreachable},
        window::Window,
    },
};

/// The most unanswered requests of one socket. Each costs about 400 bytes of memory and nothing else.
const MAX_UNANSWERED_PER_SOCKET: usize = 1 << 18;

/// The most unanswered requests to neighbours on a link, of all threads together. The kernel tries to resolve each for
/// three seconds, and its neighbour table, which the gateways need as well, holds 1,024 entries
/// (`net.ipv4.neigh.default.gc_thresh3`).
const MAX_UNANSWERED_NEIGHBOURS: usize = 256;

/// The kernel asks a neighbour whose entry is old whether it is still there, within this time of the first request: after
/// 5 s, for which its timers take up to half a second more.
const NEIGHBOUR_CONFIRMATION: Duration = Duration::from_secs(6);

/// The longest wait for that, after the last timeout. The default timeouts end 4.75 s after the first request.
const MAX_NEIGHBOUR_WAIT: Duration = Duration::from_secs(2);

/// How often the kernel is asked in that time.
const NEIGHBOUR_CHECK: Duration = Duration::from_millis(100);

/// A silent target is settled this long after its last timeout: the kernel timestamps a reply before it queues it, and on a
/// busy CPU some time passes in between.
const RECEIVE_DELAY: Duration = Duration::from_millis(2);

/// Targets that are judged before the socket is read again.
const MAX_JUDGED_AT_ONCE: usize = 512;

/// The pause after no sequence number was free for an address. Looking for one takes a few milliseconds.
const NO_SEQUENCE_PAUSE: Duration = Duration::from_millis(100);

/// The shortest round-trip time: the kernel's clock and ours are not compared more exactly.
const MIN_RTT: Duration = Duration::from_micros(1);

/// A request that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staged {
    target: u32,
    request: usize,
    request_id: u32,
}

/// Why no request is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStaged {
    /// The batch is full.
    BatchFull,
    /// Window or pace permit no request before this moment.
    NotBefore(Instant),
    /// No request is due, or the window is full at its largest size.
    Nothing,
}

/// The probes of one socket.
pub(super) struct Probes {
    v6: bool,
    /// Whether the targets are neighbours on a link.
    on_link: bool,
    /// The interface by which all requests leave, if the plan names one.
    interface: Option<String>,
    echo: EchoFormat,
    table: TargetTable,
    sequence: SequenceMap,
    timers: TimerWheel,
    window: Window,
    detector: Rc<LossDetector>,
    counters: Arc<ProbeCounters>,
    local_losses: LocalLossLog,
    path: SendPath,
    send_times: SendTimes,
    /// Everything that arrived before this has been read.
    read_until: Instant,
    /// Every local loss before this is known.
    losses_known_until: Instant,
    /// Kept for its memory.
    due: Vec<u32>,
}

impl Probes {
    /// The probes of one socket. `threads` threads probe.
    pub(super) fn new(
        key: &SocketKey,
        echo: EchoFormat,
        detector: Rc<LossDetector>,
        counters: Arc<ProbeCounters>,
        threads: NonZeroUsize,
        now: Instant,
    ) -> Self {
        let on_link = key.next_hop == NextHop::OnLink;
        let path = SendPath::new(key, &detector, now);
        Self {
            v6: key.egress.is_v6(),
            on_link,
            interface: key.egress.interface().map(ToOwned::to_owned),
            echo,
            table: TargetTable::default(),
            sequence: SequenceMap::starting_at(fastrand::u32(..)),
            timers: TimerWheel::new(now),
            window: Window::up_to(max_unanswered(on_link, threads), threads),
            detector,
            counters,
            local_losses: LocalLossLog::default(),
            path,
            send_times: SendTimes::new(now),
            read_until: now,
            losses_known_until: now,
            due: Vec::new(),
        }
    }

    /// Enters destinations of a chunk, each with its position there. There must be at least one.
    pub(super) fn enter(
        &mut self,
        findings: &Rc<ChunkFindings>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
        destinations: impl Iterator<Item = (u32, Destination)>,
    ) {
        let part = self.table.enter_part(findings, schedule, probing, pace);
        let mut entered = 0;
        for (position, to) in destinations {
            self.table.enter(part, to, position);
            entered += 1;
        }
        pace.began(entered);
    }

    /// Gives up the unsettled targets of a chunk.
    pub(super) fn give_up(&mut self, findings: &Rc<ChunkFindings>) {
        for index in self.table.of_chunk(findings) {
            self.forget_requests(index);
            self.table.give_up(index);
        }
    }

    /// Requests that the kernel accepted have not left. Neighbours are resolved one by one, so there it means nothing.
    pub(super) fn requests_wait_in_kernel(&mut self, now: Instant) {
        if !self.on_link {
            self.window.delay_opening(now);
        }
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.table.in_hand()
    }

    /// What this machine has lost.
    pub(super) fn local_losses(&mut self) -> &mut LocalLossLog {
        &mut self.local_losses
    }

    /// The moment up to which everything that arrived has been read.
    pub(super) fn read_until(&self) -> Instant {
        self.read_until
    }

    /// Notes that everything that arrived before `moment` has been read.
    pub(super) fn set_read_until(&mut self, moment: Instant) {
        self.read_until = moment;
    }

    /// Notes that every local loss before `moment` is known.
    pub(super) fn set_losses_known_until(&mut self, moment: Instant) {
        self.losses_known_until = moment;
    }

    /// When to call [`Self::judge`] next: never too late, sometimes too early.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether a deadline has passed.
    pub(super) fn is_due(&self) -> bool {
        self.next_deadline().is_some_and(|at| at <= self.read_until)
    }

    /// Handles deadlines up to the moment until which everything was read.
    pub(super) fn judge(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.timers
            .expire(self.read_until, &mut due, MAX_JUDGED_AT_ONCE);
        for index in due.drain(..) {
            self.update(index);
        }
        self.due = due;
    }

    /// An ICMP error arrived. It counts if it quotes a request of ours.
    pub(super) fn icmp_error(&mut self, error: &NetworkError<'_>, now: Instant) {
        let Some(quoted) = self.echo.quoted(error.quoted) else {
            return;
        };
        let Some((request_id, in_flight)) = self.find(error.to, quoted.sequence) else {
            return;
        };
        let size = self.table.payload_size(in_flight.target);
        let target = self.table.target_mut(in_flight.target);
        let to = target.to.address;
        if !self.echo.may_quote(quoted.payload, request_id, to, size) {
            return;
        }
        let (is_unreachable, host_unreachable) = if self.v6 {
            (matches!(error.icmp_type, 1..=4), (1, 3))
        } else {
            // Source quench and redirect say nothing about the target.
            (matches!(error.icmp_type, 3 | 11 | 12), (3, 1))
        };
        let is_from_here = || self.detector.network().is_own(error.reporter.ip());
        if (error.icmp_type, error.code) == host_unreachable && is_from_here() {
            // This machine could not resolve the link address: that of the target, or that of the gateway.
            if self.path.has_gateway() {
                target.lost = target.lost.and(LocalLoss::GATEWAY_NO_ARP);
            } else {
                target.state.no_arp();
            }
        } else if is_unreachable {
            target.state.unreachable(Unreachable {
                icmp_type: error.icmp_type,
                code: error.code,
                reporter: error.reporter.ip(),
            });
            self.window.traffic_seen(now);
        }
    }

    /// Handles what is due for a target: a timeout, the next request, or the end.
    fn update(&mut self, index: u32) {
        let until = self.read_until;
        let state = &mut self.table.target_mut(index).state;
        let expired = state.expire(until);
        self.window.release(expired);
        match state.step(until) {
            Step::Send(_) => self.table.push_back(index),
            Step::Wait => {}
            Step::Settled if state.is_silent() => {
                let judged_until = until.checked_sub(RECEIVE_DELAY);
                let judged_until = judged_until.map(|at| at.min(self.losses_known_until));
                if judged_until.is_some_and(|at| state.step(at) == Step::Settled) {
                    return self.settle_silent(index);
                }
                // Losses may become known later than that. Each look comes after twice the time since the last timeout.
                let timed_out = judged_until.and_then(|at| state.wake_at(at));
                let since =
                    timed_out.map_or(Duration::ZERO, |at| until.saturating_duration_since(at));
                return self.timers.set(index, until + RECEIVE_DELAY.max(since));
            }
            Step::Settled => return self.settle(index),
        }
        match self.table.target(index).state.wake_at(until) {
            Some(at) => self.timers.set(index, at),
            None => self.timers.clear(index),
        }
    }

    /// Settles a silent target, or begins its next attempt if this machine may have lost the answer.
    fn settle_silent(&mut self, index: u32) {
        let timeout = self.table.timeout(index);
        let target = self.table.target(index);
        let attempts = target.attempts;
        let first = target.state.left_at(0);
        let first = first.expect("a silent target was sent to");
        let cause = [
            self.local_losses.since(first, timeout),
            target.state.refused_in_part(),
            target.state.known_losses(),
            target.lost,
            self.path_losses(target.to.address, first),
        ];
        let cause = cause.into_iter().fold(LocalLoss::default(), LocalLoss::and);
        self.report(index, cause);
        if cause == LocalLoss::default() {
            match self.neighbour_state(index, first) {
                NeighbourState::ToBeConfirmed if self.may_wait_for_neighbour(first) => {
                    return self.timers.set(index, self.read_until + NEIGHBOUR_CHECK);
                }
                NeighbourState::Answered(link_address) => {
                    let reason = DownReason::ArpAnswered(link_address);
                    self.table.target_mut(index).state.down_because(reason);
                }
                NeighbourState::ToBeConfirmed | NeighbourState::Unknown => {}
            }
            self.settle(index);
        } else if attempts < MAX_ATTEMPTS {
            self.counters.add_local_loss(cause);
            self.probe_again(index, cause);
        } else {
            self.table.target_mut(index).state.local_loss(cause);
            self.settle(index);
        }
    }

    /// What the kernel knows of a silent target on a link, whose first request left at `first`.
    fn neighbour_state(&self, index: u32, first: Instant) -> NeighbourState {
        if !self.on_link {
            return NeighbourState::Unknown;
        }
        let to = self.table.target(index).to;
        let mut network = self.detector.network_mut();
        network.neighbour_since(to, self.interface.as_deref(), first)
    }

    /// Whether the kernel will soon have asked a neighbour to which the first request left at `first`.
    fn may_wait_for_neighbour(&self, first: Instant) -> bool {
        let asked_by = first + NEIGHBOUR_CONFIRMATION;
        let wait = asked_by.checked_duration_since(self.read_until);
        wait.is_some_and(|wait| wait <= MAX_NEIGHBOUR_WAIT)
    }

    fn probe_again(&mut self, index: u32, cause: LocalLoss) {
        self.forget_requests(index);
        let target = self.table.target_mut(index);
        target.state = target.state.next_attempt(cause);
        target.attempts += 1;
        target.refused = None;
        target.lost = LocalLoss::default();
        self.table.pace(index).began_again();
        self.table.push_back(index);
    }

    fn settle(&mut self, index: u32) {
        self.forget_requests(index);
        let target = self.table.target(index);
        let finding = target.state.finding(target.attempts, self.read_until);
        self.table.settle(index, finding);
    }

    /// From now on no answer to the target's requests counts.
    fn forget_requests(&mut self, index: u32) {
        self.timers.clear(index);
        let target = self.table.target_mut(index);
        self.window.release(target.state.in_flight());
        let mut request_id = target.newest_request.take();
        while let Some(id) = request_id {
            let in_flight = self.sequence.remove(id);
            request_id = in_flight.and_then(|in_flight| in_flight.previous);
        }
    }

    /// Stages the next request that may leave, and writes it to `outgoing`.
    pub(super) fn stage(
        &mut self,
        now: Instant,
        outgoing: &mut Outgoing,
    ) -> Result<Staged, NotStaged> {
        if let Some(at) = self.path.open_at(now) {
            return Err(NotStaged::NotBefore(at));
        }
        loop {
            match self.window.try_reserve(now) {
                Ok(()) => {}
                Err(None) => return Err(NotStaged::Nothing),
                Err(Some(at)) => return Err(NotStaged::NotBefore(at)),
            }
            let index = match self.table.next_send(self.path.is_refused(), now) {
                NextSend::Target(index) => index,
                NextSend::NotBefore(at) => {
                    self.window.release(1);
                    return Err(NotStaged::NotBefore(at));
                }
                NextSend::Nothing => {
                    self.window.release(1);
                    return Err(NotStaged::Nothing);
                }
            };
            let target = self.table.target(index);
            let Step::Send(request) = target.state.step(self.read_until) else {
                // It was answered while its next request was queued.
                self.window.release(1);
                self.update(index);
                continue;
            };
            self.path.take(now);
            return self.write_request(index, request, now, outgoing);
        }
    }

    /// Gives a request its sequence number, and writes it to `outgoing`.
    fn write_request(
        &mut self,
        index: u32,
        request: usize,
        now: Instant,
        outgoing: &mut Outgoing,
    ) -> Result<Staged, NotStaged> {
        let size = self.table.payload_size(index);
        let target = self.table.target(index);
        let to = target.to;
        let in_flight = InFlight {
            request: request as u16,
            target: index,
            previous: target.newest_request,
        };
        let table = &self.table;
        let request_id = self.sequence.insert(in_flight, |other| {
            table.target(other).to.address == to.address
        });
        let Some(request_id) = request_id else {
            self.window.release(1);
            self.table.push_back(index);
            return Err(NotStaged::NotBefore(now + NO_SEQUENCE_PAUSE));
        };
        outgoing.push(socket_address(to), |bytes| {
            self.echo.write(bytes, request_id, to.address, size);
        });
        Ok(Staged {
            target: index,
            request,
            request_id,
        })
    }
}

/// The largest size of a window. All threads share one neighbour table.
fn max_unanswered(on_link: bool, threads: NonZeroUsize) -> usize {
    if on_link {
        (MAX_UNANSWERED_NEIGHBOURS / threads).max(1)
    } else {
        MAX_UNANSWERED_PER_SOCKET
    }
}

fn socket_address(to: Destination) -> SocketAddr {
    match to.address {
        IpAddr::V4(v4) => (v4, 0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, 0, 0, to.scope_id).into(),
    }
}

#[cfg(test)]
mod tests;
