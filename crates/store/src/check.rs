//! Checks the database for damage (`PRAGMA quick_check`).
//!
//! A check reads the whole file, so only a small file is checked before the work. A large one is checked on a thread of
//! its own beside the work of a role that starts: when an earlier role did not end in order, and otherwise at most once
//! a day. It stays due until one check was finished.
//!
//! The check is one read transaction: until it ends, the log keeps what is written meanwhile. So a long log ends it.
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
    header::{self, Access},
    now_us,
};

/// A file up to this length in bytes is checked before the work, each time: that takes less than 0.1 s.
const MAX_CHECKED_AT_OPEN: u64 = 8 << 20;

/// The length of the log in bytes that ends a check: 1 GiB.
const MAX_LOG: u64 = 1 << 30;

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

/// A check that is due.
#[derive(Debug)]
pub(crate) struct DueCheck {
    /// The lock files of roles that did not end in order.
    abandoned: Vec<PathBuf>,
    /// When it begins, in microseconds since 1970-01-01 UTC.
    began_us: i64,
}

impl Writer {
    /// Whether a large file is to be checked beside the work of the role that begins now. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub(crate) fn due_check(&self) -> Result<Option<DueCheck>, StoreError> {
        if is_small(&self.path) {
            return Ok(None);
        }
        let began_us = now_us();
        let checked_us: Option<i64> =
            self.connection
                .query_row("SELECT checked_us FROM database", (), |row| row.get(0))?;
        let day = began_us - CHECK_INTERVAL.as_micros() as i64..=began_us;
        // A role that was killed leaves its lock file behind, and so does the loss of power.
        let abandoned = FileLock::abandoned(&self.path);
        let is_due = !abandoned.is_empty() || checked_us.is_none_or(|at| !day.contains(&at));
        Ok(is_due.then_some(DueCheck {
            abandoned,
            began_us,
        }))
    }

    /// Records a check that found no damage. Does not wait for another program's transaction: then the check stays due.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub(crate) fn record_check(&mut self, check: &DueCheck) -> Result<(), StoreError> {
        self.connection.busy_timeout(Duration::ZERO)?;
        self.write(|transaction| {
            transaction.execute("UPDATE database SET checked_us = ?1", [check.began_us])?;
            Ok(())
        })?;
        for path in &check.abandoned {
            FileLock::remove_abandoned(path);
        }
        Ok(())
    }
}

/// A check beside the work.
pub(crate) struct BackgroundCheck {
    path: PathBuf,
    due: DueCheck,
    outcome: Arc<OnceLock<Outcome>>,
    interrupt: InterruptHandle,
    thread: JoinHandle<()>,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Sound,
    Damaged(String),
    Unfinished,
}

impl fmt::Debug for BackgroundCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundCheck")
            .field("path", &self.path)
            .field("due", &self.due)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl BackgroundCheck {
    /// Starts it, with a read-only connection.
    pub(crate) fn start(path: &Path, due: DueCheck) -> Result<Self, StoreError> {
        let (connection, open) = header::connect(path, Access::Read, |_| Ok(()))?;
        let interrupt = connection.get_interrupt_handle();
        let outcome = Arc::new(OnceLock::new());
        let (ended, file) = (Arc::clone(&outcome), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("database check".to_owned())
            .spawn(move || {
                ended.get_or_init(|| run(&connection, &file));
                drop(connection);
                drop(open);
            })
            .map_err(|error| StoreError::CannotOpen {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            path: path.to_owned(),
            due,
            outcome,
            interrupt,
            thread,
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Ends the check if the log is too long.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] once damage was found.
    pub(crate) fn watch(&self) -> Result<(), StoreError> {
        match self.outcome.get() {
            Some(Outcome::Damaged(detail)) => Err(StoreError::Corrupt {
                path: self.path.clone(),
                detail: detail.clone(),
            }),
            Some(_) => Ok(()),
            None => {
                let log = fs::metadata(header::companion(&self.path, "-wal"));
                if log.is_ok_and(|log| log.len() > MAX_LOG) {
                    self.interrupt.interrupt();
                }
                Ok(())
            }
        }
    }

    /// Ends the check. Returns it when it was finished and found no damage.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it found damage.
    pub(crate) fn stop(self) -> Result<Option<DueCheck>, StoreError> {
        // An interrupt has no effect before a statement begins, so it is repeated until the thread has ended.
        while !self.thread.is_finished() {
            self.interrupt.interrupt();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.watch()?;
        Ok((self.outcome.get() == Some(&Outcome::Sound)).then_some(self.due))
    }
}

fn run(connection: &Connection, path: &Path) -> Outcome {
    tracing::info!(path = %path.display(), "the database is checked for damage beside the work");
    match quick_check(connection, path).map_err(|error| header::explain(path, error)) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "the check of the database found no damage");
            Outcome::Sound
        }
        Err(StoreError::Corrupt { detail, .. }) => {
            tracing::error!(%detail, path = %path.display(), "the database is damaged");
            Outcome::Damaged(detail)
        }
        Err(StoreError::Sqlite(error))
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) =>
        {
            tracing::info!(
                path = %path.display(),
                "the check of the database was not finished; the next start tries again, and so does \
                 `pingfleet verify --database`"
            );
            Outcome::Unfinished
        }
        Err(error) => {
            tracing::warn!(%error, "the database cannot be checked for damage");
            Outcome::Unfinished
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use anyhow::{Context, Result, ensure};
    use tempfile::TempDir;

    use super::*;
    use crate::{Durability, FileMode, OpenOptions, Reader, Transport};

    /// Bytes that this thread has read from files (`proc_pid_io(5)`).
    fn bytes_read() -> Result<u64> {
        let io = fs::read_to_string("/proc/thread-self/io")?;
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        Ok(read.context("no counter")?.parse()?)
    }

    #[test]
    fn a_role_starts_and_ends_without_reading_the_whole_file() -> Result<()> {
        let folder = TempDir::new()?;
        let options = OpenOptions {
            path: folder.path().join("fleet.db"),
            durability: Durability::Off,
            create: true,
            mode: FileMode::User,
            check: true,
        };
        let store = options.open()?;
        store.connection.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
                 INSERT INTO quarantine (received_at_us, queue, reason, length, body)
                 SELECT i, 'results', 'made for a test', 65536, randomblob(65536) FROM n",
        )?;
        store.close()?;

        let before = bytes_read()?;
        let mut store = options.open()?;
        let due = store.due_check()?.context("never checked")?;
        store.try_commit()?;
        store.remove_abandoned_plans()?;
        store.close_settled_runs(Transport::Broker)?;
        store.record_check(&due)?;
        store.close()?;
        let read = bytes_read()? - before;
        ensure!(read < 1 << 20, "{read} bytes");
        // The control: the check reads all of it.
        let before = bytes_read()?;
        Reader::open(&options.path)?.check()?;
        let read = bytes_read()? - before;
        ensure!(read > 16 << 20, "{read} bytes");
        Ok(())
    }
}
