//! Compares what a prober found with what a scenario expects, and both with what the network saw.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use pingfleet_testbed::simnet::Traffic;
use pingfleet_wire::{LocalLoss, MAX_ATTEMPTS, Outcome, Probing, Rtt, Status};

use crate::{
    probing::Found,
    scenario::{Expected, Scenario, Variant},
};

/// By how much a single request may leave early, and by how much a round trip may be too short for a prober that reads its
/// clock after it has sent, because it may wait for a processor in between. All times in the scenarios are so long that a
/// wrong one differs by more. [`crate::exact`] bounds the median of many requests.
pub(crate) const EARLY: Duration = Duration::from_millis(40);

/// All deviations of one variant of a scenario from what is expected.
pub(crate) fn faults(
    scenario: &Scenario,
    variant: Variant,
    found: &Found,
    traffic: &Traffic,
) -> Vec<String> {
    let probing = scenario.probing.probing();
    let departures = traffic.departures();
    let mut faults = Vec::new();
    let mut outcomes = found.outcomes.iter();
    if scenario.drops && found.drops == 0 {
        faults.push("the sockets held everything".to_owned());
    }
    for group in &scenario.targets {
        let Some(expected) = &group.expect else {
            continue;
        };
        let mut up_again = 0;
        let mut shortest = Vec::new();
        for (host, outcome) in group.hosts().zip(outcomes.by_ref()) {
            up_again += u32::from(outcome.status == Status::Up && outcome.attempts > 1);
            if !expected.is_of(variant) {
                continue;
            }
            shortest.extend(outcome.rtt.map(|rtt| rtt.min_ns));
            let seen = Seen {
                variant,
                host,
                departures: departures.get(&host).map_or(&[], Vec::as_slice),
                answered: traffic.answered(host),
            };
            let found = [
                seen.status(expected, outcome),
                seen.counts(expected, outcome),
                seen.round_trips(expected, outcome),
                seen.schedule(&probing, outcome),
            ];
            let found = found.into_iter().flatten();
            faults.extend(found.map(|fault| format!("host {host}: {fault}; {outcome:?}")));
        }
        shortest.sort_unstable();
        let median = shortest.get(shortest.len() / 2);
        if let (Some([low, high]), Some(median)) = (expected.median_rtt, median) {
            let median = Duration::from_nanos(*median);
            let is_stamped = variant.engine.is_stamped_by_kernel;
            if median + short(is_stamped) < low || median > high && is_stamped {
                faults.push(format!("a median of {median:?} of {:?}", group.hosts()));
            }
        }
        if expected.some_up_again && up_again == 0 {
            faults.push(format!("no repeat helped: {:?}", group.hosts()));
        }
    }
    faults.extend(network(scenario, &departures, &probing, traffic));
    faults
}

/// Whether every silent target was probed again, although no scenario event required that. `None` without such a target,
/// or for a prober that makes one attempt only.
pub(crate) fn repeats_all_silent(
    scenario: &Scenario,
    variant: Variant,
    outcomes: &[Outcome],
) -> Option<bool> {
    let mut outcomes = outcomes.iter();
    let mut silent = Vec::new();
    for group in &scenario.targets {
        if let Some(expected) = &group.expect {
            let of_group = outcomes.by_ref().take(group.hosts().count());
            let needless = expected.status == "down" && expected.attempts == 1;
            silent.extend(of_group.filter(|_| needless && expected.is_of(variant)));
        }
    }
    let repeats = variant.engine.repeats_after_stall && !silent.is_empty();
    repeats.then(|| silent.iter().all(|outcome| outcome.attempts > 1))
}

/// Deviations of the network itself, and of all hosts together.
fn network(
    scenario: &Scenario,
    departures: &HashMap<u32, Vec<u64>>,
    probing: &Probing,
    traffic: &Traffic,
) -> Vec<String> {
    let mut faults = Vec::new();
    if traffic.lost_before > 0 {
        faults.push(format!("the network lost {} requests", traffic.lost_before));
    }
    let (delivered, messages) = (traffic.delivered, traffic.messages);
    if delivered != messages {
        faults.push(format!("{delivered} of {messages} messages were delivered"));
    }
    if delivered < scenario.at_least_delivered {
        faults.push(format!("{delivered} messages were delivered in time"));
    }
    let probed: HashSet<_> = scenario.probed().collect();
    let stray = departures.keys().filter(|host| !probed.contains(*host));
    faults.extend(stray.map(|host| format!("host {host} was never to be probed")));
    let other = traffic
        .requests
        .iter()
        .find(|request| request.size != probing.size);
    faults.extend(other.map(|request| format!("a payload of another size: {request:?}")));
    let mut keys = HashSet::new();
    let twice = traffic
        .requests
        .iter()
        .find(|request| !keys.insert((request.host, request.identifier, request.sequence)));
    faults.extend(twice.map(|request| {
        format!("two requests with the same address, identifier and sequence: {request:?}")
    }));
    faults
}

/// A host as the network saw it.
struct Seen<'a> {
    variant: Variant,
    host: u32,
    departures: &'a [u64],
    answered: u32,
}

impl Seen<'_> {
    fn status(&self, expected: &Expected, outcome: &Outcome) -> Option<String> {
        // A busy machine may stall any prober. One that makes a single attempt then reports `unknown`.
        if outcome.status == Status::Unknown(LocalLoss::STALLED)
            && expected.status == "down"
            && !self.variant.engine.repeats_after_stall
        {
            return None;
        }
        let status = outcome.status.name();
        if !expected.status.split('|').any(|wanted| wanted == status) {
            return Some(format!("{status} and not {}", expected.status));
        }
        let reason = outcome.status.reason();
        if let Some(reported) = expected.error {
            let family = self.variant.family;
            let Some((icmp_type, code)) = reported.send.error(family) else {
                return Some(format!("{family:?} has no {:?}", reported.send));
            };
            let reporter = family.address(reported.source.unwrap_or(self.host));
            let wanted = format!("type {icmp_type} code {code} from {reporter}");
            return (reason.as_ref() != Some(&wanted))
                .then(|| format!("reason {reason:?} and not {wanted}"));
        }
        let names_who_answered = self.variant.engine.names_who_answered;
        let answered_by = expected.answered_by.filter(|_| names_who_answered);
        let answered_by = answered_by.map(|host| {
            let address = self.variant.family.address(host);
            format!("answered_by {address}")
        });
        let wanted = answered_by.as_ref().or(expected.reason.as_ref());
        let is_right = match (wanted, &reason) {
            (Some(part), Some(reason)) => reason.contains(part),
            (Some(_), None) => expected.status.contains('|'),
            (None, reason) => reason.is_none(),
        };
        (!is_right).then(|| format!("reason {reason:?} and not {wanted:?}"))
    }

    fn counts(&self, expected: &Expected, outcome: &Outcome) -> Option<String> {
        let (left, sent) = (self.departures.len(), usize::from(outcome.sent));
        let received = expected.received.or(expected
            .received_as_answered
            .then_some(self.answered as u16));
        // A busy machine may stall the prober, which then makes another attempt at silent targets.
        let max_attempts = match outcome.received {
            0 => MAX_ATTEMPTS,
            _ => expected.attempts,
        };
        if outcome.attempts > max_attempts {
            Some(format!("{} attempts", outcome.attempts))
        } else if expected.sent.is_some_and(|sent| sent != outcome.sent) {
            Some(format!("{} sent", outcome.sent))
        } else if received.is_some_and(|received| received != outcome.received) {
            Some(format!(
                "{} received, {} answered",
                outcome.received, self.answered
            ))
        } else if left < sent || outcome.attempts == 1 && left != sent {
            Some(format!("{left} requests left"))
        } else {
            None
        }
    }

    fn round_trips(&self, expected: &Expected, outcome: &Outcome) -> Option<String> {
        let rtt = outcome.rtt?;
        let is_stamped = self.variant.engine.is_stamped_by_kernel;
        let [min, mean, max] = [rtt.min_ns, rtt.avg_ns, rtt.max_ns].map(Duration::from_nanos);
        if let Some([low, high]) = expected.rtt
            && (min + short(is_stamped) < low || max > high && is_stamped)
        {
            return Some(format!("round trips from {min:?} to {max:?}"));
        }
        if let Some([low, high]) = expected.mean_rtt
            && is_stamped
            && !(low..=high).contains(&mean)
        {
            return Some(format!("a mean round trip of {mean:?}"));
        }
        (!agrees(&rtt, outcome.received)).then(|| format!("figures that do not agree: {rtt:?}"))
    }

    /// No request leaves early. Checked for targets with a single attempt, whose schedule is known.
    fn schedule(&self, probing: &Probing, outcome: &Outcome) -> Option<String> {
        (1..self.departures.len())
            .filter(|_| outcome.attempts == 1)
            .find_map(|request| {
                let at = self.departures[request];
                let due = due(probing, &self.departures[..request]);
                let early = Duration::from_nanos(due.saturating_sub(at));
                (early > EARLY).then(|| format!("request {request} left {early:?} early"))
            })
    }
}

/// By how much a round trip may be too short.
fn short(is_stamped: bool) -> Duration {
    if is_stamped { Duration::ZERO } else { EARLY }
}

/// Whether mean and population standard deviation agree with two or three round trips, which can be computed from the
/// figures. More round trips cannot be checked.
fn agrees(rtt: &Rtt, round_trips: u16) -> bool {
    const ROUNDING: f64 = 10.0;
    let [min, mean, max] = [rtt.min_ns, rtt.avg_ns, rtt.max_ns].map(|ns| ns as f64);
    let all = match round_trips {
        1 | 2 => vec![min, max],
        3 => vec![min, 3.0 * mean - min - max, max],
        _ => return true,
    };
    let count = all.len() as f64;
    let is_mean = (all.iter().sum::<f64>() / count - mean).abs() < ROUNDING;
    let variance = all.iter().map(|ns| (ns - mean).powi(2)).sum::<f64>() / count;
    let is_between = all
        .iter()
        .all(|ns| *ns > min - ROUNDING && *ns < max + ROUNDING);
    is_mean && is_between && (variance.sqrt() - rtt.stddev_ns as f64).abs() < ROUNDING
}

/// When the request after `before` is due, if no answer changes that.
pub(crate) fn due(probing: &Probing, before: &[u64]) -> u64 {
    let nanos = |duration: Duration| duration.as_nanos() as u64;
    if before.len() < usize::from(probing.count) {
        return before
            .last()
            .map_or(0, |last| last + nanos(probing.interval));
    }
    let deadlines = before
        .iter()
        .enumerate()
        .map(|(number, at)| at + nanos(probing.wait(number as u32)));
    deadlines.max().unwrap_or(0)
}
