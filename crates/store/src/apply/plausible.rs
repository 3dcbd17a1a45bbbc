//! Checks a result against what its plan allows: no worker that keeps to the plan can exceed it. No I/O.
//!
//! The decoder has checked that the facts of an outcome do not contradict each other.

use std::{net::IpAddr, time::Duration};

use pingfleet_wire::{
    DownReason, Family, MAX_ATTEMPTS, Outcome, Probing, Status, Target, WorkChunk, is_host_address,
    timing::MAX_TARGET_TIME,
};

use super::Refusal;

/// The longest round trip. It is not the worst case of the plan: an answer counts until its target is settled, and a worker
/// keeps a target for longer when its requests wait for those of other targets. A prober counts no answer after
/// [`MAX_TARGET_TIME`]; its clocks may differ a little from each other.
const MAX_RTT: Duration = MAX_TARGET_TIME.saturating_add(Duration::from_secs(2));

/// What the plan of a chunk allows.
struct Allowed {
    sent: u32,
    family: Family,
}

/// Why the outcomes of a chunk cannot be true, if they cannot: the first reason. There is one outcome for each target.
pub(super) fn implausible(work: &WorkChunk, outcomes: &[Outcome]) -> Option<Refusal> {
    let allowed = Allowed::new(&work.probing);
    let targets = work.targets.iter().zip(outcomes);
    targets
        .enumerate()
        .find_map(|(position, (target, outcome))| {
            let (reason, detail) = allowed.refuse(target, outcome)?;
            Some(Refusal::new(reason, format!("target {position}: {detail}")))
        })
}

impl Allowed {
    fn new(probing: &Probing) -> Self {
        Self {
            sent: probing.most_requests(),
            family: probing.family,
        }
    }

    fn refuse(&self, target: &Target, outcome: &Outcome) -> Option<(&'static str, String)> {
        if u32::from(outcome.sent) > self.sent {
            return Some((
                "more requests than the plan allows",
                format!("{} of {}", outcome.sent, self.sent),
            ));
        }
        if !(1..=MAX_ATTEMPTS).contains(&outcome.attempts) {
            return Some((
                "an impossible number of attempts",
                outcome.attempts.to_string(),
            ));
        }
        if let Some(rtt) = &outcome.rtt
            && u128::from(rtt.max_ns) > MAX_RTT.as_nanos()
        {
            return Some((
                "an impossible round-trip time",
                format!("{} ms", rtt.max_ns / 1_000_000),
            ));
        }
        self.refuse_address(target, outcome)
            .or_else(|| refuse_responder(target, outcome))
    }

    fn refuse_address(&self, target: &Target, outcome: &Outcome) -> Option<(&'static str, String)> {
        let literal = literal(target);
        let Some(address) = outcome.address else {
            // What answered has an address.
            return (literal.is_none() && outcome.received > 0).then(|| {
                (
                    "a name that answered without an address",
                    target.to_string(),
                )
            });
        };
        if let Some(literal) = literal {
            return (literal != address.to_canonical()).then(|| {
                (
                    "another address than that of the target",
                    format!("{address} instead of {literal}"),
                )
            });
        }
        // The family is a choice between the addresses of a name.
        let is_wanted = match self.family {
            Family::Any => true,
            Family::V4 => address.to_canonical().is_ipv4(),
            Family::V6 => address.to_canonical().is_ipv6(),
        };
        (!is_wanted || !is_host_address(address)).then(|| {
            (
                "an address that no name of the plan has",
                address.to_string(),
            )
        })
    }
}

/// Checks who answered instead of the target, and with what.
fn refuse_responder(target: &Target, outcome: &Outcome) -> Option<(&'static str, String)> {
    let responder = match outcome.status {
        Status::Unreachable {
            icmp_type,
            reporter,
            ..
        } => {
            // Unreachable, time exceeded and parameter problem (RFC 792), and for IPv6 packet too big (RFC 4443).
            let is_error = match reporter.to_canonical() {
                IpAddr::V4(_) => matches!(icmp_type, 3 | 11 | 12),
                IpAddr::V6(_) => matches!(icmp_type, 1..=4),
            };
            if !is_error {
                return Some((
                    "an ICMP type that is no error about a target",
                    format!("type {icmp_type} from {reporter}"),
                ));
            }
            reporter
        }
        Status::Down(DownReason::AnsweredBy(address)) => address,
        _ => return None,
    };
    let probed = literal(target).or(outcome.address.map(|address| address.to_canonical()));
    let is_same_family =
        probed.is_none_or(|probed| probed.is_ipv4() == responder.to_canonical().is_ipv4());
    let is_possible = is_same_family && is_host_address(responder);
    (!is_possible).then(|| {
        (
            "an address that cannot have answered",
            responder.to_string(),
        )
    })
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
