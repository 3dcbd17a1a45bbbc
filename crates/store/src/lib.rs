//! The database: plan, results and liveness in one SQLite file. The source of truth of every run.
//!
//! Invariants: a chunk's state only moves forward; a chunk's rows are written whole in one transaction, once; every
//! write is `BEGIN IMMEDIATE`. [`Writer`] is the connection of the roles, [`DatabaseThread`] runs one
//! on a thread of its own. [`Reader`] changes nothing, and needs no write permission.

mod address;
mod apply;
mod check;
mod chunk_outcomes;
mod chunk_state;
mod chunks;
mod close;
mod db;
mod error;
mod header;
mod latest;
mod liveness;
mod lock;
mod open;
mod plan;
mod planned_probing;
mod progress;
mod prune;
mod reader;
mod retry;
mod rtt_bins;
mod run_lookup;
mod run_summary;
mod runs;
mod schema;
mod settings;
#[cfg(test)]
mod tests;

pub use apply::{
    Applied, Contradiction, DeadChunks, DecodedDelivery, RawMessage, Refusal, RemovedChunks, Sender,
};
pub use chunk_state::ChunkState;
pub use chunks::{
    MAX_UNRECORDED, OutboxChunk, Overdue, OvertakingFacts, PublishedChunk, Republish, WorkerKey,
};
pub use close::ClosedRun;
pub use db::DatabaseThread;
pub use error::StoreError;
pub use liveness::{
    Fleet, LiveWorkers, MAX_WORKERS_OF_LOGIN, WorkerRow, WorkerState, WriterLiveness, shared_names,
};
pub use lock::FileLock;
pub use open::{Durability, FileMode, OpenOptions, Writer};
pub use plan::{NewChunk, NewRun, PlannedRun};
pub use planned_probing::PlannedProbing;
pub use prune::{PrunedRun, RemovedRows};
pub use reader::{
    ChangeKind, Condition, DeadChunk, DeadChunkList, DiffLimits, ExportPage, ExportPart,
    ExportParts, ExportRow, FoundTarget, HostFilter, HostOrder, HostPage, HostPart, HostParts,
    HostRow, LATEST_COLUMNS, NewestChange, NotUp, QuarantineList, QuarantinedMessage,
    REPORT_COLUMNS, Reader, ReportFilter, ReportPages, ReportRow, RowOrder, RunChanges, RunDetail,
    RunDiff, RunOverview, RunProgress, RunWorker, SameOutcome, StatusChange, SubnetCounts,
    SubnetNotUp, SubnetRun, SubnetRuns, SubnetStatuses, TargetChange, TargetHistory, TargetRtt,
    TargetRuns, TimeBin, Verification, VerifyFinding, WholeSubnet, view_time,
};
pub use retry::EarlierTarget;
pub use rtt_bins::{RttBin, RttHistogram};
pub use run_summary::{RunState, RunSummary, StatusCounts, Transport};
pub use runs::{WindowUse, run_span};
pub use settings::DatabaseSettings;

// The tests in `src` use the sample plans of `tests/store`, which import the crate by its public name.
#[cfg(test)]
extern crate self as pingfleet_store;

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock in microseconds since 1970-01-01 UTC. It labels rows and ages of chunks and heartbeats; no duration of a probe is measured with it.
#[must_use]
pub fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}
