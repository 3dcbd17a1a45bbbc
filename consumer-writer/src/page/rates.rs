//! The rates of the workers over the last minutes, and that of the current run. They are kept in memory only.

use std::{collections::VecDeque, time::Duration};

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

/// The rate of a run is that of this time. The count of settled targets grows by whole chunks.
const PACE_TIME: Duration = Duration::from_mins(1);

/// No rate is given for a shorter time.
const MIN_PACE_TIME: Duration = Duration::from_secs(5);

/// Points before a longer pause say nothing about now: nobody looked.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// How fast the targets of a run are settled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    /// Targets per second.
    pub(super) settled_per_s: f64,
    /// The time that it is taken over.
    pub(super) over: Duration,
    /// How long nothing has been settled, as far as this time shows it.
    pub(super) still: Duration,
}

/// How many targets of a run were settled at the times of the last minute, since some start.
#[derive(Debug, Default)]
pub(super) struct SettledPoints {
    run: i64,
    points: VecDeque<(Duration, i64)>,
}

impl SettledPoints {
    /// Takes the number of settled targets at a time.
    pub(super) fn take(&mut self, run: i64, settled: i64, now: Duration) {
        let is_paused = self
            .points
            .back()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > MAX_PAUSE);
        if run != self.run || is_paused {
            self.points.clear();
        }
        self.run = run;
        self.points.push_back((now, settled));
        while let Some((at, _)) = self.points.front()
            && now.saturating_sub(*at) > PACE_TIME
        {
            self.points.pop_front();
        }
    }

    /// The rate between the first point and the last one. None while they are too close.
    pub(super) fn pace(&self) -> Option<Pace> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        let over = last.0.saturating_sub(first.0);
        let settled = (last.1 - first.1).max(0);
        let unchanged = self
            .points
            .iter()
            .rev()
            .take_while(|(_, settled)| *settled == last.1);
        let still_since = unchanged.last().map_or(last.0, |(at, _)| *at);
        (over >= MIN_PACE_TIME).then(|| Pace {
            settled_per_s: settled as f64 / over.as_secs_f64(),
            over,
            still: last.0.saturating_sub(still_since),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_a_run_is_that_of_the_last_minute_and_may_be_zero() {
        let mut points = SettledPoints::default();
        let second = Duration::from_secs;
        let rate = |points: &SettledPoints| points.pace().map(|pace| pace.settled_per_s);
        points.take(1, 0, second(0));
        points.take(1, 250, second(4));
        assert_eq!(rate(&points), None);
        points.take(1, 250, second(10));
        assert_eq!(rate(&points), Some(25.0));
        for at in 11..=80 {
            points.take(1, 250, second(at));
        }
        assert_eq!(rate(&points), Some(0.0));
        assert_eq!(points.pace().map(|pace| pace.over), Some(PACE_TIME));
        // Nobody looked for a while, and then another run is the current one.
        points.take(1, 9000, second(100));
        assert_eq!(rate(&points), None);
        points.take(1, 9050, second(110));
        assert_eq!(rate(&points), Some(5.0));
        points.take(2, 10, second(111));
        assert_eq!(rate(&points), None);
    }

    #[test]
    fn a_run_stands_still_since_its_last_settled_target_and_not_only_after_a_minute() {
        let mut points = SettledPoints::default();
        let second = Duration::from_secs;
        for at in 0..30 {
            points.take(1, 10 * at.min(12), second(at as u64));
            let still = points.pace().map(|pace| pace.still);
            let expected = second((at - 12).max(0) as u64);
            assert_eq!(still, (at >= 5).then_some(expected), "{at}");
        }
        assert!(points.pace().is_some_and(|pace| pace.settled_per_s > 0.0));
    }

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
