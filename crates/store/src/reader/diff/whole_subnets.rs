//! Subnets of which all targets changed in the same way. No I/O.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};

use super::{ChangeKind, Pair};
use crate::reader::last_bytes::LastBytes;

/// The fewest changes of a subnet that changed as a whole: with fewer, they say nothing about the subnet.
const MIN_CHANGES: i64 = 4;

/// The same for a part of a /24.
const MIN_CHANGES_OF_A_PART: u32 = 8;

/// The lengths of the parts.
const PARTS: std::ops::RangeInclusive<u8> = 25..=29;

/// A /24 or /64 with at least four changes of a kind that leave out none of its targets: all that answered stopped, or
/// none had answered and some do now, all of them appeared, disappeared, or answer slower or faster. Where not all of a
/// /24 stopped to answer or answers again, also the largest parts of it of which this is true, with at least eight changes.
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
    /// Of a /24, the addresses that answered in each run, as far as they are known in both.
    addresses: [LastBytes; 2],
    /// Those that stopped, and those that answer again.
    stopped: LastBytes,
    again: LastBytes,
    /// Whether two targets that did so have the same address: then the addresses do not say how many targets they are.
    has_twins: bool,
}

impl Tally {
    fn add(&mut self, pair: &Pair, kinds: [Option<ChangeKind>; 2]) {
        for kind in kinds.into_iter().flatten() {
            self.changes[kind as usize] += 1;
        }
        let address = match pair.newest().address() {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        };
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
            if let Some(address) = address {
                self.add_address(address, [before.answered(), after.answered()]);
            }
        }
    }

    fn add_address(&mut self, address: Ipv4Addr, answered: [bool; 2]) {
        for (addresses, answered) in self.addresses.iter_mut().zip(answered) {
            if answered {
                addresses.add(address);
            }
        }
        let is_new = match answered {
            [true, false] => self.stopped.add(address),
            [false, true] => self.again.add(address),
            _ => true,
        };
        self.has_twins |= !is_new;
    }

    /// The parts of a /24 of which all targets that could did change so, and how many they are.
    fn parts(&self, network: Ipv4Net, kind: ChangeKind) -> Vec<(Ipv4Net, i64)> {
        let (changed, others) = match kind {
            ChangeKind::StoppedAnswering => (&self.stopped, &self.addresses[1]),
            ChangeKind::AnswersAgain => (&self.again, &self.addresses[0]),
            _ => return Vec::new(),
        };
        if self.has_twins {
            return Vec::new();
        }
        let parts = changed.prefixes_without(others, network, MIN_CHANGES_OF_A_PART);
        let counted = parts
            .into_iter()
            .map(|part| (part, i64::from(changed.count_in(part))));
        counted.collect()
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
            for kind in ChangeKind::ALL {
                let targets = tally.changes[kind as usize];
                if tally.is_whole(kind) {
                    whole.push(WholeSubnet {
                        subnet,
                        kind,
                        targets,
                    });
                } else if let IpNet::V4(network) = subnet {
                    let parts = tally.parts(network, kind).into_iter();
                    whole.extend(parts.map(|(part, targets)| WholeSubnet {
                        subnet: part.into(),
                        kind,
                        targets,
                    }));
                }
            }
        }
        whole.sort_unstable_by_key(|whole| (whole.subnet, whole.kind));
        whole
    }
}

/// The subnet of a change among the sorted ones that changed as a whole.
pub(super) fn subnet_of(whole: &[WholeSubnet], address: IpAddr, kind: ChangeKind) -> Option<IpNet> {
    let length = if address.is_ipv4() { 24 } else { 64 };
    let parts = PARTS.filter(|_| address.is_ipv4());
    let subnets = std::iter::once(length).chain(parts);
    let mut subnets = subnets.filter_map(|length| Some(IpNet::new(address, length).ok()?.trunc()));
    subnets.find(|subnet| {
        let key = |whole: &WholeSubnet| (whole.subnet, whole.kind);
        whole.binary_search_by_key(&(*subnet, kind), key).is_ok()
    })
}
