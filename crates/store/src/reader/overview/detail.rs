//! What a page shows of a run beyond its summary, counted in the same pass: round-trip times and answers by bins, subnets
//! by status, and the single IPv4 addresses where they are few enough for a map. No I/O.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use pingfleet_wire::StatusKind;

use super::rows::{StoredRow, SubnetKey};
use crate::{RttBin, StatusCounts, rtt_bins::RttCounts};

/// The most bins of time.
const MAX_TIME_BINS: u64 = 120;

/// Lengths of a bin of time, in microseconds. After the last one come whole days.
const TIME_BINS_US: [u64; 17] = [
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    7_200_000_000,
    21_600_000_000,
];
const DAY_US: u64 = 86_400_000_000;

/// What a page shows of a run beyond [`RunOverview`](super::RunOverview).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunDetail {
    /// Targets by their mean round-trip time: bins of a tenth of a decade, without the empty ones at both ends.
    pub rtt: Vec<RttBin>,
    /// Targets by the time of their first request since the start of the run, by the clocks of the workers. The first and
    /// the last bin have also what lies before and behind.
    pub timeline: Vec<TimeBin>,
    /// All subnets (/24, /64), those with the largest share of targets that did not answer first. Subnets with too few
    /// targets for [`RunOverview::worst_subnets`](super::RunOverview) come after the others.
    pub subnets: Vec<SubnetStatuses>,
    /// The IPv4 addresses with their status, in order. None when they spread over more than a network of
    /// [`Self::ADDRESS_PREFIX`] and over more than [`Self::ADDRESS_SUBNETS`] subnets. An address of several targets
    /// has the last of their statuses in order of precedence.
    pub addresses: Option<Vec<(Ipv4Addr, StatusKind)>>,
}

/// The targets whose first request was sent in a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeBin {
    /// Its beginning, in seconds since the start of the run.
    pub from_s: f64,
    /// Its length in seconds.
    pub length_s: f64,
    /// Those that answered, in time or late.
    pub answered: i64,
    /// The others.
    pub not_up: i64,
}

/// The targets of a /24 or, for IPv6, a /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetStatuses {
    /// The network.
    pub subnet: IpNet,
    /// Targets with each status.
    pub counts: StatusCounts,
}

impl RunDetail {
    /// The most targets in [`RunOverview::not_up`](super::RunOverview) when it is read with this.
    pub const MAX_NOT_UP: usize = 2000;
    /// Addresses are kept while all are in one network with a prefix of this length.
    pub const ADDRESS_PREFIX: u32 = 12;
    /// Addresses are kept while they are in at most this many subnets.
    pub const ADDRESS_SUBNETS: usize = 64;
}

/// What was counted so far.
#[derive(Debug)]
pub(super) struct DetailScan {
    started_us: i64,
    bin_us: i64,
    rtt: RttCounts,
    /// Targets that answered, and that did not.
    timeline: Vec<(i64, i64)>,
    subnets: HashMap<SubnetKey, [u32; StatusKind::ALL.len()]>,
    addresses: Option<Vec<(Ipv4Addr, StatusKind)>>,
    /// The bits that differ between IPv4 addresses, and one of them.
    spread: u32,
    first: Option<u32>,
    v4_subnets: usize,
}

impl DetailScan {
    /// For a run that started at this time, in microseconds since 1970-01-01 UTC, and took so long.
    pub(super) fn new(started_us: i64, elapsed_s: f64) -> Self {
        let elapsed_us = (elapsed_s * 1_000_000.0) as u64;
        let days = elapsed_us.div_ceil(MAX_TIME_BINS * DAY_US);
        let fits = |bin: &u64| elapsed_us <= bin * MAX_TIME_BINS;
        let bin_us = TIME_BINS_US
            .into_iter()
            .find(fits)
            .unwrap_or(days.max(1) * DAY_US);
        let bins = elapsed_us.div_ceil(bin_us).max(1) as usize;
        Self {
            started_us,
            bin_us: bin_us as i64,
            rtt: RttCounts::default(),
            timeline: vec![(0, 0); bins],
            subnets: HashMap::new(),
            addresses: Some(Vec::new()),
            spread: 0,
            first: None,
            v4_subnets: 0,
        }
    }

    /// Adds a row whose target was begun at this time.
    pub(super) fn add(&mut self, row: &StoredRow, began_us: i64) {
        let status = StatusKind::ALL[usize::from(row.status)];
        if let Some([mean, ..]) = row.rtt_ns {
            self.rtt.add(mean);
        }
        let last = self.timeline.len() as i64 - 1;
        let bin = (began_us - self.started_us).div_euclid(self.bin_us);
        let (answered, not_up) = &mut self.timeline[bin.clamp(0, last) as usize];
        if status.code() <= StatusKind::Late.code() {
            *answered += 1;
        } else {
            *not_up += 1;
        }
        if let Some(address) = row.address {
            self.add_address(address, status);
        }
    }

    fn add_address(&mut self, address: IpAddr, status: StatusKind) {
        let before = self.subnets.len();
        let counts = self.subnets.entry(SubnetKey::of(address)).or_default();
        counts[usize::from(status.code())] += 1;
        let IpAddr::V4(address) = address else { return };
        self.v4_subnets += self.subnets.len() - before;
        let bits = address.to_bits();
        self.spread |= bits ^ *self.first.get_or_insert(bits);
        let is_wide = self.spread.leading_zeros() < RunDetail::ADDRESS_PREFIX;
        if is_wide && self.v4_subnets > RunDetail::ADDRESS_SUBNETS {
            self.addresses = None;
        } else if let Some(addresses) = &mut self.addresses {
            addresses.push((address, status));
        }
    }

    pub(super) fn finish(mut self) -> RunDetail {
        let bin_s = self.bin_us as f64 / 1_000_000.0;
        let timeline = self.timeline.iter().enumerate();
        let timeline = timeline.map(|(at, (answered, not_up))| TimeBin {
            from_s: at as f64 * bin_s,
            length_s: bin_s,
            answered: *answered,
            not_up: *not_up,
        });
        let addresses = self.addresses.take().map(|mut addresses| {
            addresses.sort_unstable_by_key(|(address, status)| (*address, status.code()));
            addresses.reverse();
            addresses.dedup_by_key(|(address, _)| *address);
            addresses.reverse();
            addresses
        });
        let subnets = self.subnets.iter().map(|(key, counts)| SubnetStatuses {
            subnet: key.network(),
            counts: counts.map(i64::from).into(),
        });
        let mut subnets: Vec<_> = subnets.collect();
        sort_worst_first(&mut subnets);
        RunDetail {
            rtt: self.rtt.bins(),
            timeline: timeline.collect(),
            subnets,
            addresses,
        }
    }
}

/// Those with the largest share of targets that did not answer first; those with few targets come after the others.
pub(crate) fn sort_worst_first(subnets: &mut [SubnetStatuses]) {
    subnets.sort_unstable_by(|one, other| {
        let not_up = |subnet: &SubnetStatuses| subnet.counts.total() - subnet.counts.answered();
        let is_small = |subnet: &SubnetStatuses| {
            subnet.counts.total() < super::RunOverview::MIN_SUBNET_TARGETS
        };
        // not_up / total, without a division.
        let [left, right] =
            [(other, one), (one, other)].map(|(share, by)| not_up(share) * by.counts.total());
        is_small(one)
            .cmp(&is_small(other))
            .then(left.cmp(&right))
            .then(not_up(other).cmp(&not_up(one)))
            .then(one.subnet.cmp(&other.subnet))
    });
}
