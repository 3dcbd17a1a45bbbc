//! Closes a run: its rows go into `latest`, and it gets its final state.
//!
//! Invariant: a run is closed only when no chunk is outstanding and `latest` has its rows.

use rusqlite::Connection;
use uuid::Uuid;

use crate::{StoreError, Transport, Writer, latest, now_us, run_summary::run_id};

/// A run that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedRun {
    /// The run's number.
    pub run: i64,
    /// The run's id.
    pub run_id: Uuid,
    /// Whether every chunk is done. Otherwise some are dead.
    pub complete: bool,
}

/// The outcome of [`after`].
pub(crate) enum CloseOutcome {
    /// The run goes on, or had its final state before.
    Open,
    /// The run was closed.
    Closed(ClosedRun),
    /// All chunks are settled, but the run is too large to be closed in the same transaction.
    Large,
}

impl Writer {
    /// Closes the runs of this transport whose chunks are all settled and which [`Writer::apply`] left open: large runs,
    /// because closing them takes several transactions. A writer that ends in between leaves the rest to the next one.
    /// Completes the cancelling of runs whose canceller was killed, too.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]. A further call starts again.
    pub fn close_settled_runs(
        &mut self,
        transport: Transport,
    ) -> Result<Vec<ClosedRun>, StoreError> {
        let settled: Vec<i64> = self
            .connection
            .prepare_cached(
                "SELECT run FROM runs
                 WHERE state = 'running' AND transport = ?1 AND chunks_done + chunks_dead = chunks",
            )?
            .query_map([transport.name()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let cancelled: Vec<i64> = self
            .connection
            .prepare_cached(
                "SELECT run FROM runs WHERE state = 'cancelled' AND finished_at_us IS NULL AND transport = ?1",
            )?
            .query_map([transport.name()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for run in cancelled {
            self.complete_cancelling(run)?;
        }
        let mut closed = Vec::new();
        for run in settled {
            self.upsert_latest_in_steps(run)?;
            let now = now_us();
            closed.extend(self.write(|transaction| {
                RunCounts::of(transaction, run)?.close(transaction, run, now)
            })?);
        }
        Ok(closed)
    }
}

/// Closes a run after a batch settled chunks of it, if none is outstanding. `done` are the chunks that got rows.
pub(crate) fn after(
    connection: &Connection,
    run: i64,
    done: &[u32],
    now: i64,
) -> Result<CloseOutcome, StoreError> {
    let progress = RunCounts::of(connection, run)?;
    match progress.state.as_str() {
        // Its other rows are in `latest` since it got this state.
        "cancelled" | "incomplete" => {
            for chunk in done {
                latest::update_chunk(connection, run, *chunk)?;
            }
        }
        _ if progress.outstanding > 0 => {}
        _ if progress.targets > latest::MAX_ROWS_PER_STEP => return Ok(CloseOutcome::Large),
        _ => latest::update(connection, run)?,
    }
    let closed = progress.close(connection, run, now)?;
    Ok(closed.map_or(CloseOutcome::Open, CloseOutcome::Closed))
}

/// State and chunk counters of a run.
struct RunCounts {
    run_id: Uuid,
    state: String,
    targets: i64,
    outstanding: i64,
    dead: i64,
}

impl RunCounts {
    fn of(connection: &Connection, run: i64) -> Result<Self, StoreError> {
        Ok(connection
            .prepare_cached(
                "SELECT state, targets, chunks - chunks_done - chunks_dead, chunks_dead, run_id FROM runs WHERE run = ?1",
            )?
            .query_row([run], |row| {
                Ok(Self {
                    state: row.get(0)?,
                    targets: row.get(1)?,
                    outstanding: row.get(2)?,
                    dead: row.get(3)?,
                    run_id: run_id(row.get_ref(4)?)?,
                })
            })?)
    }

    /// Closes the run if no chunk is outstanding. Its rows must be in `latest`. An incomplete run is closed again when a
    /// dead chunk got its result after all. A cancelled or complete run keeps its state.
    fn close(
        &self,
        connection: &Connection,
        run: i64,
        now: i64,
    ) -> Result<Option<ClosedRun>, StoreError> {
        if self.outstanding > 0 || !matches!(self.state.as_str(), "running" | "incomplete") {
            return Ok(None);
        }
        let complete = self.dead == 0;
        connection
            .prepare_cached("UPDATE runs SET state = ?2, finished_at_us = ?3 WHERE run = ?1")?
            .execute((run, if complete { "complete" } else { "incomplete" }, now))?;
        Ok(Some(ClosedRun {
            run,
            run_id: self.run_id,
            complete,
        }))
    }
}
