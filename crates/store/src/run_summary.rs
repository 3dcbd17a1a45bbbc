//! The state of runs, and their summaries.

use std::{
    fmt,
    ops::{AddAssign, Index},
};

use pingfleet_wire::StatusKind;
use rusqlite::{
    Connection, OptionalExtension, Row,
    types::{FromSql, FromSqlError, FromSqlResult, ValueRef},
};
use uuid::Uuid;

use crate::{PrunedRun, StoreError, WindowUse, Writer};

/// What carries the messages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Queues inside the process of `pingfleet sweep`.
    Sweep,
    /// RabbitMQ.
    Broker,
}

impl Transport {
    /// The text in the database.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sweep => "sweep",
            Self::Broker => "broker",
        }
    }
}

impl FromSql for Transport {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        [Self::Sweep, Self::Broker]
            .into_iter()
            .find(|transport| transport.name() == name)
            .ok_or(FromSqlError::InvalidType)
    }
}

/// The state of a run, as `run_summary` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// The plan is being written; nothing is published.
    Planning,
    /// A producer has the lease of the run, and chunks are outstanding.
    Running,
    /// Every chunk is done.
    Complete,
    /// Chunks are outstanding and no producer has the lease, or a chunk is dead.
    Incomplete,
    /// The user cancelled it.
    Cancelled,
}

impl RunState {
    /// The text in the database.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromSql for RunState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        [
            Self::Planning,
            Self::Running,
            Self::Complete,
            Self::Incomplete,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|state| state.name() == name)
        .ok_or(FromSqlError::InvalidType)
    }
}

/// The number of targets with each status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatusCounts([i64; StatusKind::ALL.len()]);

impl StatusCounts {
    /// Adds one target.
    pub fn add(&mut self, status: StatusKind) {
        self.0[usize::from(status.code())] += 1;
    }

    /// The targets of all statuses.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.0.iter().sum()
    }

    /// The targets that answered, in time or late.
    #[must_use]
    pub fn answered(&self) -> i64 {
        self[StatusKind::Up] + self[StatusKind::Late]
    }

    /// Each status with its count, in order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = (StatusKind, i64)> {
        StatusKind::ALL.into_iter().zip(self.0)
    }
}

impl AddAssign for StatusCounts {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

impl From<[i64; StatusKind::ALL.len()]> for StatusCounts {
    /// The counts in order of precedence.
    fn from(counts: [i64; StatusKind::ALL.len()]) -> Self {
        Self(counts)
    }
}

/// Those that occur: `(up 12, down 3)`.
impl fmt::Display for StatusCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.iter().filter(|(_, count)| *count != 0);
        let texts: Vec<_> = found
            .map(|(status, count)| format!("{} {count}", status.name()))
            .collect();
        write!(f, "({})", texts.join(", "))
    }
}

impl Index<StatusKind> for StatusCounts {
    type Output = i64;

    fn index(&self, status: StatusKind) -> &i64 {
        &self.0[usize::from(status.code())]
    }
}

/// One row of `run_summary`, and further columns that commands need.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// The run's number.
    pub run: i64,
    /// The run's `UUIDv7`.
    pub run_id: Uuid,
    /// What carries its messages.
    pub transport: Transport,
    /// Its state, as `run_summary` computes it.
    pub state: RunState,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// Seconds from the start to the end, or to now.
    pub elapsed_s: f64,
    /// The targets as the user gave them, shortened.
    pub source: String,
    /// Targets of the plan.
    pub targets: i64,
    /// Chunks of the plan.
    pub chunks: i64,
    /// Chunks whose rows are stored.
    pub chunks_done: i64,
    /// Dead chunks that are not being retried.
    pub chunks_dead: i64,
    /// Targets with each status.
    pub counts: StatusCounts,
    /// Results for a chunk that was done already.
    pub duplicates: i64,
    /// Results that the broker redelivered, or whose work message it redelivered.
    pub redelivered: i64,
    /// How many times a chunk was published again after an earlier publish had been confirmed: a chunk that was published
    /// three times counts twice. Publishing a dead chunk for `retry` does not count.
    pub republished: i64,
    /// How many of [`Self::duplicates`] are results with another status of a target than the stored one.
    pub contradictions: i64,
    /// The run whose targets this one probes again.
    pub parent_run: Option<i64>,
    /// Whether its rows were removed: its counts are those that it had.
    pub pruned: Option<PrunedRun>,
    /// The publish window of the producer that has the run, as of its last sign of life (every 3 s).
    pub window: Option<WindowUse>,
    /// Whether a producer has the lease, alive or not.
    pub(crate) has_lease: bool,
}

impl RunSummary {
    /// Targets with a row.
    #[must_use]
    pub fn settled(&self) -> i64 {
        self.counts.total()
    }

    /// Chunks that are neither done nor dead.
    #[must_use]
    pub fn outstanding(&self) -> i64 {
        self.chunks - self.chunks_done - self.chunks_dead
    }

    const COLUMNS: &str = "s.run, s.run_id, n.transport, s.state, s.started_at, s.finished_at,
        (coalesce(n.finished_at_us, unixepoch() * 1000000) - n.started_at_us) / 1000000.0,
        n.source, s.targets, s.chunks, s.chunks_done, n.chunks_dead,
        s.up, s.late, s.unreachable, s.dns_failed, s.send_failed, s.unknown, s.down,
        s.duplicates, s.redelivered, n.lease_renewed_us IS NOT NULL, s.parent_run,
        strftime('%Y-%m-%dT%H:%M:%fZ', p.pruned_at_us / 1000000.0, 'unixepoch'), p.archive,
        n.publish_window, n.chunks_in_window, n.republished, n.contradictions";

    const FROM: &str =
        "run_summary s JOIN runs n ON n.run = s.run LEFT JOIN pruned_runs p ON p.run = s.run";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let mut counts = [0; StatusKind::ALL.len()];
        for (at, count) in counts.iter_mut().enumerate() {
            *count = row.get(12 + at)?;
        }
        Ok(Self {
            run: row.get(0)?,
            run_id: run_id(row.get_ref(1)?)?,
            transport: row.get(2)?,
            state: row.get(3)?,
            started_at: row.get(4)?,
            finished_at: row.get(5)?,
            elapsed_s: row.get::<_, f64>(6)?.max(0.0),
            source: row.get(7)?,
            targets: row.get(8)?,
            chunks: row.get(9)?,
            chunks_done: row.get(10)?,
            chunks_dead: row.get(11)?,
            counts: counts.into(),
            duplicates: row.get(19)?,
            redelivered: row.get(20)?,
            republished: row.get(27)?,
            contradictions: row.get(28)?,
            window: match (row.get(25)?, row.get(26)?) {
                (Some(size), Some(in_use)) if row.get::<_, RunState>(3)? == RunState::Running => {
                    Some(WindowUse { size, in_use })
                }
                _ => None,
            },
            has_lease: row.get(21)?,
            parent_run: row.get(22)?,
            pruned: match row.get(23)? {
                Some(pruned_at) => Some(PrunedRun {
                    pruned_at,
                    archive: row.get(24)?,
                }),
                None => None,
            },
        })
    }
}

/// The id of a run, from its text.
pub(crate) fn run_id(stored: ValueRef<'_>) -> rusqlite::Result<Uuid> {
    let id = Uuid::parse_str(stored.as_str()?);
    Ok(id.map_err(|error| FromSqlError::Other(Box::new(error)))?)
}

/// The summary of a run.
pub(crate) fn summary(connection: &Connection, run: i64) -> Result<RunSummary, StoreError> {
    let sql = format!(
        "SELECT {} FROM {} WHERE s.run = ?1",
        RunSummary::COLUMNS,
        RunSummary::FROM
    );
    connection
        .prepare_cached(&sql)?
        .query_row([run], RunSummary::from_row)
        .optional()?
        .ok_or_else(|| StoreError::NoSuchRun {
            wanted: run.to_string(),
        })
}

/// The summaries of all runs, the oldest first.
pub(crate) fn summaries(connection: &Connection) -> Result<Vec<RunSummary>, StoreError> {
    let sql = format!(
        "SELECT {} FROM {} ORDER BY s.run",
        RunSummary::COLUMNS,
        RunSummary::FROM
    );
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map((), RunSummary::from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Writer {
    /// The summary of a run.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`].
    pub fn summary(&self, run: i64) -> Result<RunSummary, StoreError> {
        summary(&self.connection, run)
    }
}
