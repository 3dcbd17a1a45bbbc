//! The changes of a run's state that users and producers make.

use rusqlite::Connection;
use tracing::Span;
use uuid::Uuid;

use crate::{
    FileLock, StoreError, Writer,
    chunk_state::chunk_state,
    now_us,
    run_summary::{run_id, summary},
};

/// The span of the master's log lines about a run: with its number `run` and its id `run_id`. It is an error span: no
/// level of the log leaves it out.
#[must_use]
pub fn run_span(run: i64, run_id: Uuid) -> Span {
    tracing::error_span!("run", run, %run_id)
}

/// The publish window of a run, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowUse {
    /// How many may be published and not settled.
    pub size: i64,
    /// How many are.
    pub in_use: i64,
}

impl Writer {
    /// Renews the lease of a run: its producer is alive now. `run_summary` takes the run for abandoned 15 s later.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn renew_lease(&mut self, run: i64, window: Option<WindowUse>) -> Result<(), StoreError> {
        self.set_lease(run, Some(now_us()), window)
    }

    /// Gives up the lease of a run: its producer leaves.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn release_lease(&mut self, run: i64) -> Result<(), StoreError> {
        self.set_lease(run, None, None)
    }

    fn set_lease(
        &mut self,
        run: i64,
        renewed_us: Option<i64>,
        window: Option<WindowUse>,
    ) -> Result<(), StoreError> {
        let (size, in_use) = window.map(|window| (window.size, window.in_use)).unzip();
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "UPDATE runs SET lease_renewed_us = ?2, publish_window = ?3, chunks_in_window = ?4
                     WHERE run = ?1",
                )?
                .execute((run, renewed_us, size, in_use))?;
            Ok(())
        })
    }

    /// Cancels a run: no further chunk of it is published. Results that still arrive are applied.
    /// Returns whether the run was open.
    ///
    /// The state comes first, in a transaction of its own, and then the run's rows go into `latest` in steps: nobody waits
    /// long for the write lock. `finished_at_us` is set when that is done; until then the writer completes it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::Pruned`], [`StoreError::Sqlite`]: the run is not cancelled.
    pub fn cancel_run(&mut self, run: i64) -> Result<bool, StoreError> {
        let span = run_span(run, self.summary(run)?.run_id);
        let _entered = span.enter();
        let changed = self.write(|transaction| {
            summary(transaction, run)?.refuse_pruned()?;
            Ok(transaction.execute(
                "UPDATE runs SET state = 'cancelled', finished_at_us = NULL
                 WHERE run = ?1 AND state IN ('running', 'incomplete')",
                [run],
            )?)
        })?;
        if changed > 0 {
            tracing::info!("run cancelled");
        }
        if let Err(error) = self.complete_cancelling(run) {
            if changed == 0 {
                return Err(error);
            }
            tracing::warn!(%error, "the run is cancelled; the writer puts its rows into `latest` when it starts");
        }
        Ok(changed > 0)
    }

    /// Puts the rows of a cancelled run into `latest`, unless that was done before. Rows of results that are applied later
    /// get there with them.
    pub(crate) fn complete_cancelling(&mut self, run: i64) -> Result<(), StoreError> {
        let is_begun = self
            .connection
            .prepare_cached("SELECT 1 FROM runs WHERE run = ?1 AND state = 'cancelled' AND finished_at_us IS NULL")?
            .exists([run])?;
        if !is_begun {
            return Ok(());
        }
        self.upsert_latest_in_steps(run)?;
        self.write(|transaction| {
            transaction.execute(
                "UPDATE runs SET finished_at_us = ?2
                 WHERE run = ?1 AND state = 'cancelled' AND finished_at_us IS NULL",
                (run, now_us()),
            )?;
            Ok(())
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

    /// Removes the runs whose producer ended while it was planning, and logs each. Returns their numbers.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn remove_abandoned_plans(&mut self) -> Result<Vec<i64>, StoreError> {
        let path = self.path.clone();
        let removed = self.write(|transaction| {
            let planning: Vec<(i64, Uuid)> = transaction
                .prepare("SELECT run, run_id FROM runs WHERE state = 'planning'")?
                .query_map((), |row| Ok((row.get(0)?, run_id(row.get_ref(1)?)?)))?
                .collect::<Result<_, _>>()?;
            let mut removed = Vec::new();
            for (run, run_id) in planning {
                match FileLock::try_run(&path, run) {
                    Ok(_lock) => {
                        remove_plan(transaction, run)?;
                        removed.push((run, run_id));
                    }
                    Err(StoreError::AlreadyLocked { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(removed)
        })?;
        let log = |(run, run_id)| {
            run_span(run, run_id).in_scope(|| {
                tracing::info!("removed the incomplete plan of a producer that no longer runs");
            });
            run
        };
        Ok(removed.into_iter().map(log).collect())
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
