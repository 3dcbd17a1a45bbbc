//! Runs: finding one, its summary, and the changes of its state that are not made by outcomes.

use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use crate::{FileLock, Store, StoreError, latest, now_us};

/// Which way a run's chunks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Queues in the process of `pingfleet sweep`.
    Sweep,
    /// A RabbitMQ.
    Broker,
}

impl Via {
    /// As it stands in the database.
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
    /// A producer holds the run, and chunks are outstanding.
    Running,
    /// Every chunk is done.
    Complete,
    /// Chunks are missing and no producer holds the run, or a chunk is dead.
    Incomplete,
    /// The user gave it up.
    Cancelled,
}

impl RunState {
    /// As it stands in the database.
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

/// One row of `run_summary`, with what commands need beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// The run's number.
    pub run: i64,
    /// The run's `UUIDv7`.
    pub run_id: Uuid,
    /// Which way its chunks take.
    pub via: Via,
    /// Its state, by the rule of `run_summary`.
    pub state: RunState,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// Seconds from the start to the end, or to now.
    pub elapsed_s: f64,
    /// What was asked for, as a short text.
    pub source: String,
    /// Targets of the plan.
    pub targets: i64,
    /// Chunks of the plan.
    pub chunks: i64,
    /// Chunks whose rows are stored.
    pub chunks_done: i64,
    /// Chunks given up, and not being sent again.
    pub chunks_dead: i64,
    /// Targets per status, in the order of [`pingfleet_wire::Status::NAMES`].
    pub counts: [i64; 7],
    /// Results that came again for a chunk already done.
    pub duplicates: i64,
    /// Results that, or whose work, the broker had delivered before.
    pub redelivered: i64,
}

impl RunSummary {
    /// Targets with a row.
    #[must_use]
    pub fn settled(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// Chunks that are neither done nor given up.
    #[must_use]
    pub fn outstanding(&self) -> i64 {
        self.chunks - self.chunks_done - self.chunks_dead
    }

    const COLUMNS: &str = "s.run, s.run_id, n.via, s.state, s.started_at, s.finished_at,
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
            via: match row.get::<_, String>(2)?.as_str() {
                "sweep" => Via::Sweep,
                _ => Via::Broker,
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

/// Fewer characters of a UUID name no run.
const SHORTEST_PREFIX: usize = 4;

impl Store {
    /// The number of a run, by a number, the beginning of a UUID, or `latest`.
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
        // All UUIDs of a decade begin with the same digit: a shorter prefix is a slip.
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

    /// Notes that a producer holds the run, or with `false` that it lets go of it.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn hold_run(&mut self, run: i64, held: bool) -> Result<(), StoreError> {
        let seen = held.then(now_us);
        self.write(|transaction| {
            transaction
                .prepare_cached("UPDATE runs SET producer_seen_us = ?2 WHERE run = ?1")?
                .execute((run, seen))?;
            Ok(())
        })
    }

    /// Gives a run up: nothing more of it is published. Results on their way are still applied.
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
            self.take_in_ahead(run)?;
        }
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE runs SET state = 'cancelled', finished_at_us = ?2
                 WHERE run = ?1 AND state IN ('running', 'incomplete')",
                (run, now_us()),
            )?;
            if changed > 0 {
                // What was stored since then.
                latest::update(transaction, run)?;
            }
            Ok(changed > 0)
        })
    }

    /// Marks the dead chunks of a run to be sent again, and opens the run again. Returns how many there are; none of a
    /// cancelled run.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn retry_dead(&mut self, run: i64) -> Result<usize, StoreError> {
        self.write(|transaction| {
            let chunks = transaction.execute(
                "UPDATE chunks SET retrying = 1, published_at_us = NULL, publishes = 0
                 WHERE run = ?1 AND state = 2 AND retrying = 0
                   AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state <> 'cancelled')",
                [run],
            )?;
            if chunks > 0 {
                transaction.execute(
                    "UPDATE runs SET state = 'running', finished_at_us = NULL, producer_seen_us = ?3,
                            chunks_dead = chunks_dead - ?2
                     WHERE run = ?1",
                    (run, chunks as i64, now_us()),
                )?;
            }
            Ok(chunks)
        })
    }

    /// Removes the runs whose planning ended with its producer. Returns their numbers.
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
                // Let go of before the commit: the next run has this number, and must find its lock free.
                match FileLock::run(&path, run) {
                    Ok(_lock) => {
                        remove_plan(transaction, run)?;
                        removed.push(run);
                    }
                    Err(StoreError::Held { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(removed)
        })
    }

    /// Removes a run that is still in `planning`, with all that was planned.
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
