//! Why there is no list of targets. All but [`TargetsError::TextSpool`] can be fixed by the user.

use std::io;

use thiserror::Error;

use crate::{
    bad_targets::BadTargets,
    limits::{MAX_TARGETS, MAX_WITHOUT_YES, MEMORY_LIMITS},
    line_counts::LineCounts,
    parse::BadTargetReason,
};

/// Why there is no list of targets. The reason of an input or output error is its source.
#[derive(Debug, Error)]
pub enum TargetsError {
    /// Some targets cannot be probed.
    #[error("{count}:\n{0}\nnothing was probed; --skip-bad goes on without them", count = counted(.0))]
    Bad(BadTargets),
    /// Some excludes cannot be parsed. They are never skipped: addresses that the user wants to protect would be probed.
    #[error("{count} among the excludes:\n{0}\nnothing was probed", count = counted(.0))]
    BadExcludes(BadTargets),
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file's name, or `standard input`.
        file: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file as a whole cannot be used.
    #[error("{file}: {problem}")]
    File {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// Standard input was named more than once.
    #[error("- (standard input) is named twice, and can be read only once")]
    InputTwice,
    /// There is no target.
    #[error("nothing to probe{}", left_out(*.duplicates, *.excluded, *.skipped_bad, *.lines))]
    Nothing {
        /// Mentions of a target that was mentioned before.
        duplicates: u64,
        /// Targets that were excluded.
        excluded: u64,
        /// Bad targets that were skipped.
        skipped_bad: u64,
        /// What became of the lines of files, if there were any.
        lines: Option<LineCounts>,
    },
    /// There are so many targets that it may be a mistake.
    #[error("at least {count} targets: more than {MAX_WITHOUT_YES} need --yes")]
    NeedsYes {
        /// How many there were when reading stopped.
        count: u64,
    },
    /// There are more targets than a plan may have.
    #[error(
        "at least {count} targets: more than {MAX_TARGETS} cannot be planned, so split them into several runs"
    )]
    TooMany {
        /// How many there were when reading stopped.
        count: u128,
    },
    /// There are more names than fit into memory.
    #[error(
        "more than {} names cannot be planned at once, so split them into several runs",
        MEMORY_LIMITS.names
    )]
    TooManyNames,
    /// There are more separate addresses than fit into memory.
    #[error(
        "more than {} addresses, networks and labels that do not follow each other cannot be planned at once, so \
         sort them or split them into several runs",
        MEMORY_LIMITS.pieces
    )]
    TooManyPieces,
    /// A set, such as the excludes, has more members than fit into memory.
    #[error(
        "more than {} names, or {} addresses and networks that do not touch, cannot be excluded or matched at once, \
         so name larger networks",
        MEMORY_LIMITS.set_names,
        MEMORY_LIMITS.pieces
    )]
    TooLargeSet,
    /// The temporary file for names and labels cannot be written or read.
    #[error("the temporary file for names and labels cannot be used (TMPDIR says where it is)")]
    TextSpool(#[source] io::Error),
}

/// What is wrong with a file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FileProblem {
    /// The header of a CSV file is not a good row.
    #[error("the header cannot be read: {why}")]
    Header {
        /// What is wrong with it.
        why: BadTargetReason,
    },
    /// The line `sep=` of a CSV file does not name a separator.
    #[error(
        "its first line names no separator: it is written sep=; (one character that is no letter)"
    )]
    Separator,
    /// A CSV file has no header.
    #[error("is empty: a CSV file begins with a header, in which one column is named target")]
    NoHeader,
    /// A CSV file's header has no column of targets.
    #[error(
        "no column is named target; its columns are: {columns} (--format list reads one target a line)"
    )]
    NoTargetColumn {
        /// The columns that it has.
        columns: String,
    },
    /// Two columns of a CSV file have the same name.
    #[error("two columns are named {name}")]
    SameColumns {
        /// Their name.
        name: String,
    },
}

fn counted(bad: &BadTargets) -> String {
    match bad.count() {
        1 => "1 bad target".to_owned(),
        count => format!("{count} bad targets"),
    }
}

fn left_out(duplicates: u64, excluded: u64, skipped_bad: u64, lines: Option<LineCounts>) -> String {
    let parts: Vec<_> = [
        (excluded, "excluded"),
        (skipped_bad, "bad and skipped"),
        (duplicates, "mentioned again"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .chain(lines.map(|lines| lines.to_string()))
    .collect();
    if parts.is_empty() {
        ": name targets, or a file with -f that has some".to_owned()
    } else {
        format!(" ({})", parts.join(", "))
    }
}
