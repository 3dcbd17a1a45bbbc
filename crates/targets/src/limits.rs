//! The limits of what can be read and listed.

/// The longest line of a file, in bytes, without its line end.
pub(crate) const MAX_LINE_BYTES: usize = 4096;

/// The most columns of a CSV file.
pub(crate) const MAX_COLUMNS: usize = 256;

/// The most addresses that one line with labels may stand for: the plan stores the labels of each.
pub(crate) const MAX_LABELLED_ADDRESSES: u128 = 65_536;

/// More targets than this need `--yes`: all of an IPv4 /8.
pub(crate) const MAX_WITHOUT_YES: u64 = 1 << 24;

/// More targets than this are refused.
pub(crate) const MAX_TARGETS: u64 = 1 << 28;

/// How many bad targets, and how many notes, are reported in full.
pub(crate) const MAX_REPORTED: usize = 20;
