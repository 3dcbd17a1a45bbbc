//! Applying deliveries: one transaction a batch; every delivery is applied, a duplicate, or quarantined.
//!
//! Invariants: a chunk's rows come from one result, whole, the first one; the caller acks nothing before this returned.

use std::collections::{BTreeMap, HashMap};

use pingfleet_wire::{Heartbeat, Message as _, Outcome, ResultChunk, Target, WorkChunk};
use rusqlite::{Connection, OptionalExtension, Statement, Transaction};
use uuid::Uuid;

use crate::{Store, StoreError, Via, latest, now_us, signs};

/// What is kept of a quarantined message, in bytes.
const QUARANTINED_BYTES: usize = 64 << 10;

/// Quarantined messages that are kept; the oldest go first, so that a flood cannot fill the disk.
const QUARANTINED_MESSAGES: i64 = 10_000;

/// A delivery, read as far as it could be.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// The outcomes of a chunk.
    Result {
        /// The message.
        message: Box<ResultChunk>,
        /// Its bytes, for the quarantine.
        letter: Letter,
        /// Whether the broker had delivered the result before.
        redelivered: bool,
    },
    /// A chunk that the broker gave up.
    Dead {
        /// The message.
        message: Box<WorkChunk>,
        /// Its bytes, for the quarantine.
        letter: Letter,
        /// Why, as the broker tells.
        reason: String,
    },
    /// Something that cannot be read.
    Unreadable {
        /// Its bytes.
        letter: Letter,
        /// Why it cannot be read.
        reason: String,
    },
    /// A worker's sign of life; outside the counters.
    Heartbeat(Heartbeat),
}

/// A message's bytes, and the queue that they came from.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Name of the queue.
    pub queue: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// What a batch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Deliveries whose rows or state were stored.
    pub applied: u64,
    /// Rows stored.
    pub rows: u64,
    /// Deliveries that repeated what was stored before.
    pub duplicates: u64,
    /// Deliveries put into quarantine.
    pub quarantined: u64,
    /// Runs that this batch closed.
    pub closed: Vec<ClosedRun>,
    /// Whether it settled the last chunk of a run that is too large to be closed with it: [`Store::close_settled`] is
    /// to be called.
    pub is_large_run_settled: bool,
}

/// A run that a batch closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedRun {
    /// The run's number.
    pub run: i64,
    /// Whether every chunk is done; otherwise some are dead.
    pub complete: bool,
}

/// What became of one delivery.
enum Fate<'b> {
    Applied { rows: u64 },
    Duplicate,
    Quarantined { letter: &'b Letter, reason: String },
    Uncounted,
}

impl Store {
    /// Applies a batch in one transaction, and counts what became of each delivery.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]: nothing of the batch is stored, or after an I/O error in the commit it is unknown
    /// whether it is; the caller acks nothing then, and redelivery repeats it.
    pub fn apply(&mut self, via: Via, batch: &[Incoming]) -> Result<Applied, StoreError> {
        let database = self.database;
        self.write(|transaction| {
            let mut writing = Writing::new(transaction, database)?;
            // Counted apart from what becomes of each, so that the counters can contradict each other.
            let taken = batch
                .iter()
                .filter(|incoming| !matches!(incoming, Incoming::Heartbeat(_)))
                .count();
            for incoming in batch {
                writing.take(incoming)?;
            }
            writing.finish(via, taken)
        })
    }

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

/// Changes of one run's counters within a batch.
#[derive(Debug, Default)]
struct Tally {
    counts: [i64; 7],
    /// Chunks that were done.
    done: Vec<u32>,
    dead: i64,
    duplicates: i64,
    redelivered: i64,
}

/// What the database knows of a chunk that a message names.
struct Known {
    run: i64,
    state: i64,
    retrying: bool,
    targets: usize,
    token: Uuid,
    work: Vec<u8>,
}

const DEAD: i64 = 2;
const DONE: i64 = 3;

struct Writing<'a> {
    transaction: &'a Transaction<'a>,
    database: Uuid,
    now: i64,
    runs: HashMap<Uuid, Option<i64>>,
    tallies: BTreeMap<i64, Tally>,
    report: Applied,
    insert: Statement<'a>,
}

impl<'a> Writing<'a> {
    fn new(transaction: &'a Transaction<'a>, database: Uuid) -> Result<Self, StoreError> {
        Ok(Self {
            transaction,
            database,
            now: now_us(),
            runs: HashMap::new(),
            tallies: BTreeMap::new(),
            report: Applied::default(),
            insert: transaction.prepare(
                "INSERT INTO results (run, chunk, position, name, address, status, reason, sent, received,
                    rtt_min_ns, rtt_avg_ns, rtt_max_ns, rtt_stddev_ns, attempts, probed_at_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?,
        })
    }

    fn take(&mut self, incoming: &Incoming) -> Result<(), StoreError> {
        let fate = match incoming {
            Incoming::Result {
                message,
                letter,
                redelivered,
            } => self.take_result(message, letter, *redelivered)?,
            Incoming::Dead {
                message,
                letter,
                reason,
            } => self.take_dead(message, letter, reason)?,
            Incoming::Unreadable { letter, reason } => Fate::Quarantined {
                letter,
                reason: reason.clone(),
            },
            Incoming::Heartbeat(heartbeat) => {
                signs::store_heartbeat(self.transaction, heartbeat, self.now)?;
                Fate::Uncounted
            }
        };
        match fate {
            Fate::Applied { rows } => {
                self.report.applied += 1;
                self.report.rows += rows;
            }
            Fate::Duplicate => self.report.duplicates += 1,
            Fate::Quarantined { letter, reason } => {
                self.report.quarantined += 1;
                quarantine(self.transaction, self.now, letter, &reason)?;
            }
            Fate::Uncounted => {}
        }
        Ok(())
    }

    fn take_result<'b>(
        &mut self,
        message: &ResultChunk,
        letter: &'b Letter,
        redelivered: bool,
    ) -> Result<Fate<'b>, StoreError> {
        let known = match self.known(message.database, message.key, message.token.0)? {
            Ok(known) => known,
            Err(reason) => return Ok(Fate::Quarantined { letter, reason }),
        };
        if message.outcomes.len() != known.targets {
            let reason = format!(
                "{} outcomes for a chunk of {} targets",
                message.outcomes.len(),
                known.targets
            );
            return Ok(Fate::Quarantined { letter, reason });
        }
        let work = read_plan(&known)?;
        let tally = self.tallies.entry(known.run).or_default();
        tally.redelivered += i64::from(redelivered || message.redelivered);
        if known.state == DONE {
            tally.duplicates += 1;
            return Ok(Fate::Duplicate);
        }
        if known.state == DEAD && !known.retrying {
            tally.dead -= 1;
        }
        tally.done.push(message.key.chunk);
        for outcome in &message.outcomes {
            tally.counts[usize::from(outcome.status.code())] += 1;
        }
        for (position, (target, outcome)) in work.targets.iter().zip(&message.outcomes).enumerate()
        {
            self.insert_row(&known, message, position, target, outcome)?;
        }
        self.transaction
            .prepare_cached(
                "UPDATE chunks SET state = 3, retrying = 0, worker = ?3, settled_at_us = ?4 WHERE run = ?1 AND chunk = ?2",
            )?
            .execute((known.run, message.key.chunk, &message.worker, self.now))?;
        signs::note_result(self.transaction, &message.worker, self.now)?;
        Ok(Fate::Applied {
            rows: message.outcomes.len() as u64,
        })
    }

    fn insert_row(
        &mut self,
        known: &Known,
        message: &ResultChunk,
        position: usize,
        target: &Target,
        outcome: &Outcome,
    ) -> Result<(), StoreError> {
        let (name, address) = match target {
            Target::Address(address) => (None, Some(address.to_string())),
            Target::Text(text) => (
                Some(text.as_str()),
                outcome.address.map(|address| address.to_string()),
            ),
        };
        let nanos = |pick: fn(&pingfleet_wire::Rtt) -> u64| {
            outcome
                .rtt
                .as_ref()
                .map(|rtt| pick(rtt).min(i64::MAX as u64) as i64)
        };
        let probed_at_us = message
            .started_at_us
            .saturating_add(outcome.probed_after_us)
            .min(i64::MAX as u64) as i64;
        self.insert.execute(rusqlite::params![
            known.run,
            message.key.chunk,
            position as i64,
            name,
            address,
            outcome.status.code(),
            outcome.status.reason(),
            outcome.sent,
            outcome.received,
            nanos(|rtt| rtt.min_ns),
            nanos(|rtt| rtt.avg_ns),
            nanos(|rtt| rtt.max_ns),
            nanos(|rtt| rtt.stddev_ns),
            outcome.attempts,
            probed_at_us,
        ])?;
        Ok(())
    }

    fn take_dead<'b>(
        &mut self,
        message: &WorkChunk,
        letter: &'b Letter,
        reason: &str,
    ) -> Result<Fate<'b>, StoreError> {
        let known = match self.known(message.database, message.key, message.token.0)? {
            Ok(known) => known,
            Err(reason) => return Ok(Fate::Quarantined { letter, reason }),
        };
        let tally = self.tallies.entry(known.run).or_default();
        if known.state == DONE || (known.state == DEAD && !known.retrying) {
            tally.duplicates += 1;
            return Ok(Fate::Duplicate);
        }
        tally.dead += 1;
        self.transaction
            .prepare_cached(
                "UPDATE chunks SET state = 2, retrying = 0, dead_reason = ?3, settled_at_us = ?4
                 WHERE run = ?1 AND chunk = ?2",
            )?
            .execute((known.run, message.key.chunk, reason, self.now))?;
        Ok(Fate::Applied { rows: 0 })
    }

    /// The chunk that a message names, or why the message is not ours.
    fn known(
        &mut self,
        database: Uuid,
        key: pingfleet_wire::ChunkKey,
        token: Uuid,
    ) -> Result<Result<Known, String>, StoreError> {
        if database != self.database {
            return Ok(Err(format!("it belongs to database {database}")));
        }
        let run = if let Some(run) = self.runs.get(&key.run) {
            *run
        } else {
            let run = self
                .transaction
                .prepare_cached("SELECT run FROM runs WHERE run_id = ?1 AND state <> 'planning'")?
                .query_row([key.run.to_string()], |row| row.get(0))
                .optional()?;
            self.runs.insert(key.run, run);
            run
        };
        let Some(run) = run else {
            return Ok(Err(format!("no run {}", key.run)));
        };
        let known = self
            .transaction
            .prepare_cached(
                "SELECT c.state, c.retrying, c.targets, p.token, p.work
                 FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
                 WHERE c.run = ?1 AND c.chunk = ?2",
            )?
            .query_row((run, key.chunk), |row| {
                Ok(Known {
                    run,
                    state: row.get(0)?,
                    retrying: row.get(1)?,
                    targets: row.get::<_, u32>(2)? as usize,
                    token: row.get(3)?,
                    work: row.get(4)?,
                })
            })
            .optional()?;
        Ok(match known {
            None => Err(format!("run {run} has no chunk {}", key.chunk)),
            Some(known) if known.token != token => {
                Err(format!("wrong token for chunk {} of run {run}", key.chunk))
            }
            Some(known) => Ok(known),
        })
    }

    /// Writes the counters, and closes the runs whose last chunk was settled.
    fn finish(mut self, via: Via, taken: usize) -> Result<Applied, StoreError> {
        for (run, tally) in std::mem::take(&mut self.tallies) {
            self.transaction
                .prepare_cached(
                    "UPDATE runs SET chunks_done = chunks_done + ?2, chunks_dead = chunks_dead + ?3,
                        up = up + ?4, late = late + ?5, unreachable = unreachable + ?6,
                        dns_failed = dns_failed + ?7, send_failed = send_failed + ?8,
                        unknown = unknown + ?9, down = down + ?10,
                        duplicates = duplicates + ?11, redelivered = redelivered + ?12
                     WHERE run = ?1",
                )?
                .execute(rusqlite::params![
                    run,
                    tally.done.len() as i64,
                    tally.dead,
                    tally.counts[0],
                    tally.counts[1],
                    tally.counts[2],
                    tally.counts[3],
                    tally.counts[4],
                    tally.counts[5],
                    tally.counts[6],
                    tally.duplicates,
                    tally.redelivered,
                ])?;
            if !tally.done.is_empty() || tally.dead != 0 {
                self.end(run, &tally.done)?;
            }
        }
        let report = &self.report;
        let counted = [report.applied, report.duplicates, report.quarantined].map(|n| n as i64);
        self.transaction
            .prepare_cached(
                "UPDATE writers SET seen_us = ?2, taken = taken + ?3, applied = applied + ?4,
                        duplicates = duplicates + ?5, quarantined = quarantined + ?6
                 WHERE via = ?1",
            )?
            .execute((
                via.name(),
                self.now,
                taken as i64,
                counted[0],
                counted[1],
                counted[2],
            ))?;
        Ok(self.report)
    }

    /// Closes a run some of whose chunks this batch settled, when those were the last.
    fn end(&mut self, run: i64, done: &[u32]) -> Result<(), StoreError> {
        let progress = Progress::of(self.transaction, run)?;
        match progress.state.as_str() {
            // The rest of it was taken in when it got this state.
            "cancelled" | "incomplete" => {
                for chunk in done {
                    latest::update_chunk(self.transaction, run, *chunk)?;
                }
            }
            _ if progress.outstanding > 0 => {}
            _ if progress.targets > latest::AT_ONCE => {
                self.report.is_large_run_settled = true;
                return Ok(());
            }
            _ => latest::update(self.transaction, run)?,
        }
        let closed = progress.close(self.transaction, run, self.now)?;
        self.report.closed.extend(closed);
        Ok(())
    }
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

fn read_plan(known: &Known) -> Result<WorkChunk, StoreError> {
    let work = WorkChunk::decode(&known.work).map_err(|error| StoreError::BadPlan {
        run: known.run,
        reason: error.to_string(),
    })?;
    if work.targets.len() == known.targets {
        Ok(work)
    } else {
        Err(StoreError::BadPlan {
            run: known.run,
            reason: "a chunk's count of targets is not that of its work message".to_owned(),
        })
    }
}

fn quarantine(
    connection: &Connection,
    now: i64,
    letter: &Letter,
    reason: &str,
) -> Result<(), StoreError> {
    let kept = &letter.body[..letter.body.len().min(QUARANTINED_BYTES)];
    connection
        .prepare_cached(
            "INSERT INTO quarantine (received_at_us, queue, reason, length, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((now, letter.queue, reason, letter.body.len() as i64, kept))?;
    let id = connection.last_insert_rowid();
    connection
        .prepare_cached("DELETE FROM quarantine WHERE id <= ?1")?
        .execute([id - QUARANTINED_MESSAGES])?;
    Ok(())
}
