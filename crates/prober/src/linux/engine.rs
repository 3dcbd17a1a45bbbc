//! One socket and all that is probed by it. A turn reads everything that has come, judges what has timed out, and
//! sends one batch; nothing in it waits. Invariant: time is judged only as far as the socket was read until nothing
//! was left.

use std::{
    cell::RefCell,
    io,
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::errno::Errno;
use socket2::{Socket, Type};
use tracing::warn;

use super::{
    canary::Canary,
    discards::Discards,
    message::Echo,
    probes::{NotStaged, Probes, Staged},
    routes::RouteTable,
    socket::{Egress, Opened},
    syscall::{
        BATCH, ErrorQueue, Incoming, Memory, Outgoing, is_back_pressure, may_be_of_another, memory,
    },
};
use crate::prober::RequestsSent;

/// How often the socket's counter of drops and the interfaces are checked at while something is in hand.
const SAMPLE: Duration = Duration::from_millis(100);

/// How long nothing is sent after the kernel had no memory for it.
const BACK_PRESSURE_PAUSE: Duration = Duration::from_millis(2);

/// A request is refused when the kernel said so this often in a row, with no error of another one waiting.
const MAX_REFUSALS: u32 = 2;

/// Errors of other targets that one turn takes for a request that wants to leave.
const MAX_FOREIGN_ERRORS: u32 = 64;

/// Batches that one turn reads at most, so that a flood cannot keep it from sending.
const MAX_READS: usize = 64;

/// Errors that are read at once at most.
const MAX_ERRORS: usize = 4096;

/// Bytes of requests in one batch, where they are so long that fewer fill it.
const MAX_BATCH_BYTES: usize = 256 << 10;

/// Bytes of payload that there is room for from the start.
const USUAL_SIZE: usize = 512;

/// When the engine wants its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// As soon as others had theirs.
    Immediately,
    /// When something arrives, or at this moment.
    At(Instant),
    /// When something arrives.
    OnInput,
}

/// The state of one socket.
pub(super) struct Engine {
    pub(super) probes: Probes,
    outgoing: Outgoing,
    incoming: Incoming,
    errors: ErrorQueue,
    staged: Vec<Staged>,
    requests_sent: Arc<RequestsSent>,
    routes: Rc<RefCell<RouteTable>>,
    canary: Rc<RefCell<Canary>>,
    /// Where the kernel reports nothing that it throws away on the way out.
    discards: Option<Rc<RefCell<Discards>>>,
    /// When the next turn should begin at the latest, if anything is in hand.
    expected: Option<Instant>,
    /// When counters and interfaces were checked at.
    sampled: Instant,
    /// Not before this does the kernel get another request.
    resume_at: Option<Instant>,
}

impl Engine {
    /// For one of the sockets of `lanes` threads.
    pub(super) fn new(
        opened: &Opened,
        egress: &Egress,
        routes: &Rc<RefCell<RouteTable>>,
        canary: &Rc<RefCell<Canary>>,
        discards: &Rc<RefCell<Discards>>,
        requests_sent: Arc<RequestsSent>,
        lanes: NonZeroUsize,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let echo = Echo::new(egress.v6, opened.kind == Type::RAW, opened.identifier);
        let mut probes = Probes::new(egress, echo, Rc::clone(routes), lanes, now);
        probes
            .local_losses
            .drops_counted(memory(&opened.socket)?.drops, now);
        Ok(Self {
            probes,
            outgoing: Outgoing::new(),
            incoming: Incoming::new(Echo::longest_reply(USUAL_SIZE)),
            errors: ErrorQueue::new(),
            staged: Vec::with_capacity(BATCH),
            requests_sent,
            routes: Rc::clone(routes),
            canary: Rc::clone(canary),
            discards: (egress.v6 && opened.kind == Type::DGRAM).then(|| Rc::clone(discards)),
            expected: None,
            sampled: now,
            resume_at: None,
        })
    }

    /// Makes room for the replies to requests with `size` bytes of payload.
    pub(super) fn expect_size(&mut self, size: usize) {
        let longest = Echo::longest_reply(size);
        if self.incoming.longest() < longest {
            self.incoming = Incoming::new(longest);
        }
    }

    /// Does all that can be done now.
    pub(super) fn run_once(&mut self, socket: &Socket) -> Wake {
        self.check_memory(socket);
        let read_all = self.read(socket);
        if read_all {
            self.judge(socket);
        }
        let sending = self.send(socket);
        let next = if read_all {
            self.next(sending)
        } else {
            Wake::Immediately
        };
        let read_until = self.probes.read_until;
        self.expected = match next {
            _ if self.probes.in_hand() == 0 => None,
            Wake::At(at) => Some(at.max(read_until)),
            Wake::Immediately | Wake::OnInput => Some(read_until),
        };
        next
    }

    /// Looks at what the socket holds, before reading makes room.
    fn check_memory(&mut self, socket: &Socket) {
        let now = Instant::now();
        match memory(socket) {
            Ok(Memory {
                is_full, unsent, ..
            }) => {
                if is_full {
                    self.probes.local_losses.receive_buffer_full(now);
                }
                if unsent > 0 {
                    self.probes.hold(now);
                }
            }
            Err(error) => warn!(%error, "the kernel does not tell what a socket holds"),
        }
    }

    fn next(&self, sending: Wake) -> Wake {
        if self.probes.in_hand() == 0 || sending == Wake::Immediately {
            return sending;
        }
        let tick = self.sampled + SAMPLE;
        let deadline = self.probes.next_deadline().map_or(tick, |at| at.min(tick));
        Wake::At(match sending {
            Wake::At(at) => deadline.min(at),
            Wake::Immediately | Wake::OnInput => deadline,
        })
    }

    /// Reads all that has come; returns whether nothing was left.
    fn read(&mut self, socket: &Socket) -> bool {
        for _ in 0..MAX_READS {
            let before = Instant::now();
            match self.receive(socket) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => {
                    let read_all = self.read_errors(socket).read < MAX_ERRORS;
                    if read_all {
                        self.probes.read_until = before;
                    }
                    return read_all;
                }
                // An error that waited on the socket; the queue tells whose it is.
                Err(_) => {
                    self.read_errors(socket);
                }
            }
        }
        false
    }

    fn receive(&mut self, socket: &Socket) -> Result<usize, Errno> {
        let Self {
            probes, incoming, ..
        } = self;
        let mut clock = None;
        let earliest = probes.read_until;
        incoming.receive(socket, |message| {
            probes.answered(message.from, message.bytes, || {
                clock
                    .get_or_insert_with(Clock::read)
                    .moment(message.stamp, earliest)
            });
        })
    }

    /// Reads the error queue.
    fn read_errors(&mut self, socket: &Socket) -> Errors {
        let Self { probes, errors, .. } = self;
        let mut found = Errors::default();
        while found.read < MAX_ERRORS
            && errors
                .read(socket, |error| {
                    probes.icmp_error(&error, Instant::now());
                    found.by_icmp += 1;
                })
                .is_ok()
        {
            found.read += 1;
        }
        found
    }

    /// Does what time alone brings, as far as everything was read.
    fn judge(&mut self, socket: &Socket) {
        let probes = &mut self.probes;
        let until = probes.read_until;
        if let Some(expected) = self.expected.take() {
            let late = until.saturating_duration_since(expected);
            probes.local_losses.stalled(late, until);
        }
        let due = probes.is_due();
        if due || (probes.in_hand() > 0 && until >= self.sampled + SAMPLE) {
            let now = Instant::now();
            self.sampled = now;
            match memory(socket) {
                Ok(memory) => probes.local_losses.drops_counted(memory.drops, now),
                Err(error) => warn!(%error, "the kernel does not tell what the socket dropped"),
            }
            let mut routes = self.routes.borrow_mut();
            routes.check(now);
            probes.losses_known_until = routes
                .last_checked()
                .map_or(now, |checked| checked.min(now));
            let mut canary = self.canary.borrow_mut();
            canary.check(now);
            if let Some(at) = canary.last_lost() {
                probes.local_losses.canary_lost(at);
            }
            if let Some(discards) = &self.discards {
                let mut discards = discards.borrow_mut();
                discards.check(now);
                let checked = discards.last_checked().unwrap_or(now);
                probes.losses_known_until = probes.losses_known_until.min(checked);
                if let Some(at) = discards.last_rise() {
                    probes.local_losses.send_path_failed(at);
                }
            }
        }
        if due {
            probes.judge();
        }
    }

    /// Sends one batch; says when it is worth another try.
    fn send(&mut self, socket: &Socket) -> Wake {
        let now = Instant::now();
        if let Some(at) = self.resume_at.filter(|at| *at > now) {
            return Wake::At(at);
        }
        self.resume_at = None;
        let not_staged = loop {
            if self.staged.len() == BATCH || self.outgoing.bytes() >= MAX_BATCH_BYTES {
                break NotStaged::BatchFull;
            }
            match self.probes.stage(now, &mut self.outgoing) {
                Ok(staged) => self.staged.push(staged),
                Err(not_staged) => break not_staged,
            }
        };
        self.flush(socket);
        match (self.resume_at, not_staged) {
            (Some(at), _) | (None, NotStaged::NotBefore(at)) => Wake::At(at),
            (None, NotStaged::BatchFull) => Wake::Immediately,
            (None, NotStaged::Nothing) => Wake::OnInput,
        }
    }

    /// Puts requests that the kernel did not take back in line, for a little later.
    fn put_back(&mut self, staged: &[Staged], now: Instant) {
        for staged in staged.iter().rev() {
            self.probes.put_back(*staged);
        }
        self.resume_at = Some(now + BACK_PRESSURE_PAUSE);
    }

    /// Hands the batch to the kernel, and notes what became of each request.
    fn flush(&mut self, socket: &Socket) {
        let staged = std::mem::take(&mut self.staged);
        let mut first = 0;
        let mut refusals = 0;
        let mut foreign = 0;
        while first < staged.len() {
            let before = Instant::now();
            match self.outgoing.send(socket, first) {
                Ok(taken) => {
                    let sent = &staged[first..first + taken];
                    self.probes.sent(sent, before, Instant::now());
                    self.requests_sent.add(taken as u64);
                    first += taken;
                    refusals = 0;
                }
                Err(error) if is_back_pressure(error) => {
                    self.put_back(&staged[first..], before);
                    break;
                }
                Err(error) => {
                    // It may be the error of another target, which waited on the socket: only one that comes when
                    // nothing waits there is of this request.
                    // What a refusal itself leaves in the queue did not wait there, and comes again each time: the
                    // kernel's own word that a message is too long, or the ICMP error of a filter that rejects.
                    let waited = self.read_errors(socket).by_icmp > 0;
                    let pending = matches!(socket.take_error(), Ok(Some(_)));
                    let is_own = !may_be_of_another(error);
                    if !is_own && (waited || pending || refusals == 0) {
                        foreign += 1;
                        refusals = 1;
                        if foreign < MAX_FOREIGN_ERRORS {
                            continue;
                        }
                        self.put_back(&staged[first..], before);
                        break;
                    }
                    refusals += 1;
                    if !is_own && refusals <= MAX_REFUSALS {
                        continue;
                    }
                    refusals = 0;
                    foreign = 0;
                    if matches!(error, Errno::ENETDOWN | Errno::ENODEV) {
                        self.probes.local_losses.send_path_failed(before);
                    }
                    self.probes.refused(staged[first], before, error as i32);
                    first += 1;
                }
            }
        }
        self.outgoing.clear();
        self.staged = staged;
        self.staged.clear();
    }
}

/// How many errors were in the queue.
#[derive(Debug, Default, Clone, Copy)]
struct Errors {
    read: usize,
    /// Those of them that came by ICMP.
    by_icmp: usize,
}

/// Both clocks at one moment.
struct Clock {
    wall: Duration,
    now: Instant,
}

impl Clock {
    fn read() -> Self {
        Self {
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            now: Instant::now(),
        }
    }

    /// The moment of a stamp of the wall clock. It was not before `earliest`, by which all older messages were read:
    /// so no step of the wall clock can do more harm than that.
    fn moment(&self, stamp: Option<Duration>, earliest: Instant) -> Instant {
        let age = stamp.map_or(Duration::ZERO, |stamp| self.wall.saturating_sub(stamp));
        self.now
            .checked_sub(age)
            .map_or(earliest, |at| at.max(earliest))
    }
}
