//! From what the user typed to the list of targets and their order; and sets of targets to match others against.
//!
//! - [`read`] turns the arguments, files and standard input into [`Targets`]: every target once, in the order in which
//!   they were given. [`Order`] is the order in which they are probed.
//! - [`read_set`] turns words and files into a [`TargetSet`]: excludes, a stop list, a filter.
//! - [`parse`] turns one word into a [`ParsedTarget`] or a [`BadTargetReason`]; [`TargetSource`] knows whether an argument
//!   is a target, a file or standard input.
//! - [`AddressRange`] and [`IpRangeSet`] are consecutive addresses, and a set of them.
//!
//! A word goes from `input` to `parse` (what does it say?), which is the only place that parses it, and then to `collect`
//! (may it be probed, and which of its addresses are new and wanted?). Every line of a file is counted ([`LineCounts`]): none
//! vanishes. Invariant: memory follows what the user wrote,
//! never the number of addresses that it stands for. Networks and ranges are never walked through; names and labels are
//! in a temporary file.

mod address_range;
mod args;
mod bad_targets;
mod collect;
mod disjoint_ranges;
mod error;
mod input;
mod ip_range_set;
mod limits;
mod line_counts;
mod notes;
mod order;
mod parse;
mod probeable;
mod read;
mod target_set;
mod targets;

pub use address_range::AddressRange;
pub use args::TargetArgs;
pub use bad_targets::{BadTarget, BadTargets};
pub use collect::link_local::LinkLocalTargets;
pub use error::{FileProblem, TargetsError};
pub use input::{format::InputFormat, source::TargetSource};
pub use ip_range_set::IpRangeSet;
pub use line_counts::LineCounts;
pub use order::Order;
pub use parse::{BadTargetReason, ParsedTarget, TargetSpec, parse};
pub use read::{read, read_set};
pub use target_set::TargetSet;
pub use targets::{PlannedTarget, Targets};
