//! The files of a database as they are now, and how a reader may use them. Nothing here opens a file: closing it would
//! drop the locks that SQLite has on it in this process.

use std::{fs, io, path::Path, time::SystemTime};

use pingfleet_settings::shell_word;

use crate::{
    StoreError,
    header::{Access, Identity, companion, identity},
};

/// What `stat` shows of the files of a database. If it is the same before and after, nobody has written meanwhile.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileState {
    identity: Option<Identity>,
    length: Option<u64>,
    modified: Option<SystemTime>,
    wal_length: Option<u64>,
    has_shm: bool,
    journal_length: Option<u64>,
}

impl FileState {
    pub(super) fn of(path: &Path) -> Self {
        let file = fs::metadata(path).ok();
        Self {
            identity: identity(path),
            length: file.as_ref().map(fs::Metadata::len),
            modified: file.and_then(|file| file.modified().ok()),
            wal_length: length(&companion(path, "-wal")),
            has_shm: length(&companion(path, "-shm")).is_some(),
            journal_length: length(&companion(path, "-journal")),
        }
    }

    /// How a reader may use the database without creating a file.
    ///
    /// # Errors
    /// [`StoreError::CannotOpen`] when the log has rows and SQLite would have to create the `-shm` file to read them.
    pub(super) fn access(&self, path: &Path) -> Result<Access, StoreError> {
        let has_log = self.wal_length.is_some_and(|length| length > 0);
        let has_journal = self.journal_length.is_some_and(|length| length > 0);
        if has_log && !self.has_shm {
            let path = path.to_owned();
            return Err(StoreError::CannotOpen {
                reason: format!(
                    "{wal} has rows that are not in the file yet, and {shm} is missing: `pingfleet doctor --db {path}` \
                     puts them into the file, as a user who may write it",
                    wal = companion(&path, "-wal").display(),
                    shm = companion(&path, "-shm").display(),
                    path = shell_word(&path),
                ),
                path,
            });
        }
        // The last writer may remove the log between this decision and the opening. Then SQLite creates an empty one if
        // it may, and the next writer removes it.
        Ok(if has_log || has_journal {
            Access::Read
        } else {
            Access::ReadImmutable
        })
    }
}

/// The length of a file that may be missing.
fn length(path: &Path) -> Option<u64> {
    let file: io::Result<fs::Metadata> = fs::metadata(path);
    file.ok().map(|file| file.len())
}
