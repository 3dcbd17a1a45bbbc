//! The rows that must be stored: a function of the plan and of the seed of the workers' scripted prober.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::Context;
use pingfleet_prober::scripted::Scripted;
use pingfleet_wire::{Message as _, Target, WorkChunk};
use rusqlite::{Connection, OpenFlags};

/// The state of a chunk whose rows are stored, in the table `chunks`.
const DONE: i64 = 3;

/// A row of the view `report`, without its times.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    target: String,
    status: String,
    reason: Option<String>,
    sent: i64,
    received: i64,
    rtt_ms: Option<[f64; 3]>,
    attempts: i64,
}

/// Opens the database read-only, for queries that no role offers.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn open(database: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(crate::MAX_WAIT)?;
    Ok(connection)
}

/// Compares every row of `report` with the row that the scripted prober produces. All rows of a chunk must come from the
/// same seed, because a chunk's rows come from one probing. Returns the differences.
///
/// # Errors
/// When the database cannot be read.
pub(crate) fn row_differences(
    connection: &Connection,
    seeds: &[u64],
) -> anyhow::Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut stored = stored_rows(connection, &mut differences)?;
    let mut plan = connection.prepare(
        "SELECT p.run, p.chunk, p.work, c.state FROM plan p JOIN chunks c ON c.run = p.run AND c.chunk = p.chunk",
    )?;
    let mut planned = plan.query(())?;
    while let Some(row) = planned.next()? {
        let (run, chunk): (i64, u32) = (row.get(0)?, row.get(1)?);
        let work: Vec<u8> = row.get(2)?;
        let work = WorkChunk::decode(&work).context("a work message of the plan")?;
        let rows: Vec<Row> = work
            .targets
            .iter()
            .filter_map(|target| match target {
                Target::Address(address) => stored.remove(&(run, address.to_string())),
                Target::Text(name) => stored.remove(&(run, name.clone())),
            })
            .collect();
        let done = row.get::<_, i64>(3)? == DONE;
        let expected: Vec<_> = seeds
            .iter()
            .map(|seed| {
                if done {
                    scripted_rows(*seed, &work)
                } else {
                    Vec::new()
                }
            })
            .collect();
        if !expected.contains(&rows) {
            let first = expected.first().map(Vec::as_slice).unwrap_or_default();
            let position = first.iter().zip(&rows).position(|(a, b)| a != b);
            differences.push(format!(
                "run {run} chunk {chunk}: its {} rows are not those of one probing of its {} targets (first difference at {position:?})",
                rows.len(),
                first.len()
            ));
        }
    }
    if !stored.is_empty() {
        differences.push(format!(
            "{} rows belong to no chunk of the plan",
            stored.len()
        ));
    }
    Ok(differences)
}

/// All rows of `report`, by run and target.
fn stored_rows(
    connection: &Connection,
    differences: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<(i64, String), Row>> {
    let mut stored = BTreeMap::new();
    let mut report = connection.prepare(
        "SELECT run, target, status, reason, sent, received, rtt_min_ms, rtt_avg_ms, rtt_max_ms, attempts FROM report",
    )?;
    let mut rows = report.query(())?;
    while let Some(row) = rows.next()? {
        let (run, target): (i64, String) = (row.get(0)?, row.get(1)?);
        let rtt: [Option<f64>; 3] = [row.get(6)?, row.get(7)?, row.get(8)?];
        let found = Row {
            target: target.clone(),
            status: row.get(2)?,
            reason: row.get(3)?,
            sent: row.get(4)?,
            received: row.get(5)?,
            rtt_ms: match rtt {
                [Some(min), Some(avg), Some(max)] => Some([min, avg, max]),
                _ => None,
            },
            attempts: row.get(9)?,
        };
        if stored.insert((run, target), found).is_some() {
            differences.push(format!("run {run}: a target has more than one row"));
        }
    }
    Ok(stored)
}

/// The rows that the scripted prober produces for a chunk.
fn scripted_rows(seed: u64, work: &WorkChunk) -> Vec<Row> {
    let prober = Scripted {
        seed,
        ..Scripted::default()
    };
    let at = Instant::now();
    work.targets
        .iter()
        .filter_map(|target| {
            let Target::Address(address) = target else {
                return None;
            };
            let finding = prober.finding(&work.probing, *address, at);
            Some(Row {
                target: address.to_string(),
                status: finding.status.name().to_owned(),
                reason: finding.status.reason(),
                sent: finding.sent.into(),
                received: finding.received.into(),
                rtt_ms: finding
                    .rtt
                    .map(|rtt| [rtt.min_ns, rtt.avg_ns, rtt.max_ns].map(|ns| ns as f64 / 1e6)),
                attempts: finding.attempts.into(),
            })
        })
        .collect()
}
