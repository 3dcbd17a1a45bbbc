//! Applies deliveries, one transaction for each batch. Every result and dead letter is applied, a duplicate,
//! or quarantined.
//!
//! Invariants: all rows of a chunk come from one result, the first one. The caller acks nothing before `apply` returned.

mod applied;
mod contradictions;
mod dead_letters;
mod delivery;
mod plausible;
mod progress;
mod quarantine;

use std::collections::{BTreeMap, HashMap};

use pingfleet_wire::{Message as _, Outcome, ResultChunk, Rtt, StatusKind, Target, WorkChunk};
use rusqlite::{OptionalExtension, Statement, Transaction};
use uuid::Uuid;

pub use self::{
    applied::{Applied, DeadChunks, RemovedChunks},
    contradictions::{Contradiction, Sender},
    delivery::{DecodedDelivery, RawMessage},
    quarantine::Refusal,
};
use crate::{
    ChunkState, StatusCounts, StoreError, Transport, Writer,
    address::stored_address,
    chunk_state::chunk_state,
    close::{self, CloseOutcome},
    liveness, now_us,
    progress::{LastProgress, SettledTargets, probed_address},
};

/// The outcome of one delivery.
enum Disposition<'b> {
    Applied {
        rows: u64,
    },
    Duplicate,
    Quarantined {
        raw: &'b RawMessage,
        refusal: Refusal,
    },
    Uncounted,
}

impl Writer {
    /// Applies a batch in one transaction, and counts the outcome of each delivery.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]: nothing of the batch is stored. After an I/O error in the commit it is unknown whether the
    /// batch is stored. The caller must ack nothing, so that the broker redelivers the batch.
    pub fn apply(
        &mut self,
        transport: Transport,
        batch: &[DecodedDelivery],
    ) -> Result<Applied, StoreError> {
        self.with_temporary_files(|store| store.apply_once(transport, batch))
    }

    fn apply_once(
        &mut self,
        transport: Transport,
        batch: &[DecodedDelivery],
    ) -> Result<Applied, StoreError> {
        let database = self.database;
        // Put back after a success only.
        let mut last = std::mem::take(&mut self.last_progress);
        let applied = self.write(|transaction| {
            let mut writer = BatchWriter::new(transaction, database, &mut last)?;
            // Counted independently, so `verify` can check taken = applied + duplicates + quarantined.
            let taken = batch
                .iter()
                .filter(|incoming| !matches!(incoming, DecodedDelivery::Heartbeat { .. }))
                .count();
            for incoming in batch {
                writer.take(incoming)?;
            }
            writer.finish(transport, taken)
        })?;
        self.last_progress = last;
        Ok(applied)
    }
}

/// Changes of one run's counters within a batch.
#[derive(Debug, Default)]
struct CounterChanges {
    counts: StatusCounts,
    /// Chunks that became done.
    done: Vec<u32>,
    dead: i64,
    /// Chunks that became dead, with the id of the run.
    newly_dead: Option<(Uuid, u64)>,
    duplicates: i64,
    redelivered: i64,
    contradictions: i64,
    settled: SettledTargets,
}

/// A chunk of the plan with its state.
struct PlannedChunk {
    run: i64,
    state: ChunkState,
    retrying: bool,
    publishes: i64,
    published_round: i64,
    targets: usize,
    token: Uuid,
    work: Vec<u8>,
}

struct BatchWriter<'a> {
    transaction: &'a Transaction<'a>,
    database: Uuid,
    now: i64,
    runs: HashMap<Uuid, Option<i64>>,
    changes: BTreeMap<i64, CounterChanges>,
    report: Applied,
    /// The largest publish round of a chunk that this batch settled.
    settled_round: i64,
    insert: Statement<'a>,
    last_progress: &'a mut LastProgress,
}

impl<'a> BatchWriter<'a> {
    fn new(
        transaction: &'a Transaction<'a>,
        database: Uuid,
        last_progress: &'a mut LastProgress,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            transaction,
            database,
            now: now_us(),
            runs: HashMap::new(),
            changes: BTreeMap::new(),
            report: Applied::default(),
            settled_round: 0,
            last_progress,
            insert: transaction.prepare(
                "INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us,
                    address, rtt_avg_ns, rtt_min_ns, rtt_max_ns, rtt_stddev_ns, name, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?,
        })
    }

    fn take(&mut self, incoming: &DecodedDelivery) -> Result<(), StoreError> {
        let disposition = match incoming {
            DecodedDelivery::Result {
                message,
                raw,
                redelivered,
            } => self.take_result(message, raw, *redelivered)?,
            DecodedDelivery::Dead {
                message,
                raw,
                reason,
            } => self.take_dead(message, raw, reason)?,
            DecodedDelivery::Refused { raw, refusal } => Disposition::Quarantined {
                raw,
                refusal: refusal.clone(),
            },
            DecodedDelivery::Heartbeat { heartbeat, login } => {
                let login = login.as_deref();
                if !liveness::store_heartbeat(self.transaction, login, heartbeat, self.now)? {
                    self.report.heartbeats_of_too_many += 1;
                }
                Disposition::Uncounted
            }
        };
        match disposition {
            Disposition::Applied { rows } => {
                self.report.applied += 1;
                self.report.rows += rows;
            }
            Disposition::Duplicate => self.report.duplicates += 1,
            Disposition::Quarantined { raw, refusal } => {
                self.report.quarantined += 1;
                quarantine::keep(self.transaction, self.now, raw, &refusal)?;
                let reason = (refusal.reason, raw.login.clone());
                *self.report.reasons.entry(reason).or_default() += 1;
            }
            Disposition::Uncounted => {}
        }
        Ok(())
    }

    fn take_result<'b>(
        &mut self,
        message: &ResultChunk,
        raw: &'b RawMessage,
        redelivered: bool,
    ) -> Result<Disposition<'b>, StoreError> {
        let planned = match self.planned_chunk(message.database, message.key, message.token.0)? {
            Ok(planned) => planned,
            Err(refusal) => return Ok(Disposition::Quarantined { raw, refusal }),
        };
        if message.outcomes.len() != planned.targets {
            let detail = format!("{} of {}", message.outcomes.len(), planned.targets);
            let refusal = Refusal::new("another number of outcomes than of targets", detail);
            return Ok(Disposition::Quarantined { raw, refusal });
        }
        let work = decode_plan(&planned)?;
        if let Some(refusal) = plausible::implausible(&work, &message.outcomes) {
            return Ok(Disposition::Quarantined { raw, refusal });
        }
        let changes = self.changes.entry(planned.run).or_default();
        changes.redelivered += i64::from(redelivered || message.redelivered);
        if planned.state == ChunkState::Done {
            changes.duplicates += 1;
            self.note_contradiction(planned.run, message, raw.login.as_deref())?;
            return Ok(Disposition::Duplicate);
        }
        if planned.state == ChunkState::Dead && !planned.retrying {
            changes.dead -= 1;
        }
        // Only a chunk with exactly one message shows that everything sent before it was delivered.
        if planned.state == ChunkState::Published && planned.publishes == 1 {
            self.settled_round = self.settled_round.max(planned.published_round);
        }
        changes.done.push(message.key.chunk);
        changes.counts += changes
            .settled
            .add(message.key.chunk, &work.targets, &message.outcomes);
        for (position, (target, outcome)) in work.targets.iter().zip(&message.outcomes).enumerate()
        {
            self.insert_row(&planned, message, position, target, outcome)?;
        }
        let login = raw.login.as_deref();
        self.mark_done(planned.run, message, login)?;
        liveness::note_result(self.transaction, login, &message.worker, self.now)?;
        Ok(Disposition::Applied {
            rows: message.outcomes.len() as u64,
        })
    }

    fn mark_done(
        &self,
        run: i64,
        message: &ResultChunk,
        login: Option<&str>,
    ) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(concat!(
                "UPDATE chunks SET state = ",
                chunk_state!(Done),
                ", retrying = 0, worker = ?3, settled_at_us = ?4,
                            started_at_us = ?5, login = ?6
                     WHERE run = ?1 AND chunk = ?2"
            ))?
            .execute((
                run,
                message.key.chunk,
                &message.worker,
                self.now,
                message.started_at_us.min(i64::MAX as u64) as i64,
                login,
            ))?;
        liveness::forget_claims(self.transaction, run, message.key.chunk)
    }

    fn insert_row(
        &mut self,
        planned: &PlannedChunk,
        message: &ResultChunk,
        position: usize,
        target: &Target,
        outcome: &Outcome,
    ) -> Result<(), StoreError> {
        let name = match target {
            Target::Address(_) => None,
            Target::Text(text) => Some(text.as_str()),
        };
        // The decoder limits the times of a message, so nothing is cut off.
        let signed = |value: u64| value.min(i64::MAX as u64) as i64;
        let rtt = outcome.rtt.as_ref();
        // What is equal to the mean is not stored, and the view derives it.
        let unless_mean = |pick: fn(&Rtt) -> u64| {
            rtt.filter(|rtt| pick(rtt) != rtt.avg_ns)
                .map(|rtt| signed(pick(rtt)))
        };
        self.insert.execute(rusqlite::params![
            planned.run,
            message.key.chunk,
            position as i64,
            outcome.status.code(),
            outcome.sent,
            outcome.received,
            outcome.attempts,
            signed(outcome.probed_after_us),
            probed_address(target, outcome).map(stored_address),
            rtt.map(|rtt| signed(rtt.avg_ns)),
            unless_mean(|rtt| rtt.min_ns),
            unless_mean(|rtt| rtt.max_ns),
            rtt.map(|rtt| signed(rtt.stddev_ns))
                .filter(|deviation| *deviation != 0),
            name,
            outcome.status.reason(),
        ])?;
        Ok(())
    }

    /// The chunk that a message names, or why the message is quarantined.
    fn planned_chunk(
        &mut self,
        database: Uuid,
        key: pingfleet_wire::ChunkKey,
        token: Uuid,
    ) -> Result<Result<PlannedChunk, Refusal>, StoreError> {
        if database != self.database {
            let detail = database.to_string();
            return Ok(Err(Refusal::new("for another database", detail)));
        }
        let run = if let Some(run) = self.runs.get(&key.run) {
            *run
        } else {
            let run = self
                .transaction
                .prepare_cached(
                    "SELECT run FROM runs WHERE run_id = ?1 AND state <> 'planning'
                       AND NOT EXISTS (SELECT 1 FROM pruned_runs p WHERE p.run = runs.run)",
                )?
                .query_row([key.run.to_string()], |row| row.get(0))
                .optional()?;
            self.runs.insert(key.run, run);
            run
        };
        let Some(run) = run else {
            let detail = key.run.to_string();
            return Ok(Err(Refusal::new("unknown run", detail)));
        };
        let planned = self
            .transaction
            .prepare_cached(
                "SELECT c.state, c.retrying, c.targets, p.token, p.work, c.publishes, c.published_round
                 FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
                 WHERE c.run = ?1 AND c.chunk = ?2",
            )?
            .query_row((run, key.chunk), |row| {
                Ok(PlannedChunk {
                    run,
                    state: row.get(0)?,
                    retrying: row.get(1)?,
                    targets: row.get::<_, u32>(2)? as usize,
                    token: row.get(3)?,
                    work: row.get(4)?,
                    publishes: row.get(5)?,
                    published_round: row.get(6)?,
                })
            })
            .optional()?;
        let refused = |reason| {
            let detail = format!("chunk {} of run {run}", key.chunk);
            Err(Refusal::new(reason, detail))
        };
        Ok(match planned {
            None => refused("unknown chunk"),
            Some(planned) if planned.token != token => refused("wrong token"),
            Some(planned) => Ok(planned),
        })
    }

    /// Writes the counters of a run.
    fn change_counters(&self, run: i64, changes: &CounterChanges) -> Result<(), StoreError> {
        self.transaction
            .prepare_cached(
                "UPDATE runs SET chunks_done = chunks_done + ?2, chunks_dead = chunks_dead + ?3,
                        up = up + ?4, late = late + ?5, unreachable = unreachable + ?6,
                        dns_failed = dns_failed + ?7, send_failed = send_failed + ?8,
                        unknown = unknown + ?9, down = down + ?10,
                        duplicates = duplicates + ?11, redelivered = redelivered + ?12,
                        contradictions = contradictions + ?13
                     WHERE run = ?1",
            )?
            .execute(rusqlite::params![
                run,
                changes.done.len() as i64,
                changes.dead,
                changes.counts[StatusKind::Up],
                changes.counts[StatusKind::Late],
                changes.counts[StatusKind::Unreachable],
                changes.counts[StatusKind::DnsFailed],
                changes.counts[StatusKind::SendFailed],
                changes.counts[StatusKind::Unknown],
                changes.counts[StatusKind::Down],
                changes.duplicates,
                changes.redelivered,
                changes.contradictions,
            ])?;
        Ok(())
    }

    /// Writes the counters, and closes the runs without outstanding chunks.
    fn finish(mut self, transport: Transport, taken: usize) -> Result<Applied, StoreError> {
        for (run, changes) in std::mem::take(&mut self.changes) {
            self.change_counters(run, &changes)?;
            self.report.add(run, &changes);
            if !changes.done.is_empty() {
                let done = changes.done.len();
                let last = &mut *self.last_progress;
                progress::count(self.transaction, last, run, changes.settled, done, self.now)?;
            }
            if !changes.done.is_empty() || changes.dead != 0 {
                match close::after(self.transaction, run, &changes.done, self.now)? {
                    CloseOutcome::Open => {}
                    CloseOutcome::Closed(closed) => self.report.closed.push(closed),
                    CloseOutcome::Large => self.report.is_large_run_settled = true,
                }
            }
        }
        let report = &self.report;
        let counted = [report.applied, report.duplicates, report.quarantined].map(|n| n as i64);
        self.transaction
            .prepare_cached(
                "UPDATE writers SET seen_us = ?2, taken = taken + ?3, applied = applied + ?4,
                        duplicates = duplicates + ?5, quarantined = quarantined + ?6,
                        settled_round = max(settled_round, ?7)
                 WHERE transport = ?1",
            )?
            .execute((
                transport.name(),
                self.now,
                taken as i64,
                counted[0],
                counted[1],
                counted[2],
                self.settled_round,
            ))?;
        Ok(self.report)
    }
}

fn decode_plan(planned: &PlannedChunk) -> Result<WorkChunk, StoreError> {
    let work = WorkChunk::decode(&planned.work).map_err(|error| StoreError::BadPlan {
        run: planned.run,
        reason: error.to_string(),
    })?;
    if work.targets.len() == planned.targets {
        Ok(work)
    } else {
        Err(StoreError::BadPlan {
            run: planned.run,
            reason: "a chunk's count of targets is not that of its work message".to_owned(),
        })
    }
}
