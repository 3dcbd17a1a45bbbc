//! The state of one target: which request is due when, what each answer changes, when the target is settled, and with
//! which status. Pure: no I/O and no clock; every prober drives it with its own.
//!
//! There are three phases. The first `count` requests leave `interval` apart, answered or not, and each of them is
//! answered or times out. If none was answered in time, the retries follow one by one, each when the previous request
//! has timed out. Last comes the late window, if there is one.
//!
//! The target is settled as soon as one of these holds: all of the first `count` requests are answered; one was answered
//! in time and the others timed out; an answer arrives after the retries began; the late window is over.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::{DownReason, LocalLoss, Probing, Rtt, Status, timing::MAX_TARGET_TIME};

use crate::prober::Finding;

/// When the requests of a target are due. One for all targets of a chunk.
#[derive(Debug)]
pub struct Schedule {
    count: usize,
    interval: Duration,
    waits: Vec<Duration>,
    late_window: Duration,
}

impl Schedule {
    /// The schedule of a plan's settings.
    #[must_use]
    pub fn of(probing: &Probing) -> Arc<Self> {
        Arc::new(Self {
            count: usize::from(probing.count.max(1)),
            interval: probing.interval,
            waits: (0..probing.most_requests().max(1))
                .map(|request| probing.wait(request))
                .collect(),
            late_window: probing.late_window,
        })
    }

    /// The longest time from the departure of `request` until the target is settled, if every request leaves when it is
    /// due.
    #[must_use]
    pub fn longest_after(&self, request: usize) -> Duration {
        let gaps = self.count.saturating_sub(request + 1) as u32;
        self.waits[request.max(self.count - 1)..]
            .iter()
            .fold(self.late_window, |sum, wait| sum.saturating_add(*wait))
            .saturating_add(self.interval.saturating_mul(gaps))
    }
}

/// What to do for a target now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send the request of this number, from 0, and report what became of it.
    Send(usize),
    /// Nothing before [`TargetState::wake_at`], unless something arrives.
    Wait,
    /// No request is left in this attempt: the prober takes the finding, or begins another attempt.
    Settled,
}

/// What an answer counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credit {
    /// The first answer to a request that was in flight.
    InFlight,
    /// The first answer to a request that has already timed out.
    Expired,
    /// Not the first answer to this request, or no such request was sent.
    None,
}

/// The state of one target in one attempt.
#[derive(Debug)]
pub struct TargetState {
    schedule: Arc<Schedule>,
    requests: Vec<Request>,
    /// Whether something was answered within its timeout.
    in_time: bool,
    /// Whether something was answered after the retries began.
    ended_by_answer: bool,
    unreachable: Option<Unreachable>,
    /// Set from the second attempt on. Few targets have one, so it takes no more than a pointer.
    earlier: Option<Box<EarlierAttempts>>,
    down_reason: DownReason,
    errno: i32,
    local_loss: LocalLoss,
}

/// What is kept of the attempts before the current one.
#[derive(Debug, Clone, Copy)]
struct EarlierAttempts {
    /// The first ICMP error that quoted one of our requests, with the counts of its attempt.
    error: Option<EarlierError>,
    /// Why they were repeated.
    local_loss: LocalLoss,
}

/// An ICMP error, and the attempt in which it came.
#[derive(Debug, Clone, Copy)]
struct EarlierError {
    error: Unreachable,
    /// Requests that the kernel accepted; at least one.
    sent: usize,
    first_request: Instant,
}

#[derive(Debug)]
struct Request {
    /// When it left. Its round trip begins here.
    left: Instant,
    /// When the kernel had accepted or refused it. Its timeout begins here.
    at: Instant,
    state: RequestState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestState {
    InFlight,
    Expired,
    Answered(Duration),
    Refused,
}

/// An ICMP error that quotes one of our requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable {
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub code: u8,
    /// Who reported it.
    pub reporter: IpAddr,
}

impl Unreachable {
    fn status(self) -> Status {
        let Self {
            icmp_type,
            code,
            reporter,
        } = self;
        Status::Unreachable {
            icmp_type,
            code,
            reporter,
        }
    }
}

impl TargetState {
    /// A target to which nothing has been sent.
    #[must_use]
    pub fn new(schedule: Arc<Schedule>) -> Self {
        Self {
            schedule,
            requests: Vec::new(),
            in_time: false,
            ended_by_answer: false,
            unreachable: None,
            earlier: None,
            down_reason: DownReason::NoAnswer,
            errno: 0,
            local_loss: LocalLoss::default(),
        }
    }

    /// The state of the next attempt, because this machine may have lost an answer by `cause`. What came from the network
    /// is kept: an ICMP error, which decides the status unless something is answered, and a reply that did not count.
    #[must_use]
    pub fn next_attempt(&self, cause: LocalLoss) -> Self {
        let before = self.earlier.as_deref();
        let error = before.and_then(|before| before.error);
        let earlier = EarlierAttempts {
            error: error.or_else(|| self.own_error()),
            local_loss: before.map_or(cause, |before| before.local_loss.and(cause)),
        };
        let came = matches!(
            self.down_reason,
            DownReason::PayloadChanged | DownReason::AnsweredBy(_)
        );
        Self {
            earlier: Some(Box::new(earlier)),
            down_reason: if came {
                self.down_reason
            } else {
                DownReason::NoAnswer
            },
            ..Self::new(Arc::clone(&self.schedule))
        }
    }

    /// The ICMP error of this attempt. It quotes a request, so without one there is none.
    fn own_error(&self) -> Option<EarlierError> {
        let sent = self.sent_count();
        let first_request = self.left_at(0).filter(|_| sent > 0)?;
        self.unreachable.map(|error| EarlierError {
            error,
            sent,
            first_request,
        })
    }

    /// Marks the requests whose timeout has passed at `now`, and returns how many. Late answers to them still count.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        for (number, request) in self.requests.iter_mut().enumerate() {
            if request.state == RequestState::InFlight
                && request.at + self.schedule.waits[number] <= now
            {
                request.state = RequestState::Expired;
                expired += 1;
            }
        }
        expired
    }

    /// What to do now. Call [`Self::expire`] before.
    #[must_use]
    pub fn step(&self, now: Instant) -> Step {
        match self.due() {
            Due::First => Step::Send(0),
            Due::Request(at) if at <= now => Step::Send(self.requests.len()),
            Due::End(at) if at <= now => Step::Settled,
            Due::Settled => Step::Settled,
            Due::Request(_) | Due::End(_) | Due::Timeouts => Step::Wait,
        }
    }

    /// The next moment after `now` at which something is due or times out; `None` when there is none.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let due = match self.due() {
            Due::Request(at) | Due::End(at) => Some(at),
            Due::First | Due::Timeouts => None,
            Due::Settled => return None,
        };
        let timeouts = self
            .requests
            .iter()
            .enumerate()
            .filter(|(_, request)| request.state == RequestState::InFlight)
            .map(|(number, _)| self.deadline(number));
        timeouts.chain(due).filter(|at| *at > now).min()
    }

    /// The kernel accepted request `request`, the one that [`Step::Send`] named, at `at`. Its timeout starts.
    pub fn sent(&mut self, request: usize, at: Instant) {
        self.sent_by(request, at, at);
    }

    /// As [`Self::sent`], for a request that left at about `left`, which is known only since `at`. The timeout starts at
    /// `at`, so that the next request is never too early.
    pub fn sent_by(&mut self, request: usize, left: Instant, at: Instant) {
        self.enter(request, left, at, RequestState::InFlight);
    }

    /// The kernel says that request `request` left at `left`. An answer that came before keeps its round trip.
    pub fn left(&mut self, request: usize, left: Instant) {
        if let Some(request) = self.requests.get_mut(request) {
            request.left = left;
        }
    }

    /// The kernel refused request `request`, the one that [`Step::Send`] named, for another reason than
    /// back-pressure. It counts as failed; the retries follow.
    pub fn refused(&mut self, request: usize, at: Instant, errno: i32) {
        self.errno = errno;
        self.enter(request, at, at, RequestState::Refused);
    }

    fn enter(&mut self, request: usize, left: Instant, at: Instant, state: RequestState) {
        debug_assert_eq!(request, self.requests.len(), "requests leave in order");
        // Most targets get one request, and there may be hundreds of thousands of them.
        self.requests.reserve_exact(1);
        self.requests.push(Request { left, at, state });
    }

    /// An echo reply to `request` arrived after `rtt`. Only `rtt` decides whether it was in time, even if the reply is
    /// read late. One after [`MAX_TARGET_TIME`] does not count: the writer would refuse the whole chunk.
    pub fn answered(&mut self, request: usize, rtt: Duration) -> Credit {
        if rtt > MAX_TARGET_TIME {
            return Credit::None;
        }
        let retrying = self.requests.len() > self.schedule.count;
        let Some(asked) = self.requests.get_mut(request) else {
            return Credit::None;
        };
        let credit = match asked.state {
            RequestState::InFlight => Credit::InFlight,
            RequestState::Expired => Credit::Expired,
            RequestState::Answered(_) | RequestState::Refused => return Credit::None,
        };
        asked.state = RequestState::Answered(rtt);
        self.in_time |= rtt <= self.schedule.waits[request];
        self.ended_by_answer |= retrying;
        credit
    }

    /// When request `request` left, or the kernel refused it.
    #[must_use]
    pub fn left_at(&self, request: usize) -> Option<Instant> {
        self.requests.get(request).map(|request| request.left)
    }

    /// Whether at least one request left and none is answered.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.sent_count() > 0 && self.count(|state| matches!(state, RequestState::Answered(_))) == 0
    }

    /// Whether the kernel accepted a request.
    #[must_use]
    pub fn has_sent(&self) -> bool {
        self.count(|state| state != RequestState::Refused) > 0
    }

    /// `SEND_PATH` when the kernel accepted some requests and refused others, which might have been answered, and the cause
    /// is not known.
    #[must_use]
    pub fn refused_in_part(&self) -> LocalLoss {
        let refused = self.count(|state| state == RequestState::Refused);
        if refused > 0 && refused < self.requests.len() && self.local_loss.is_none() {
            LocalLoss::SEND_PATH
        } else {
            LocalLoss::default()
        }
    }

    /// Requests that may still be answered in time.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.count(|state| state == RequestState::InFlight)
    }

    /// An ICMP error quoted one of our requests. It decides the status unless something is answered. It stops no retry.
    /// The first error is kept.
    pub fn unreachable(&mut self, error: Unreachable) {
        self.unreachable.get_or_insert(error);
    }

    /// This machine's kernel reported that nobody answered its ARP request or neighbour solicitation.
    pub fn no_arp(&mut self) {
        self.down_because(DownReason::NoArp);
    }

    /// Why the target is `down`, if it is. The reason of the highest precedence is kept, and of equal ones the first.
    pub fn down_because(&mut self, reason: DownReason) {
        if reason.code() > self.down_reason.code() {
            self.down_reason = reason;
        }
    }

    /// This machine may have lost an answer to one of the requests.
    pub fn local_loss(&mut self, cause: LocalLoss) {
        self.local_loss = self.local_loss.and(cause);
    }

    /// The local losses of this attempt that are known so far.
    #[must_use]
    pub fn known_losses(&self) -> LocalLoss {
        self.local_loss
    }

    /// The finding now, in attempt number `attempts`. Without any request, `now` takes the place of the first one's time.
    #[must_use]
    pub fn finding(&self, attempts: u8, now: Instant) -> Finding {
        let sent = self.sent_count();
        let samples: Vec<_> = self
            .requests
            .iter()
            .filter_map(|request| match request.state {
                RequestState::Answered(rtt) => Some(rtt),
                RequestState::InFlight | RequestState::Expired | RequestState::Refused => None,
            })
            .collect();
        let first_request = self.left_at(0).unwrap_or(now);
        // The counts are those of the attempt that decides the status: an error has always a request that it quotes.
        let (status, sent, first_request) = match self.error() {
            Some(deciding) if samples.is_empty() => (
                deciding.error.status(),
                deciding.sent,
                deciding.first_request,
            ),
            _ => (self.status(sent, samples.len()), sent, first_request),
        };
        Finding {
            status,
            sent: sent as u16,
            received: samples.len() as u16,
            rtt: Rtt::of(&samples),
            attempts,
            first_request,
        }
    }

    /// The ICMP error that decides the status if nothing is answered: the first one of all attempts.
    fn error(&self) -> Option<EarlierError> {
        let earlier = self.earlier.as_deref().and_then(|earlier| earlier.error);
        earlier.or_else(|| self.own_error())
    }

    /// The status without an ICMP error, from the requests that were sent and those that were answered.
    fn status(&self, sent: usize, received: usize) -> Status {
        let mut local_loss = self.local_loss.and(self.refused_in_part());
        if let Some(earlier) = self.earlier.as_deref().filter(|_| sent == 0) {
            // The kernel accepted the requests of an earlier attempt, whose answers may have been lost.
            local_loss = local_loss.and(earlier.local_loss).and(LocalLoss::SEND_PATH);
        }
        if self.in_time {
            Status::Up
        } else if received > 0 {
            Status::Late
        } else if local_loss != LocalLoss::default() {
            Status::Unknown(local_loss)
        } else if sent == 0 {
            Status::SendFailed { errno: self.errno }
        } else {
            Status::Down(self.down_reason)
        }
    }

    fn due(&self) -> Due {
        let Schedule {
            count,
            interval,
            ref waits,
            late_window,
        } = *self.schedule;
        let Some(last) = self.requests.last() else {
            return Due::First;
        };
        if self.requests.len() < count {
            return Due::Request(last.at + interval);
        }
        let first = &self.requests[..count];
        let all_answered = first
            .iter()
            .all(|request| matches!(request.state, RequestState::Answered(_)));
        if all_answered || self.ended_by_answer {
            return Due::Settled;
        }
        let waiting = self
            .requests
            .iter()
            .any(|request| request.state == RequestState::InFlight);
        if waiting {
            return Due::Timeouts;
        }
        if !self.in_time && self.requests.len() < waits.len() {
            let previous = (0..self.requests.len()).map(|number| self.deadline(number));
            return Due::Request(previous.max().unwrap_or(last.at));
        }
        // Only a request that left can still be answered.
        let last_deadline = (0..self.requests.len())
            .filter(|number| self.requests[*number].state == RequestState::Expired)
            .map(|number| self.deadline(number))
            .max();
        last_deadline.map_or(Due::Settled, |deadline| Due::End(deadline + late_window))
    }

    /// When a request times out. A refused one waits as long, so that its retry leaves no sooner than any other.
    fn deadline(&self, number: usize) -> Instant {
        self.requests[number].at + self.schedule.waits[number]
    }

    /// Requests that the kernel accepted.
    fn sent_count(&self) -> usize {
        self.count(|state| state != RequestState::Refused)
    }

    fn count(&self, of: impl Fn(RequestState) -> bool) -> usize {
        self.requests
            .iter()
            .filter(|request| of(request.state))
            .count()
    }
}

/// What is due next if nothing arrives.
enum Due {
    /// The first request. It waits only for the pace.
    First,
    Request(Instant),
    Timeouts,
    End(Instant),
    Settled,
}

#[cfg(test)]
mod attempts_tests;
#[cfg(test)]
mod tests;
