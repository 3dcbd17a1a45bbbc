//! Checks a result against what its plan allows: no worker that keeps to the plan can exceed it. No I/O.
//!
//! The decoder has checked that the facts of an outcome do not contradict each other.

use std::{net::IpAddr, time::Duration};

use pingfleet_wire::{
    DownReason, Family, Outcome, Probing, Status, Target, WorkChunk, is_host_address,
};

/// How much longer than the worst case of a target a round trip may take: a machine under load is late.
const RTT_ALLOWANCE: Duration = Duration::from_secs(2);

/// The most passes of probing: the first one, and two more for what this machine may have lost (`MAX_ATTEMPTS` of the
/// prober).
const MAX_ATTEMPTS: u8 = 3;

/// What the plan of a chunk allows.
struct Allowed {
    sent: u32,
    rtt_ns: u128,
    family: Family,
}

/// Why the outcomes of a chunk cannot be true, if they cannot: the first reason. There is one outcome for each target.
pub(super) fn implausible(work: &WorkChunk, outcomes: &[Outcome]) -> Option<String> {
    let allowed = Allowed::new(&work.probing);
    let targets = work.targets.iter().zip(outcomes);
    targets
        .enumerate()
        .find_map(|(position, (target, outcome))| {
            let reason = allowed.refuse(target, outcome)?;
            Some(format!("target {position}: {reason}"))
        })
}

impl Allowed {
    fn new(probing: &Probing) -> Self {
        let requests = probing.most_requests();
        let worst = probing.worst_target() + probing.sending(requests.into());
        Self {
            sent: requests,
            rtt_ns: (worst + RTT_ALLOWANCE).as_nanos(),
            family: probing.family,
        }
    }

    fn refuse(&self, target: &Target, outcome: &Outcome) -> Option<String> {
        if u32::from(outcome.sent) > self.sent {
            return Some(format!(
                "{} requests where the plan allows {}",
                outcome.sent, self.sent
            ));
        }
        if !(1..=MAX_ATTEMPTS).contains(&outcome.attempts) {
            return Some(format!("{} passes of probing", outcome.attempts));
        }
        if let Some(rtt) = &outcome.rtt
            && u128::from(rtt.max_ns) > self.rtt_ns
        {
            return Some(format!(
                "a round trip of {} ms where the plan allows {} ms",
                rtt.max_ns / 1_000_000,
                self.rtt_ns / 1_000_000
            ));
        }
        self.refuse_address(target, outcome)
    }

    fn refuse_address(&self, target: &Target, outcome: &Outcome) -> Option<String> {
        let literal = literal(target);
        if let Some(address) = outcome.address {
            if literal.is_some_and(|literal| literal != address.to_canonical()) {
                return Some(format!("{address} was probed instead of the target"));
            }
            let is_wanted = match self.family {
                Family::Any => true,
                Family::V4 => address.to_canonical().is_ipv4(),
                Family::V6 => address.to_canonical().is_ipv6(),
            };
            // The family is a choice between the addresses of a name.
            if literal.is_none() && !(is_wanted && is_host_address(address)) {
                return Some(format!("{address} is no address of a name in this plan"));
            }
        }
        let responder = responder(&outcome.status)?;
        let probed = literal.or(outcome.address.map(|address| address.to_canonical()));
        let is_same_family =
            probed.is_none_or(|probed| probed.is_ipv4() == responder.to_canonical().is_ipv4());
        let is_possible = is_same_family && is_host_address(responder);
        (!is_possible).then(|| format!("{responder} cannot have answered"))
    }
}

/// The address of a target that is one, whatever its spelling and without its zone.
fn literal(target: &Target) -> Option<IpAddr> {
    match target {
        Target::Address(address) => Some(address.to_canonical()),
        Target::Text(text) => {
            let address = text.split('%').next().unwrap_or_default();
            Some(address.parse::<IpAddr>().ok()?.to_canonical())
        }
    }
}

/// Who answered, where that is not the target.
fn responder(status: &Status) -> Option<IpAddr> {
    match status {
        Status::Unreachable { reporter, .. } => Some(*reporter),
        Status::Down(DownReason::AnsweredBy(address)) => Some(*address),
        _ => None,
    }
}
