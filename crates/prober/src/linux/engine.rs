//! One socket and the probes that use it. Each turn of the engine reads everything that has arrived, judges what has timed
//! out, and sends one batch; nothing in it waits. Invariant: a timeout is judged only up to the moment until which
//! everything that arrived has been read.

use std::{
    io,
    num::NonZeroUsize,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use pingfleet_wire::LocalLoss;
use socket2::{Socket, Type};
use tracing::warn;

use super::{
    SocketKey,
    clocks::Clocks,
    local_loss::{LossDetector, Watched, is_of_path},
    message::EchoFormat,
    network::NextHop,
    probes::{NotStaged, Probes, Staged},
    send_times::end_of_call,
    socket::Opened,
    syscall::{
        ErrorQueue, Incoming, MAX_BATCH, Memory, Outgoing, Queued, SendStamps, is_back_pressure,
        may_be_of_another, memory, set_send_stamps,
    },
};
use crate::prober::ProbeCounters;

/// How often local losses are looked for while targets are in hand.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing is sent after the kernel had no memory for a request.
const BACK_PRESSURE_PAUSE: Duration = Duration::from_millis(2);

/// A request is refused for good when it fails this often in a row and no error of another target is pending.
const MAX_REFUSALS: u32 = 2;

/// Errors of other targets that one turn accepts before the rest of its batch waits.
const MAX_FOREIGN_ERRORS: u32 = 64;

/// Batches that one turn reads, so that a flood cannot stop the sending.
const MAX_READS: usize = 64;

/// ICMP errors that are read in a row.
const MAX_ERRORS: usize = 4096;

/// Bytes of one batch: of long requests fewer are sent at once.
const MAX_BATCH_BYTES: usize = 256 << 10;

/// Payload size for which there is room from the start.
const DEFAULT_PAYLOAD_SIZE: usize = 512;

/// When the engine's next turn is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// After the other tasks of the thread had their turn.
    Immediately,
    /// When something arrives, and at this moment at the latest.
    At(Instant),
    /// When something arrives.
    OnInput,
}

/// The state of one socket.
pub(super) struct Engine {
    probes: Probes,
    outgoing: Outgoing,
    incoming: Incoming,
    errors: ErrorQueue,
    staged: Vec<Staged>,
    counters: Arc<ProbeCounters>,
    detector: Rc<LossDetector>,
    watched: Watched,
    /// When the next turn should begin at the latest, if targets are in hand.
    expected: Option<Instant>,
    /// When local losses were last looked for.
    checked: Instant,
    /// No request is sent before this.
    resume_at: Option<Instant>,
}

impl Engine {
    /// The engine of one socket. `threads` threads probe.
    pub(super) fn new(
        opened: &Opened,
        key: &SocketKey,
        detector: &Rc<LossDetector>,
        counters: Arc<ProbeCounters>,
        threads: NonZeroUsize,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let v6 = key.egress.is_v6();
        let echo = EchoFormat::new(v6, opened.kind == Type::RAW, opened.identifier);
        let mut probes = Probes::new(
            key,
            echo,
            Rc::clone(detector),
            Arc::clone(&counters),
            threads,
            now,
        );
        let drops = memory(&opened.socket)?.drops;
        probes.local_losses().drops_counted(drops, now);
        Ok(Self {
            probes,
            outgoing: Outgoing::new(),
            incoming: Incoming::new(EchoFormat::longest_reply(DEFAULT_PAYLOAD_SIZE)),
            errors: ErrorQueue::new(),
            staged: Vec::with_capacity(MAX_BATCH),
            counters,
            detector: Rc::clone(detector),
            watched: Watched {
                v6,
                kind: opened.kind,
                by_unknown_gateway: matches!(key.next_hop, NextHop::Gateway(_))
                    && detector.network().gateway(v6, key.next_hop).is_none(),
                is_bound: key.egress.interface().is_some() || key.egress.source().is_some(),
            },
            expected: None,
            checked: now,
            resume_at: None,
        })
    }

    /// The probes of this socket.
    pub(super) fn probes(&mut self) -> &mut Probes {
        &mut self.probes
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.probes.in_hand()
    }

    /// Makes room for the replies to requests with `size` bytes of payload.
    pub(super) fn expect_size(&mut self, size: usize) {
        let longest = EchoFormat::longest_reply(size);
        if self.incoming.longest() < longest {
            self.incoming = Incoming::new(longest);
        }
    }

    /// One turn: does everything that can be done now.
    pub(super) fn run_once(&mut self, socket: &Socket) -> Wake {
        self.check_memory(socket);
        let read_all = self.read(socket);
        if read_all {
            self.judge(socket);
        }
        let sending = self.send(socket);
        let wake = if read_all {
            self.next_wake(sending)
        } else {
            Wake::Immediately
        };
        let read_until = self.probes.read_until();
        self.expected = match wake {
            _ if self.in_hand() == 0 => None,
            Wake::At(at) => Some(at.max(read_until)),
            Wake::Immediately | Wake::OnInput => Some(read_until),
        };
        wake
    }

    /// Looks at the socket's memory. Call it before reading frees it.
    fn check_memory(&mut self, socket: &Socket) {
        let now = Instant::now();
        match memory(socket) {
            Ok(Memory {
                is_full, unsent, ..
            }) => {
                if is_full {
                    self.probes.local_losses().receive_buffer_full(now);
                }
                if unsent > 0 {
                    self.probes.requests_wait_in_kernel(now);
                }
            }
            Err(error) => warn!(%error, "cannot read the memory counters of a socket"),
        }
    }

    fn next_wake(&self, sending: Wake) -> Wake {
        if self.in_hand() == 0 || sending == Wake::Immediately {
            return sending;
        }
        let check = self.checked + CHECK_INTERVAL;
        let deadline = self
            .probes
            .next_deadline()
            .map_or(check, |at| at.min(check));
        Wake::At(match sending {
            Wake::At(at) => deadline.min(at),
            Wake::Immediately | Wake::OnInput => deadline,
        })
    }

    /// Reads what has arrived; returns whether nothing is left.
    fn read(&mut self, socket: &Socket) -> bool {
        for _ in 0..MAX_READS {
            let before = Instant::now();
            match self.receive(socket) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => {
                    let read_all = self.read_errors(socket).read < MAX_ERRORS;
                    if read_all {
                        self.probes.set_read_until(before);
                    }
                    return read_all;
                }
                // An error was pending on the socket. The error queue names its request.
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
        let mut clocks = None;
        let earliest = probes.read_until();
        incoming.receive(socket, |message| {
            probes.answered(message.from, message.bytes, || {
                clocks
                    .get_or_insert_with(Clocks::read)
                    .arrival(message.arrived, earliest)
            });
        })
    }

    /// Reads the error queue: ICMP errors, and when a sampled request left.
    fn read_errors(&mut self, socket: &Socket) -> ErrorsRead {
        let Self { probes, errors, .. } = self;
        let mut found = ErrorsRead::default();
        while found.read < MAX_ERRORS {
            let read = errors.read(socket, |queued| match queued {
                Queued::Error(error) => {
                    probes.icmp_error(&error, Instant::now());
                    found.by_icmp += 1;
                }
                Queued::Stamp(stamp) => probes.stamped(stamp.key, |earliest| {
                    Clocks::read().departure(stamp.left, earliest)
                }),
            });
            if read.is_err() {
                break;
            }
            found.read += 1;
            // Each one that is read makes room, and more may have come while this thread waited for its CPU.
            if memory(socket).is_ok_and(|memory| memory.is_full) {
                probes.local_losses().receive_buffer_full(Instant::now());
            }
        }
        found
    }

    /// Handles what is due, up to the moment until which everything was read.
    fn judge(&mut self, socket: &Socket) {
        let probes = &mut self.probes;
        let until = probes.read_until();
        if let Some(expected) = self.expected.take() {
            let late = until.saturating_duration_since(expected);
            probes.local_losses().stalled(late, until);
        }
        let due = probes.is_due();
        if due || (probes.in_hand() > 0 && until >= self.checked + CHECK_INTERVAL) {
            let now = Instant::now();
            self.checked = now;
            match memory(socket) {
                Ok(memory) => probes.local_losses().drops_counted(memory.drops, now),
                Err(error) => warn!(%error, "cannot read the drop counter of a socket"),
            }
            let detector = &self.detector;
            let known_until = detector.check(now, self.watched, probes.local_losses());
            probes.set_losses_known_until(known_until);
            probes.check_path(self.watched.may_discard(), now);
        }
        if due {
            probes.judge();
        }
    }

    /// Sends one batch; returns when to send the next one.
    fn send(&mut self, socket: &Socket) -> Wake {
        let now = Instant::now();
        if let Some(at) = self.resume_at.filter(|at| *at > now) {
            return Wake::At(at);
        }
        self.resume_at = None;
        let not_staged = loop {
            if self.staged.len() == MAX_BATCH || self.outgoing.bytes() >= MAX_BATCH_BYTES {
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

    /// Puts requests that the kernel did not accept back at the head of their queues, for after a pause.
    fn put_back(&mut self, staged: &[Staged], pause: Duration, now: Instant) {
        for staged in staged.iter().rev() {
            self.probes.put_back(*staged);
        }
        self.resume_at = Some(now + pause);
    }

    /// Hands the batch to the kernel, and records what happened to each request.
    fn flush(&mut self, socket: &Socket) {
        let staged = std::mem::take(&mut self.staged);
        let mut first = 0;
        let mut refusals = Refusals::default();
        let now = Instant::now();
        let mut sample = self.probes.send_times().choose(staged.len(), now);
        while first < staged.len() {
            let numbers = first..end_of_call(first, staged.len(), sample);
            let is_sample = sample.take_if(|at| *at == first).is_some();
            let (before, sent) = self.send_some(socket, &staged, numbers, is_sample);
            match sent {
                Ok(accepted) => {
                    first += accepted;
                    refusals.in_a_row = 0;
                }
                Err(error) if is_back_pressure(error) => {
                    self.put_back(&staged[first..], BACK_PRESSURE_PAUSE, before);
                    break;
                }
                Err(error) => match self.judge_refusal(error, socket, &mut refusals) {
                    Refusal::TryAgain => {}
                    Refusal::TryLater => {
                        self.put_back(&staged[first..], BACK_PRESSURE_PAUSE, before);
                        break;
                    }
                    Refusal::Final => {
                        if matches!(error, Errno::ENETDOWN | Errno::ENODEV) {
                            let losses = self.probes.local_losses();
                            losses.lost(LocalLoss::LINK_DOWN, before);
                        }
                        let refused = staged[first];
                        first += 1;
                        if !is_of_path(error) {
                            self.probes.refused(refused, before, error as i32);
                        } else if let Some(pause) =
                            self.probes.refused_by_path(refused, before, error)
                        {
                            self.put_back(&staged[first..], pause, before);
                            break;
                        }
                    }
                },
            }
        }
        self.probes.batch_ended();
        self.outgoing.clear();
        self.staged = staged;
        self.staged.clear();
    }

    /// Sends the requests with these numbers in one call, and notes those that the kernel accepts. Returns the moment before
    /// the call, and how many were accepted.
    fn send_some(
        &mut self,
        socket: &Socket,
        staged: &[Staged],
        numbers: Range<usize>,
        is_sample: bool,
    ) -> (Instant, Result<usize, Errno>) {
        let first = numbers.start;
        let is_stamped = is_sample
            && self.probes.send_times().may_stamp(Instant::now())
            && set_send_stamps(socket, SendStamps::On).is_ok();
        let before = Instant::now();
        let sent = self.outgoing.send(socket, numbers);
        let after = Instant::now();
        if is_stamped {
            self.end_stamp(socket, sent.is_ok());
        }
        if let Ok(accepted) = sent {
            let accepted = &staged[first..first + accepted];
            self.probes.sent(accepted, before, after);
            self.counters.add_requests(accepted.len() as u64);
            if is_sample {
                self.probes.send_times().sampled(before, after);
            }
            if is_stamped {
                self.probes.await_stamp(staged[first], before, after);
                // It has left already, unless it waits for the link or for a link address.
                self.read_errors(socket);
            }
        }
        (before, sent)
    }

    /// From now on no request is stamped. After a refusal it is not known whether the kernel has counted the request.
    fn end_stamp(&mut self, socket: &Socket, is_sent: bool) {
        let stamps = if is_sent {
            SendStamps::Paused
        } else {
            self.probes.send_times().keys_restarted();
            SendStamps::Off
        };
        if let Err(error) = set_send_stamps(socket, stamps) {
            warn!(%error, "the kernel goes on to stamp every request");
        }
    }

    /// Whether `error` concerns the request that was to be sent. It may be the ICMP error of another target, which was
    /// pending on the socket. So it counts for this request only when it comes again while nothing was pending.
    ///
    /// A refusal can itself put an error into the queue each time: that a message is too long, or the ICMP error of a
    /// filter that rejects. Such an error is not pending before the next try.
    fn judge_refusal(&mut self, error: Errno, socket: &Socket, refusals: &mut Refusals) -> Refusal {
        self.check_memory(socket);
        let was_queued = self.read_errors(socket).by_icmp > 0;
        let was_pending = matches!(socket.take_error(), Ok(Some(_)));
        if may_be_of_another(error) {
            if was_queued || was_pending || refusals.in_a_row == 0 {
                refusals.foreign += 1;
                refusals.in_a_row = 1;
                return if refusals.foreign < MAX_FOREIGN_ERRORS {
                    Refusal::TryAgain
                } else {
                    Refusal::TryLater
                };
            }
            refusals.in_a_row += 1;
            if refusals.in_a_row <= MAX_REFUSALS {
                return Refusal::TryAgain;
            }
        }
        *refusals = Refusals::default();
        Refusal::Final
    }
}

/// Refusals while one batch is sent.
#[derive(Debug, Default)]
struct Refusals {
    /// Of the same request, since an error of another target was pending.
    in_a_row: u32,
    /// Taken for errors of other targets.
    foreign: u32,
}

/// What to do with a refused request.
enum Refusal {
    TryAgain,
    TryLater,
    Final,
}

/// How many errors were in the queue.
#[derive(Debug, Default, Clone, Copy)]
struct ErrorsRead {
    read: usize,
    /// Those of them that came by ICMP.
    by_icmp: usize,
}
