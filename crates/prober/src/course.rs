//! The course of probing one target: which request is due when, what each answer changes, and when the target is
//! settled. Pure: no I/O and no clock; every prober drives it with its own.
//!
//! Three phases. The first `count` requests leave `interval` apart, whatever is outstanding, and each is answered or
//! times out. If none of them was answered in time, the retries follow one by one, each when the request before it
//! timed out. Then comes the late window, if there is one. The target is settled as soon as all first requests are
//! answered, or one was answered in time and the others timed out, or an answer arrives after the retries began, or
//! all waiting is over.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::{LocalLoss, Probing, Rtt, Status};

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
    /// The schedule that a plan asks for.
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

    /// The longest that the target can stay unsettled after `request` has left, if nothing is ever held up.
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
    /// Nothing before [`Course::wake_at`], unless something arrives.
    Wait,
    /// Nothing more: the finding stands.
    Settled,
}

/// What an answer was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credit {
    /// The first answer to a request that was in flight until now.
    InFlight,
    /// The first answer to a request that had already been given up as timed out.
    Expired,
    /// Not the first answer to this request, or no such request was sent.
    None,
}

/// One target on its way.
#[derive(Debug)]
pub struct Course {
    schedule: Arc<Schedule>,
    requests: Vec<Request>,
    /// Whether something was answered within its timeout.
    in_time: bool,
    /// Whether something was answered after the retries began.
    ended_by_answer: bool,
    unreachable: Option<Unreachable>,
    /// Of a pass before this one, of which nothing else counts.
    unreachable_before: Option<Unreachable>,
    no_arp: bool,
    errno: i32,
    own_loss: LocalLoss,
}

#[derive(Debug)]
struct Request {
    /// When it left, by which its round-trip time is told.
    left: Instant,
    /// By when the kernel had taken or refused it, by which what follows is due.
    at: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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

impl Course {
    /// A target to which nothing was sent yet.
    #[must_use]
    pub fn new(schedule: Arc<Schedule>) -> Self {
        Self {
            schedule,
            requests: Vec::new(),
            in_time: false,
            ended_by_answer: false,
            unreachable: None,
            unreachable_before: None,
            no_arp: false,
            errno: 0,
            own_loss: LocalLoss::default(),
        }
    }

    /// The same target from the start, because our own box may have lost an answer. Only an ICMP error is kept: the
    /// network did say it, and it decides the status unless something is answered.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            unreachable_before: self.unreachable_before.or(self.unreachable),
            ..Self::new(Arc::clone(&self.schedule))
        }
    }

    /// Gives up the requests whose timeout has passed by `now`, and says how many. Late answers to them still count.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        for (number, request) in self.requests.iter_mut().enumerate() {
            if request.state == State::InFlight && request.at + self.schedule.waits[number] <= now {
                request.state = State::Expired;
                expired += 1;
            }
        }
        expired
    }

    /// What to do now. Requests that should have timed out by now must have been given up with [`Self::expire`].
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

    /// The next moment after `now` at which time alone changes something; none when there is no such moment.
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
            .filter(|(_, request)| request.state == State::InFlight)
            .map(|(number, _)| self.deadline(number));
        timeouts.chain(due).filter(|at| *at > now).min()
    }

    /// The kernel took request `request`, the one that [`Step::Send`] named, at `at`: its clock starts.
    pub fn sent(&mut self, request: usize, at: Instant) {
        self.sent_by(request, at, at);
    }

    /// As [`Self::sent`], for a request of which the kernel had told by `at` that it left at about `left`: so what
    /// follows is never too early.
    pub fn sent_by(&mut self, request: usize, left: Instant, at: Instant) {
        self.enter(request, left, at, State::InFlight);
    }

    /// The kernel refused request `request`, the one that [`Step::Send`] named, for another reason than
    /// back-pressure. It counts as failed, and the repeats try again.
    pub fn refused(&mut self, request: usize, at: Instant, errno: i32) {
        self.errno = errno;
        self.enter(request, at, at, State::Refused);
    }

    fn enter(&mut self, request: usize, left: Instant, at: Instant, state: State) {
        debug_assert_eq!(request, self.requests.len(), "requests leave in order");
        // Most targets get one request, and there may be hundreds of thousands of them.
        self.requests.reserve_exact(1);
        self.requests.push(Request { left, at, state });
    }

    /// An echo reply to `request` came back after `rtt`. Whether that was in time is decided by `rtt` alone, however
    /// late the reply is looked at.
    pub fn answered(&mut self, request: usize, rtt: Duration) -> Credit {
        let retrying = self.requests.len() > self.schedule.count;
        let Some(asked) = self.requests.get_mut(request) else {
            return Credit::None;
        };
        let credit = match asked.state {
            State::InFlight => Credit::InFlight,
            State::Expired => Credit::Expired,
            State::Answered(_) | State::Refused => return Credit::None,
        };
        asked.state = State::Answered(rtt);
        self.in_time |= rtt <= self.schedule.waits[request];
        self.ended_by_answer |= retrying;
        credit
    }

    /// When request `request` left, or the kernel refused it.
    #[must_use]
    pub fn sent_at(&self, request: usize) -> Option<Instant> {
        self.requests.get(request).map(|request| request.left)
    }

    /// Whether a request left, and none was answered so far.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.count(|state| state != State::Refused) > 0
            && self.count(|state| matches!(state, State::Answered(_))) == 0
    }

    /// What our own box has lost, as far as the course alone tells: the kernel took a request and refused another one,
    /// which might have been answered.
    #[must_use]
    pub fn refused_in_part(&self) -> LocalLoss {
        let refused = self.count(|state| state == State::Refused);
        if refused > 0 && refused < self.requests.len() {
            LocalLoss::SEND_PATH
        } else {
            LocalLoss::default()
        }
    }

    /// Requests that may still be answered in time.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.count(|state| state == State::InFlight)
    }

    /// An ICMP error quoted one of our requests. It decides the status unless something is answered, and stops
    /// nothing. The first one is kept.
    pub fn unreachable(&mut self, error: Unreachable) {
        self.unreachable.get_or_insert(error);
    }

    /// Our own kernel reported that nobody answered its ARP or neighbour solicitation.
    pub fn no_arp(&mut self) {
        self.no_arp = true;
    }

    /// An answer to one of the requests may have been lost on our own box.
    pub fn lost(&mut self, cause: LocalLoss) {
        self.own_loss = self.own_loss.and(cause);
    }

    /// The finding as things stand, after `attempts` passes; `now` stands for the first request if there was none.
    #[must_use]
    pub fn finding(&self, attempts: u8, now: Instant) -> Finding {
        let sent = self.count(|state| state != State::Refused);
        let samples: Vec<_> = self
            .requests
            .iter()
            .filter_map(|request| match request.state {
                State::Answered(rtt) => Some(rtt),
                State::InFlight | State::Expired | State::Refused => None,
            })
            .collect();
        Finding {
            status: self.status(sent, samples.len()),
            sent: sent as u16,
            received: samples.len() as u16,
            rtt: Rtt::of(&samples),
            attempts,
            first_request: self.requests.first().map_or(now, |request| request.left),
        }
    }

    fn status(&self, sent: usize, received: usize) -> Status {
        let own_loss = self.own_loss.and(self.refused_in_part());
        if self.in_time {
            Status::Up
        } else if received > 0 {
            Status::Late
        } else if let Some(error) = self.unreachable_before {
            error.status()
        } else if sent == 0 && self.own_loss == LocalLoss::default() {
            Status::SendFailed { errno: self.errno }
        } else if let Some(error) = self.unreachable {
            error.status()
        } else if own_loss != LocalLoss::default() {
            Status::Unknown(own_loss)
        } else {
            Status::Down {
                no_arp: self.no_arp,
            }
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
            .all(|request| matches!(request.state, State::Answered(_)));
        if all_answered || self.ended_by_answer {
            return Due::Settled;
        }
        let waiting = self
            .requests
            .iter()
            .any(|request| request.state == State::InFlight);
        if waiting {
            return Due::Timeouts;
        }
        if !self.in_time && self.requests.len() < waits.len() {
            let previous = (0..self.requests.len()).map(|number| self.deadline(number));
            return Due::Request(previous.max().unwrap_or(last.at));
        }
        // Only a request that left can still be answered.
        let last_deadline = (0..self.requests.len())
            .filter(|number| self.requests[*number].state == State::Expired)
            .map(|number| self.deadline(number))
            .max();
        last_deadline.map_or(Due::Settled, |deadline| Due::End(deadline + late_window))
    }

    /// When a request times out. A refused one waits as long, so that its repeat comes no sooner than any other.
    fn deadline(&self, number: usize) -> Instant {
        self.requests[number].at + self.schedule.waits[number]
    }

    fn count(&self, of: impl Fn(State) -> bool) -> usize {
        self.requests
            .iter()
            .filter(|request| of(request.state))
            .count()
    }
}

/// What a course comes to next, if nothing arrives.
enum Due {
    /// The first request, which waits for nothing but the pace.
    First,
    Request(Instant),
    Timeouts,
    End(Instant),
    Settled,
}

#[cfg(test)]
mod tests;
