//! The limits of what can be read and listed.

/// The longest line of a file, in bytes, without its line end.
pub(crate) const MAX_LINE_BYTES: usize = 4096;

/// The most columns of a CSV file.
pub(crate) const MAX_COLUMNS: usize = 256;

/// The most addresses that one line with labels may stand for: the plan stores the labels of each.
pub(crate) const MAX_LABELLED_ADDRESSES: u128 = 65_536;

/// The longest stretch of a file without a line end, in bytes: more is an endless input, such as a device.
pub(crate) const MAX_STRETCH_BYTES: u64 = 64 << 20;

/// The most lines of a file, for an endless input that has line ends.
pub(crate) const MAX_LINES: u64 = 1 << 30;

/// More targets than this need `--yes`: all of an IPv4 /8.
pub(crate) const MAX_WITHOUT_YES: u64 = 1 << 24;

/// More targets than this are refused.
pub(crate) const MAX_TARGETS: u64 = 1 << 28;

/// What a list may hold, so that no file fills the memory. All are limits of one list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryLimits {
    /// The most names, and addresses with a zone, of a list: 157 MB were measured.
    pub(crate) names: usize,
    /// The same for a set, which has their texts in memory: each takes up to 300 bytes.
    pub(crate) set_names: usize,
    /// The most pieces: ranges of addresses that do not follow each other, and texts that are kept.
    pub(crate) pieces: usize,
}

/// The limits of every list that a user gives.
pub(crate) const MEMORY_LIMITS: MemoryLimits = MemoryLimits {
    names: 1 << 22,
    set_names: 1 << 20,
    pieces: 1 << 24,
};

/// How many bad targets, and how many notes, are reported in full.
pub(crate) const MAX_REPORTED: usize = 20;
