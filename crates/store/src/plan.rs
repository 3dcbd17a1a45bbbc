//! Writing a plan: a run in `planning`, its chunks, and the one transaction that starts it.

use std::time::Duration;

use rusqlite::OptionalExtension;
use uuid::Uuid;

use crate::{FileLock, Store, StoreError, Via, now_us};

/// What is known of a run before its first chunk.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Which way its chunks take.
    pub via: Via,
    /// What was asked for, as a short text.
    pub source: String,
    /// The probing settings, as JSON.
    pub probing: String,
    /// Seed of the order; absent when targets are probed as given.
    pub seed: Option<u64>,
    /// The longest that a full chunk can take; what is overdue follows from it.
    pub worst_chunk: Duration,
}

/// A run that this process produces: it holds the run's lock.
#[derive(Debug)]
pub struct PlannedRun {
    /// The run's number.
    pub run: i64,
    /// The run's `UUIDv7`.
    pub run_id: Uuid,
    /// Held as long as this process produces the run.
    pub lock: FileLock,
}

/// A chunk of a plan.
#[derive(Debug, Clone)]
pub struct NewChunk {
    /// Its number in the run, from 0.
    pub chunk: u32,
    /// Its token, as in the work message.
    pub token: Uuid,
    /// Targets in it.
    pub targets: u32,
    /// The encoded work message.
    pub work: Vec<u8>,
    /// Labels as JSON objects, by the target's position.
    pub labels: Vec<(u32, String)>,
}

impl Store {
    /// Begins a run in `planning` and takes its lock.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], or a lock that cannot be taken.
    pub fn begin_run(&mut self, run: &NewRun) -> Result<PlannedRun, StoreError> {
        let path = self.path.clone();
        self.write(|transaction| {
            let run_id = Uuid::now_v7();
            transaction.execute(
                "INSERT INTO runs (run_id, state, via, source, probing, seed, started_at_us, worst_chunk_us)
                 VALUES (?1, 'planning', ?2, ?3, ?4, ?5, ?6, ?7)",
                (
                    run_id.to_string(),
                    run.via.name(),
                    &run.source,
                    &run.probing,
                    run.seed.map(u64::cast_signed),
                    now_us(),
                    run.worst_chunk.as_micros() as i64,
                ),
            )?;
            let number = transaction.last_insert_rowid();
            // Before the commit: nobody may see the run without its lock, and take it for abandoned.
            let lock = FileLock::run(&path, number)?;
            Ok(PlannedRun {
                run: number,
                run_id,
                lock,
            })
        })
    }

    /// Adds chunks to a run in `planning`.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn add_chunks(&mut self, run: i64, chunks: &[NewChunk]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut plan = transaction.prepare_cached(
                "INSERT INTO plan (run, chunk, token, work) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let mut state = transaction
                .prepare_cached("INSERT INTO chunks (run, chunk, targets) VALUES (?1, ?2, ?3)")?;
            let mut labels = transaction.prepare_cached(
                "INSERT INTO labels (run, chunk, position, labels) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for chunk in chunks {
                plan.execute((run, chunk.chunk, chunk.token, &chunk.work))?;
                state.execute((run, chunk.chunk, chunk.targets))?;
                for (position, text) in &chunk.labels {
                    labels.execute((run, chunk.chunk, position, text))?;
                }
            }
            Ok(())
        })
    }

    /// Ends the planning: the run is `running`, and its chunks may be published.
    ///
    /// # Errors
    /// [`StoreError::BadPlan`] when the run is no longer in `planning`.
    pub fn start_run(&mut self, run: i64) -> Result<(), StoreError> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE runs SET state = 'running', producer_seen_us = ?2,
                        chunks = (SELECT count(*) FROM chunks WHERE run = ?1),
                        targets = (SELECT coalesce(sum(targets), 0) FROM chunks WHERE run = ?1)
                 WHERE run = ?1 AND state = 'planning'",
                (run, now_us()),
            )?;
            if changed == 0 {
                return Err(StoreError::BadPlan {
                    run,
                    reason: "its planning was ended by somebody else".to_owned(),
                });
            }
            Ok(())
        })
    }

    /// Which way a run's chunks take, for resuming it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`].
    pub fn via(&self, run: i64) -> Result<Via, StoreError> {
        let via: Option<String> = self
            .connection
            .query_row("SELECT via FROM runs WHERE run = ?1", [run], |row| {
                row.get(0)
            })
            .optional()?;
        match via.as_deref() {
            Some("sweep") => Ok(Via::Sweep),
            Some(_) => Ok(Via::Broker),
            None => Err(StoreError::NoSuchRun {
                wanted: run.to_string(),
            }),
        }
    }
}
