//! The rates of the workers over the last minutes. They are kept in memory only.

use std::collections::VecDeque;

use pingfleet_store::WorkerRow;

/// How many points of time are kept: ten minutes.
const MAX_POINTS: usize = 120;

/// Seconds between two points.
const POINT_SECONDS: f64 = 5.0;

/// With more workers than this, the chart shows the spread of their rates instead of the sum.
pub(super) const MAX_SINGLE_WORKERS: usize = 20;

/// A value for each series, at a number of seconds.
pub(super) type Point = (f64, Vec<Option<f64>>);

/// The rates of all workers in requests per second: their sum, median, 10th and 90th percentile.
#[derive(Debug, Default)]
pub(super) struct Rates {
    points: VecDeque<Point>,
}

impl Rates {
    /// Takes the workers at a time in seconds.
    pub(super) fn take(&mut self, workers: &[WorkerRow], now: f64) {
        let is_due = self
            .points
            .back()
            .is_none_or(|(at, _)| now - at >= POINT_SECONDS);
        if is_due {
            let rates = workers.iter().filter_map(|worker| worker.requests_per_s);
            self.points.push_back((now, spread(rates.collect())));
            if self.points.len() > MAX_POINTS {
                self.points.pop_front();
            }
        }
    }

    /// The points: the sum, or the spread if there are many workers.
    pub(super) fn points(&self, is_many: bool) -> Vec<Point> {
        let pick = |values: &[Option<f64>]| {
            if is_many {
                values[1..].to_vec()
            } else {
                values[..1].to_vec()
            }
        };
        let points = self.points.iter();
        points.map(|(at, values)| (*at, pick(values))).collect()
    }
}

/// The sum, the median, the 10th and the 90th percentile.
fn spread(mut rates: Vec<f64>) -> Vec<Option<f64>> {
    rates.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = rates.len().checked_sub(1)?;
        rates.get((share * last as f64).round() as usize).copied()
    };
    let sum = rates.iter().copied().reduce(|sum, rate| sum + rate);
    vec![sum, at(0.5), at(0.1), at(0.9)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_many_rates_and_of_none() {
        let rates = (0..=100).rev().map(f64::from).collect();
        let expected = [5050.0, 50.0, 10.0, 90.0].map(Some);
        assert_eq!(spread(rates), expected);
        assert_eq!(spread(Vec::new()), [None; 4]);
    }

    #[test]
    fn the_history_is_bounded_and_has_a_point_every_five_seconds() {
        let mut rates = Rates::default();
        for second in 0..10_000 {
            rates.take(&[], f64::from(second));
        }
        let points = rates.points(true);
        assert_eq!(points.len(), MAX_POINTS);
        assert!(points.iter().all(|(_, values)| values.len() == 3));
        assert!((points[1].0 - points[0].0 - POINT_SECONDS).abs() < 0.001);
    }
}
