//! From the targets of a chunk to its outcomes, each at the position of its target. No I/O.

use std::{iter, time::Instant};

use pingfleet_wire::{Outcome, Target};

use crate::{
    prober::{Destination, Finding},
    resolve::{Unresolved, literal},
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

    /// The targets whose address is known, and the names to resolve, each with its position. A text that can be
    /// neither gets its outcome at once.
    pub(super) fn split_targets(
        &mut self,
    ) -> (Vec<Positioned<Destination>>, Vec<Positioned<&'a str>>) {
        let mut known = Vec::with_capacity(self.targets.len());
        let mut names = Vec::new();
        for (position, target) in self.targets.iter().enumerate() {
            match target {
                Target::Address(address) => known.push((position, (*address).into())),
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
            self.outcomes[*position] = Some(Outcome {
                status: finding.status,
                address: match self.targets[*position] {
                    Target::Address(_) => None,
                    Target::Text(_) => Some(destination.address),
                },
                sent: finding.sent,
                received: finding.received,
                rtt: finding.rtt,
                attempts: finding.attempts,
                probed_after_us: self.since_start(finding.first_request),
            });
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
