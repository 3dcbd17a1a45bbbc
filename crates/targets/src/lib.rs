//! From what the user typed to the list of targets and their order.
//!
//! [`read`] takes the arguments, files and standard input and gives [`Targets`]: every target once, in the order in
//! which they were given. [`Order`] is the order in which they are probed. Invariant: memory follows what the user
//! wrote, never the number of addresses that it stands for. Networks and ranges are never walked through; names and
//! labels are in a temporary file.
//!
//! A word goes from `input` to `parse` (what does it say?), `address_range` (which addresses are that, and may they be
//! probed?) and `collect` (which of them are new and wanted?).

mod address_range;
mod args;
mod bad_targets;
mod collect;
mod error;
mod input;
mod ip_range_set;
mod limits;
mod notes;
mod order;
mod parse;
mod read;
mod targets;

pub use args::TargetArgs;
pub use bad_targets::{BadTarget, BadTargets};
pub use error::{FileProblem, TargetsError};
pub use order::Order;
pub use read::read;
pub use targets::{PlannedTarget, Targets};
