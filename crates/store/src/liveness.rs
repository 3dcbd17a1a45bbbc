//! Liveness: when the writers and workers were last seen, and the chunks that each worker has in hand.

use std::time::Duration;

use pingfleet_wire::{Heartbeat, timing::WORKER_TIMEOUT};
use rusqlite::{Connection, OptionalExtension};

use crate::{StoreError, Transport, Writer, now_us};

/// A worker that was last seen longer ago than this is deleted. Each restart of a worker is a new row.
const WORKER_FORGOTTEN_AFTER: Duration = Duration::from_hours(7 * 24);

/// The writer of one transport, when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterLiveness {
    /// When, in microseconds since 1970-01-01 UTC.
    pub seen_us: i64,
    /// Who ("pid 12 on host").
    pub holder: String,
    /// Deliveries taken.
    pub taken: i64,
    /// Deliveries applied.
    pub applied: i64,
    /// Deliveries that repeated what was applied.
    pub duplicates: i64,
    /// Deliveries put into quarantine.
    pub quarantined: i64,
}

/// The workers that are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveWorkers {
    /// How many.
    pub count: i64,
    /// The sum of their prefetch: what they had in hand at their last heartbeat, as long as heartbeats do not carry the
    /// prefetch itself.
    pub prefetch: i64,
}

/// A worker, as its last heartbeat describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRow {
    /// Its name.
    pub worker: String,
    /// Process id on its machine.
    pub pid: i64,
    /// Time since the worker was last seen, by the clock of the master.
    pub age: Duration,
    /// Chunks in hand.
    pub in_hand: i64,
    /// Chunks settled since its start.
    pub chunks_done: i64,
    /// Targets settled since its start.
    pub targets_done: i64,
    /// Whether it finishes its chunks and then stops.
    pub draining: bool,
}

impl Writer {
    /// Records that the writer is alive now.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn note_writer_alive(
        &mut self,
        transport: Transport,
        holder: &str,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO writers (transport, seen_us, holder) VALUES (?1, ?2, ?3)
                     ON CONFLICT (transport) DO UPDATE SET seen_us = excluded.seen_us, holder = excluded.holder",
                )?
                .execute((transport.name(), now_us(), holder))?;
            Ok(())
        })
    }

    /// When the writer was last seen, and its counters.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn writer_liveness(
        &self,
        transport: Transport,
    ) -> Result<Option<WriterLiveness>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT seen_us, holder, taken, applied, duplicates, quarantined FROM writers WHERE transport = ?1",
            )?
            .query_row([transport.name()], |row| {
                Ok(WriterLiveness {
                    seen_us: row.get(0)?,
                    holder: row.get(1)?,
                    taken: row.get(2)?,
                    applied: row.get(3)?,
                    duplicates: row.get(4)?,
                    quarantined: row.get(5)?,
                })
            })
            .optional()?)
    }

    /// The live workers: those that were seen within the last 30 s.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn live_workers(&self) -> Result<LiveWorkers, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT count(*), coalesce(sum((SELECT count(*) FROM in_hand h WHERE h.instance = w.instance)), 0)
                 FROM workers w WHERE last_seen_us > ?1",
            )?
            .query_row([now_us() - WORKER_TIMEOUT.as_micros() as i64], |row| {
                Ok(LiveWorkers {
                    count: row.get(0)?,
                    prefetch: row.get(1)?,
                })
            })?)
    }

    /// All known workers, by name.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn workers(&self) -> Result<Vec<WorkerRow>, StoreError> {
        let now = now_us();
        let mut statement = self.connection.prepare(
            "SELECT w.worker, w.pid, w.last_seen_us, w.chunks_done, w.targets_done, w.draining,
                    (SELECT count(*) FROM in_hand h WHERE h.instance = w.instance)
             FROM workers w ORDER BY w.worker, w.first_seen_us",
        )?;
        let rows = statement.query_map((), |row| {
            let seen: i64 = row.get(2)?;
            Ok(WorkerRow {
                worker: row.get(0)?,
                pid: row.get(1)?,
                age: Duration::from_micros((now - seen).max(0) as u64),
                chunks_done: row.get(3)?,
                targets_done: row.get(4)?,
                draining: row.get(5)?,
                in_hand: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Records that the worker of a result is alive. When several rows have that name, the newest one is meant: an older one
/// was lost, and must not be kept alive with the chunks that it had in hand.
pub(crate) fn note_result(
    connection: &Connection,
    worker: &str,
    now: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE workers SET last_seen_us = max(last_seen_us, ?2)
             WHERE instance = (SELECT instance FROM workers WHERE worker = ?1 ORDER BY first_seen_us DESC LIMIT 1)",
        )?
        .execute((worker, now))?;
    Ok(())
}

/// Stores a heartbeat: the worker's row, and all chunks that it has in hand.
pub(crate) fn store_heartbeat(
    connection: &Connection,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO workers (instance, worker, pid, threads, first_seen_us, last_seen_us,
                                  chunks_done, targets_done, requests_sent, draining)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (instance) DO UPDATE SET
                worker = excluded.worker, last_seen_us = excluded.last_seen_us,
                chunks_done = excluded.chunks_done, targets_done = excluded.targets_done,
                requests_sent = excluded.requests_sent, draining = excluded.draining",
        )?
        .execute((
            heartbeat.instance,
            &heartbeat.worker,
            heartbeat.pid,
            heartbeat.threads,
            now,
            heartbeat.chunks_done as i64,
            heartbeat.targets_done as i64,
            heartbeat.requests_sent as i64,
            heartbeat.draining,
        ))?;
    connection
        .prepare_cached("DELETE FROM in_hand WHERE instance = ?1")?
        .execute([heartbeat.instance])?;
    if heartbeat.draining && heartbeat.in_hand.is_empty() {
        // Its last heartbeat: the worker has stopped in order, so its row goes.
        connection
            .prepare_cached("DELETE FROM workers WHERE instance = ?1")?
            .execute([heartbeat.instance])?;
        return Ok(());
    }
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO in_hand (instance, run_id, chunk) VALUES (?1, ?2, ?3)",
    )?;
    for key in &heartbeat.in_hand {
        insert.execute((heartbeat.instance, key.run.to_string(), key.chunk))?;
    }
    let forgotten = now - WORKER_FORGOTTEN_AFTER.as_micros() as i64;
    connection
        .prepare_cached(
            "DELETE FROM in_hand WHERE instance IN (SELECT instance FROM workers WHERE last_seen_us < ?1)",
        )?
        .execute([forgotten])?;
    connection
        .prepare_cached("DELETE FROM workers WHERE last_seen_us < ?1")?
        .execute([forgotten])?;
    Ok(())
}
