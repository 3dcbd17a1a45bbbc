//! From the targets of a chunk to its outcomes, each at the position of its target. No I/O.

use std::{iter, time::Instant};

use pingfleet_wire::{LocalLoss, Outcome, Status, Target};
use tracing::error;

use crate::{
    prober::{Destination, Finding},
    resolve::{Unresolved, literal, of_host},
};

/// Something about the target at this position of the chunk.
pub(super) type Positioned<T> = (usize, T);

/// The outcomes of one chunk, as far as they are known.
pub(super) struct ChunkOutcomes<'a> {
    targets: &'a [Target],
    started: Instant,
    outcomes: Vec<Option<Outcome>>,
}

impl<'a> ChunkOutcomes<'a> {
    /// For a chunk whose probing began at `started`.
    pub(super) fn new(targets: &'a [Target], started: Instant) -> Self {
        Self {
            targets,
            started,
            outcomes: vec![None; targets.len()],
        }
    }

    /// The targets whose address is known, and the names to resolve, each with its position. A target that can be
    /// neither gets its outcome at once.
    pub(super) fn split_targets(
        &mut self,
    ) -> (Vec<Positioned<Destination>>, Vec<Positioned<&'a str>>) {
        let mut known = Vec::with_capacity(self.targets.len());
        let mut names = Vec::new();
        for (position, target) in self.targets.iter().enumerate() {
            match target {
                Target::Address(address) => match of_host(*address) {
                    Ok(destination) => known.push((position, destination)),
                    Err(unresolved) => self.not_probed(position, unresolved),
                },
                Target::Text(text) => match literal(text) {
                    Some(Ok(destination)) => known.push((position, destination)),
                    Some(Err(unresolved)) => self.not_probed(position, unresolved),
                    None => names.push((position, text.as_str())),
                },
            }
        }
        (known, names)
    }

    /// The target at `position` has no address.
    pub(super) fn not_probed(&mut self, position: usize, unresolved: Unresolved) {
        self.outcomes[position] = Some(Outcome {
            status: unresolved.status(),
            address: None,
            sent: 0,
            received: 0,
            rtt: None,
            attempts: 1,
            probed_after_us: self.since_start(Instant::now()),
        });
    }

    /// The n-th finding belongs to the n-th destination.
    pub(super) fn found(&mut self, destinations: &[Positioned<Destination>], findings: &[Finding]) {
        for ((position, destination), finding) in iter::zip(destinations, findings) {
            let target = &self.targets[*position];
            let outcome = Outcome {
                status: finding.status,
                address: match target {
                    Target::Address(_) => None,
                    Target::Text(_) => Some(destination.address),
                },
                sent: finding.sent,
                received: finding.received,
                rtt: finding.rtt,
                attempts: finding.attempts,
                probed_after_us: self.since_start(finding.first_request),
            };
            self.outcomes[*position] = Some(checked(target, outcome));
        }
    }

    /// All outcomes; `None` when one is missing.
    pub(super) fn complete(self) -> Option<Vec<Outcome>> {
        self.outcomes.into_iter().collect()
    }

    fn since_start(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.started).as_micros() as u64
    }
}

/// The outcome, if its facts agree. A reader would refuse the whole chunk because of one that contradicts itself. Only a
/// defect of a prober makes one: it is logged, and what is not known of this target is `unknown`.
fn checked(target: &Target, outcome: Outcome) -> Outcome {
    let Err(problem) = outcome.check() else {
        return outcome;
    };
    error!(
        %target,
        problem,
        status = outcome.status.name(),
        sent = outcome.sent,
        received = outcome.received,
        "the prober's finding contradicts itself: the target is unknown"
    );
    Outcome {
        status: Status::Unknown(LocalLoss::INTERRUPTED),
        received: 0,
        rtt: None,
        ..outcome
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_finding_that_contradicts_itself_costs_no_other_target() {
        let now = Instant::now();
        let addresses = [1, 2, 3].map(|host| Ipv4Addr::new(192, 0, 2, host).into());
        let targets = addresses.map(Target::Address);
        let refused = Finding::refused(101, now);
        let wrong = Finding {
            status: Status::Up,
            ..refused.clone()
        };
        let mut outcomes = ChunkOutcomes::new(&targets, now);
        let destinations: Vec<_> = addresses
            .map(Destination::from)
            .into_iter()
            .enumerate()
            .collect();
        outcomes.found(&destinations, &[refused.clone(), wrong, refused]);
        let outcomes = outcomes.complete().unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.check().is_ok()));
        let statuses = outcomes.iter().map(|outcome| outcome.status);
        let refused = Status::SendFailed { errno: 101 };
        let unknown = Status::Unknown(LocalLoss::INTERRUPTED);
        assert!(statuses.eq([refused, unknown, refused]));
    }
}
