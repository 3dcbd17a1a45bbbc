//! Checks the database for damage (`PRAGMA quick_check`).
//!
//! A check reads the whole file, so only a small file is checked before the work. A large one is checked on a thread of
//! its own beside the work: after a role did not end in order, and otherwise at most once a day.
//!
//! The check is one read transaction: until it ends, the log keeps what is written meanwhile.
//! Source: <https://www.sqlite.org/pragma.html#pragma_quick_check>, <https://www.sqlite.org/c3ref/interrupt.html>.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, InterruptHandle};

use crate::{
    FileLock, StoreError, Writer,
    header::{self, Access, OpenFile},
    now_us,
};

/// A file up to this length in bytes is checked before the work, each time: that takes less than 0.1 s.
const MAX_CHECKED_AT_OPEN: u64 = 8 << 20;

/// How long after the beginning of a check the next one is due.
const CHECK_INTERVAL: Duration = Duration::from_hours(24);

/// Checks all tables and indexes.
///
/// # Errors
/// [`StoreError::Corrupt`] with the first damage.
pub(crate) fn quick_check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let detail: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if detail == "ok" {
        return Ok(());
    }
    // The first line is a heading.
    let detail = detail.lines().find(|line| !line.starts_with("***"));
    Err(StoreError::Corrupt {
        path: path.to_owned(),
        detail: detail.unwrap_or("quick_check").to_owned(),
    })
}

/// Whether the file is so small that it is checked before the work.
pub(crate) fn is_small(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() <= MAX_CHECKED_AT_OPEN)
}

impl Writer {
    /// Whether the file is to be checked beside the work of the role that begins now. If so, records that the check
    /// begins. Must be called before the role acquires a lock.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], or a folder that cannot be read.
    pub(crate) fn begin_check(&mut self) -> Result<bool, StoreError> {
        if is_small(&self.path) {
            return Ok(false);
        }
        // A role that was killed leaves its lock file behind, and so does the loss of power.
        let is_unclean = FileLock::remove_abandoned(&self.path)?;
        let now = now_us();
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE database SET check_began_us = ?2
                 WHERE ?3 OR check_began_us IS NULL OR check_began_us NOT BETWEEN ?1 AND ?2",
                (now - CHECK_INTERVAL.as_micros() as i64, now, is_unclean),
            )?;
            Ok(changed > 0)
        })
    }
}

/// A check beside the work.
pub(crate) struct BackgroundCheck {
    damage: Arc<OnceLock<String>>,
    path: PathBuf,
    interrupt: InterruptHandle,
    thread: JoinHandle<()>,
}

impl fmt::Debug for BackgroundCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundCheck")
            .field("path", &self.path)
            .field("damage", &self.damage)
            .finish_non_exhaustive()
    }
}

impl BackgroundCheck {
    /// Starts it, with a read-only connection.
    pub(crate) fn start(path: &Path) -> Result<Self, StoreError> {
        let (connection, open) = header::connect(path, Access::Read, |_| Ok(()))?;
        let interrupt = connection.get_interrupt_handle();
        let damage = Arc::new(OnceLock::new());
        let (found, file) = (Arc::clone(&damage), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("database check".to_owned())
            .spawn(move || run(connection, open, &file, &found))
            .map_err(|error| StoreError::CannotOpen {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            damage,
            path: path.to_owned(),
            interrupt,
            thread,
        })
    }

    /// # Errors
    /// [`StoreError::Corrupt`] once damage was found.
    pub(crate) fn found(&self) -> Result<(), StoreError> {
        match self.damage.get() {
            None => Ok(()),
            Some(detail) => Err(StoreError::Corrupt {
                path: self.path.clone(),
                detail: detail.clone(),
            }),
        }
    }

    /// Ends the check, finished or not.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it found damage.
    pub(crate) fn stop(self) -> Result<(), StoreError> {
        // An interrupt has no effect before a statement begins, so it is repeated until the thread has ended.
        while !self.thread.is_finished() {
            self.interrupt.interrupt();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.found()
    }
}

fn run(connection: Connection, open: OpenFile, path: &Path, damage: &OnceLock<String>) {
    tracing::debug!(path = %path.display(), "the database is checked for damage beside the work");
    match quick_check(&connection, path).map_err(|error| header::explain(path, error)) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "the check of the database found no damage");
        }
        Err(StoreError::Corrupt { detail, .. }) => {
            tracing::error!(%detail, path = %path.display(), "the database is damaged");
            damage.get_or_init(|| detail);
        }
        Err(StoreError::Sqlite(error))
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) =>
        {
            tracing::debug!("the check of the database was not finished");
        }
        Err(error) => tracing::warn!(%error, "the database cannot be checked for damage"),
    }
    drop(connection);
    drop(open);
}
