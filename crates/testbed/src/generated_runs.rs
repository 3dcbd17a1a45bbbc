//! A database of many runs of the same targets, for benchmarks: with a quarter of the targets not up, names, labels, IPv6,
//! several workers, and outcomes that change from run to run.
//!
//! Invariants: the database is one that the roles could have written, which `verify` proves of each run; equal
//! parameters give equal rows.

mod outcomes;

use std::{net::IpAddr, path::Path};

use anyhow::Result;
use pingfleet_store::{Durability, FileMode, OpenOptions, PlannedProbing, StatusCounts};
use pingfleet_wire::{
    ChunkKey, Message as _, Probing, Status, StatusKind, Token, Version, WorkChunk,
};
use rusqlite::{Connection, Transaction, params, types::Value};
use uuid::{Builder, Uuid};

use self::outcomes::{GeneratedOutcome, GeneratedTarget, random};

/// Targets in a chunk.
const CHUNK_SIZE: u64 = 250;

/// When the first run began: 2023-11-01 00:00 UTC, in microseconds since 1970-01-01 UTC. The others follow by the hour.
const FIRST_RUN_US: i64 = 1_698_796_800_000_000;
const BETWEEN_RUNS_US: i64 = 3_600_000_000;

/// The time between two chunks, and between two requests of a chunk.
const BETWEEN_CHUNKS_US: i64 = 25_000;
const BETWEEN_TARGETS_US: i64 = 100;

const WORKERS: [&str; 5] = ["berlin-1", "berlin-2", "hamburg-1", "munich-1", "munich-2"];

/// A factor without common factors with any number of targets below it, to spread neighbours over the plan.
const SPREAD: u64 = 2_147_483_647;

/// What the database holds.
#[derive(Debug, Clone, Copy)]
pub struct GeneratedRuns {
    /// Targets of each run; at most ten million.
    pub targets: u32,
    /// Complete runs of these targets, one an hour.
    pub runs: u32,
    /// Equal seeds give equal rows.
    pub seed: u64,
}

impl GeneratedRuns {
    /// Writes the database to a path where no file is. A million rows take about a minute in a development build and
    /// some seconds in a release build.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let store = OpenOptions {
            path: path.to_owned(),
            durability: Durability::Off,
            create: true,
            mode: FileMode::User,
            check: false,
        }
        .open()?;
        let database = store.database();
        drop(store);
        let mut connection = Connection::open(path)?;
        // Nobody else uses the file yet: without a log each row is written once.
        connection.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;",
        )?;
        for run in 1..=u64::from(self.runs) {
            let transaction = connection.transaction()?;
            self.write_run(&transaction, database, run)?;
            transaction.commit()?;
        }
        let transaction = connection.transaction()?;
        self.write_latest(&transaction)?;
        transaction.commit()?;
        Ok(connection.execute_batch("PRAGMA journal_mode = WAL")?)
    }

    fn write_run(&self, transaction: &Transaction<'_>, database: Uuid, run: u64) -> Result<()> {
        let run_id = self.run_id(run);
        let mut counts = StatusCounts::default();
        let chunks = u64::from(self.targets).div_ceil(CHUNK_SIZE);
        for chunk in 0..chunks {
            let key = ChunkKey {
                run: run_id,
                chunk: chunk as u32,
            };
            let targets: Vec<_> = self.positions(chunk).map(|at| self.target(at)).collect();
            self.write_chunk(transaction, database, run, key, &targets)?;
            write_rows(transaction, run, chunk, &targets, |target| {
                let outcome = target.outcome(self.seed, run);
                counts.add(outcome.status.kind());
                outcome
            })?;
        }
        self.write_summary(transaction, run, chunks, counts)
    }

    fn write_summary(
        &self,
        transaction: &Transaction<'_>,
        run: u64,
        chunks: u64,
        counts: StatusCounts,
    ) -> Result<()> {
        let probing = PlannedProbing {
            probing: Probing::default(),
            chunk_size: CHUNK_SIZE as usize,
        };
        let started = started_us(run);
        let sql = "INSERT INTO runs (run, run_id, state, transport, source, probing, seed, started_at_us, finished_at_us,
                worst_chunk_us, targets, chunks, chunks_done)
             VALUES (?1, ?2, 'complete', 'broker', 'inventory.csv', ?3, ?4, ?5, ?6, 5000000, ?7, ?8, ?8)";
        transaction.prepare_cached(sql)?.execute(params![
            run as i64,
            self.run_id(run).to_string(),
            probing.to_json(),
            self.seed.cast_signed(),
            started,
            started + chunks as i64 * BETWEEN_CHUNKS_US + 2_000_000,
            self.targets,
            chunks as i64,
        ])?;
        for (status, count) in counts.iter() {
            let sql = format!("UPDATE runs SET {} = ?2 WHERE run = ?1", status.name());
            transaction
                .prepare_cached(&sql)?
                .execute((run as i64, count))?;
        }
        Ok(())
    }

    fn write_chunk(
        &self,
        transaction: &Transaction<'_>,
        database: Uuid,
        run: u64,
        key: ChunkKey,
        targets: &[GeneratedTarget],
    ) -> Result<()> {
        let chunk = u64::from(key.chunk);
        let mut random = random(self.seed, [run, chunk]);
        let token = Uuid::from_u128(random.u128(..));
        let work = WorkChunk {
            version: Version,
            database,
            key,
            token: Token(token),
            probing: Probing::default(),
            targets: targets.iter().map(GeneratedTarget::planned).collect(),
        };
        transaction
            .prepare_cached("INSERT INTO plan (run, chunk, token, work) VALUES (?1, ?2, ?3, ?4)")?
            .execute((run as i64, key.chunk, token, work.encode()))?;
        let sql = "INSERT INTO chunks (run, chunk, state, targets, publishes, published_at_us, worker, settled_at_us,
                started_at_us)
             VALUES (?1, ?2, 3, ?3, 1, ?4, ?5, ?6, ?7)";
        let began = chunk_started_us(run, chunk);
        transaction.prepare_cached(sql)?.execute((
            run as i64,
            key.chunk,
            targets.len() as i64,
            started_us(run),
            random.choice(WORKERS),
            began + 1_500_000,
            began,
        ))?;
        let sql = "INSERT INTO labels (run, chunk, position, labels) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = transaction.prepare_cached(sql)?;
        for (position, target) in targets.iter().enumerate() {
            if let Some(labels) = &target.labels {
                insert.execute((run as i64, key.chunk, position as i64, labels))?;
            }
        }
        Ok(())
    }

    /// The rows of `latest`, as the runs leave them one after the other.
    fn write_latest(&self, transaction: &Transaction<'_>) -> Result<()> {
        let sql = "INSERT INTO latest_rows (target, run, chunk, position, status, probed_at_us, first_seen_us, last_up_us,
                changed_at_us, known_status)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let mut insert = transaction.prepare(sql)?;
        let sql = "INSERT INTO status_changes (target, changed_at_us, old_status, new_status) VALUES (?1, ?2, ?3, ?4)";
        let mut insert_change = transaction.prepare(sql)?;
        if self.runs == 0 {
            return Ok(());
        }
        for at in 0..u64::from(self.targets) {
            let target = self.target(at);
            let (chunk, position) = (at / CHUNK_SIZE, at % CHUNK_SIZE);
            let key = target
                .name
                .clone()
                .map_or_else(|| stored(target.address), Value::Text);
            let (mut status, mut last_up, mut changed) = (None, None, None);
            let mut known = None;
            for run in 1..=u64::from(self.runs) {
                let code = target.outcome(self.seed, run).status.code();
                let probed = probed_us(run, at);
                if status.is_some_and(|before| before != code) {
                    changed = Some(probed);
                }
                if code <= Status::Late.code() {
                    last_up = Some(probed);
                }
                status = Some(code);
                if code != StatusKind::Unknown.code()
                    && let Some(old) = known.replace(code).filter(|old| *old != code)
                {
                    insert_change.execute(params![key, probed, old, code])?;
                }
            }
            insert.execute(params![
                key,
                self.runs,
                chunk as i64,
                position as i64,
                status,
                probed_us(u64::from(self.runs), at),
                probed_us(1, at),
                last_up.filter(|_| status > Some(Status::Late.code())),
                changed,
                known.filter(|_| status == Some(StatusKind::Unknown.code())),
            ])?;
        }
        Ok(())
    }

    /// The places in the plan that a chunk has.
    fn positions(&self, chunk: u64) -> std::ops::Range<u64> {
        chunk * CHUNK_SIZE..u64::from(self.targets).min((chunk + 1) * CHUNK_SIZE)
    }

    /// The target at a place in the plan, which is the same in all runs.
    fn target(&self, at: u64) -> GeneratedTarget {
        let count = u64::from(self.targets);
        GeneratedTarget::new(self.seed, at * (SPREAD % count) % count, count)
    }

    fn run_id(&self, run: u64) -> Uuid {
        let mut bytes = [0; 10];
        random(self.seed, [run, u64::MAX - 1]).fill(&mut bytes);
        Builder::from_unix_timestamp_millis(started_us(run) as u64 / 1000, &bytes).into_uuid()
    }
}

/// Inserts the rows of a chunk, as the store does.
fn write_rows(
    transaction: &Transaction<'_>,
    run: u64,
    chunk: u64,
    targets: &[GeneratedTarget],
    mut outcome: impl FnMut(&GeneratedTarget) -> GeneratedOutcome,
) -> Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address,
            rtt_avg_ns, name, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    for (position, target) in targets.iter().enumerate() {
        let outcome = outcome(target);
        let is_resolved = !matches!(outcome.status, Status::DnsFailed(_));
        insert.execute(params![
            run as i64,
            chunk as i64,
            position as i64,
            outcome.status.code(),
            outcome.sent,
            outcome.rtt_ns.is_some(),
            outcome.attempts,
            position as i64 * BETWEEN_TARGETS_US,
            is_resolved.then(|| stored(target.address)),
            outcome.rtt_ns,
            target.name,
            outcome.status.reason(),
        ])?;
    }
    Ok(())
}

fn started_us(run: u64) -> i64 {
    FIRST_RUN_US + (run as i64 - 1) * BETWEEN_RUNS_US
}

fn chunk_started_us(run: u64, chunk: u64) -> i64 {
    started_us(run) + chunk as i64 * BETWEEN_CHUNKS_US
}

fn probed_us(run: u64, at: u64) -> i64 {
    chunk_started_us(run, at / CHUNK_SIZE) + (at % CHUNK_SIZE) as i64 * BETWEEN_TARGETS_US
}

/// An address as the tables store it.
fn stored(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => Value::Integer(i64::from(address.to_bits()) - (1 << 31)),
        IpAddr::V6(address) => Value::Text(address.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use pingfleet_store::{Reader, Transport};
    use rusqlite::types::Value;
    use tempfile::TempDir;

    use super::*;

    const SMALL: GeneratedRuns = GeneratedRuns {
        targets: 2100,
        runs: 4,
        seed: 7,
    };

    fn generated() -> (TempDir, std::path::PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("fleet.db");
        SMALL.write(&path).unwrap();
        (folder, path)
    }

    fn all(connection: &Connection, table: &str) -> Vec<Vec<Value>> {
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2, 3"))
            .unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map((), |row| (0..columns).map(|at| row.get(at)).collect());
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn every_generated_run_is_proven_complete() {
        let (_folder, path) = generated();
        let reader = Reader::open(&path).unwrap();
        reader.check().unwrap();
        for run in 1..=4 {
            let proof = reader.verify(run).unwrap();
            assert!(proof.is_complete(), "{:?}", proof.findings);
            assert_eq!(proof.proven_targets, 2100);
            let counts = proof.summary.counts;
            let not_up = (2100 - counts.answered()) as f64 / 2100.0;
            assert!((0.2..0.3).contains(&not_up), "{not_up}");
            assert!(counts.iter().all(|(_, count)| count > 0), "{counts}");
        }
    }

    #[test]
    fn latest_is_what_the_store_makes_of_the_runs() {
        let (_folder, path) = generated();
        let connection = Connection::open(&path).unwrap();
        let generated = all(&connection, "latest_rows");
        assert_eq!(generated.len(), 2100);
        let changes = all(&connection, "status_changes");
        assert!(changes.len() > 100);
        connection
            .execute_batch(
                "DELETE FROM latest_rows; DELETE FROM status_changes; UPDATE runs SET state = 'running', finished_at_us = NULL",
            )
            .unwrap();
        let mut store = OpenOptions {
            path,
            durability: Durability::Off,
            create: false,
            mode: FileMode::User,
            check: false,
        }
        .open()
        .unwrap();
        let closed = store.close_settled_runs(Transport::Broker).unwrap();
        assert_eq!(closed.len(), 4);
        assert_eq!(all(&connection, "latest_rows"), generated);
        assert_eq!(all(&connection, "status_changes"), changes);
    }

    #[test]
    fn equal_parameters_give_equal_rows() {
        let [first, second] = [generated(), generated()].map(|(folder, path)| {
            let connection = Connection::open(path).unwrap();
            let tables = [
                "runs",
                "chunks",
                "labels",
                "results",
                "latest_rows",
                "status_changes",
            ];
            (folder, tables.map(|table| all(&connection, table)))
        });
        assert!(first.1 == second.1);
    }
}
