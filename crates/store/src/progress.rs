//! The counters of a run that a page shows while it goes on: kept by the transactions that store its rows, so they are
//! right after any crash, and cost the same to read at any size of the run. No I/O.

mod cells;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use pingfleet_wire::{Outcome, StatusKind, Target};
use serde::{Deserialize, Serialize};

use self::cells::{AddressBits, Cell, Cells};
use crate::{
    RttHistogram, RunDetail, StatusCounts, SubnetStatuses, TimeBin,
    reader::overview::sort_worst_first, rtt_bins::RttCounts,
};

/// The most networks that are counted apart. A run of as many addresses has single ones.
const MAX_V4_CELLS: usize = 4096;
const MAX_V6_CELLS: usize = 1024;

/// The most bins of the timeline. When a further one is needed, all become twice as long.
const MAX_TIME_BINS: usize = 240;

/// The longest time between two commits that the timeline shows. A longer pause, in which nothing probed the run, is shown
/// as one of this length: a chunk that is sent again after a week leaves the curve of the run as it was.
const MAX_PAUSE_US: i64 = 15 * 60 * 1_000_000;

/// How many targets that did not answer are listed.
const MAX_LAST_NOT_UP: usize = 50;

/// The stored value has a multiple of so many bytes.
const STORED_STEP: usize = 512;

/// Single addresses are shown as networks of these lengths, like those of a report.
const V4_SUBNET: u8 = 24;
const V6_SUBNET: u8 = 64;

/// What the batches of a run are counted in, as it is stored: a MessagePack array of these fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredProgress {
    /// Targets by their mean round-trip time.
    rtt: RttCounts,
    /// The length of a bin of [`Self::timeline`] is 2 to the power of this, in seconds.
    bin_exponent: u8,
    /// Targets that answered, and that did not, by the time of their commit since the start of the run, without
    /// what exceeds [`MAX_PAUSE_US`] between two commits.
    timeline: Vec<(i64, i64)>,
    /// The last commit, in microseconds since the start of the run, and its place on the timeline.
    last_commit_us: i64,
    timeline_us: i64,
    v4: Cells<u32>,
    v6: Cells<u128>,
    /// Targets without an address: names that were not resolved.
    without_address: [i64; StatusKind::ALL.len()],
    /// The last targets that did not answer, the newest last: chunk and position.
    last_not_up: Vec<(u32, u32)>,
}

/// The counters that a writer stored last, so that they need not be decoded again.
#[derive(Debug, Default)]
pub(crate) struct LastProgress {
    run: i64,
    stored: Vec<u8>,
    progress: StoredProgress,
}

impl LastProgress {
    /// The counters that these bytes of a run stand for. They are compared with those that were stored last, which may not
    /// have been committed.
    ///
    /// # Errors
    /// When they are not what [`StoredProgress::encode`] wrote.
    pub(crate) fn take(&mut self, run: i64, stored: &[u8]) -> Result<StoredProgress, String> {
        if self.run == run && self.stored == stored {
            self.stored.clear();
            return Ok(std::mem::take(&mut self.progress));
        }
        StoredProgress::decode(stored)
    }

    /// Encodes counters, and keeps them. Returns the bytes to store.
    pub(crate) fn keep(&mut self, run: i64, progress: StoredProgress) -> &[u8] {
        self.run = run;
        self.stored = progress.encode();
        self.progress = progress;
        &self.stored
    }
}

/// The targets that one batch settled, of one run.
#[derive(Debug, Default)]
pub(crate) struct SettledTargets {
    rtt: RttCounts,
    answered: i64,
    not_up: i64,
    v4: Vec<(u32, StatusKind)>,
    v6: Vec<(u128, StatusKind)>,
    without_address: StatusCounts,
    last_not_up: Vec<(u32, u32)>,
}

/// The address that was probed: of a name, the one that it was resolved to.
pub(crate) fn probed_address(target: &Target, outcome: &Outcome) -> Option<IpAddr> {
    match target {
        Target::Address(address) => Some(*address),
        Target::Text(_) => outcome.address,
    }
}

impl SettledTargets {
    /// The targets by their mean round-trip time.
    pub(crate) fn round_trip_times(&self) -> RttHistogram {
        self.rtt.histogram()
    }

    /// Counts the targets of a chunk. Returns how many have each status.
    pub(crate) fn add(
        &mut self,
        chunk: u32,
        targets: &[Target],
        outcomes: &[Outcome],
    ) -> StatusCounts {
        let mut counts = StatusCounts::default();
        for (position, (target, outcome)) in (0..).zip(targets.iter().zip(outcomes)) {
            counts.add(outcome.status.kind());
            self.add_target((chunk, position), target, outcome);
        }
        counts
    }

    fn add_target(&mut self, key: (u32, u32), target: &Target, outcome: &Outcome) {
        let status = outcome.status.kind();
        if let Some(rtt) = &outcome.rtt {
            self.rtt.add(rtt.avg_ns.min(i64::MAX as u64) as i64);
        }
        if status.code() <= StatusKind::Late.code() {
            self.answered += 1;
        } else {
            self.not_up += 1;
            if self.last_not_up.len() >= 2 * MAX_LAST_NOT_UP {
                self.last_not_up.drain(..MAX_LAST_NOT_UP);
            }
            self.last_not_up.push(key);
        }
        match probed_address(target, outcome) {
            Some(IpAddr::V4(address)) => self.v4.push((address.to_bits(), status)),
            Some(IpAddr::V6(address)) => self.v6.push((address.to_bits(), status)),
            None => self.without_address.add(status),
        }
    }
}

impl StoredProgress {
    /// # Errors
    /// When it is not what [`Self::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let progress: Self = rmp_serde::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut bins = progress.timeline.iter();
        let is_sound = progress.rtt.is_whole()
            && progress.bin_exponent < 32
            && progress.timeline.len() <= MAX_TIME_BINS
            && bins.all(|(answered, not_up)| *answered >= 0 && *not_up >= 0)
            && progress.timeline_us >= 0;
        is_sound
            .then_some(progress)
            .ok_or_else(|| "it has other bins".to_owned())
    }

    /// Its length seldom changes: SQLite overwrites a value of the same length in its place.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes =
            rmp_serde::to_vec(self).expect("a vector takes every byte and all lengths are known");
        // Bytes behind the value are not read.
        bytes.resize(bytes.len().next_multiple_of(STORED_STEP), 0);
        bytes
    }

    /// Counts the targets of a batch that is committed so many microseconds after the start of the run.
    pub(crate) fn add(&mut self, settled: SettledTargets, since_start_us: i64) {
        self.rtt.add_all(&settled.rtt);
        let (answered, not_up) = self.time_bin(since_start_us);
        *answered += settled.answered;
        *not_up += settled.not_up;
        self.v4.add(&settled.v4, MAX_V4_CELLS);
        self.v6.add(&settled.v6, MAX_V6_CELLS);
        for (status, more) in settled.without_address.iter() {
            self.without_address[usize::from(status.code())] += more;
        }
        self.last_not_up.extend(settled.last_not_up);
        let too_many = self.last_not_up.len().saturating_sub(MAX_LAST_NOT_UP);
        self.last_not_up.drain(..too_many);
    }

    /// Nothing more was committed until now, so many microseconds after the start of the run.
    pub(crate) fn go_on_until(&mut self, since_start_us: i64) {
        self.time_bin(since_start_us);
    }

    /// The bin of a commit at this moment. A clock that was set back counts as no time.
    fn time_bin(&mut self, since_start_us: i64) -> &mut (i64, i64) {
        let pause = since_start_us.saturating_sub(self.last_commit_us);
        self.last_commit_us = since_start_us;
        self.timeline_us += pause.clamp(0, MAX_PAUSE_US);
        let seconds = self.timeline_us / 1_000_000;
        while seconds >> self.bin_exponent >= MAX_TIME_BINS as i64 {
            self.bin_exponent += 1;
            let pair = |pair: &[(i64, i64)]| {
                let sum = |one: (i64, i64), other: &(i64, i64)| (one.0 + other.0, one.1 + other.1);
                pair.iter().fold((0, 0), sum)
            };
            self.timeline = self.timeline.chunks(2).map(pair).collect();
        }
        let bin = (seconds >> self.bin_exponent) as usize;
        if self.timeline.len() <= bin {
            self.timeline.resize(bin + 1, (0, 0));
        }
        &mut self.timeline[bin]
    }

    /// The keys of the last targets that did not answer, the newest first: chunk and position.
    pub(crate) fn last_not_up(&self) -> Vec<(i64, i64)> {
        let newest_first = self.last_not_up.iter().rev();
        newest_first
            .map(|(chunk, position)| (i64::from(*chunk), i64::from(*position)))
            .collect()
    }

    /// The sum of the round-trip times of [`RunDetail::rtt`], in nanoseconds.
    pub(crate) fn rtt_sum_ns(&self) -> i64 {
        self.rtt.sum_ns()
    }

    /// What a page draws.
    pub(crate) fn detail(&self) -> RunDetail {
        let length_s = (1_u64 << self.bin_exponent) as f64;
        let timeline = self.timeline.iter().enumerate();
        let end_s = self.timeline_us as f64 / 1_000_000.0;
        let timeline = timeline.map(|(at, (answered, not_up))| {
            let from_s = at as f64 * length_s;
            // The last one goes on. In a fraction of a second a rate means nothing.
            let past_s = (end_s - from_s).clamp(length_s.min(1.0), length_s);
            TimeBin {
                from_s,
                length_s: past_s,
                answered: *answered,
                not_up: *not_up,
            }
        });
        let v4 = subnets(&self.v4, V4_SUBNET, |bits| Ipv4Addr::from_bits(bits).into());
        let v6 = subnets(&self.v6, V6_SUBNET, |bits| Ipv6Addr::from_bits(bits).into());
        let mut subnets: Vec<_> = v4.into_iter().chain(v6).collect();
        sort_worst_first(&mut subnets);
        let address = |cell: &Cell<u32>| {
            let last = cell.counts.iter().rposition(|count| *count > 0)?;
            Some((Ipv4Addr::from_bits(cell.first), StatusKind::ALL[last]))
        };
        RunDetail {
            rtt: self.rtt.bins(),
            timeline: timeline.collect(),
            subnets,
            addresses: (self.v4.length == u32::BITS as u8)
                .then(|| self.v4.sorted.iter().filter_map(address).collect()),
        }
    }

    /// What its sums say other than these counts of the run.
    pub(crate) fn contradictions(&self, counts: &StatusCounts) -> Vec<String> {
        let mut by_network = self.v4.total();
        by_network += self.v6.total();
        by_network += self.without_address.into();
        let answered: i64 = self.timeline.iter().map(|(answered, _)| answered).sum();
        let not_up: i64 = self.timeline.iter().map(|(_, not_up)| not_up).sum();
        let wanted = (counts.answered(), counts.total() - counts.answered());
        let mut found = Vec::new();
        if by_network != *counts {
            found.push(format!(
                "the progress counts {by_network} by status and network, the run {counts}"
            ));
        }
        if (answered, not_up) != wanted {
            found.push(format!(
                "the progress counts {answered} targets that answered and {not_up} others by time, the run {} and {}",
                wanted.0, wanted.1
            ));
        }
        if self.rtt.total() != wanted.0 {
            found.push(format!(
                "the progress counts {} round-trip times, in the run {} targets answered",
                self.rtt.total(),
                wanted.0
            ));
        }
        found
    }
}

/// The cells as networks: single addresses and other long prefixes together, as those of `longest`.
fn subnets<A: AddressBits>(
    cells: &Cells<A>,
    longest: u8,
    address: impl Fn(A) -> IpAddr,
) -> Vec<SubnetStatuses> {
    let length = cells.length.min(longest);
    let same =
        |one: &Cell<A>, other: &Cell<A>| one.first.first_of(length) == other.first.first_of(length);
    let of_subnet = cells.sorted.chunk_by(same);
    of_subnet
        .map(|of_subnet| {
            let mut counts = StatusCounts::default();
            for cell in of_subnet {
                counts += cell.counts();
            }
            let first = of_subnet[0].first.first_of(length);
            SubnetStatuses {
                subnet: IpNet::new_assert(address(first), length),
                counts,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: i64 = 1_000_000;

    fn one_answer() -> SettledTargets {
        SettledTargets {
            answered: 1,
            ..SettledTargets::default()
        }
    }

    /// Commits at these seconds since the start of the run.
    fn committed_at(seconds: impl IntoIterator<Item = i64>) -> StoredProgress {
        let mut progress = StoredProgress::default();
        for second in seconds {
            progress.add(one_answer(), second * SECOND_US);
        }
        progress
    }

    #[test]
    fn bins_become_twice_as_long_and_lose_nothing() {
        let progress = committed_at(0..1000);
        assert_eq!(progress.bin_exponent, 3);
        let timeline = progress.detail().timeline;
        assert_eq!(timeline.len(), 125);
        assert!(timeline.iter().all(|bin| bin.answered == 8));
        // The last bin began 7 s before the last commit.
        let lengths: Vec<_> = timeline.iter().map(|bin| bin.length_s).collect();
        assert_eq!(lengths[..124], [8.0; 124]);
        assert!((lengths[124] - 7.0).abs() < 1e-9);
    }

    #[test]
    fn the_timeline_of_a_running_run_ends_now() {
        let mut progress = committed_at(0..10);
        progress.go_on_until(60 * SECOND_US);
        let timeline = progress.detail().timeline;
        let end = timeline.last().map(|bin| bin.from_s + bin.length_s);
        assert_eq!(end, Some(61.0));
        let answered = timeline.iter().filter(|bin| bin.answered > 0).count();
        assert_eq!(answered, 10);
    }

    #[test]
    fn a_chunk_that_comes_a_week_later_leaves_the_curve_as_it_was() {
        let week = 7 * 24 * 3600;
        let timeline = committed_at((0..300).chain([week])).detail().timeline;
        let answered: i64 = timeline.iter().map(|bin| bin.answered).sum();
        assert_eq!(answered, 301);
        let bins = timeline.iter().filter(|bin| bin.answered > 0).count();
        assert!(bins > 30, "{bins} bins");
    }

    #[test]
    fn a_clock_that_is_set_back_or_forward_moves_nothing_to_the_start() {
        for jump in [-3600, 1_800_000_000] {
            let timeline = committed_at((1..=100).chain((101..=200).map(|at| at + jump)))
                .detail()
                .timeline;
            let half = timeline.len() / 3;
            let first: i64 = timeline[..half].iter().map(|bin| bin.answered).sum();
            assert!(
                (1..=110).contains(&first),
                "{first} after a jump of {jump} s"
            );
        }
    }

    #[test]
    fn other_bins_are_refused() {
        let whole = committed_at([1, 2, 3]);
        assert_eq!(StoredProgress::decode(&whole.encode()), Ok(whole.clone()));
        let damaged = StoredProgress {
            timeline: vec![(0, -1)],
            ..whole
        };
        assert!(StoredProgress::decode(&damaged.encode()).is_err());
    }
}
