//! The database: plan, outcomes and signs of life in one SQLite file. The source of truth of every run.
//!
//! Invariants: a chunk's state only moves forward; a chunk's rows are written whole in one transaction, once; every
//! write is `BEGIN IMMEDIATE`. [`Store`] is the synchronous connection, [`Db`] is the same on a thread of its own.

mod apply;
mod chunks;
mod close;
mod db;
mod error;
mod header;
mod latest;
mod lock;
mod open;
mod plan;
mod report;
mod runs;
mod schema;
mod settings;
mod signs;
#[cfg(test)]
mod tests;
mod verify;

pub use apply::{Applied, Incoming, Letter};
pub use chunks::{Outgoing, Overdue, Republish};
pub use close::ClosedRun;
pub use db::Db;
pub use error::StoreError;
pub use lock::FileLock;
pub use open::{Durability, OpenOptions, Store};
pub use plan::{NewChunk, NewRun, PlannedRun};
pub use report::{ReportFilter, ReportRow};
pub use runs::{RunState, RunSummary, Via};
pub use settings::DatabaseSettings;
pub use signs::{WorkerRow, WriterSign};
pub use verify::{Finding, Verification};

// The tests' plans and messages are shared with those that see the public side only.
#[cfg(test)]
extern crate self as pingfleet_store;

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock in microseconds since 1970-01-01 UTC. It labels rows; nothing is measured with it.
#[must_use]
pub fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}
