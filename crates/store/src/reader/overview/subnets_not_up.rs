//! Prefixes of a run in which no target answered. No I/O.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};
use pingfleet_wire::StatusKind;

use super::{
    TargetHistory,
    rows::{StoredRow, SubnetKey},
};
use crate::{StatusCounts, reader::last_bytes::LastBytes};

/// The fewest addresses of such a prefix: fewer are listed one by one.
const MIN_ADDRESSES: u32 = 8;

/// What a target of such a prefix can have. One that is `unknown` may have answered, and `dns_failed` has no address.
const SILENT: [StatusKind; 3] = [
    StatusKind::Unreachable,
    StatusKind::SendFailed,
    StatusKind::Down,
];

/// The largest prefix, at most a /24 or a /64, in which no target answered and none is `unknown`: at least eight addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetNotUp {
    /// The network.
    pub subnet: IpNet,
    /// Its addresses by status; of IPv6, its targets.
    pub counts: StatusCounts,
    /// What is the same for all targets of its /24 or /64 that did not answer. None if they differ.
    pub same: Option<SameOutcome>,
    /// When the first of its targets was probed first, when the last one was up last, and when the last one changed. None
    /// when [`RunOverview::changes`](super::RunOverview) is.
    pub history: Option<TargetHistory>,
}

/// How targets did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SameOutcome {
    /// The status.
    pub status: StatusKind,
    /// The reason, for statuses that have one.
    pub reason: Option<String>,
    /// Requests that the kernel accepted, of each target.
    pub sent: i64,
}

/// The targets of a /24 or /64.
#[derive(Debug, Default)]
pub(super) struct SubnetScan {
    pub(super) targets: u32,
    pub(super) not_up: u32,
    /// Of a /24, the addresses with each status of [`SILENT`], and all others.
    silent: [LastBytes; SILENT.len()],
    others: LastBytes,
    /// Of a /64, how many there are.
    silent_counts: [u32; SILENT.len()],
    /// Of the silent ones, until two of them differ.
    same: Option<Box<SameOutcome>>,
    differs: bool,
}

impl SubnetScan {
    pub(super) fn add(&mut self, address: IpAddr, row: &StoredRow) {
        self.targets += 1;
        self.not_up += u32::from(row.status > StatusKind::Late.code());
        let kind = SILENT.iter().position(|kind| kind.code() == row.status);
        match (address, kind) {
            (IpAddr::V4(address), Some(kind)) => {
                self.silent[kind].add(address);
            }
            (IpAddr::V4(address), None) => {
                self.others.add(address);
            }
            (IpAddr::V6(_), Some(kind)) => self.silent_counts[kind] += 1,
            (IpAddr::V6(_), None) => {}
        }
        if let Some(kind) = kind
            && !self.differs
        {
            self.compare(SILENT[kind], row);
        }
    }

    fn compare(&mut self, status: StatusKind, row: &StoredRow) {
        match &self.same {
            Some(same) => {
                let is_same =
                    (same.status, &same.reason, same.sent) == (status, &row.reason, row.sent);
                self.differs = !is_same;
            }
            None => {
                self.same = Some(Box::new(SameOutcome {
                    status,
                    reason: row.reason.clone(),
                    sent: row.sent,
                }));
            }
        }
    }

    fn prefixes_not_up(&self, key: SubnetKey) -> Vec<SubnetNotUp> {
        let shown = |subnet, counts| SubnetNotUp {
            subnet,
            counts,
            same: self.same.as_deref().filter(|_| !self.differs).cloned(),
            history: None,
        };
        match key.network() {
            IpNet::V4(network) => {
                let silent = self
                    .silent
                    .into_iter()
                    .fold(LastBytes::default(), |all, one| all | one);
                let prefixes = silent.prefixes_without(&self.others, network, MIN_ADDRESSES);
                let prefixes = prefixes.into_iter();
                prefixes
                    .map(|prefix| shown(prefix.into(), self.counts_in(prefix)))
                    .collect()
            }
            network @ IpNet::V6(_) => {
                let silent: u32 = self.silent_counts.iter().sum();
                let is_whole = silent == self.targets && silent >= MIN_ADDRESSES;
                let counts = counts(self.silent_counts);
                is_whole
                    .then(|| shown(network, counts))
                    .into_iter()
                    .collect()
            }
        }
    }

    fn counts_in(&self, prefix: Ipv4Net) -> StatusCounts {
        counts(self.silent.map(|addresses| addresses.count_in(prefix)))
    }
}

fn counts(silent: [u32; SILENT.len()]) -> StatusCounts {
    let mut counts = [0; StatusKind::ALL.len()];
    for (kind, count) in SILENT.into_iter().zip(silent) {
        counts[usize::from(kind.code())] = i64::from(count);
    }
    counts.into()
}

/// All such prefixes of a run.
#[derive(Debug, Default)]
pub(super) struct SubnetsNotUp {
    found: Vec<SubnetNotUp>,
    /// Which of them are in a /24 or /64.
    by_subnet: HashMap<SubnetKey, Vec<usize>>,
}

impl SubnetsNotUp {
    pub(super) fn of(subnets: &HashMap<SubnetKey, SubnetScan>) -> Self {
        let mut all = Self::default();
        for (key, scan) in subnets {
            for subnet in scan.prefixes_not_up(*key) {
                all.by_subnet.entry(*key).or_default().push(all.found.len());
                all.found.push(subnet);
            }
        }
        all
    }

    /// The index of the prefix that has an address.
    pub(super) fn find(&self, address: IpAddr) -> Option<usize> {
        let inside = self.by_subnet.get(&SubnetKey::of(address))?;
        inside
            .iter()
            .copied()
            .find(|at| self.found[*at].subnet.contains(&address))
    }

    /// Adds what is known of one target of a prefix.
    pub(super) fn add_history(&mut self, at: usize, target: TargetHistory) {
        let history = self.found[at].history.get_or_insert(target);
        // The first one that was seen says whether it is new.
        if target.first_seen_us < history.first_seen_us {
            history.first_seen_us = target.first_seen_us;
            history.probed_at_us = target.probed_at_us;
        }
        history.last_up_us = history.last_up_us.max(target.last_up_us);
        history.changed_at_us = history.changed_at_us.max(target.changed_at_us);
    }

    /// Forgets what is known of some targets only.
    pub(super) fn forget_history(&mut self) {
        self.found.iter_mut().for_each(|found| found.history = None);
    }

    /// The prefixes with the newest changes first, and then those with the most targets.
    pub(super) fn newest_first(mut self) -> Vec<SubnetNotUp> {
        self.found.sort_unstable_by_key(|found| {
            let changed = found.history.map(|history| history.changed_at_us);
            (
                Reverse(changed),
                Reverse(found.counts.total()),
                found.subnet,
            )
        });
        self.found
    }
}
