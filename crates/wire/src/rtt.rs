//! The round-trip times of one target. No I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Round-trip times of the distinct answered requests of one target, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtt {
    /// Shortest.
    pub min_ns: u64,
    /// Arithmetic mean.
    pub avg_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// Population standard deviation.
    pub stddev_ns: u64,
}

impl Rtt {
    /// The figures of some round-trip times; `None` when there is none.
    #[must_use]
    pub fn of(samples: &[Duration]) -> Option<Self> {
        let nanos = |sample: &Duration| u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        let min_ns = samples.iter().map(nanos).min()?;
        let max_ns = samples.iter().map(nanos).max()?;
        let count = samples.len() as f64;
        let mean = samples.iter().map(|s| nanos(s) as f64).sum::<f64>() / count;
        let variance = samples
            .iter()
            .map(|s| (nanos(s) as f64 - mean).powi(2))
            .sum::<f64>()
            / count;
        Some(Self {
            min_ns,
            avg_ns: (mean.round() as u64).clamp(min_ns, max_ns),
            max_ns,
            stddev_ns: variance.sqrt().round() as u64,
        })
    }

    /// Whether the numbers are ordered and fit the signed integers of the database.
    pub(crate) fn is_plausible(&self) -> bool {
        self.min_ns <= self.avg_ns
            && self.avg_ns <= self.max_ns
            && self.stddev_ns <= self.max_ns
            && i64::try_from(self.max_ns).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtt_of_nothing_is_nothing() {
        assert_eq!(Rtt::of(&[]), None);
    }

    #[test]
    fn rtt_of_samples() {
        let samples = [2, 4, 4, 4, 5, 5, 7, 9].map(Duration::from_nanos);
        assert_eq!(
            Rtt::of(&samples),
            Some(Rtt {
                min_ns: 2,
                avg_ns: 5,
                max_ns: 9,
                stddev_ns: 2
            })
        );
    }
}
