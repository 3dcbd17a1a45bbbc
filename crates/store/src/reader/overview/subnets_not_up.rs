//! Prefixes of a run in which no target answered. No I/O.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use ipnet::IpNet;
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

/// Different outcomes of a /24 or /64 that are counted apart; all others are counted together, by status.
const MAX_OUTCOMES: usize = 8;

/// The largest prefix, at most a /24 or a /64, in which no target answered and none is `unknown`: at least eight addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetNotUp {
    /// The network.
    pub subnet: IpNet,
    /// Its addresses by status; of IPv6, its targets.
    pub counts: StatusCounts,
    /// What is the same for all its targets. None if they differ.
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

/// The targets of a /24 or /64 that did not answer in the same way.
#[derive(Debug)]
struct SilentTargets {
    status: StatusKind,
    /// None for all outcomes that are counted together.
    outcome: Option<SameOutcome>,
    /// Those of a /24.
    addresses: LastBytes,
    targets: u32,
}

/// The targets of a /24 or /64.
#[derive(Debug, Default)]
pub(super) struct SubnetScan {
    pub(super) targets: u32,
    pub(super) not_up: u32,
    silent: Vec<SilentTargets>,
    /// The addresses of a /24 with another status.
    others: LastBytes,
}

impl SubnetScan {
    pub(super) fn add(&mut self, address: IpAddr, row: &StoredRow) {
        self.targets += 1;
        self.not_up += u32::from(row.status > StatusKind::Late.code());
        let status = SILENT.into_iter().find(|kind| kind.code() == row.status);
        let Some(status) = status else {
            if let IpAddr::V4(address) = address {
                self.others.add(address);
            }
            return;
        };
        let same = self.targets_like(status, row);
        same.targets += 1;
        if let IpAddr::V4(address) = address {
            same.addresses.add(address);
        }
    }

    /// The targets with this outcome.
    fn targets_like(&mut self, status: StatusKind, row: &StoredRow) -> &mut SilentTargets {
        let is_like = |found: &SilentTargets| {
            let is_same =
                |outcome: &SameOutcome| (&outcome.reason, outcome.sent) == (&row.reason, row.sent);
            found.status == status && found.outcome.as_ref().is_some_and(is_same)
        };
        let mut at = self.silent.iter().position(is_like);
        let is_full = self.silent.len() >= MAX_OUTCOMES;
        if at.is_none() && is_full {
            let is_any = |found: &SilentTargets| found.status == status && found.outcome.is_none();
            at = self.silent.iter().position(is_any);
        }
        let at = at.unwrap_or_else(|| {
            self.silent.push(SilentTargets {
                status,
                outcome: (!is_full).then(|| SameOutcome {
                    status,
                    reason: row.reason.clone(),
                    sent: row.sent,
                }),
                addresses: LastBytes::default(),
                targets: 0,
            });
            self.silent.len() - 1
        });
        &mut self.silent[at]
    }

    fn prefixes_not_up(&self, key: SubnetKey) -> Vec<SubnetNotUp> {
        match key.network() {
            IpNet::V4(network) => {
                let addresses = self.silent.iter().map(|found| found.addresses);
                let all = addresses.fold(LastBytes::default(), |all, one| all | one);
                let prefixes = all.prefixes_without(&self.others, network, MIN_ADDRESSES);
                let shown = prefixes.into_iter().map(|prefix| {
                    self.shown(prefix.into(), |found| found.addresses.count_in(prefix))
                });
                shown.collect()
            }
            network @ IpNet::V6(_) => {
                let silent: u32 = self.silent.iter().map(|found| found.targets).sum();
                let is_whole = silent == self.targets && silent >= MIN_ADDRESSES;
                let shown = is_whole.then(|| self.shown(network, |found| found.targets));
                shown.into_iter().collect()
            }
        }
    }

    /// A prefix with what it has of each outcome.
    fn shown(&self, subnet: IpNet, count: impl Fn(&SilentTargets) -> u32) -> SubnetNotUp {
        let mut counts = [0; StatusKind::ALL.len()];
        let mut outcomes = Vec::new();
        for found in &self.silent {
            let count = count(found);
            counts[usize::from(found.status.code())] += i64::from(count);
            if count > 0 {
                outcomes.push(&found.outcome);
            }
        }
        SubnetNotUp {
            subnet,
            counts: counts.into(),
            same: match outcomes.as_slice() {
                [outcome] => (*outcome).clone(),
                _ => None,
            },
            history: None,
        }
    }
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
