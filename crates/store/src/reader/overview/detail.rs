//! What a page shows of a run beyond its summary, counted in the same pass: round-trip times and answers by bins, subnets
//! by status, and the single IPv4 addresses where they are few enough for a map. No I/O.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use pingfleet_wire::StatusKind;

use super::rows::{StoredRow, SubnetKey};
use crate::StatusCounts;

/// The first edge of a bin of round-trip times, in nanoseconds, and the number of decades behind it.
const FIRST_EDGE_NS: i64 = 1000;
const DECADES: u32 = 8;

/// The edges of the ten bins of a decade, in hundredths: the rounded preferred numbers R'10 of ISO 3.
const EDGES: [i64; 10] = [100, 125, 160, 200, 250, 320, 400, 500, 630, 800];

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

/// The targets with a mean round-trip time of at least `from_ns` and less than `to_ns`, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RttBin {
    /// The shortest one.
    pub from_ns: i64,
    /// The end, which is the start of the next bin.
    pub to_ns: i64,
    /// How many targets.
    pub targets: i64,
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
    edges_ns: Vec<i64>,
    rtt: Vec<i64>,
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
        let mut edges_ns = Vec::new();
        for decade in 0..DECADES {
            let hundredth = FIRST_EDGE_NS / 100 * 10_i64.pow(decade);
            edges_ns.extend(EDGES.map(|edge| edge * hundredth));
        }
        Self {
            started_us,
            bin_us: bin_us as i64,
            rtt: vec![0; edges_ns.len() + 1],
            edges_ns,
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
            self.rtt[self.edges_ns.partition_point(|edge| *edge <= mean)] += 1;
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
        RunDetail {
            rtt: self.rtt_bins(),
            timeline: timeline.collect(),
            subnets: self.subnets_worst_first(),
            addresses,
        }
    }

    fn rtt_bins(&self) -> Vec<RttBin> {
        let last_edge = FIRST_EDGE_NS * 10_i64.pow(DECADES);
        let starts = std::iter::once(0).chain(self.edges_ns.iter().copied());
        let ends = self.edges_ns.iter().copied().chain([last_edge]);
        let bins: Vec<_> = starts
            .zip(ends)
            .zip(&self.rtt)
            .map(|((from_ns, to_ns), targets)| RttBin {
                from_ns,
                to_ns,
                targets: *targets,
            })
            .collect();
        let first = bins.iter().position(|bin| bin.targets > 0);
        let last = bins.iter().rposition(|bin| bin.targets > 0);
        first
            .zip(last)
            .map_or_else(Vec::new, |(first, last)| bins[first..=last].to_vec())
    }

    fn subnets_worst_first(self) -> Vec<SubnetStatuses> {
        let mut subnets: Vec<_> = self
            .subnets
            .into_iter()
            .map(|(key, counts)| {
                let counts = StatusCounts::from(counts.map(i64::from));
                (key, counts)
            })
            .collect();
        subnets.sort_unstable_by(|(one_key, one), (other_key, other)| {
            let not_up = |counts: &StatusCounts| counts.total() - counts.answered();
            let is_small =
                |counts: &StatusCounts| counts.total() < super::RunOverview::MIN_SUBNET_TARGETS;
            // not_up / total, without a division.
            let [left, right] =
                [(other, one), (one, other)].map(|(share, by)| not_up(share) * by.total());
            is_small(one)
                .cmp(&is_small(other))
                .then(left.cmp(&right))
                .then(not_up(other).cmp(&not_up(one)))
                .then(one_key.cmp(other_key))
        });
        subnets
            .into_iter()
            .map(|(key, counts)| SubnetStatuses {
                subnet: key.network(),
                counts,
            })
            .collect()
    }
}
