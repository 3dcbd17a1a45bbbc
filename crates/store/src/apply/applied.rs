//! What a batch did, for its writer. No I/O.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Contradiction, CounterChanges};
use crate::{ClosedRun, RttHistogram, StatusCounts};

/// The outcome of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Deliveries whose rows or state were stored.
    pub applied: u64,
    /// Rows stored.
    pub rows: u64,
    /// Chunks that became done.
    pub done: u64,
    /// The targets of the stored rows, by status.
    pub statuses: StatusCounts,
    /// The targets of the stored rows that answered, by their mean round-trip time.
    pub round_trip_times: RttHistogram,
    /// Deliveries for chunks that were stored before.
    pub duplicates: u64,
    /// Those of [`Self::duplicates`] that are results with another status of a target than the stored one, by who sent both.
    pub contradictions: BTreeMap<Contradiction, u64>,
    /// Deliveries put into quarantine.
    pub quarantined: u64,
    /// How many of them have the same reason and the same login.
    pub reasons: BTreeMap<(&'static str, Option<String>), u64>,
    /// Heartbeats that were not stored, because their login has more than 1,000 workers.
    pub heartbeats_of_too_many: u64,
    /// Chunks whose message is gone from the queue of work although no worker is to blame. They are published again.
    pub removed: RemovedChunks,
    /// Chunks that became dead, for each run.
    pub dead: Vec<DeadChunks>,
    /// Runs that this batch closed.
    pub closed: Vec<ClosedRun>,
    /// Whether it settled the last chunk of a run that is too large to be closed in the same transaction. Then call
    /// [`Writer::close_settled_runs`](crate::Writer::close_settled_runs).
    pub is_large_run_settled: bool,
}

impl Applied {
    /// Adds what a batch changed of one run.
    pub(super) fn add(&mut self, run: i64, changes: &CounterChanges) {
        self.done += changes.done.len() as u64;
        self.statuses += changes.counts;
        self.round_trip_times += changes.settled.round_trip_times();
        if let Some((run_id, chunks)) = changes.newly_dead {
            self.dead.push(DeadChunks {
                run,
                run_id,
                chunks,
            });
        }
    }
}

/// Chunks whose message is gone, by who removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemovedChunks {
    /// A policy did: the message was older than `message-ttl`, or the queue longer than `max-length`.
    pub by_policy: u64,
    /// A consumer rejected it (AMQP `basic.reject` or `basic.nack` without `requeue`), which no worker does.
    pub by_rejection: u64,
}

/// Chunks of a run that became dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadChunks {
    /// The run's number.
    pub run: i64,
    /// The run's id.
    pub run_id: Uuid,
    /// How many.
    pub chunks: u64,
}
