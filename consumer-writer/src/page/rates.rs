//! The rates of the workers over the last minutes. They are kept in memory only.

use std::collections::{HashMap, VecDeque};

use pingfleet_store::WorkerRow;

/// How many points of time are kept: ten minutes.
const MAX_POINTS: usize = 120;

/// Seconds between two points.
const POINT_SECONDS: f64 = 5.0;

/// With more workers than this, the chart shows the spread of their rates instead of the sum.
pub(super) const MAX_SINGLE_WORKERS: usize = 20;

/// A worker's rate is known for this long after a heartbeat.
const RATE_SECONDS: f64 = 15.0;

type WorkerKey = (String, i64);

/// Requests that a worker had sent at its last heartbeat, and its rate between the last two.
#[derive(Debug, Clone, Copy)]
struct LastHeartbeat {
    at: f64,
    requests: i64,
    rate: Option<f64>,
}

/// The rates of all workers.
#[derive(Debug, Default)]
pub(super) struct Rates {
    workers: HashMap<WorkerKey, LastHeartbeat>,
    /// Seconds, and all workers' requests per second: their sum, median, 10th and 90th percentile.
    points: VecDeque<(f64, Vec<Option<f64>>)>,
}

impl Rates {
    /// Takes the workers at a time in seconds.
    pub(super) fn take(&mut self, workers: &[WorkerRow], now: f64) {
        let known: std::collections::HashSet<_> = workers.iter().map(key).collect();
        self.workers.retain(|key, _| known.contains(key));
        for worker in workers {
            let at = now - worker.age.as_secs_f64();
            let found = LastHeartbeat {
                at,
                requests: worker.requests_sent,
                rate: None,
            };
            let last = self.workers.entry(key(worker)).or_insert(found);
            // Results are signs of life as well, without counts.
            if worker.requests_sent != last.requests && at > last.at {
                let rate = (worker.requests_sent - last.requests) as f64 / (at - last.at);
                *last = LastHeartbeat {
                    rate: Some(rate.max(0.0)),
                    ..found
                };
            } else if now - last.at > RATE_SECONDS {
                last.rate = last.rate.map(|_| 0.0);
            }
        }
        let is_due = self
            .points
            .back()
            .is_none_or(|(at, _)| now - at >= POINT_SECONDS);
        if is_due {
            self.points.push_back((now, self.spread()));
            if self.points.len() > MAX_POINTS {
                self.points.pop_front();
            }
        }
    }

    /// The rate of a worker in requests per second.
    pub(super) fn of(&self, worker: &WorkerRow) -> Option<f64> {
        self.workers.get(&key(worker))?.rate
    }

    /// The rate of all workers.
    pub(super) fn total(&self) -> Option<f64> {
        let rates = self.workers.values().filter_map(|last| last.rate);
        rates.reduce(|sum, rate| sum + rate)
    }

    /// The points: the sum, or the spread if there are many workers.
    pub(super) fn points(&self, is_many: bool) -> Vec<(f64, Vec<Option<f64>>)> {
        let pick = |values: &[Option<f64>]| match (is_many, values) {
            (false, [sum, ..]) => vec![*sum],
            (_, values) => values.iter().skip(1).copied().collect(),
        };
        let points = self.points.iter();
        points.map(|(at, values)| (*at, pick(values))).collect()
    }

    fn spread(&self) -> Vec<Option<f64>> {
        let mut rates: Vec<_> = self.workers.values().filter_map(|last| last.rate).collect();
        rates.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = rates.len().checked_sub(1)?;
            rates.get((share * last as f64).round() as usize).copied()
        };
        vec![self.total(), at(0.5), at(0.1), at(0.9)]
    }
}

fn key(worker: &WorkerRow) -> WorkerKey {
    (worker.worker.clone(), worker.pid)
}
