//! All probes of one socket, without the socket: what is sent next, what an answer or an error is worth, what time
//! brings. Invariants: an error or a reply belongs to a request only by what it quotes or echoes; a target from which
//! nothing came is settled only after everything that arrived before its last timeout was read. No I/O.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::{LocalLoss, Probing};
use tracing::trace;

use super::{
    local_loss::LocalLossLog,
    message::{Echo, Echoed},
    routes::{NextHop, RouteTable},
    sequence::{InFlight, SequenceMap},
    socket::Egress,
    syscall::{NetworkError, Outgoing},
    target_table::{ChunkFindings, NextSend, TargetTable},
    timer_wheel::TimerWheel,
};
use crate::{
    prober::Destination,
    schedule::pacing::Pace,
    schedule::target_state::{Credit, Schedule, Step, Unreachable},
    schedule::window::Window,
};

/// The most unanswered requests of one socket. They cost memory only, about 400 bytes each.
const MAX_OUTSTANDING: usize = 1 << 18;

/// The same to neighbours on a link, of all threads together. The kernel asks for each of them for three seconds, and the
/// table that these share with the gateways holds 1,024 entries (`net.ipv4.neigh.default.gc_thresh3`).
const MAX_NEIGHBOURS: usize = 256;

/// A target from which nothing came is settled this much after its last timeout: the kernel stamps a reply before it
/// queues it, and a busy CPU takes its time between the two.
const RECEIVE_DELAY: Duration = Duration::from_millis(2);

/// Targets that are judged before the socket is read again.
const MAX_JUDGED_AT_ONCE: usize = 512;

/// How often a target is probed in all, when each time our own box may have lost the answer.
const MAX_ATTEMPTS: u8 = 3;

/// How long nothing is sent after an address had no sequence number left. To look for one costs a few milliseconds.
const NO_SEQUENCE_PAUSE: Duration = Duration::from_millis(100);

/// The least round-trip time that is told: the stamps of requests that leave in one call are no finer.
const MIN_RTT: Duration = Duration::from_micros(1);

/// A request that is about to leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staged {
    target: u32,
    request: usize,
    request_id: u32,
}

/// Why nothing more is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStaged {
    /// The batch is full.
    BatchFull,
    /// Window or pace let nothing leave before this moment.
    NotBefore(Instant),
    /// Nothing wants to leave, or the window is full for good.
    Nothing,
}

/// The probes of one socket.
pub(super) struct Probes {
    v6: bool,
    on_link: bool,
    /// By which everything leaves, if the plan says so.
    interface: Option<String>,
    echo: Echo,
    table: TargetTable,
    sequence: SequenceMap,
    timers: TimerWheel,
    window: Window,
    routes: Rc<RefCell<RouteTable>>,
    /// What our own box has lost.
    pub(super) local_losses: LocalLossLog,
    /// Everything that had come by then has been read.
    pub(super) read_until: Instant,
    /// Everything that our own box had lost by then is known.
    pub(super) losses_known_until: Instant,
    due: Vec<u32>,
}

impl Probes {
    /// For one of the sockets of `lanes` threads.
    pub(super) fn new(
        egress: &Egress,
        echo: Echo,
        routes: Rc<RefCell<RouteTable>>,
        lanes: NonZeroUsize,
        now: Instant,
    ) -> Self {
        let on_link = egress.next_hop == NextHop::OnLink;
        Self {
            v6: egress.v6,
            on_link,
            interface: egress.interface.clone(),
            echo,
            table: TargetTable::default(),
            sequence: SequenceMap::starting_at(fastrand::u32(..)),
            timers: TimerWheel::new(now),
            window: Window::up_to(max_unanswered(on_link, lanes), lanes),
            local_losses: LocalLossLog::default(),
            routes,
            read_until: now,
            losses_known_until: now,
            due: Vec::new(),
        }
    }

    /// Takes in destinations of a chunk, each with its number there. There must be one at least.
    pub(super) fn enter(
        &mut self,
        findings: &Rc<ChunkFindings>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
        destinations: impl Iterator<Item = (u32, Destination)>,
    ) {
        let part = self.table.enter_part(findings, schedule, probing, pace);
        for (number, to) in destinations {
            self.table.enter(part, to, number);
        }
    }

    /// Gives up whatever is left of a chunk.
    pub(super) fn give_up(&mut self, findings: &Rc<ChunkFindings>) {
        for index in self.table.of(findings) {
            self.forget(index);
            self.table.give_up(index);
        }
    }

    /// What the kernel took has not left. Neighbours are each asked for on their own, so there that says nothing.
    pub(super) fn hold(&mut self, now: Instant) {
        if !self.on_link {
            self.window.delay_opening(now);
        }
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.table.in_hand()
    }

    /// The next moment at which time alone changes something; never too late, perhaps too early.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether something is due now.
    pub(super) fn is_due(&self) -> bool {
        self.timers.next().is_some_and(|at| at <= self.read_until)
    }

    /// Does what time alone brings, as far as everything was read.
    pub(super) fn judge(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.timers
            .expire(self.read_until, &mut due, MAX_JUDGED_AT_ONCE);
        for index in due.drain(..) {
            self.update(index);
        }
        self.due = due;
    }

    /// The request that address and sequence number name.
    fn find(&self, address: SocketAddr, sequence: u16) -> Option<(u32, InFlight)> {
        self.sequence
            .candidates(sequence)
            .find(|(_, in_flight)| is_from(address, self.table.target(in_flight.target).to))
    }

    /// An echo reply arrived.
    pub(super) fn answered(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        arrived: impl FnOnce() -> Instant,
    ) {
        let Some(Echoed { sequence, payload }) = self.echo.reply(bytes) else {
            return;
        };
        let Some((request_id, in_flight)) = self.find(from, sequence) else {
            return;
        };
        let size = self.table.part_of(in_flight.target).size;
        let target = self.table.target_mut(in_flight.target);
        if !self
            .echo
            .is_full_payload(payload, request_id, target.to.address, size)
        {
            trace!(%from, "a reply with another payload");
            return;
        }
        let request = usize::from(in_flight.request);
        let Some(sent) = target.state.sent_at(request) else {
            return;
        };
        let arrived = arrived();
        let rtt = arrived.saturating_duration_since(sent).max(MIN_RTT);
        match target.state.answered(request, rtt) {
            Credit::InFlight => self.window.answered(sent, arrived),
            Credit::Expired => self.window.traffic_seen(arrived),
            Credit::None => return,
        }
        self.update(in_flight.target);
    }

    /// An ICMP error arrived.
    pub(super) fn icmp_error(&mut self, error: &NetworkError<'_>, now: Instant) {
        let Some(quoted) = self.echo.quoted(error.quoted) else {
            return;
        };
        let Some((request_id, in_flight)) = self.find(error.to, quoted.sequence) else {
            return;
        };
        let size = self.table.part_of(in_flight.target).size;
        let target = self.table.target_mut(in_flight.target);
        let to = target.to.address;
        if !self.echo.may_quote(quoted.payload, request_id, to, size) {
            return;
        }
        let (unreachable, no_host) = if self.v6 {
            (matches!(error.icmp_type, 1..=4), (1, 3))
        } else {
            // Source quench and redirect are no errors of the target.
            (matches!(error.icmp_type, 3 | 11 | 12), (3, 1))
        };
        let is_own = || self.routes.borrow().is_own(error.reporter.ip());
        if (error.icmp_type, error.code) == no_host && is_own() {
            // Our own neighbour discovery failed.
            target.state.no_arp();
        } else if unreachable {
            target.state.unreachable(Unreachable {
                icmp_type: error.icmp_type,
                code: error.code,
                reporter: error.reporter.ip(),
            });
            self.window.traffic_seen(now);
        }
    }

    /// Does what has become due for a target: gives up what timed out, puts it in line, or settles it.
    fn update(&mut self, index: u32) {
        let until = self.read_until;
        let state = &mut self.table.target_mut(index).state;
        let expired = state.expire(until);
        self.window.release(expired);
        match state.step(until) {
            Step::Send(_) => self.table.push_back(index),
            Step::Wait => {}
            Step::Settled if state.is_silent() => {
                let judged_by = until.checked_sub(RECEIVE_DELAY);
                let judged_by = judged_by.map(|by| by.min(self.losses_known_until));
                if judged_by.is_some_and(|by| state.step(by) == Step::Settled) {
                    return self.settle_silent(index);
                }
                return self.timers.set(index, until + RECEIVE_DELAY);
            }
            Step::Settled => return self.settle(index),
        }
        let state = &self.table.target(index).state;
        match state.wake_at(until) {
            Some(at) => self.timers.set(index, at),
            None => self.timers.clear(index),
        }
    }

    /// A target from which nothing came is settled, unless our own box may have lost it.
    fn settle_silent(&mut self, index: u32) {
        let timeout = self.table.part_of(index).timeout;
        let target = self.table.target(index);
        let attempts = target.attempts;
        let first = target.state.sent_at(0);
        let first = first.expect("a silent target was sent to");
        let refused = target.state.refused_in_part();
        let mut cause = self.local_losses.since(first, timeout).and(refused);
        let interface = self.interface.as_deref();
        let routes = self.routes.borrow();
        if routes.may_have_lost(target.to.address, interface, first) {
            cause = cause.and(LocalLoss::SEND_PATH);
        }
        drop(routes);
        if cause == LocalLoss::default() {
            self.settle(index);
        } else if attempts < MAX_ATTEMPTS {
            self.probe_again(index);
        } else {
            self.table.target_mut(index).state.local_loss(cause);
            self.settle(index);
        }
    }

    fn probe_again(&mut self, index: u32) {
        self.forget(index);
        let target = self.table.target_mut(index);
        target.state = target.state.next_attempt();
        target.attempts += 1;
        self.table.push_back(index);
    }

    fn settle(&mut self, index: u32) {
        self.forget(index);
        let target = self.table.target(index);
        let finding = target.state.finding(target.attempts, self.read_until);
        self.table.settle(index, finding);
    }

    /// Listens no longer for any answer to a target.
    fn forget(&mut self, index: u32) {
        self.timers.clear(index);
        let target = self.table.target_mut(index);
        self.window.release(target.state.in_flight());
        let mut request_id = target.newest_request.take();
        while let Some(older) = request_id {
            request_id = self
                .sequence
                .remove(older)
                .and_then(|in_flight| in_flight.previous);
        }
    }

    /// Stages the next request that may leave, and writes it to `outgoing`.
    pub(super) fn stage(
        &mut self,
        now: Instant,
        outgoing: &mut Outgoing,
    ) -> Result<Staged, NotStaged> {
        loop {
            match self.window.try_reserve(now) {
                Ok(()) => {}
                Err(None) => return Err(NotStaged::Nothing),
                Err(Some(at)) => return Err(NotStaged::NotBefore(at)),
            }
            let index = match self.table.next_send(now) {
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
            let size = self.table.part_of(index).size;
            let target = self.table.target(index);
            let Step::Send(request) = target.state.step(self.read_until) else {
                // Answered while its request was waiting to leave.
                self.window.release(1);
                self.update(index);
                continue;
            };
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
            return Ok(Staged {
                target: index,
                request,
                request_id,
            });
        }
    }

    /// The kernel took these requests, one after the other from `from` until `by`.
    pub(super) fn sent(&mut self, staged: &[Staged], from: Instant, by: Instant) {
        let same_run = |one: &Staged, other: &Staged| {
            let [one, other] = [one, other].map(|staged| self.table.pace_of(staged.target));
            one.is_of_same_run(other)
        };
        for of_run in staged.chunk_by(same_run) {
            let pace = self.table.pace_of(of_run[0].target);
            pace.left(of_run.len() as u32, by);
        }
        let share = by.saturating_duration_since(from) / staged.len().max(1) as u32;
        for (order, staged) in (0..).zip(staged) {
            let target = self.table.target_mut(staged.target);
            target.newest_request = Some(staged.request_id);
            let left = from + share * order;
            target.state.sent_by(staged.request, left, by);
            self.update(staged.target);
        }
    }

    /// The kernel refused a request for good.
    pub(super) fn refused(&mut self, staged: Staged, at: Instant, errno: i32) {
        self.sequence.remove(staged.request_id);
        self.window.release(1);
        let target = self.table.target_mut(staged.target);
        target.state.refused(staged.request, at, errno);
        self.update(staged.target);
    }

    /// The kernel will take a request later. Those of one batch are put back from the last to the first.
    pub(super) fn put_back(&mut self, staged: Staged) {
        self.sequence.remove(staged.request_id);
        self.window.release(1);
        self.table.push_front(staged.target);
    }
}

/// The bound of a window. The table of neighbours is there once for all threads.
fn max_unanswered(on_link: bool, lanes: NonZeroUsize) -> usize {
    if on_link {
        (MAX_NEIGHBOURS / lanes).max(1)
    } else {
        MAX_OUTSTANDING
    }
}

fn socket_address(to: Destination) -> SocketAddr {
    match to.address {
        IpAddr::V4(v4) => (v4, 0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, 0, 0, to.scope_id).into(),
    }
}

/// Whether a message comes from, or an error is about, a destination.
fn is_from(address: SocketAddr, to: Destination) -> bool {
    address.ip() == to.address
        && match address {
            SocketAddr::V4(_) => true,
            SocketAddr::V6(v6) => to.scope_id == 0 || v6.scope_id() == to.scope_id,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_together_have_so_many_neighbours_unanswered() {
        for lanes in 1..=64 {
            let each = max_unanswered(true, NonZeroUsize::new(lanes).unwrap());
            let all = each * lanes;
            assert!(
                all <= MAX_NEIGHBOURS && all > MAX_NEIGHBOURS - lanes,
                "{lanes}"
            );
        }
    }
}
