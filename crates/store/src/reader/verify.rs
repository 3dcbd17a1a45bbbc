//! Proves that every target of a run ended in exactly one state: compares the rows with the plan, and the counters with
//! the rows. It trusts no counter.

use pingfleet_wire::{Message as _, StatusKind, Target, WorkChunk};
use rusqlite::{Connection, OptionalExtension, Row, Statement, types::Value};
use uuid::Uuid;

use crate::{
    ChunkState, RunState, RunSummary, StatusCounts, StoreError,
    address::{address_text, stored_address},
    reader::progress::stored_progress,
    run_summary,
};

/// Findings that are listed. Further ones are only counted.
const MAX_LISTED: usize = 20;

/// A contradiction between the plan and what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyFinding(pub String);

/// The outcome of [`crate::Reader::verify`].
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

/// A chunk of the plan with its state.
struct PlannedRow {
    number: u32,
    state: ChunkState,
    retrying: bool,
    targets: i64,
    dead_reason: Option<String>,
    token: Option<Uuid>,
    work: Option<Vec<u8>>,
}

impl PlannedRow {
    const SELECT: &str =
        "SELECT c.chunk, c.state, c.retrying, c.targets, c.dead_reason, p.token, p.work
        FROM chunks c LEFT JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
        WHERE c.run = ?1 ORDER BY c.chunk";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            state: row.get(1)?,
            retrying: row.get(2)?,
            targets: row.get(3)?,
            dead_reason: row.get(4)?,
            token: row.get(5)?,
            work: row.get(6)?,
        })
    }

    /// The targets of the work message, if that is the one of this chunk.
    fn targets(&self, database: Uuid, run_id: Uuid) -> Option<Vec<Target>> {
        let work = WorkChunk::decode(self.work.as_deref()?).ok()?;
        let is_same = work.database == database
            && work.key.run == run_id
            && work.key.chunk == self.number
            && Some(work.token.0) == self.token
            && work.targets.len() as i64 == self.targets;
        is_same.then_some(work.targets)
    }
}

/// A stored row, as far as it is checked.
struct StoredRow {
    position: i64,
    name: Option<String>,
    address: Value,
    status: u8,
    sent: i64,
    received: i64,
    is_timed: bool,
}

impl StoredRow {
    const SELECT: &str =
        "SELECT position, name, address, status, sent, received, rtt_avg_ns IS NOT NULL
        FROM results WHERE run = ?1 AND chunk = ?2 ORDER BY position";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            position: row.get(0)?,
            name: row.get(1)?,
            address: row.get(2)?,
            status: row.get(3)?,
            sent: row.get(4)?,
            received: row.get(5)?,
            is_timed: row.get(6)?,
        })
    }

    fn is_of(&self, planned: Option<&Target>) -> bool {
        match planned {
            Some(Target::Address(planned)) => {
                self.name.is_none() && self.address == stored_address(*planned)
            }
            Some(Target::Text(planned)) => self.name.as_ref() == Some(planned),
            None => false,
        }
    }

    fn contradicts_itself(&self) -> bool {
        let answered =
            self.status == StatusKind::Up.code() || self.status == StatusKind::Late.code();
        self.received > self.sent || answered != (self.received > 0) || answered != self.is_timed
    }
}

/// Verifies a run in one snapshot.
pub(crate) fn verify(connection: &Connection, run: i64) -> Result<Verification, StoreError> {
    // A read transaction is a snapshot in WAL mode: we do not see what a writer commits meanwhile.
    let snapshot = connection.unchecked_transaction()?;
    let summary = run_summary::summary(connection, run)?;
    summary.refuse_pruned()?;
    let mut proof = Verification {
        summary,
        planned_targets: 0,
        proven_targets: 0,
        outstanding_chunks: 0,
        dead_chunks: Vec::new(),
        dead_count: 0,
        findings: Vec::new(),
        finding_count: 0,
    };
    let mut counts = StatusCounts::default();
    let rows = proof.check_chunks(connection, &mut counts)?;
    proof.find_stray_rows(connection, rows)?;
    proof.compare_counters(&counts);
    proof.compare_progress(connection)?;
    proof.compare_deliveries(connection)?;
    snapshot.finish()?;
    Ok(proof)
}

impl Verification {
    /// Checks all chunks of the plan with their rows. Returns the number of these rows.
    fn check_chunks(
        &mut self,
        connection: &Connection,
        counts: &mut StatusCounts,
    ) -> Result<i64, StoreError> {
        let (run, run_id) = (self.summary.run, self.summary.run_id);
        let database = super::database_uuid(connection)?;
        let mut chunks = connection.prepare(PlannedRow::SELECT)?;
        let mut results = connection.prepare(StoredRow::SELECT)?;
        let mut planned = chunks.query([run])?;
        let (mut expected, mut rows) = (0, 0);
        while let Some(row) = planned.next()? {
            let chunk = PlannedRow::from_row(row)?;
            if chunk.number != expected {
                self.add_finding(format!("chunk {expected} is missing from the plan"));
            }
            expected = chunk.number + 1;
            let targets = chunk.targets(database, run_id);
            if targets.is_none() {
                self.add_finding(format!(
                    "chunk {}: its work message is not that of the plan",
                    chunk.number
                ));
            }
            let targets = targets.unwrap_or_default();
            self.planned_targets += targets.len() as i64;
            self.count_chunk(&chunk);
            rows += self.check_rows(&chunk, &targets, &mut results, counts)?;
        }
        Ok(rows)
    }

    fn count_chunk(&mut self, chunk: &PlannedRow) {
        match chunk.state {
            ChunkState::Done => {}
            ChunkState::Dead if !chunk.retrying => {
                self.dead_count += 1;
                if self.dead_chunks.len() < MAX_LISTED {
                    let reason = chunk.dead_reason.clone().unwrap_or_default();
                    self.dead_chunks.push((chunk.number, reason));
                }
            }
            _ => self.outstanding_chunks += 1,
        }
    }

    /// Compares the rows of one chunk with its targets. Returns the number of its rows.
    fn check_rows(
        &mut self,
        chunk: &PlannedRow,
        targets: &[Target],
        results: &mut Statement<'_>,
        counts: &mut StatusCounts,
    ) -> Result<i64, StoreError> {
        let number = chunk.number;
        let (mut expected, mut count) = (0, 0);
        let mut stored = results.query((self.summary.run, number))?;
        while let Some(row) = stored.next()? {
            let row = StoredRow::from_row(row)?;
            let position = row.position;
            // A CHECK of the table admits only these codes.
            if let Some(status) = StatusKind::ALL.get(usize::from(row.status)) {
                counts.add(*status);
            }
            if position != expected {
                self.add_finding(format!("chunk {number}: no row at position {expected}"));
            }
            expected = position + 1;
            count += 1;
            let planned = usize::try_from(position)
                .ok()
                .and_then(|at| targets.get(at));
            if !row.is_of(planned) {
                self.add_finding(format!(
                    "chunk {number}: the row at position {position} is of another target than the plan's"
                ));
            } else if row.contradicts_itself() {
                self.add_finding(format!(
                    "chunk {number}: the row at position {position} contradicts itself"
                ));
            } else {
                self.proven_targets += 1;
            }
        }
        let wanted = match chunk.state {
            ChunkState::Done => targets.len() as i64,
            _ => 0,
        };
        if count != wanted {
            self.add_finding(format!("chunk {number}: {count} rows instead of {wanted}"));
        }
        Ok(count)
    }

    /// Finds rows outside of the plan, and targets with two rows.
    fn find_stray_rows(&mut self, connection: &Connection, planned: i64) -> Result<(), StoreError> {
        let run = self.summary.run;
        let stored: i64 = connection.query_row(
            "SELECT count(*) FROM results WHERE run = ?1",
            [run],
            |row| row.get(0),
        )?;
        if stored != planned {
            self.add_finding(format!(
                "{} rows belong to no chunk of the plan",
                stored - planned
            ));
        }
        let twice: Option<String> = connection
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
            self.add_finding(format!("target {target} has more than one row"));
        }
        Ok(())
    }

    /// Every delivery that a writer took has exactly one outcome.
    fn compare_deliveries(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let lost: i64 = connection.query_row(
            "SELECT coalesce(sum(abs(taken - applied - duplicates - quarantined)), 0) FROM writers",
            (),
            |row| row.get(0),
        )?;
        if lost > 0 {
            self.add_finding(format!(
                "{lost} deliveries to the writer ended neither applied, nor as duplicates, nor in quarantine"
            ));
        }
        Ok(())
    }

    /// The counters that a page shows have the sums of those of the run.
    fn compare_progress(&mut self, connection: &Connection) -> Result<(), StoreError> {
        match stored_progress(connection, self.summary.run) {
            Ok(Some(progress)) => {
                for finding in progress.contradictions(&self.summary.counts) {
                    self.add_finding(finding);
                }
            }
            Ok(None) => {}
            Err(error @ StoreError::BadProgress { .. }) => self.add_finding(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn compare_counters(&mut self, counts: &StatusCounts) {
        let summary = self.summary.clone();
        if summary.state == RunState::Planning {
            // The counters are written when the planning ends.
            return;
        }
        if summary.counts != *counts {
            self.add_finding(format!(
                "the counters per status {} are not those of the rows {counts}",
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
