//! The fault suite: the real roles as processes, over a scripted prober, with faults at their boundaries, at the broker,
//! the network, the disk and the clock. After each fault the same invariants must hold.
//!
//! Invariant: every case has an oracle that does not come from the roles, and where one can be made a control: the same
//! harness with a promise that is kept badly, in which a violation must be seen.

pub mod acts;
pub mod bench;
mod bounds;
pub mod cases;
mod fleet;
pub mod invariants;
mod oracle;
mod program;
pub mod table;
pub mod tampered;
mod trace;

use std::time::Duration;

pub use self::{
    fleet::{Fleet, Rest},
    program::Program,
};

/// Nothing here takes longer than this, unless it hangs.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// The pause between two looks at a database or a process: neither can be awaited from outside.
pub const LOOK: Duration = Duration::from_millis(20);
