//! Opens the database file: creates it, migrates it, or refuses it without a change.
//!
//! Source: <https://www.sqlite.org/fileformat.html> (the header), <https://www.sqlite.org/wal.html>,
//! <https://www.sqlite.org/pragma.html>.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior};
use uuid::Uuid;

use crate::{
    StoreError, check,
    header::{self, Access, OpenFile},
    now_us,
    progress::LastProgress,
    schema::{APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION},
};

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two tries of a statement for which SQLite's busy timeout does not work.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Page cache of a connection, in KiB (negative in SQLite's own notation).
const CACHE_KIB: i64 = 16 * 1024;

/// What a commit survives (`PRAGMA synchronous`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Every commit survives a power loss: the log is synced before the commit returns.
    #[default]
    Full,
    /// A power loss may undo the last commits; the end of a process does not.
    Normal,
    /// A power loss may leave a damaged file.
    Off,
}

/// Who may read the files that are created: the database, its log, its shared memory and its locks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileMode {
    /// The user only (0600).
    #[default]
    User,
    /// The group too (0640).
    Group,
}

impl FileMode {
    /// The bits of this mode.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::User => 0o600,
            Self::Group => 0o640,
        }
    }
}

/// How to open the database.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The file.
    pub path: PathBuf,
    /// What a commit survives.
    pub durability: Durability,
    /// Whether a missing file is created.
    pub create: bool,
    /// Who may read a file that is created.
    pub mode: FileMode,
    /// Whether a role begins to work on the file, so that it is checked for damage (`PRAGMA quick_check`): a file of up to
    /// 8 MiB whole by [`Self::open`], a larger one beside the work by [`crate::DatabaseThread`].
    pub check: bool,
}

impl OpenOptions {
    /// Opens the database, creates it when it is missing and `create` is set, and migrates an older one.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], [`StoreError::Newer`] and [`StoreError::Corrupt`] leave the file as it was.
    pub fn open(&self) -> Result<Writer, StoreError> {
        let (connection, opened) =
            header::connect(&self.path, Access::Write(self.mode), |found| {
                found.check(&self.path, self.create)
            })?;
        let mut store = Writer {
            connection,
            path: self.path.clone(),
            database: Uuid::nil(),
            identity: header::identity(&self.path),
            keeps_temporary_files_in_memory: false,
            last_progress: LastProgress::default(),
            _opened: opened,
        };
        self.configure(&mut store)
            .map_err(|error| header::explain(&self.path, error))?;
        Ok(store)
    }

    fn configure(&self, store: &mut Writer) -> Result<(), StoreError> {
        let connection = &mut store.connection;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(64);
        // The log may know of a newer schema than the header does.
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        header::refuse_newer(&self.path, version)?;
        if version < SCHEMA_VERSION {
            self.migrate(connection)?;
        }
        let mode = switch_to_wal(connection)?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(self.refused(format!(
                "its file system has no shared memory for WAL (journal_mode stays {mode}); use a local disk"
            )));
        }
        let (synchronous, level) = match self.durability {
            Durability::Full => ("FULL", 2),
            Durability::Normal => ("NORMAL", 1),
            Durability::Off => ("OFF", 0),
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        let set: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        if set != level {
            return Err(self.refused(format!("synchronous stays {set} instead of {level}")));
        }
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        if self.check && check::is_small(&self.path) {
            check::quick_check(connection, &self.path)?;
        }
        store.database = connection.query_row("SELECT uuid FROM database", (), |row| row.get(0))?;
        Ok(())
    }

    /// Creates or migrates the schema. Another process may be doing the same: the version is read again in the
    /// transaction. The schema is created before the switch to WAL, so that the header already carries the
    /// application id.
    fn migrate(&self, connection: &mut Connection) -> Result<(), StoreError> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 =
            transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        header::refuse_newer(&self.path, version)?;
        let missing = usize::try_from(version)
            .ok()
            .and_then(|known| MIGRATIONS.get(known..))
            .unwrap_or_default();
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        if version == 0 {
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.execute(
                "INSERT INTO database (id, uuid, created_at_us) VALUES (1, ?1, ?2)",
                (Uuid::new_v4(), now_us()),
            )?;
        }
        if !missing.is_empty() {
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::CannotOpen {
            path: self.path.clone(),
            reason,
        }
    }
}

/// Switches a new database to WAL and returns the mode that it has then. When two processes do this at once, each waits
/// for the other's read lock. SQLite detects that and returns BUSY at once, without the timeout, so this tries again.
fn switch_to_wal(connection: &Connection) -> rusqlite::Result<String> {
    let began = Instant::now();
    loop {
        let mode =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0));
        match mode {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && began.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

/// An open database: one connection, used by one thread.
#[derive(Debug)]
pub struct Writer {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) database: Uuid,
    /// Device and inode of the file when it was opened, where the system has them.
    identity: Option<header::Identity>,
    /// Whether SQLite keeps its temporary files in memory, because their folder had no room.
    keeps_temporary_files_in_memory: bool,
    /// The counters that were stored last.
    pub(crate) last_progress: LastProgress,
    // Stands after the connection, so that it is dropped after it.
    _opened: OpenFile,
}

impl Writer {
    /// The UUID of this database, which work and result messages carry.
    #[must_use]
    pub fn database(&self) -> Uuid {
        self.database
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a transaction that takes the write lock when it begins.
    pub(crate) fn write<T>(
        &mut self,
        body: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = body(&transaction)?;
        transaction.commit()?;
        // SQLite still writes into a deleted file, but nobody can find that file: this is no commit.
        if header::identity(&self.path) != self.identity {
            return Err(StoreError::Gone {
                path: self.path.clone(),
            });
        }
        Ok(value)
    }

    /// Runs what may need temporary files: SQLite sorts in them, and keeps in them what a statement that may fail has
    /// changed (<https://www.sqlite.org/tempfiles.html>, 2.3 and 2.6). When they have no room, they are kept in memory from
    /// then on, and `body` runs a second time.
    pub(crate) fn with_temporary_files<T>(
        &mut self,
        body: impl Fn(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match body(self) {
            Err(error) if error.is_out_of_space() && !self.keeps_temporary_files_in_memory => {
                if self.keep_temporary_files_in_memory(true).is_err() {
                    return Err(error);
                }
            }
            done => return done,
        }
        match body(self) {
            Ok(value) => {
                tracing::warn!(
                    "the folder of SQLite's temporary files has no room: they are kept in memory; SQLITE_TMPDIR names another \
                     folder"
                );
                Ok(value)
            }
            // The disk of the database is full.
            Err(error) => {
                if let Err(kept) = self.keep_temporary_files_in_memory(false) {
                    tracing::debug!(%kept, "temporary files stay in memory");
                }
                Err(error)
            }
        }
    }

    /// Whether temporary files are kept in memory, so that nothing large may be put into them.
    pub(crate) fn keeps_temporary_files_in_memory(&self) -> bool {
        self.keeps_temporary_files_in_memory
    }

    fn keep_temporary_files_in_memory(&mut self, in_memory: bool) -> Result<(), StoreError> {
        let place = if in_memory { "MEMORY" } else { "DEFAULT" };
        self.connection.pragma_update(None, "temp_store", place)?;
        self.keeps_temporary_files_in_memory = in_memory;
        Ok(())
    }

    /// Checks that a transaction can be committed. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] when the disk, a lock or a permission forbids it.
    pub fn try_commit(&mut self) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute("UPDATE database SET created_at_us = created_at_us", ())?;
            Ok(())
        })
    }

    /// Closes the database. The last connection writes the log back into the file and removes it. Before that, this
    /// writes the log back as far as no reader needs it, without waiting: a [`crate::Reader`] that is open at the same
    /// time would keep the last connection from doing it.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]. Committed data is safe all the same.
    pub fn close(self) -> Result<(), StoreError> {
        self.connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?;
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::trace::{TraceEvent, TraceEventCodes};
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_switch_to_wal_outlasts_another_process_that_writes() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("fleet.db");
        let other = Connection::open(&path).unwrap();
        other
            .execute_batch("CREATE TABLE t (c INTEGER); BEGIN IMMEDIATE")
            .unwrap();
        let mut connection = Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        let refused = connection.pragma_update(None, "journal_mode", "WAL");
        assert!(refused.is_err(), "nothing was in the way");
        // The other connection ends its transaction after the first failed try.
        let mut other = Some(other);
        connection
            .trace_v2(
                TraceEventCodes::SQLITE_TRACE_PROFILE,
                Some(move |_: TraceEvent<'_>| drop(other.take())),
            )
            .unwrap();
        assert_eq!(switch_to_wal(&connection).unwrap(), "wal");
    }
}
