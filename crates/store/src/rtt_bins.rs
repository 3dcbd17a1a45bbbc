//! Targets by their mean round-trip time: bins of a tenth of a decade from 1 us to 100 s. No I/O.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// The first edge, in nanoseconds, and the number of decades behind it.
const FIRST_EDGE_NS: i64 = 1000;
const DECADES: usize = 8;

/// The edges of the ten bins of a decade, in hundredths: the rounded preferred numbers R'10 of ISO 3.
const HUNDREDTHS: [i64; 10] = [100, 125, 160, 200, 250, 320, 400, 500, 630, 800];

const EDGES_NS: [i64; 10 * DECADES] = edges();

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

/// Targets by their mean round-trip time, in fewer bins: three for each decade from 10 us to 10 s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RttHistogram {
    /// How many targets had a time shorter than each of [`Self::BOUNDS_NS`] and no shorter than the one before, and at the
    /// end those that had a longer one.
    pub counts: [u64; Self::BOUNDS_NS.len() + 1],
    /// The sum of the times, in nanoseconds.
    pub sum_ns: u64,
}

impl RttHistogram {
    /// The bounds, in nanoseconds: edges of [`RttBin`].
    pub const BOUNDS_NS: [i64; 19] = [
        10_000,
        20_000,
        50_000,
        100_000,
        200_000,
        500_000,
        1_000_000,
        2_000_000,
        5_000_000,
        10_000_000,
        20_000_000,
        50_000_000,
        100_000_000,
        200_000_000,
        500_000_000,
        1_000_000_000,
        2_000_000_000,
        5_000_000_000,
        10_000_000_000,
    ];
}

impl AddAssign for RttHistogram {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

/// The number of targets in each bin. The first one has also what is shorter, the last one what is longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RttCounts {
    counts: Vec<i64>,
    /// The sum of the round-trip times, in nanoseconds.
    sum_ns: i64,
}

impl Default for RttCounts {
    fn default() -> Self {
        Self {
            counts: vec![0; EDGES_NS.len() + 1],
            sum_ns: 0,
        }
    }
}

impl RttCounts {
    /// Counts a target.
    pub(crate) fn add(&mut self, mean_ns: i64) {
        self.counts[EDGES_NS.partition_point(|edge| *edge <= mean_ns)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(mean_ns);
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// Whether it has a count for each bin: not, if it was decoded from something else.
    pub(crate) fn is_whole(&self) -> bool {
        self.counts.len() == EDGES_NS.len() + 1
    }

    pub(crate) fn total(&self) -> i64 {
        self.counts.iter().sum()
    }

    pub(crate) fn sum_ns(&self) -> i64 {
        self.sum_ns
    }

    /// The same in fewer bins.
    pub(crate) fn histogram(&self) -> RttHistogram {
        let mut histogram = RttHistogram {
            sum_ns: self.sum_ns.max(0) as u64,
            ..RttHistogram::default()
        };
        let starts = std::iter::once(0).chain(EDGES_NS);
        for (from_ns, targets) in starts.zip(&self.counts) {
            let bucket = RttHistogram::BOUNDS_NS.partition_point(|bound| *bound <= from_ns);
            histogram.counts[bucket] += (*targets).max(0) as u64;
        }
        histogram
    }

    /// The bins without the empty ones at both ends.
    pub(crate) fn bins(&self) -> Vec<RttBin> {
        let last_edge = FIRST_EDGE_NS * 10_i64.pow(DECADES as u32);
        let starts = std::iter::once(0).chain(EDGES_NS);
        let ends = EDGES_NS.into_iter().chain([last_edge]);
        let bins: Vec<_> = starts
            .zip(ends)
            .zip(&self.counts)
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
}

const fn edges() -> [i64; 10 * DECADES] {
    let mut edges = [0; 10 * DECADES];
    let mut unit = FIRST_EDGE_NS / 100;
    let mut at = 0;
    while at < edges.len() {
        edges[at] = unit * HUNDREDTHS[at % 10];
        at += 1;
        if at % 10 == 0 {
            unit *= 10;
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_the_histogram_are_edges_and_it_counts_as_if_each_time_was_compared_with_them()
    {
        for bound in RttHistogram::BOUNDS_NS {
            assert!(EDGES_NS.contains(&bound), "{bound}");
        }
        // Around each bound, and beyond the first and the last one.
        let bounds = RttHistogram::BOUNDS_NS.into_iter();
        let around = bounds.flat_map(|bound| [bound - 1, bound, bound + 1, bound + bound / 3]);
        let times: Vec<i64> = around.chain([0, 1, 200_000_000_000]).collect();
        let mut counts = RttCounts::default();
        let mut expected = RttHistogram::default();
        for time in &times {
            counts.add(*time);
            let longer = |bound: &&i64| time >= *bound;
            let bucket = RttHistogram::BOUNDS_NS.iter().filter(longer).count();
            expected.counts[bucket] += 1;
        }
        expected.sum_ns = times.iter().sum::<i64>() as u64;
        assert_eq!(counts.histogram(), expected);
        let mut twice = expected;
        twice += expected;
        assert_eq!(twice.sum_ns, 2 * expected.sum_ns);
        assert_eq!(twice.counts.iter().sum::<u64>(), 2 * times.len() as u64);
    }
}
