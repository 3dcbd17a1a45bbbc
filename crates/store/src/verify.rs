//! Proves that every target of a run ended in exactly one state: compares the rows with the plan, and the counters with
//! the rows. It trusts no counter.

use pingfleet_wire::{Message as _, Target, WorkChunk};
use rusqlite::{OptionalExtension, types::Value};
use uuid::Uuid;

use crate::{
    ChunkState, RunState, RunSummary, StoreError, Writer,
    address::{address_text, stored_address},
};

/// Findings that are listed. Further ones are only counted.
const MAX_LISTED: usize = 20;

/// A contradiction between the plan and what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyFinding(pub String);

/// The outcome of [`Writer::verify`].
#[derive(Debug, Clone)]
pub struct Verification {
    /// The run with its stored counters.
    pub summary: RunSummary,
    /// Targets in the work messages of the plan.
    pub planned_targets: i64,
    /// Targets with exactly one row, at the position that the plan gives them.
    pub proven_targets: i64,
    /// Chunks that are neither done nor dead.
    pub outstanding_chunks: i64,
    /// The first dead chunks: number and reason.
    pub dead_chunks: Vec<(u32, String)>,
    /// How many chunks are dead.
    pub dead_count: i64,
    /// The first contradictions.
    pub findings: Vec<VerifyFinding>,
    /// How many contradictions there are.
    pub finding_count: i64,
}

impl Verification {
    /// Whether every target of the plan is proven to have its one row.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_consistent() && self.proven_targets == self.planned_targets && self.dead_count == 0
    }

    /// Whether nothing contradicts the plan.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.finding_count == 0
    }

    fn add_finding(&mut self, finding: String) {
        self.finding_count += 1;
        if self.findings.len() < MAX_LISTED {
            self.findings.push(VerifyFinding(finding));
        }
    }
}

/// A chunk of the plan with its state, while it is checked.
struct PlannedRow {
    number: u32,
    state: ChunkState,
    retrying: bool,
    targets: i64,
    dead_reason: Option<String>,
    token: Option<Uuid>,
    work: Option<Vec<u8>>,
}

impl Writer {
    /// Verifies a run in one snapshot: reads its plan chunk by chunk and compares it with the rows.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::NoSuchRun`]. A contradiction is a finding, not an error.
    pub fn verify(&mut self, run: i64) -> Result<Verification, StoreError> {
        // A read transaction is a snapshot in WAL mode: we do not see what a writer commits meanwhile.
        let database = self.database;
        let snapshot = self.connection.unchecked_transaction()?;
        let mut proof = Verification {
            summary: self.summary(run)?,
            planned_targets: 0,
            proven_targets: 0,
            outstanding_chunks: 0,
            dead_chunks: Vec::new(),
            dead_count: 0,
            findings: Vec::new(),
            finding_count: 0,
        };
        let run_id = proof.summary.run_id;
        let mut counts = [0; 7];
        let mut rows_seen = 0;
        {
            let mut chunks = self.connection.prepare(
                "SELECT c.chunk, c.state, c.retrying, c.targets, c.dead_reason, p.token, p.work
                 FROM chunks c LEFT JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
                 WHERE c.run = ?1 ORDER BY c.chunk",
            )?;
            let mut rows = self.connection.prepare(
                "SELECT position, name, address, status, sent, received, rtt_avg_ns IS NOT NULL FROM results
                 WHERE run = ?1 AND chunk = ?2 ORDER BY position",
            )?;
            let mut walk = chunks.query([run])?;
            let mut expected = 0;
            while let Some(row) = walk.next()? {
                let chunk = PlannedRow {
                    number: row.get(0)?,
                    state: row.get(1)?,
                    retrying: row.get(2)?,
                    targets: row.get(3)?,
                    dead_reason: row.get(4)?,
                    token: row.get(5)?,
                    work: row.get(6)?,
                };
                if chunk.number != expected {
                    proof.add_finding(format!("chunk {expected} is missing from the plan"));
                }
                expected = chunk.number + 1;
                rows_seen +=
                    proof.walk_chunk(&chunk, (database, run_id), &mut rows, run, &mut counts)?;
            }
        }
        let stored: i64 = self.connection.query_row(
            "SELECT count(*) FROM results WHERE run = ?1",
            [run],
            |row| row.get(0),
        )?;
        if stored != rows_seen {
            proof.add_finding(format!(
                "{} rows belong to no chunk of the plan",
                stored - rows_seen
            ));
        }
        let twice: Option<String> = self
            .connection
            .query_row(
                concat!(
                    "SELECT coalesce(name, ",
                    address_text!("address"),
                    ") FROM results
                     WHERE run = ?1 GROUP BY coalesce(name, address) HAVING count(*) > 1 LIMIT 1"
                ),
                [run],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(target) = twice {
            proof.add_finding(format!("target {target} has more than one row"));
        }
        proof.compare_counters(counts);
        let lost: i64 = self.connection.query_row(
            "SELECT coalesce(sum(abs(taken - applied - duplicates - quarantined)), 0) FROM writers",
            (),
            |row| row.get(0),
        )?;
        if lost > 0 {
            proof.add_finding(format!(
                "{lost} deliveries to the writer ended neither applied, nor as duplicates, nor in quarantine"
            ));
        }
        snapshot.finish()?;
        Ok(proof)
    }
}

impl Verification {
    /// Checks one chunk and its rows. Returns the number of its rows.
    fn walk_chunk(
        &mut self,
        chunk: &PlannedRow,
        (database, run_id): (Uuid, Uuid),
        rows: &mut rusqlite::Statement<'_>,
        run: i64,
        counts: &mut [i64; 7],
    ) -> Result<i64, StoreError> {
        let number = chunk.number;
        let work = chunk
            .work
            .as_deref()
            .map(WorkChunk::decode)
            .and_then(Result::ok)
            .filter(|work| {
                work.database == database
                    && work.key.run == run_id
                    && work.key.chunk == number
                    && Some(work.token.0) == chunk.token
                    && work.targets.len() as i64 == chunk.targets
            });
        if work.is_none() {
            self.add_finding(format!(
                "chunk {number}: its work message is not that of the plan"
            ));
        }
        let targets = work.map(|work| work.targets).unwrap_or_default();
        self.planned_targets += targets.len() as i64;
        match chunk.state {
            ChunkState::Done => {}
            ChunkState::Dead if !chunk.retrying => {
                self.dead_count += 1;
                if self.dead_chunks.len() < MAX_LISTED {
                    let reason = chunk.dead_reason.clone().unwrap_or_default();
                    self.dead_chunks.push((number, reason));
                }
            }
            _ => self.outstanding_chunks += 1,
        }
        let (mut expected, mut count) = (0, 0);
        let mut found = rows.query((run, number))?;
        while let Some(row) = found.next()? {
            let position: i64 = row.get(0)?;
            let status: u8 = row.get(3)?;
            // A CHECK of the table limits it to 0..=6.
            counts[usize::from(status)] += 1;
            if position != expected {
                self.add_finding(format!("chunk {number}: no row at position {expected}"));
            }
            expected = position + 1;
            count += 1;
            let name: Option<String> = row.get(1)?;
            let address: Value = row.get(2)?;
            let planned = usize::try_from(position)
                .ok()
                .and_then(|at| targets.get(at));
            let matches = match planned {
                Some(Target::Address(planned)) => {
                    name.is_none() && address == stored_address(*planned)
                }
                Some(Target::Text(planned)) => name.as_ref() == Some(planned),
                None => false,
            };
            let (sent, received, timed): (i64, i64, bool) = (row.get(4)?, row.get(5)?, row.get(6)?);
            let answered = status <= 1;
            if !matches {
                self.add_finding(format!(
                    "chunk {number}: the row at position {position} is of another target than the plan's"
                ));
            } else if received > sent || answered != (received > 0) || answered != timed {
                self.add_finding(format!(
                    "chunk {number}: the row at position {position} contradicts itself"
                ));
            } else {
                self.proven_targets += 1;
            }
        }
        let wanted = if chunk.state == ChunkState::Done {
            targets.len() as i64
        } else {
            0
        };
        if count != wanted {
            self.add_finding(format!("chunk {number}: {count} rows instead of {wanted}"));
        }
        Ok(count)
    }

    fn compare_counters(&mut self, counts: [i64; 7]) {
        let summary = self.summary.clone();
        if summary.state == RunState::Planning {
            // The counters are written when the planning ends.
            return;
        }
        if summary.counts != counts {
            self.add_finding(format!(
                "the counters per status {:?} are not those of the rows {counts:?}",
                summary.counts
            ));
        }
        if summary.targets != self.planned_targets {
            self.add_finding(format!(
                "the run counts {} targets, its plan has {}",
                summary.targets, self.planned_targets
            ));
        }
        if summary.outstanding() != self.outstanding_chunks
            || summary.chunks_dead != self.dead_count
        {
            self.add_finding("the counters of chunks are not those of the chunks".to_owned());
        }
        if summary.state == RunState::Complete && self.outstanding_chunks + self.dead_count > 0 {
            self.add_finding("the run is complete by its state, and not by its chunks".to_owned());
        }
    }
}
