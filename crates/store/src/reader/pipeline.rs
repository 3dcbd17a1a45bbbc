//! What went wrong between the queues and the rows: quarantine, and dead chunks. All of it is bounded.

use std::{cmp::Reverse, collections::HashMap};

use rusqlite::Connection;

use crate::{Reader, StoreError, Transport, WriterLiveness, chunk_state::chunk_state, liveness};

/// Messages or chunks that are listed.
const LISTED: usize = 20;

/// Dead chunks whose reasons are counted.
const MAX_COUNTED: i64 = 1000;

/// The messages in quarantine: at most 10,000.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuarantineList {
    /// How many there are.
    pub total: i64,
    /// How many have the same queue and reason, the most frequent first, at most 20.
    pub reasons: Vec<(String, String, i64)>,
    /// The newest ones, newest first, at most 20.
    pub newest: Vec<QuarantinedMessage>,
}

/// A message that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedMessage {
    /// When, in microseconds since 1970-01-01 UTC.
    pub received_at_us: i64,
    /// The queue from which it came.
    pub queue: String,
    /// Why, in words that are the same for every such message.
    pub reason: String,
    /// What the reason is about in this message: names, ids and numbers. May be empty.
    pub detail: String,
    /// Its length in bytes.
    pub length: i64,
    /// The login that published it. None for dead letters, and when it is not known.
    pub login: Option<String>,
}

impl QuarantinedMessage {
    /// The reason with its detail: `wrong token: chunk 5 of run 3`.
    #[must_use]
    pub fn why(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.clone(),
            detail => format!("{}: {detail}", self.reason),
        }
    }
}

/// Dead chunks of the runs that are not finished, and of the last run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadChunkList {
    /// How many there are.
    pub total: i64,
    /// How many of the first 1,000 have the same reason, the most frequent first, at most 20.
    pub reasons: Vec<(String, i64)>,
    /// The newest ones, newest first, at most 20.
    pub newest: Vec<DeadChunk>,
}

/// A chunk that the broker gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadChunk {
    /// The run's number.
    pub run: i64,
    /// The number of the chunk.
    pub chunk: u32,
    /// Its targets.
    pub targets: i64,
    /// When it became dead, in microseconds since 1970-01-01 UTC.
    pub dead_at_us: i64,
    /// The broker's reason.
    pub reason: String,
}

impl Reader {
    /// The messages in quarantine. Reads an index of at most 10,000 entries.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn quarantine(&self) -> Result<QuarantineList, StoreError> {
        self.read(|connection| quarantine(connection))
    }

    /// The dead chunks of the runs that are not finished, and of the last run. Reads at most 1,000 chunks by an index.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn dead_chunks(&self) -> Result<DeadChunkList, StoreError> {
        self.read(|connection| dead_chunks(connection))
    }

    /// The writers that ever wrote to this database, when each was last seen, and what it took: at most one of each
    /// transport.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn writers(&self) -> Result<Vec<(Transport, WriterLiveness)>, StoreError> {
        self.read(|connection| liveness::writers(connection))
    }
}

fn quarantine(connection: &Connection) -> Result<QuarantineList, StoreError> {
    let mut list = QuarantineList::default();
    list.reasons = connection
        .prepare("SELECT queue, reason, count(*) FROM quarantine GROUP BY queue, reason")?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    list.total = list.reasons.iter().map(|(.., count)| count).sum();
    list.reasons
        .sort_unstable_by(|one, other| (Reverse(one.2), one).cmp(&(Reverse(other.2), other)));
    list.reasons.truncate(LISTED);
    let newest = connection
        .prepare("SELECT received_at_us, queue, reason, detail, length, login FROM quarantine ORDER BY id DESC LIMIT ?1")?
        .query_map([LISTED as i64], |row| {
            Ok(QuarantinedMessage {
                received_at_us: row.get(0)?,
                queue: row.get(1)?,
                reason: row.get(2)?,
                detail: row.get(3)?,
                length: row.get(4)?,
                login: row.get(5)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    list.newest = newest;
    Ok(list)
}

/// The runs whose dead chunks are read, with the number of these: by the indexes of unfinished runs, and the last run.
const RUNS: &str = "SELECT run, chunks_dead FROM runs WHERE state = 'running' AND chunks_dead > 0
    UNION SELECT run, chunks_dead FROM runs WHERE run = (SELECT max(run) FROM runs) AND chunks_dead > 0
    ORDER BY run DESC";

const CHUNKS: &str = concat!(
    "SELECT chunk, targets, coalesce(settled_at_us, 0), coalesce(dead_reason, '') FROM chunks
     WHERE run = ?1 AND state = ",
    chunk_state!(Dead),
    " AND retrying = 0 ORDER BY settled_at_us DESC LIMIT ?2"
);

fn dead_chunks(connection: &Connection) -> Result<DeadChunkList, StoreError> {
    let runs: Vec<(i64, i64)> = connection
        .prepare(RUNS)?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut list = DeadChunkList::default();
    let mut by_reason: HashMap<String, i64> = HashMap::new();
    let mut left = MAX_COUNTED;
    let mut chunks = connection.prepare(CHUNKS)?;
    for (run, dead) in runs {
        list.total += dead;
        let found = chunks.query_map((run, left), |row| {
            Ok(DeadChunk {
                run,
                chunk: row.get(0)?,
                targets: row.get(1)?,
                dead_at_us: row.get(2)?,
                reason: row.get(3)?,
            })
        })?;
        for (at, chunk) in found.enumerate() {
            let chunk = chunk?;
            left -= 1;
            *by_reason.entry(chunk.reason.clone()).or_default() += 1;
            if at < LISTED {
                list.newest.push(chunk);
            }
        }
    }
    list.newest
        .sort_by_key(|chunk| Reverse((chunk.dead_at_us, chunk.run, chunk.chunk)));
    list.newest.truncate(LISTED);
    list.reasons = by_reason.into_iter().collect();
    list.reasons
        .sort_unstable_by(|one, other| (Reverse(one.1), &one.0).cmp(&(Reverse(other.1), &other.0)));
    list.reasons.truncate(LISTED);
    Ok(list)
}
