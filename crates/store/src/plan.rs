//! Plans a run: its row in `planning`, its chunks, and the transaction that starts it.

use std::time::Duration;

use uuid::Uuid;

use crate::{FileLock, StoreError, Transport, Writer, now_us};

/// A run before its first chunk.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// What carries its messages.
    pub transport: Transport,
    /// The targets as the user gave them, shortened.
    pub source: String,
    /// The probing settings, as JSON.
    pub probing: String,
    /// Seed of the random order. None when targets are probed in the given order.
    pub seed: Option<u64>,
    /// The longest time that a full chunk can take. Decides when a chunk is overdue.
    pub worst_chunk: Duration,
    /// The run whose targets this one probes again.
    pub parent_run: Option<i64>,
}

/// A run that this process produces, with the run's lock.
#[derive(Debug)]
pub struct PlannedRun {
    /// The run's number.
    pub run: i64,
    /// The run's `UUIDv7`.
    pub run_id: Uuid,
    /// This process produces the run as long as it has this lock.
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

impl Writer {
    /// Begins a run in `planning` and acquires its lock.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], or a lock that cannot be acquired.
    pub fn begin_run(&mut self, run: &NewRun) -> Result<PlannedRun, StoreError> {
        let path = self.path.clone();
        self.write(|transaction| {
            let run_id = Uuid::now_v7();
            transaction.execute(
                "INSERT INTO runs (run_id, state, transport, source, probing, seed, started_at_us, worst_chunk_us,
                    parent_run)
                 VALUES (?1, 'planning', ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                (
                    run_id.to_string(),
                    run.transport.name(),
                    &run.source,
                    &run.probing,
                    run.seed.map(u64::cast_signed),
                    now_us(),
                    run.worst_chunk.as_micros() as i64,
                    run.parent_run,
                ),
            )?;
            let number = transaction.last_insert_rowid();
            // Locked before the commit: a run without a lock counts as abandoned.
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
                "UPDATE runs SET state = 'running', lease_renewed_us = ?2,
                        chunks = (SELECT count(*) FROM chunks WHERE run = ?1),
                        targets = (SELECT coalesce(sum(targets), 0) FROM chunks WHERE run = ?1)
                 WHERE run = ?1 AND state = 'planning'",
                (run, now_us()),
            )?;
            if changed == 0 {
                return Err(StoreError::BadPlan {
                    run,
                    reason: "another process ended its planning".to_owned(),
                });
            }
            Ok(())
        })
    }
}
