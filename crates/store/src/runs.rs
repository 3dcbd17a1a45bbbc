//! Runs: lookup, summary, and the state changes that users and producers make.

use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use crate::{FileLock, StoreError, Writer, chunk_state::chunk_state, latest, now_us};

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

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::Planning,
            Self::Running,
            Self::Complete,
            Self::Incomplete,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|state| state.name() == name)
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
    /// Targets per status, in the order of [`pingfleet_wire::Status::NAMES`].
    pub counts: [i64; 7],
    /// Results for a chunk that was done already.
    pub duplicates: i64,
    /// Results that the broker redelivered, or whose work message it redelivered.
    pub redelivered: i64,
}

impl RunSummary {
    /// Targets with a row.
    #[must_use]
    pub fn settled(&self) -> i64 {
        self.counts.iter().sum()
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
        s.duplicates, s.redelivered";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let text = |at: usize, what: &str| {
            rusqlite::Error::FromSqlConversionFailure(
                at,
                rusqlite::types::Type::Text,
                what.to_owned().into(),
            )
        };
        let mut counts = [0; 7];
        for (at, count) in counts.iter_mut().enumerate() {
            *count = row.get(12 + at)?;
        }
        Ok(Self {
            run: row.get(0)?,
            run_id: Uuid::parse_str(&row.get::<_, String>(1)?).map_err(|_| text(1, "no UUID"))?,
            transport: match row.get::<_, String>(2)?.as_str() {
                "sweep" => Transport::Sweep,
                _ => Transport::Broker,
            },
            state: RunState::from_name(&row.get::<_, String>(3)?)
                .ok_or_else(|| text(3, "no state of a run"))?,
            started_at: row.get(4)?,
            finished_at: row.get(5)?,
            elapsed_s: row.get::<_, f64>(6)?.max(0.0),
            source: row.get(7)?,
            targets: row.get(8)?,
            chunks: row.get(9)?,
            chunks_done: row.get(10)?,
            chunks_dead: row.get(11)?,
            counts,
            duplicates: row.get(19)?,
            redelivered: row.get(20)?,
        })
    }
}

/// The shortest UUID prefix that names a run.
const SHORTEST_PREFIX: usize = 4;

impl Writer {
    /// Finds a run by its number, a UUID prefix, or `latest`, and returns its number.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::AmbiguousRun`].
    pub fn find_run(&self, wanted: &str) -> Result<i64, StoreError> {
        let no_such_run = || StoreError::NoSuchRun {
            wanted: wanted.to_owned(),
        };
        if wanted == "latest" {
            return self
                .connection
                .query_row("SELECT max(run) FROM runs", (), |row| {
                    row.get::<_, Option<i64>>(0)
                })?
                .ok_or_else(no_such_run);
        }
        if let Ok(number) = wanted.parse::<i64>() {
            let found = self
                .connection
                .query_row("SELECT run FROM runs WHERE run = ?1", [number], |row| {
                    row.get(0)
                })
                .optional()?;
            if let Some(run) = found {
                return Ok(run);
            }
        }
        let prefix = wanted.to_ascii_lowercase();
        // All UUIDs of a decade begin with the same digit, so a shorter prefix is probably a typing error.
        if prefix.len() < SHORTEST_PREFIX
            || !prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        {
            return Err(no_such_run());
        }
        let (count, run): (i64, Option<i64>) = self.connection.query_row(
            "SELECT count(*), min(run) FROM runs WHERE substr(run_id, 1, length(?1)) = ?1",
            [&prefix],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        match (count, run) {
            (1, Some(run)) => Ok(run),
            (0, _) | (_, None) => Err(no_such_run()),
            (count, _) => Err(StoreError::AmbiguousRun {
                wanted: wanted.to_owned(),
                count,
            }),
        }
    }

    /// The summary of a run.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`].
    pub fn summary(&self, run: i64) -> Result<RunSummary, StoreError> {
        let sql = format!(
            "SELECT {} FROM run_summary s JOIN runs n ON n.run = s.run WHERE s.run = ?1",
            RunSummary::COLUMNS
        );
        self.connection
            .prepare_cached(&sql)?
            .query_row([run], RunSummary::from_row)
            .optional()?
            .ok_or_else(|| StoreError::NoSuchRun {
                wanted: run.to_string(),
            })
    }

    /// The summaries of all runs, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn summaries(&self) -> Result<Vec<RunSummary>, StoreError> {
        let sql = format!(
            "SELECT {} FROM run_summary s JOIN runs n ON n.run = s.run ORDER BY s.run",
            RunSummary::COLUMNS
        );
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map((), RunSummary::from_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Renews the lease of a run: its producer is alive now. `run_summary` takes the run for abandoned 15 s later.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn renew_lease(&mut self, run: i64) -> Result<(), StoreError> {
        self.set_lease(run, Some(now_us()))
    }

    /// Gives up the lease of a run: its producer leaves.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn release_lease(&mut self, run: i64) -> Result<(), StoreError> {
        self.set_lease(run, None)
    }

    fn set_lease(&mut self, run: i64, renewed_us: Option<i64>) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .prepare_cached("UPDATE runs SET lease_renewed_us = ?2 WHERE run = ?1")?
                .execute((run, renewed_us))?;
            Ok(())
        })
    }

    /// Cancels a run: no further chunk of it is published. Results that still arrive are applied.
    /// Returns whether the run was open.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn cancel_run(&mut self, run: i64) -> Result<bool, StoreError> {
        let is_open = self
            .connection
            .prepare_cached("SELECT state IN ('running', 'incomplete') FROM runs WHERE run = ?1")?
            .query_row([run], |row| row.get(0))
            .optional()?;
        if is_open == Some(true) {
            self.upsert_latest_in_steps(run)?;
        }
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE runs SET state = 'cancelled', finished_at_us = ?2
                 WHERE run = ?1 AND state IN ('running', 'incomplete')",
                (run, now_us()),
            )?;
            if changed > 0 {
                // Rows that were stored since the steps above.
                latest::update(transaction, run)?;
            }
            Ok(changed > 0)
        })
    }

    /// Marks the dead chunks of a run for a retry and sets the run to `running`. Returns their number. Does nothing for a
    /// cancelled run.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn retry_dead(&mut self, run: i64) -> Result<usize, StoreError> {
        self.write(|transaction| {
            let chunks = transaction.execute(
                concat!(
                    "UPDATE chunks SET retrying = 1, published_at_us = NULL, publishes = 0, published_round = -1
                     WHERE run = ?1 AND state = ",
                    chunk_state!(Dead),
                    " AND retrying = 0
                       AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state <> 'cancelled')"
                ),
                [run],
            )?;
            if chunks > 0 {
                transaction.execute(
                    "UPDATE runs SET state = 'running', finished_at_us = NULL, lease_renewed_us = ?3,
                            chunks_dead = chunks_dead - ?2
                     WHERE run = ?1",
                    (run, chunks as i64, now_us()),
                )?;
            }
            Ok(chunks)
        })
    }

    /// Removes the runs whose producer ended while it was planning. Returns their numbers.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn remove_abandoned_plans(&mut self) -> Result<Vec<i64>, StoreError> {
        let path = self.path.clone();
        self.write(|transaction| {
            let planning: Vec<i64> = transaction
                .prepare("SELECT run FROM runs WHERE state = 'planning'")?
                .query_map((), |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut removed = Vec::new();
            for run in planning {
                match FileLock::run(&path, run) {
                    Ok(_lock) => {
                        remove_plan(transaction, run)?;
                        removed.push(run);
                    }
                    Err(StoreError::AlreadyLocked { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(removed)
        })
    }

    /// Removes a run that is still in `planning`, with its chunks.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn remove_plan(&mut self, run: i64) -> Result<(), StoreError> {
        self.write(|transaction| remove_plan(transaction, run))
    }
}

fn remove_plan(connection: &Connection, run: i64) -> Result<(), StoreError> {
    let planning = connection.execute(
        "DELETE FROM runs WHERE run = ?1 AND state = 'planning'",
        [run],
    )?;
    if planning > 0 {
        for table in ["plan", "labels", "chunks"] {
            connection.execute(&format!("DELETE FROM {table} WHERE run = ?1"), [run])?;
        }
    }
    Ok(())
}
