//! The way of one socket's requests out of this machine: what to do about a request that the kernel refuses, how fast to
//! send while a filter admits only a part, and when the next hop was lost. The only I/O is a lookup of a route, after a
//! refusal.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use pingfleet_wire::LocalLoss;
use tracing::warn;

use super::{Probes, Staged};
use crate::{
    linux::{
        SocketKey,
        local_loss::{KnownRoute, LossDetector, Recovery, Refused, RefusedPath, Slowdown, Verdict},
        network::way_out,
    },
    prober::Destination,
    socket::Egress,
};

/// Discards of the kernel slow a socket down when they are at least its requests divided by this.
const MIN_DISCARDED: u64 = 50;

/// The state of the way out of one socket.
#[derive(Debug)]
pub(super) struct SendPath {
    egress: Egress,
    /// The gateway, if all requests go by one that is known, with its interface.
    gateway: Option<(String, IpAddr)>,
    /// Whether requests go by a gateway, known or not.
    is_by_gateway: bool,
    refused: RefusedPath,
    slowdown: Slowdown,
    /// Of each interface that had an outage.
    recoveries: HashMap<String, Recovery>,
    gateway_lost: Option<Instant>,
    /// Whether the next hop was lost at the last check.
    is_broken: bool,
    /// The destination of the last request that the kernel accepted.
    accepted_to: Option<Destination>,
    /// Whether the kernel still has a way out to that destination, if that was looked up for this batch.
    accepted_to_is_open: Option<bool>,
    /// Targets that were refused in this batch after the last request that was accepted.
    suspects: Vec<u32>,
    /// Requests accepted since discards were last compared with them.
    accepted: u64,
    /// The kernel's counter of discards at that time.
    discarded: u64,
    compared: Instant,
}

impl SendPath {
    pub(super) fn new(key: &SocketKey, detector: &LossDetector, now: Instant) -> Self {
        let network = detector.network();
        Self {
            egress: key.egress.clone(),
            gateway: network.gateway(key.egress.is_v6(), key.next_hop),
            is_by_gateway: network.is_by_gateway(key.egress.is_v6(), key.next_hop),
            refused: RefusedPath::new(),
            slowdown: Slowdown::new(now),
            recoveries: HashMap::new(),
            gateway_lost: None,
            is_broken: false,
            accepted_to: None,
            accepted_to_is_open: None,
            suspects: Vec::new(),
            accepted: 0,
            discarded: detector.discarded(),
            compared: now,
        }
    }

    /// The interface by which all requests leave, if there is only one.
    fn interface(&self) -> Option<&str> {
        let of_gateway = self.gateway.as_ref().map(|(name, _)| name.as_str());
        self.egress.interface().or(of_gateway)
    }

    /// Whether requests go by a gateway whose link address must be known.
    pub(super) fn has_gateway(&self) -> bool {
        self.is_by_gateway
    }

    /// Whether the kernel refuses what is sent: then other targets than the refused ones are tried first.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_refused()
    }

    /// When the next request may leave, after this machine itself has lost a part of them; `None` means now.
    pub(super) fn open_at(&self, now: Instant) -> Option<Instant> {
        self.slowdown.open_at(now)
    }

    /// A request is about to leave.
    pub(super) fn take(&mut self, now: Instant) {
        self.slowdown.take(now);
    }

    /// A request to `to` that left at `sent` was answered.
    pub(super) fn answered(&mut self, to: IpAddr, sent: Instant, detector: &LossDetector) {
        let awaits = |recovery: &Recovery| recovery.awaits(sent);
        if !self.recoveries.values().any(awaits) {
            return;
        }
        let network = detector.network();
        let Some(name) = self.interface().or_else(|| network.interface_to(to)) else {
            return;
        };
        let name = name.to_owned();
        if let Some(recovery) = self.recoveries.get_mut(&name) {
            recovery.answered(sent);
        }
    }

    /// A target that was refused is accepted now.
    pub(super) fn gave_way(&mut self, refused: &Refused) {
        if refused.is_by_filter() {
            self.refused.filter_gave_way();
        }
    }

    /// Slows down if the kernel has discarded more than a small part of what it accepted. `discarded` is its counter, which is
    /// read somewhat less often than this is called.
    fn compare_discards(&mut self, discarded: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.compared);
        if elapsed < Slowdown::INTERVAL {
            return;
        }
        self.compared = now;
        let more = discarded - std::mem::replace(&mut self.discarded, discarded);
        let accepted = std::mem::take(&mut self.accepted);
        if more > 0 && more >= accepted / MIN_DISCARDED {
            let admitted = accepted.saturating_sub(more);
            self.slowdown.discarded(admitted, elapsed);
        }
    }

    /// Whether a target that the kernel refuses with `errno` is refused alone: the kernel still has a way out to the last
    /// destination that it accepted. What a filter does cannot be looked up.
    fn is_refused_alone(&mut self, to: Destination, errno: Errno) -> bool {
        let Some(accepted) = self
            .accepted_to
            .filter(|accepted| accepted.address != to.address)
        else {
            return false;
        };
        if errno == Errno::EPERM {
            return false;
        }
        *self
            .accepted_to_is_open
            .get_or_insert_with(|| way_out::is_open(accepted, &self.egress).unwrap_or_default())
    }
}

impl Probes {
    /// The kernel refused a request for good.
    pub(in crate::linux) fn refused(&mut self, staged: Staged, at: Instant, errno: i32) {
        self.sequence.remove(staged.request_id);
        self.window.release(1);
        let target = self.table.target_mut(staged.target);
        target.state.refused(staged.request, at, errno);
        self.update(staged.target);
    }

    /// The kernel will accept a request later. Requests of one batch must be put back from the last to the first.
    pub(in crate::linux) fn put_back(&mut self, staged: Staged) {
        self.sequence.remove(staged.request_id);
        self.window.release(1);
        self.path.slowdown.give_back();
        self.table.give_back_token(staged.target);
        self.table.push_front(staged.target);
    }

    /// The kernel refused a request because of this machine's own path. The target waits, or is settled if that has lasted
    /// too long. Returns how long the socket pauses, if the path of all targets seems to be refused.
    pub(in crate::linux) fn refused_by_path(
        &mut self,
        staged: Staged,
        at: Instant,
        errno: Errno,
    ) -> Option<Duration> {
        self.sequence.remove(staged.request_id);
        self.window.release(1);
        let index = staged.target;
        self.path.slowdown.give_back();
        self.table.give_back_token(index);
        let to = self.table.target(index).to;
        let is_alone = self.path.is_refused_alone(to, errno);
        let target = self.table.target_mut(index);
        let refused = target.refused.get_or_insert(Refused::at(at));
        refused.count(errno);
        if is_alone {
            refused.was_alone();
        }
        let refused = *refused;
        let is_admitted = target.attempts > 1 || target.state.has_sent();
        let network = self.detector.network();
        let route = KnownRoute {
            was_there: network.had_route(to.address),
            refuses: network.route_refuses(to.address),
            known_until: network.routes_known_until(),
        };
        drop(network);
        let path = &self.path.refused;
        let verdict = path.judge(&refused, errno, is_admitted, route, at);
        match verdict {
            Verdict::Wait => {
                self.table.retry_at(index, refused.retry_at(at));
                self.path.suspects.push(index);
            }
            Verdict::Lost => self.path_stayed_away(staged, at, errno),
            Verdict::SendFailed => self.settle_request(staged, at, errno),
        }
        if is_alone {
            return None;
        }
        let pause = self.path.refused.refused(at);
        if pause.is_some() {
            let path = &self.path.refused;
            if errno == Errno::EPERM && path.filter_limits_rate() && path.is_in_use(at) {
                self.path.slowdown.lost(at);
            }
            let cause = self.refusal_cause(errno, to.address, at);
            // Before that the cause may be a wrong one, and there will be more refusals.
            let is_known = self.detector.network().known_until() >= self.path.refused.since();
            if verdict == Verdict::Wait && is_known {
                self.report(index, cause);
            }
        }
        pause
    }

    /// The path of a target stayed away: its answer is lost on this machine.
    fn path_stayed_away(&mut self, staged: Staged, at: Instant, errno: Errno) {
        let index = staged.target;
        let to = self.table.target(index).to.address;
        let cause = self.refusal_cause(errno, to, at);
        let state = &mut self.table.target_mut(index).state;
        if state.known_losses().is_none() {
            state.local_loss(cause);
            self.counters.add_local_loss(cause);
        }
        self.report(index, cause);
        self.settle_request(staged, at, errno);
    }

    /// The request of a target counts as refused.
    fn settle_request(&mut self, staged: Staged, at: Instant, errno: Errno) {
        let state = &mut self.table.target_mut(staged.target).state;
        state.refused(staged.request, at, errno as i32);
        self.update(staged.target);
    }

    fn refusal_cause(&self, errno: Errno, to: IpAddr, at: Instant) -> LocalLoss {
        let mut network = self.detector.network_mut();
        network.refusal_cause(errno, to, self.interface.as_deref(), at)
    }

    /// The kernel accepted requests, the last one to `last`.
    pub(super) fn path_accepted(&mut self, requests: u32, last: u32, now: Instant) {
        self.path.accepted_to = Some(self.table.target(last).to);
        self.path.accepted += u64::from(requests);
        self.path.slowdown.accepted(requests, now);
        if self.path.refused.accepted(now) {
            // What was known of the next hop may be gone.
            self.window.restart(now);
        }
        for index in self.path.suspects.drain(..) {
            if let Some(refused) = &mut self.table.target_mut(index).refused {
                refused.was_alone();
            }
        }
    }

    /// All requests of a batch are accepted, refused or put back.
    pub(in crate::linux) fn batch_ended(&mut self) {
        self.path.suspects.clear();
        self.path.accepted_to_is_open = None;
    }

    /// Looks whether the next hop was lost, and whether the kernel has discarded requests without a report. Call it after
    /// the detector's check. `may_discard` says whether this socket gets no errors for what is discarded.
    pub(in crate::linux) fn check_path(&mut self, may_discard: bool, now: Instant) {
        let network = self.detector.network();
        let mut is_broken = false;
        let recent: Vec<_> = network
            .recent_outages(self.path.interface(), now)
            .map(|(name, seen)| (name.to_owned(), seen))
            .collect();
        let gateway = self.path.gateway.as_ref();
        let gateway_lost = gateway.and_then(|gateway| network.gateway_last_lost(gateway, now));
        drop(network);
        for (name, seen) in recent {
            is_broken |= self.path.recoveries.entry(name).or_default().outage(seen);
        }
        if gateway_lost > self.path.gateway_lost {
            self.path.gateway_lost = gateway_lost;
            is_broken = true;
        }
        if is_broken != self.path.is_broken {
            self.path.is_broken = is_broken;
            self.window.restart(now);
        } else if is_broken {
            self.window.delay_opening(now);
        }
        if may_discard {
            let discarded = self.detector.discarded();
            self.path.compare_discards(discarded, now);
        }
    }

    /// The causes by which the path may have lost a request to `to` that left at `first`, or its answer.
    pub(super) fn path_losses(&self, to: IpAddr, first: Instant) -> LocalLoss {
        let network = self.detector.network();
        let grace = |name: &str| {
            let recovery = self.path.recoveries.get(name);
            recovery.map_or(Duration::ZERO, Recovery::grace)
        };
        let cause = network.may_have_lost(to, self.interface.as_deref(), first, grace);
        let shared = (self.path.is_by_gateway && self.path.gateway.is_none())
            .then(|| network.gateway_to(to, self.interface.as_deref()));
        let shared = shared.flatten();
        let gateway = self.path.gateway.as_ref().or(shared.as_ref());
        if gateway.is_some_and(|gateway| network.gateway_may_have_lost(gateway, first)) {
            cause.and(LocalLoss::GATEWAY_NO_ARP)
        } else {
            cause
        }
    }

    /// Warns of each cause once a run.
    pub(super) fn report(&self, index: u32, loss: LocalLoss) {
        if loss.is_none() || !self.table.pace(index).is_first_report(loss) {
            return;
        }
        let target = self.table.target(index).to.address;
        for cause in loss.causes() {
            let Some((condition, fix)) = advice(cause) else {
                continue;
            };
            if cause == LocalLoss::GATEWAY_NO_ARP
                && let Some((interface, gateway)) = &self.path.gateway
            {
                warn!(%target, %gateway, interface, "{condition}: {fix}");
            } else {
                warn!(%target, "{condition}: {fix}");
            }
        }
    }
}

/// What is wrong with this machine's path, and what to do about it. Causes with a message of their own have none.
fn advice(cause: LocalLoss) -> Option<(&'static str, &'static str)> {
    Some(match cause {
        LocalLoss::LINK_DOWN => (
            "a link of this machine is down, targets are probed again when it works",
            "see `ip link`",
        ),
        LocalLoss::NO_ROUTE => (
            "this machine has no route to a target, or one that refuses, it is probed again when there is one",
            "see `ip route get` with its address",
        ),
        LocalLoss::NO_ADDRESS => (
            "this machine has lost an address, targets are probed again when it is back",
            "see `ip address`",
        ),
        LocalLoss::GATEWAY_NO_ARP => (
            "a gateway does not answer ARP or neighbour solicitations, targets behind it are probed again",
            "see `ip neighbour`, and whether the gateway runs",
        ),
        LocalLoss::LOCAL_FIREWALL => (
            "a filter of this machine refuses requests, sending is slowed down and they are repeated",
            "let it accept outgoing ICMP echo requests, or choose a lower --rate",
        ),
        LocalLoss::RP_FILTER => (
            "the reverse path filter of this machine drops incoming messages, targets are probed again",
            "run `sysctl -w net.ipv4.conf.all.rp_filter=2` as root, or see `pingfleet doctor`",
        ),
        _ => return None,
    })
}
