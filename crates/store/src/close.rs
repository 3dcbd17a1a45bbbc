//! The end of a run: its rows go into `latest`, and it gets its last state.
//!
//! Invariant: a run is closed only when none of its chunks is outstanding, and after `latest` has its rows.

use rusqlite::Connection;

use crate::{Store, StoreError, Via, latest, now_us};

/// A run that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedRun {
    /// The run's number.
    pub run: i64,
    /// Whether every chunk is done; otherwise some are dead.
    pub complete: bool,
}

/// What came of a run some of whose chunks were settled.
pub(crate) enum End {
    /// Nothing: it goes on, or had its last state before.
    Open,
    /// It was closed.
    Closed(ClosedRun),
    /// It is settled, and too large to be closed in the transaction that settled it.
    Large,
}

impl Store {
    /// Closes the runs of this way that [`Store::apply`] left open although nothing of them is outstanding: large ones,
    /// whose end takes several transactions. A writer that ends between them leaves this to the next one.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]; calling it again goes on.
    pub fn close_settled(&mut self, via: Via) -> Result<Vec<ClosedRun>, StoreError> {
        let settled: Vec<i64> = self
            .connection
            .prepare_cached(
                "SELECT run FROM runs
                 WHERE state = 'running' AND via = ?1 AND chunks_done + chunks_dead = chunks",
            )?
            .query_map([via.name()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut closed = Vec::new();
        for run in settled {
            self.take_in_ahead(run)?;
            let now = now_us();
            closed.extend(self.write(|transaction| {
                Progress::of(transaction, run)?.close(transaction, run, now)
            })?);
        }
        Ok(closed)
    }
}

/// Closes a run of which a batch settled chunks, those in `done` with rows, when they were the last.
pub(crate) fn after(
    connection: &Connection,
    run: i64,
    done: &[u32],
    now: i64,
) -> Result<End, StoreError> {
    let progress = Progress::of(connection, run)?;
    match progress.state.as_str() {
        // The rest of it was taken in when it got this state.
        "cancelled" | "incomplete" => {
            for chunk in done {
                latest::update_chunk(connection, run, *chunk)?;
            }
        }
        _ if progress.outstanding > 0 => {}
        _ if progress.targets > latest::AT_ONCE => return Ok(End::Large),
        _ => latest::update(connection, run)?,
    }
    let closed = progress.close(connection, run, now)?;
    Ok(closed.map_or(End::Open, End::Closed))
}

/// How far a run is.
struct Progress {
    state: String,
    targets: i64,
    outstanding: i64,
    dead: i64,
}

impl Progress {
    fn of(connection: &Connection, run: i64) -> Result<Self, StoreError> {
        Ok(connection
            .prepare_cached(
                "SELECT state, targets, chunks - chunks_done - chunks_dead, chunks_dead FROM runs WHERE run = ?1",
            )?
            .query_row([run], |row| {
                Ok(Self {
                    state: row.get(0)?,
                    targets: row.get(1)?,
                    outstanding: row.get(2)?,
                    dead: row.get(3)?,
                })
            })?)
    }

    /// Closes the run when none of its chunks is outstanding; its rows are in `latest`. One that was closed with dead
    /// chunks is closed again when one of them was done after all; one that is cancelled or complete stays so.
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
        Ok(Some(ClosedRun { run, complete }))
    }
}
