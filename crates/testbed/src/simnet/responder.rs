//! The thread behind the TUN device: reads what is sent to the hosts and answers as the script says, each answer at its
//! time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    libc,
    poll::{PollFd, PollFlags, ppoll},
};

use super::{Answer, IpVersion, Noise, Script, address, echo::EchoRequest};

/// Packets that are read before due answers are sent.
const READ_AT_ONCE: usize = 64;

/// Noise claims to come from this many hosts.
const NOISY_HOSTS: u32 = 256;

/// Counters of the responder.
#[derive(Debug, Default)]
pub(super) struct ResponderCounters {
    /// Echo requests that came out of the device.
    pub(super) requests: u64,
    /// Distinct requests of a host that got a genuine reply.
    pub(super) answered: HashMap<u32, u32>,
    /// Messages that the device accepted.
    pub(super) messages: u64,
    /// Messages that were not sent because the device was down.
    pub(super) refused: u64,
}

/// A message on its way. Those that are due together leave in the order in which they were queued.
struct QueuedPacket {
    at: Instant,
    number: u64,
    packet: Vec<u8>,
    /// The host, when this is the first genuine reply to a request.
    answers: Option<u32>,
}

impl PartialEq for QueuedPacket {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for QueuedPacket {}

impl PartialOrd for QueuedPacket {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for QueuedPacket {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Messages in the order in which they are due.
#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Reverse<QueuedPacket>>,
    queued: u64,
}

impl Queue {
    fn push(&mut self, at: Instant, packet: Vec<u8>, answers: Option<u32>) {
        self.waiting.push(Reverse(QueuedPacket {
            at,
            number: self.queued,
            packet,
            answers,
        }));
        self.queued += 1;
    }

    fn next(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(due)| due.at)
    }

    fn pop(&mut self, now: Instant) -> Option<QueuedPacket> {
        self.next().filter(|at| *at <= now)?;
        self.waiting.pop().map(|Reverse(due)| due)
    }
}

/// Noise that is being sent.
struct ActiveNoise {
    noise: Noise,
    next: Instant,
    played: u32,
    to: EchoRequest,
}

/// The state of the network.
pub(super) struct Responder {
    tun: File,
    script: Script,
    asked: HashMap<u32, u32>,
    due: Queue,
    playing: Vec<ActiveNoise>,
    counters: ResponderCounters,
}

impl Responder {
    pub(super) fn new(tun: File, script: Script) -> Self {
        Self {
            tun,
            script,
            asked: HashMap::new(),
            due: Queue::default(),
            playing: Vec::new(),
            counters: ResponderCounters::default(),
        }
    }

    /// Answers until the other end of `stop` is closed. Answers that are not due by then are never sent.
    pub(super) fn run(mut self, stop: &impl AsFd) -> anyhow::Result<ResponderCounters> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let more = self.read(&mut buffer)?;
            let now = Instant::now();
            self.play(now);
            let next = self.send_due(now)?;
            if more {
                continue;
            }
            let wait = next.map(|next| next.saturating_duration_since(Instant::now()));
            let mut polled = [
                PollFd::new(self.tun.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::empty()),
            ];
            match ppoll(&mut polled, wait.map(Into::into), None) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for requests"),
            }
            let [tun, stop] = polled.map(|polled| polled.revents().unwrap_or(PollFlags::empty()));
            if !stop.is_empty() && !tun.contains(PollFlags::POLLIN) {
                return Ok(self.counters);
            }
        }
    }

    /// Reads some requests, and returns whether there may be more.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        for _ in 0..READ_AT_ONCE {
            match self.tun.read(buffer) {
                Ok(length) => {
                    if let Some(echo) = EchoRequest::read(&buffer[..length]) {
                        self.answer(&echo, Instant::now());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock || is_down(&error) => {
                    return Ok(false);
                }
                Err(error) => return Err(error).context("cannot read requests"),
            }
        }
        Ok(true)
    }

    fn answer(&mut self, echo: &EchoRequest, now: Instant) {
        let Some(host) = address::host(echo.to) else {
            return;
        };
        if self.counters.requests == 0 {
            self.playing = self
                .script
                .noise
                .iter()
                .map(|noise| ActiveNoise {
                    noise: *noise,
                    next: now,
                    played: 0,
                    to: echo.clone(),
                })
                .collect();
        }
        self.counters.requests += 1;
        let number = self.asked.entry(host).or_default();
        *number += 1;
        let Some(behaviour) = self.script.of(host) else {
            return;
        };
        if behaviour.loss > 0.0 {
            let draw = self.script.seed ^ (u64::from(host) << 32) ^ u64::from(*number);
            if fastrand::Rng::with_seed(draw).f64() < behaviour.loss {
                return;
            }
        }
        let mut answered = false;
        for answer in &behaviour.answers {
            if !answer.to.is_empty() && !answer.to.contains(number) {
                continue;
            }
            let Some(packet) = echo.answered(answer) else {
                continue;
            };
            for _ in 0..=answer.again {
                let first = answer.is_true() && !answered;
                answered |= first;
                let answers = first.then_some(host);
                self.due.push(now + answer.after, packet.clone(), answers);
            }
        }
    }

    /// Queues the noise that is due.
    fn play(&mut self, now: Instant) {
        for playing in &mut self.playing {
            let gap = Duration::from_secs(1) / playing.noise.rate.max(1);
            while playing.next <= now && playing.played < playing.noise.messages {
                let number = playing.played;
                let from = playing.noise.from + number % NOISY_HOSTS;
                let family = IpVersion::of(playing.to.to);
                let nobodys = EchoRequest {
                    to: family.address(from),
                    // Never the identifier of the first request: a socket would receive the message by accident.
                    identifier: playing.to.identifier.wrapping_add(fastrand::u16(1..)),
                    sequence: fastrand::u16(..),
                    ..playing.to.clone()
                };
                let answer = Answer {
                    send: playing.noise.send,
                    ..Answer::default()
                };
                if let Some(packet) = nobodys.answered(&answer) {
                    self.due.push(playing.next, packet, None);
                }
                playing.played += 1;
                playing.next += gap;
            }
        }
        self.playing
            .retain(|playing| playing.played < playing.noise.messages);
    }

    /// Sends what is due, and returns when the next message is due.
    fn send_due(&mut self, now: Instant) -> anyhow::Result<Option<Instant>> {
        while let Some(due) = self.due.pop(now) {
            match self.tun.write(&due.packet) {
                Ok(_) => {
                    self.counters.messages += 1;
                    if let Some(host) = due.answers {
                        *self.counters.answered.entry(host).or_default() += 1;
                    }
                }
                Err(error) if is_down(&error) => self.counters.refused += 1,
                Err(error) => return Err(error).context("cannot answer"),
            }
        }
        let noise = self.playing.iter().map(|playing| playing.next);
        Ok(noise.chain(self.due.next()).min())
    }
}

/// Whether the device is down: a test may take it down.
fn is_down(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::ENETDOWN | libc::EBADFD)
    )
}
