//! The errors of the database, grouped by what the caller does about them.

use std::path::PathBuf;

use pingfleet_settings::shell_word;
use thiserror::Error;

/// Why a call to the database failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file does not exist, and the caller does not create it.
    #[error("there is no database {path}: run `pingfleet sweep` or `producer` first, or name it with --db", path = .path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is not a pingfleet database. It was not changed.
    #[error("{path} is not a pingfleet database ({found}); it was not changed: name another file with --db", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A newer pingfleet wrote the database. It was not changed.
    #[error("{path} has schema version {found}, this pingfleet knows up to {known}; it was not changed: use the newer pingfleet", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest schema version of this build.
        known: i64,
    },
    /// An older pingfleet wrote the database, and the caller only reads.
    #[error("{path} has schema version {found}, this pingfleet reads version {needed}: `pingfleet doctor --db {word}` upgrades it, as a user who may write it", path = .path.display(), word = shell_word(.path))]
    Older {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The schema version of this build.
        needed: i64,
    },
    /// The check of the file found damage.
    #[error("{path} is damaged ({detail}): keep a copy, and restore it from a backup or with `sqlite3 {word} .recover`", path = .path.display(), word = shell_word(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The first line of `PRAGMA quick_check`.
        detail: String,
    },
    /// The file or its folder cannot be opened, created or locked.
    #[error("cannot open database {path}: {reason}", path = .path.display())]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The open file was deleted, or another one took its place.
    #[error("{path} was deleted or replaced while it was in use: restore it from a backup and start again; what was not stored in it comes again", path = .path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the lock.
    #[error("{what} is in use by another process{holder}")]
    AlreadyLocked {
        /// What is locked, as the message names it.
        what: String,
        /// " (pid 12)", or empty when the holder is unknown.
        holder: String,
    },
    /// No run has that number or UUID.
    #[error("no run {wanted:?} in this database: `pingfleet runs` lists them")]
    NoSuchRun {
        /// What was asked for.
        wanted: String,
    },
    /// More than one run begins with that UUID prefix.
    #[error("run {wanted:?} is ambiguous: {count} runs begin so")]
    AmbiguousRun {
        /// What was asked for.
        wanted: String,
        /// How many match.
        count: i64,
    },
    /// The rows of the run were removed.
    #[error("the rows of run {run} were pruned at {pruned_at}{}", archived(.archive.as_deref()))]
    Pruned {
        /// The run's number.
        run: i64,
        /// RFC 3339, UTC.
        pruned_at: String,
        /// The file that has them.
        archive: Option<String>,
    },
    /// A condition of the user cannot be used.
    #[error("the condition of --where is refused: {reason}")]
    BadCondition {
        /// What SQLite said, or what is not allowed.
        reason: String,
    },
    /// A file for sorted rows cannot be made, written or read.
    #[error("cannot use a temporary file; TMPDIR names the folder")]
    TemporaryFile(#[source] std::io::Error),
    /// The user interrupted a query.
    #[error("interrupted")]
    Interrupted,
    /// The plan in the database contradicts itself.
    #[error("the plan of run {run} cannot be read: {reason}")]
    BadPlan {
        /// The run's number.
        run: i64,
        /// What is wrong.
        reason: String,
    },
    /// The counters of a run are damaged.
    #[error("the progress of run {run} cannot be read: {reason}")]
    BadProgress {
        /// The run's number.
        run: i64,
        /// What is wrong.
        reason: String,
    },
    /// SQLite failed.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The database was locked for too long.
    #[error(
        "the database was locked by another program for {minutes} minutes: end that program and start again; nothing was lost"
    )]
    BusyTooLong {
        /// How long the caller waited, in minutes.
        minutes: u64,
    },
    /// The database's thread has ended.
    #[error("the database is closed")]
    Closed,
}

/// Where the rows of a pruned run are.
fn archived(archive: Option<&str>) -> String {
    match archive {
        Some(file) => format!(": they are in {file}"),
        None => ", without an archive".to_owned(),
    }
}

impl StoreError {
    /// Whether the same call may succeed later. Only this function decides it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
            ),
            _ => false,
        }
    }

    /// Why sorted rows could not be written or read again.
    #[must_use]
    pub fn from_sorted_rows(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::Interrupted {
            Self::Interrupted
        } else {
            Self::TemporaryFile(error)
        }
    }

    /// Whether a disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
    }

    /// Whether a disk is full, or SQLite has no folder for temporary files.
    pub(crate) fn is_out_of_space(&self) -> bool {
        let Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) = self else {
            return false;
        };
        error.extended_code == rusqlite::ffi::SQLITE_IOERR_GETTEMPPATH
            || matches!(
                error.code,
                rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::CannotOpen
            )
    }
}
