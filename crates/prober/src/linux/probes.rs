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
    book::{Book, Sink, Turn},
    loss::Losses,
    message::{Echo, Echoed},
    places::{Entry, Places},
    socket::WayOut,
    syscall::{NetworkError, Outgoing},
    ways::{Hop, Ways},
    wheel::Wheel,
};
use crate::{
    course::{Credit, Schedule, Step, Unreachable},
    pacing::Pace,
    prober::Destination,
    window::Window,
};

/// The most unanswered requests of one socket. They cost memory only, about 400 bytes each.
const MOST_OUTSTANDING: usize = 1 << 18;

/// The same to neighbours on a link, of all threads together. The kernel asks for each of them for three seconds, and the
/// table that these share with the gateways holds 1,024 entries (`net.ipv4.neigh.default.gc_thresh3`).
const MOST_NEIGHBOURS: usize = 256;

/// A target from which nothing came is settled this much after its last timeout: the kernel stamps a reply before it
/// queues it, and a busy CPU takes its time between the two.
const SOFTIRQ: Duration = Duration::from_millis(2);

/// Targets that are judged before the socket is read again.
const JUDGED_AT_ONCE: usize = 512;

/// How often a target is probed in all, when each time our own box may have lost the answer.
const PASSES: u8 = 3;

/// How long nothing is sent after an address had no sequence number left. To look for one costs a few milliseconds.
const NO_SEQUENCE_PAUSE: Duration = Duration::from_millis(100);

/// The least round-trip time that is told: the stamps of requests that leave in one call are no finer.
const SHORTEST: Duration = Duration::from_micros(1);

/// A request that is about to leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staged {
    target: u32,
    request: usize,
    place: u32,
}

/// Why nothing more is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// The batch is full.
    Full,
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
    book: Book,
    places: Places,
    wheel: Wheel,
    window: Window,
    ways: Rc<RefCell<Ways>>,
    /// What our own box has lost.
    pub(super) losses: Losses,
    /// Everything that had come by then has been read.
    pub(super) read_until: Instant,
    /// Everything that our own box had lost by then is known.
    pub(super) losses_until: Instant,
    due: Vec<u32>,
}

impl Probes {
    /// For one of the sockets of `lanes` threads.
    pub(super) fn new(
        way_out: &WayOut,
        echo: Echo,
        ways: Rc<RefCell<Ways>>,
        lanes: NonZeroUsize,
        now: Instant,
    ) -> Self {
        let on_link = way_out.hop == Hop::OnLink;
        Self {
            v6: way_out.v6,
            on_link,
            interface: way_out.interface.clone(),
            echo,
            book: Book::default(),
            places: Places::starting_at(fastrand::u32(..)),
            wheel: Wheel::new(now),
            window: Window::up_to(most_unanswered(on_link, lanes), lanes),
            losses: Losses::default(),
            ways,
            read_until: now,
            losses_until: now,
            due: Vec::new(),
        }
    }

    /// Takes in destinations of a chunk, each with its number there. There must be one at least.
    pub(super) fn enter(
        &mut self,
        sink: &Rc<Sink>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
        destinations: impl Iterator<Item = (u32, Destination)>,
    ) {
        let part = self.book.enter_part(sink, schedule, probing, pace);
        for (number, to) in destinations {
            self.book.enter(part, to, number);
        }
    }

    /// Gives up whatever is left of a chunk.
    pub(super) fn give_up(&mut self, sink: &Rc<Sink>) {
        for index in self.book.of(sink) {
            self.forget(index);
            self.book.give_up(index);
        }
    }

    /// What the kernel took has not left. Neighbours are each asked for on their own, so there that says nothing.
    pub(super) fn hold(&mut self, now: Instant) {
        if !self.on_link {
            self.window.hold(now);
        }
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.book.in_hand()
    }

    /// The next moment at which time alone changes something; never too late, perhaps too early.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Whether something is due now.
    pub(super) fn is_due(&self) -> bool {
        self.wheel.next().is_some_and(|at| at <= self.read_until)
    }

    /// Does what time alone brings, as far as everything was read.
    pub(super) fn judge(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.ring(self.read_until, &mut due, JUDGED_AT_ONCE);
        for index in due.drain(..) {
            self.attend(index);
        }
        self.due = due;
    }

    /// The request that address and sequence number name.
    fn find(&self, address: SocketAddr, sequence: u16) -> Option<(u32, Entry)> {
        self.places
            .candidates(sequence)
            .find(|(_, entry)| is_from(address, self.book.target(entry.target).to))
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
        let Some((place, entry)) = self.find(from, sequence) else {
            return;
        };
        let size = self.book.part_of(entry.target).size;
        let target = self.book.target_mut(entry.target);
        if !self.echo.is_whole(payload, place, target.to.address, size) {
            trace!(%from, "a reply with another payload");
            return;
        }
        let request = usize::from(entry.request);
        let Some(sent) = target.course.sent_at(request) else {
            return;
        };
        let arrived = arrived();
        let rtt = arrived.saturating_duration_since(sent).max(SHORTEST);
        match target.course.answered(request, rtt) {
            Credit::InFlight => self.window.answered(sent, arrived),
            Credit::Expired => self.window.heard(arrived),
            Credit::None => return,
        }
        self.attend(entry.target);
    }

    /// An ICMP error arrived.
    pub(super) fn reported(&mut self, error: &NetworkError<'_>, now: Instant) {
        let Some(quoted) = self.echo.quoted(error.quoted) else {
            return;
        };
        let Some((place, entry)) = self.find(error.to, quoted.sequence) else {
            return;
        };
        let size = self.book.part_of(entry.target).size;
        let target = self.book.target_mut(entry.target);
        let to = target.to.address;
        if !self.echo.may_quote(quoted.payload, place, to, size) {
            return;
        }
        let (unreachable, no_host) = if self.v6 {
            (matches!(error.icmp_type, 1..=4), (1, 3))
        } else {
            // Source quench and redirect are no errors of the target.
            (matches!(error.icmp_type, 3 | 11 | 12), (3, 1))
        };
        let is_own = || self.ways.borrow().is_own(error.reporter.ip());
        if (error.icmp_type, error.code) == no_host && is_own() {
            // Our own neighbour discovery failed.
            target.course.no_arp();
        } else if unreachable {
            target.course.unreachable(Unreachable {
                icmp_type: error.icmp_type,
                code: error.code,
                reporter: error.reporter.ip(),
            });
            self.window.heard(now);
        }
    }

    /// Does what has become due for a target: gives up what timed out, puts it in line, or settles it.
    fn attend(&mut self, index: u32) {
        let until = self.read_until;
        let course = &mut self.book.target_mut(index).course;
        let expired = course.expire(until);
        self.window.leave(expired);
        match course.step(until) {
            Step::Send(_) => self.book.queue(index),
            Step::Wait => {}
            Step::Settled if course.is_silent() => {
                let judged_by = until.checked_sub(SOFTIRQ);
                let judged_by = judged_by.map(|by| by.min(self.losses_until));
                if judged_by.is_some_and(|by| course.step(by) == Step::Settled) {
                    return self.settle_silent(index);
                }
                return self.wheel.set(index, until + SOFTIRQ);
            }
            Step::Settled => return self.settle(index),
        }
        let course = &self.book.target(index).course;
        match course.wake_at(until) {
            Some(at) => self.wheel.set(index, at),
            None => self.wheel.clear(index),
        }
    }

    /// A target from which nothing came is settled, unless our own box may have lost it.
    fn settle_silent(&mut self, index: u32) {
        let timeout = self.book.part_of(index).timeout;
        let target = self.book.target(index);
        let attempts = target.attempts;
        let first = target.course.sent_at(0);
        let first = first.expect("a silent target was sent to");
        let refused = target.course.refused_in_part();
        let mut cause = self.losses.since(first, timeout).and(refused);
        let interface = self.interface.as_deref();
        let ways = self.ways.borrow();
        if ways.is_broken(target.to.address, interface, first) {
            cause = cause.and(LocalLoss::SEND_PATH);
        }
        drop(ways);
        if cause == LocalLoss::default() {
            self.settle(index);
        } else if attempts < PASSES {
            self.begin_again(index);
        } else {
            self.book.target_mut(index).course.lost(cause);
            self.settle(index);
        }
    }

    fn begin_again(&mut self, index: u32) {
        self.forget(index);
        let target = self.book.target_mut(index);
        target.course = target.course.again();
        target.attempts += 1;
        self.book.queue(index);
    }

    fn settle(&mut self, index: u32) {
        self.forget(index);
        let target = self.book.target(index);
        let finding = target.course.finding(target.attempts, self.read_until);
        self.book.settle(index, finding);
    }

    /// Listens no longer for any answer to a target.
    fn forget(&mut self, index: u32) {
        self.wheel.clear(index);
        let target = self.book.target_mut(index);
        self.window.leave(target.course.in_flight());
        let mut place = target.newest.take();
        while let Some(older) = place {
            place = self.places.free(older).and_then(|entry| entry.previous);
        }
    }

    /// Stages the next request that may leave, and writes it to `outgoing`.
    pub(super) fn stage(&mut self, now: Instant, outgoing: &mut Outgoing) -> Result<Staged, Halt> {
        loop {
            match self.window.enter(now) {
                Ok(()) => {}
                Err(None) => return Err(Halt::Nothing),
                Err(Some(at)) => return Err(Halt::NotBefore(at)),
            }
            let index = match self.book.turn(now) {
                Turn::Of(index) => index,
                Turn::NotBefore(at) => {
                    self.window.leave(1);
                    return Err(Halt::NotBefore(at));
                }
                Turn::Nobody => {
                    self.window.leave(1);
                    return Err(Halt::Nothing);
                }
            };
            let size = self.book.part_of(index).size;
            let target = self.book.target(index);
            let Step::Send(request) = target.course.step(self.read_until) else {
                // Answered while its request was waiting to leave.
                self.window.leave(1);
                self.attend(index);
                continue;
            };
            let to = target.to;
            let entry = Entry {
                request: request as u16,
                target: index,
                previous: target.newest,
            };
            let book = &self.book;
            let place = self
                .places
                .take(entry, |other| book.target(other).to.address == to.address);
            let Some(place) = place else {
                self.window.leave(1);
                self.book.queue(index);
                return Err(Halt::NotBefore(now + NO_SEQUENCE_PAUSE));
            };
            outgoing.push(socket_address(to), |bytes| {
                self.echo.write(bytes, place, to.address, size);
            });
            return Ok(Staged {
                target: index,
                request,
                place,
            });
        }
    }

    /// The kernel took these requests, one after the other from `from` until `by`.
    pub(super) fn sent(&mut self, staged: &[Staged], from: Instant, by: Instant) {
        let same_run = |one: &Staged, other: &Staged| {
            let [one, other] = [one, other].map(|staged| self.book.pace_of(staged.target));
            one.is_of_same_run(other)
        };
        for of_run in staged.chunk_by(same_run) {
            let pace = self.book.pace_of(of_run[0].target);
            pace.left(of_run.len() as u32, by);
        }
        let share = by.saturating_duration_since(from) / staged.len().max(1) as u32;
        for (order, staged) in (0..).zip(staged) {
            let target = self.book.target_mut(staged.target);
            target.newest = Some(staged.place);
            let left = from + share * order;
            target.course.sent_by(staged.request, left, by);
            self.attend(staged.target);
        }
    }

    /// The kernel refused a request for good.
    pub(super) fn refused(&mut self, staged: Staged, at: Instant, errno: i32) {
        self.places.free(staged.place);
        self.window.leave(1);
        let target = self.book.target_mut(staged.target);
        target.course.refused(staged.request, at, errno);
        self.attend(staged.target);
    }

    /// The kernel will take a request later. Those of one batch are put back from the last to the first.
    pub(super) fn put_back(&mut self, staged: Staged) {
        self.places.free(staged.place);
        self.window.leave(1);
        self.book.put_back(staged.target);
    }
}

/// The bound of a window. The table of neighbours is there once for all threads.
fn most_unanswered(on_link: bool, lanes: NonZeroUsize) -> usize {
    if on_link {
        (MOST_NEIGHBOURS / lanes).max(1)
    } else {
        MOST_OUTSTANDING
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
            let each = most_unanswered(true, NonZeroUsize::new(lanes).unwrap());
            let all = each * lanes;
            assert!(
                all <= MOST_NEIGHBOURS && all > MOST_NEIGHBOURS - lanes,
                "{lanes}"
            );
        }
    }
}
