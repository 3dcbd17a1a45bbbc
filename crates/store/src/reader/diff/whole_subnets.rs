//! Subnets of which all targets changed in the same way. No I/O.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{ChangeKind, Pair};

/// The fewest changes of a subnet that changed as a whole: with fewer, they say nothing about the subnet.
const MIN_CHANGES: i64 = 4;

/// A /24 or /64 with at least four changes of a kind that leave out none of its targets: all that answered stopped, or
/// none had answered and some do now, all of them appeared, disappeared, or answer slower or faster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeSubnet {
    /// The network.
    pub subnet: IpNet,
    /// What changed.
    pub kind: ChangeKind,
    /// How many targets.
    pub targets: i64,
}

/// Counts for one subnet.
#[derive(Debug, Default)]
struct Tally {
    changes: [i64; ChangeKind::ALL.len()],
    /// Targets of each run.
    in_run: [i64; 2],
    /// Of the targets that are in both runs and never `unknown`: all, those that answered in each run, and those that
    /// answered in both.
    known: i64,
    answered: [i64; 2],
    answered_twice: i64,
}

impl Tally {
    fn add(&mut self, pair: &Pair, kinds: [Option<ChangeKind>; 2]) {
        for kind in kinds.into_iter().flatten() {
            self.changes[kind as usize] += 1;
        }
        let (before, after) = pair.sides();
        self.in_run[0] += i64::from(before.is_some());
        self.in_run[1] += i64::from(after.is_some());
        if let (Some(before), Some(after)) = (before, after)
            && !before.is_unknown()
            && !after.is_unknown()
        {
            self.known += 1;
            self.answered[0] += i64::from(before.answered());
            self.answered[1] += i64::from(after.answered());
            self.answered_twice += i64::from(before.answered() && after.answered());
        }
    }

    /// Whether the changes of a kind leave out no target that could have changed so.
    fn is_whole(&self, kind: ChangeKind) -> bool {
        let changes = self.changes[kind as usize];
        let is_all = match kind {
            ChangeKind::StoppedAnswering => changes == self.answered[0] && self.answered[1] == 0,
            ChangeKind::AnswersAgain => changes == self.answered[1] && self.answered[0] == 0,
            ChangeKind::OtherStatus => changes == self.known,
            ChangeKind::Appeared => self.in_run[0] == 0,
            ChangeKind::Disappeared => self.in_run[1] == 0,
            ChangeKind::OtherAddress => false,
            ChangeKind::Slower | ChangeKind::Faster => changes == self.answered_twice,
        };
        changes >= MIN_CHANGES && is_all
    }
}

/// The counts of all subnets.
#[derive(Debug, Default)]
pub(super) struct SubnetTallies(HashMap<IpNet, Tally>);

impl SubnetTallies {
    pub(super) fn add(&mut self, pair: &Pair, kinds: [Option<ChangeKind>; 2]) {
        if let Some(subnet) = pair.newest().subnet() {
            self.0.entry(subnet).or_default().add(pair, kinds);
        }
    }

    pub(super) fn whole(self) -> Vec<WholeSubnet> {
        let mut whole = Vec::new();
        for (subnet, tally) in self.0 {
            let kinds = ChangeKind::ALL.into_iter();
            whole.extend(
                kinds
                    .filter(|kind| tally.is_whole(*kind))
                    .map(|kind| WholeSubnet {
                        subnet,
                        kind,
                        targets: tally.changes[kind as usize],
                    }),
            );
        }
        whole.sort_unstable_by_key(|whole| (whole.subnet, whole.kind));
        whole
    }
}
