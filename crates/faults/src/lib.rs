//! The fault suite: the real roles as processes, with a scripted prober, with faults at their boundaries, at the broker,
//! the network, the disk and the clock. After each fault the same invariants must hold.
//!
//! Invariant: every case checks against expectations that do not come from the roles. Every case has a control: the same
//! case with one deliberate defect, in which the same checks must report a violation.

pub mod actions;
pub mod cases;
mod child_process;
mod deployment;
mod expected_rows;
pub mod fault_injection;
pub mod invariants;
pub mod outcome_table;
mod resource_usage;
pub mod runner;
mod strace_log;

use std::time::Duration;

pub use self::{
    child_process::ChildProcess,
    deployment::{Deployment, Idle},
};

/// The longest wait for anything: what takes longer hangs.
pub const MAX_WAIT: Duration = Duration::from_mins(3);

/// The pause between two polls of a database or a process. Neither offers an event to await.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);
