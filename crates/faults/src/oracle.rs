//! What must be stored: a function of the plan and of the script that the workers followed.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::Context;
use pingfleet_prober::scripted::Scripted;
use pingfleet_wire::{Message as _, Target, WorkChunk};
use rusqlite::{Connection, OpenFlags};

/// The state of a chunk whose rows are stored, in the table `chunks`.
const DONE: i64 = 3;

/// What a row of the view `report` says, without the times at which things happened.
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

/// Opens the database to read what no role tells.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn open(database: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(crate::PATIENCE)?;
    Ok(connection)
}

/// Compares every row of `report` with what the scripts have for it. All rows of a chunk must come from one script, for
/// they come from one probing. Returns what differs.
///
/// # Errors
/// When the database cannot be read.
pub(crate) fn contradictions(
    connection: &Connection,
    scripts: &[u64],
) -> anyhow::Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut stored = stored(connection, &mut differences)?;
    let mut plan = connection.prepare(
        "SELECT p.run, p.chunk, p.work, c.state FROM plan p JOIN chunks c ON c.run = p.run AND c.chunk = p.chunk",
    )?;
    let mut walk = plan.query(())?;
    while let Some(row) = walk.next()? {
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
        let expected: Vec<_> = scripts
            .iter()
            .map(|seed| {
                if done {
                    script(*seed, &work)
                } else {
                    Vec::new()
                }
            })
            .collect();
        if !expected.contains(&rows) {
            let first = expected.first().map(Vec::as_slice).unwrap_or_default();
            let place = first.iter().zip(&rows).position(|(a, b)| a != b);
            differences.push(format!(
                "run {run} chunk {chunk}: its {} rows are not those of one probing of its {} targets (first at {place:?})",
                rows.len(),
                first.len()
            ));
        }
    }
    if !stored.is_empty() {
        differences.push(format!("{} rows are of no chunk of the plan", stored.len()));
    }
    Ok(differences)
}

/// All of `report`, by run and target.
fn stored(
    connection: &Connection,
    differences: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<(i64, String), Row>> {
    let mut stored = BTreeMap::new();
    let mut report = connection.prepare(
        "SELECT run, target, status, reason, sent, received, rtt_min_ms, rtt_avg_ms, rtt_max_ms, attempts FROM report",
    )?;
    let mut walk = report.query(())?;
    while let Some(row) = walk.next()? {
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

fn script(seed: u64, work: &WorkChunk) -> Vec<Row> {
    let script = Scripted {
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
            let finding = script.finding(&work.probing, *address, at);
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
