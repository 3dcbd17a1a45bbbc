//! Reading the database without changing anything: the file, its folder, or what a writer may do.
//!
//! Invariants: a [`Reader`] never creates or removes a file, and holds no connection between two calls. So a caller may
//! take any time between two pages: no snapshot keeps a writer from shortening the log, and no lock keeps the last
//! writer from removing it.
//!
//! Source: <https://www.sqlite.org/wal.html#read_only_databases>, <https://www.sqlite.org/uri.html#uriimmutable>.

mod condition;
mod diff;
mod export;
mod files;
mod filter;
mod history;
mod hosts;
mod last_bytes;
mod latest_counts;
pub(crate) mod overview;
mod pipeline;
pub(crate) mod progress;
pub(crate) mod report;
mod row_order;
pub(crate) mod stored_rows;
mod target_key;
pub(crate) mod verify;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::{
    condition::Condition,
    diff::{ChangeKind, DiffLimits, FoundTarget, RunDiff, TargetChange, WholeSubnet},
    export::{ExportPart, ExportParts},
    filter::ReportFilter,
    history::{StatusChange, SubnetRun, SubnetRuns, TargetRuns},
    hosts::{
        HostFilter, HostOrder, HostPage, HostPart, HostParts, HostRow, LATEST_COLUMNS, NewestChange,
    },
    overview::{
        NotUp, RunChanges, RunDetail, RunOverview, RunWorker, SameOutcome, SubnetCounts,
        SubnetNotUp, SubnetStatuses, TargetHistory, TargetRtt, TimeBin,
    },
    pipeline::{DeadChunk, DeadChunkList, QuarantineList, QuarantinedMessage},
    progress::RunProgress,
    report::{REPORT_COLUMNS, ReportPages, ReportRow},
    row_order::RowOrder,
    stored_rows::{ExportPage, ExportRow, view_time},
    verify::{Verification, VerifyFinding},
};
use crate::{
    FileLock, Fleet, RunState, RunSummary, StoreError, WorkerRow, check, chunks,
    header::{self, Access},
    liveness, now_us,
    reader::files::FileState,
    run_lookup, run_summary,
    schema::SCHEMA_VERSION,
};

/// How long a statement waits for another process that opens, recovers or closes the database. A reader never waits for
/// a transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a call is repeated because the file changed while it was read without locks.
const MAX_TRIES: usize = 20;

/// How often a call that fails is repeated although the file did not change, and the pause between two of these.
const MAX_UNCHANGED: usize = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// After how many instructions of SQLite's virtual machine a query looks whether it was interrupted: about 0.1 ms.
const INSTRUCTIONS_BETWEEN_LOOKS: i32 = 10_000;

/// A database that is only read. The user needs no write permission for the file or its folder.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    database: Uuid,
    interrupt: Option<CancellationToken>,
    /// Where each statement that it runs is sent, for the tests that look at their plans.
    #[cfg(test)]
    statements: Option<std::sync::mpsc::Sender<String>>,
}

impl Reader {
    /// Opens an existing database of the current schema version.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Foreign`], [`StoreError::Newer`], [`StoreError::Older`],
    /// [`StoreError::Corrupt`], [`StoreError::CannotOpen`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut reader = Self {
            path: path.to_owned(),
            database: Uuid::nil(),
            interrupt: None,
            #[cfg(test)]
            statements: None,
        };
        reader.database = reader.try_read(|connection| database_uuid(connection))?;
        Ok(reader)
    }

    /// When this token is cancelled, a running query and each later one fails with [`StoreError::Interrupted`].
    #[must_use]
    pub fn interrupted_by(mut self, token: CancellationToken) -> Self {
        self.interrupt = Some(token);
        self
    }

    /// Sends each statement that it runs.
    #[cfg(test)]
    pub(crate) fn with_statements_to(mut self, sender: std::sync::mpsc::Sender<String>) -> Self {
        self.statements = Some(sender);
        self
    }

    #[cfg(test)]
    fn send_statements(&self, connection: &mut Connection) -> Result<(), StoreError> {
        use rusqlite::trace::{TraceEvent, TraceEventCodes};
        if let Some(sender) = self.statements.clone() {
            let send = move |event: TraceEvent<'_>| {
                if let TraceEvent::Stmt(statement, _) = event {
                    sender
                        .send(statement.sql().into_owned())
                        .expect("the test listens");
                }
            };
            connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(send))?;
        }
        Ok(())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The UUID of this database.
    #[must_use]
    pub fn database(&self) -> Uuid {
        self.database
    }

    /// Finds a run by its number, a UUID prefix, or `latest`, and returns its number.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::AmbiguousRun`].
    pub fn find_run(&self, wanted: &str) -> Result<i64, StoreError> {
        self.read(|connection| run_lookup::find_run(connection, wanted))
    }

    /// The summary of a run. One index lookup.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`].
    pub fn summary(&self, run: i64) -> Result<RunSummary, StoreError> {
        let mut summary = self.read(|connection| run_summary::summary(connection, run))?;
        self.correct_state(&mut summary)?;
        Ok(summary)
    }

    /// The summaries of all runs, the oldest first. Scans the table of runs.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn summaries(&self) -> Result<Vec<RunSummary>, StoreError> {
        let mut summaries = self.read(|connection| run_summary::summaries(connection))?;
        for summary in &mut summaries {
            self.correct_state(summary)?;
        }
        Ok(summaries)
    }

    /// The rows of a run in the order of its plan, page by page. Each page is one search by key.
    #[must_use]
    pub fn report(&self, run: i64, filter: &ReportFilter) -> ReportPages<'_> {
        ReportPages::new(self, run, filter)
    }

    /// The rows of a run in the order of its plan, in large parts for programs: whole chunks.
    #[must_use]
    pub fn export(&self, run: i64, filter: &ReportFilter) -> ExportParts<'_> {
        ExportParts::new(self, run, filter)
    }

    /// The same rows in another order. First it reads all of them for their keys; then each row is one search by key.
    ///
    /// # Errors
    /// As [`ReportPages::next_page`].
    pub fn sorted_report(
        &self,
        run: i64,
        filter: &ReportFilter,
        order: RowOrder,
    ) -> Result<ReportPages<'_>, StoreError> {
        ReportPages::sorted(self, run, filter, order)
    }

    /// What a run found. Scans the run, and then the rows of `latest`, in pages.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::Sqlite`].
    pub fn overview(&self, run: i64) -> Result<RunOverview, StoreError> {
        overview::overview(self, run)
    }

    /// How many rows of `latest` belong to each run. Scans `latest`, in pages.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn latest_counts(&self) -> Result<HashMap<i64, i64>, StoreError> {
        latest_counts::latest_counts(self)
    }

    /// The same with what a page shows beyond it, counted in the same pass.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::Sqlite`].
    pub fn overview_with_detail(&self, run: i64) -> Result<(RunOverview, RunDetail), StoreError> {
        overview::with_detail(self, run)
    }

    /// Verifies a run in one snapshot: reads its plan chunk by chunk and compares it with the rows. Scans the run.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::NoSuchRun`], [`StoreError::Pruned`]. A contradiction is a finding, not an
    /// error.
    pub fn verify(&self, run: i64) -> Result<Verification, StoreError> {
        let mut proof = self.read(|connection| verify::verify(connection, run))?;
        self.correct_state(&mut proof.summary)?;
        Ok(proof)
    }

    /// Checks the whole file for damage. Reads all of it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with the first damage; [`StoreError::Sqlite`].
    pub fn check(&self) -> Result<(), StoreError> {
        self.read(|connection| check::quick_check(connection, &self.path))
    }

    /// The workers of [`Self::fleet`].
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn workers(&self) -> Result<Vec<WorkerRow>, StoreError> {
        Ok(self.fleet()?.workers)
    }

    /// All known workers. Reads the tables of workers and of their chunks in hand.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn fleet(&self) -> Result<Fleet, StoreError> {
        let fleet = self.read(|connection| liveness::fleet(connection))?;
        Ok(Fleet {
            is_writer_running: FileLock::is_writer_locked(&self.path),
            ..fleet
        })
    }

    /// How many chunks of a run were sent longer ago than `sent`, are not settled, and are in the hand of no worker that
    /// was heard in the time `heard`. Reads the chunks of the run.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn unclaimed_chunks(
        &self,
        run: i64,
        sent: Duration,
        heard: Duration,
    ) -> Result<i64, StoreError> {
        let before = |time: Duration| now_us() - time.as_micros() as i64;
        let (sent, heard) = (before(sent), before(heard));
        self.read(|connection| chunks::unclaimed(connection, run, sent, heard))
    }

    /// A run whose producer was killed is incomplete at once. `run_summary` shows that only when the lease has expired.
    fn correct_state(&self, summary: &mut RunSummary) -> Result<(), StoreError> {
        let is_produced = |summary: &RunSummary| {
            summary.state == RunState::Running && summary.outstanding() > 0 && summary.has_lease
        };
        if is_produced(summary) && FileLock::is_run_locked(&self.path, summary.run) == Some(false) {
            // The producer may have ended in order since the summary was read.
            let run = summary.run;
            let now = self.read(|connection| run_summary::summary(connection, run))?;
            summary.window = None;
            if is_produced(&now) {
                summary.state = RunState::Incomplete;
            } else {
                summary.state = now.state;
            }
        }
        Ok(())
    }

    /// Runs a query on a new connection. It runs again when the file changed while it was read without locks, so it must
    /// have no side effects.
    pub(crate) fn read<T>(
        &self,
        query: impl Fn(&mut Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.try_read(|connection| {
            if database_uuid(connection)? != self.database {
                return Err(StoreError::Gone {
                    path: self.path.clone(),
                });
            }
            query(connection)
        })
    }

    fn try_read<T>(
        &self,
        query: impl Fn(&mut Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut unchanged = 0;
        for _ in 0..MAX_TRIES {
            let before = FileState::of(&self.path);
            let (answer, has_locks) = match before.access(&self.path) {
                Ok(access) => (self.query_once(access, &query), access == Access::Read),
                Err(error) => (Err(error), false),
            };
            let answer = answer.map_err(|error| header::explain(&self.path, error));
            let may_come_from_a_change = match &answer {
                // Without locks, an answer is right only when nobody wrote meanwhile.
                Ok(_) | Err(StoreError::Corrupt { .. }) => !has_locks,
                // A writer may open or close the database at this moment.
                Err(StoreError::CannotOpen { .. } | StoreError::Sqlite(_)) => true,
                Err(_) => false,
            };
            if !may_come_from_a_change {
                return answer;
            }
            if FileState::of(&self.path) == before {
                unchanged += 1;
                let is_an_answer = matches!(answer, Ok(_) | Err(StoreError::Corrupt { .. }));
                // A writer that closes the database removes its files one after the other.
                if is_an_answer || unchanged == MAX_UNCHANGED {
                    return answer;
                }
                std::thread::sleep(PAUSE);
            }
        }
        Err(StoreError::CannotOpen {
            path: self.path.clone(),
            reason: "other programs change it faster than it can be read".to_owned(),
        })
    }

    fn query_once<T>(
        &self,
        access: Access,
        query: impl Fn(&mut Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (connection, open) =
            header::connect(&self.path, access, |found| found.check(&self.path, false))?;
        // Dropped in this order: the connection first.
        let (_open, mut connection) = (open, connection);
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        header::refuse_newer(&self.path, version)?;
        if version < SCHEMA_VERSION {
            return Err(StoreError::Older {
                path: self.path.clone(),
                found: version,
                needed: SCHEMA_VERSION,
            });
        }
        if let Some(token) = self.interrupt.clone() {
            if token.is_cancelled() {
                return Err(StoreError::Interrupted);
            }
            let is_cancelled = move || token.is_cancelled();
            connection.progress_handler(INSTRUCTIONS_BETWEEN_LOOKS, Some(is_cancelled))?;
        }
        #[cfg(test)]
        self.send_statements(&mut connection)?;
        query(&mut connection).map_err(|error| match error {
            StoreError::Sqlite(source)
                if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
            {
                StoreError::Interrupted
            }
            error => error,
        })
    }
}

fn database_uuid(connection: &Connection) -> Result<Uuid, StoreError> {
    Ok(connection.query_row("SELECT uuid FROM database", (), |row| row.get(0))?)
}
