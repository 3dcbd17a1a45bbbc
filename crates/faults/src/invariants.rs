//! What must hold of a fleet at rest, whatever was done to it. The store's own proof is one part; what that proof
//! cannot know (the script, the queues, what is on the disk) is checked here.

use rusqlite::Connection;

use crate::{fleet::Fleet, oracle};

/// What a case expects of the fleet at rest.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Seeds of the scripts that workers followed.
    pub scripts: Vec<u64>,
    /// Chunks that are dead.
    pub dead: i64,
    /// Whether chunks may still be outstanding, each with a message on a queue.
    pub open: bool,
    /// Messages in quarantine.
    pub quarantined: i64,
}

impl Expected {
    /// All chunks done, by workers that follow one script.
    #[must_use]
    pub fn done(script: u64) -> Self {
        Self {
            scripts: vec![script],
            ..Self::default()
        }
    }
}

/// All that does not hold. Empty is good.
///
/// # Errors
/// When the database or the broker cannot be asked, which is no finding.
pub fn violations(fleet: &Fleet, expected: &Expected) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut store = fleet.store()?;
    let (mut outstanding, mut dead) = (0, 0);
    for summary in store.summaries()? {
        let proof = store.verify(summary.run)?;
        let run = summary.run;
        found.extend(
            proof
                .findings
                .iter()
                .map(|finding| format!("verify of run {run}: {}", finding.0)),
        );
        outstanding += proof.outstanding_chunks;
        dead += proof.dead_count;
    }
    if outstanding > 0 {
        let messages = fleet.messages()?;
        if messages < outstanding {
            found.push(format!(
                "{outstanding} chunks are outstanding with {messages} messages: {} are lost",
                outstanding - messages
            ));
        } else if !expected.open {
            found.push(format!("{outstanding} chunks are outstanding"));
        }
    }
    if dead != expected.dead {
        found.push(format!(
            "{dead} chunks are dead instead of {}",
            expected.dead
        ));
    }
    let connection = oracle::open(&fleet.database())?;
    found.extend(oracle::contradictions(&connection, &expected.scripts)?);
    found.extend(unclosed(&connection)?);
    found.extend(outdated(&connection)?);
    found.extend(counters(&connection, expected)?);
    found.extend(fleet.oversized());
    Ok(found)
}

/// Every delivery ended in one way, and each way has its traces.
fn counters(connection: &Connection, expected: &Expected) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let [taken, applied, duplicates, quarantined]: [i64; 4] = connection.query_row(
        "SELECT coalesce(sum(taken), 0), coalesce(sum(applied), 0), coalesce(sum(duplicates), 0),
                coalesce(sum(quarantined), 0) FROM writers",
        (),
        |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]),
    )?;
    let [done, dead, counted, kept]: [i64; 4] = connection.query_row(
        "SELECT (SELECT count(*) FROM chunks WHERE state = 3), (SELECT count(*) FROM chunks WHERE dead_reason IS NOT NULL),
                (SELECT coalesce(sum(duplicates), 0) FROM runs), (SELECT count(*) FROM quarantine)",
        (),
        |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]),
    )?;
    if taken != applied + duplicates + quarantined {
        found.push(format!(
            "{taken} deliveries taken, {applied} applied, {duplicates} duplicates, {quarantined} in quarantine"
        ));
    }
    // A chunk that was dead and is done after all was applied twice.
    if !(done..=done + dead).contains(&applied) {
        found.push(format!(
            "{applied} deliveries applied, {done} chunks done and {dead} that were dead"
        ));
    }
    if duplicates != counted || quarantined != kept {
        found.push(format!(
            "{duplicates} duplicates with {counted} of runs, {quarantined} in quarantine with {kept} kept"
        ));
    }
    if quarantined != expected.quarantined {
        found.push(format!(
            "{quarantined} messages in quarantine instead of {}",
            expected.quarantined
        ));
    }
    Ok(found)
}

/// Runs of which nothing is outstanding and whose stored state, without what a view makes of it, is not their end.
fn unclosed(connection: &Connection) -> anyhow::Result<Vec<String>> {
    let mut runs = connection.prepare(
        "SELECT run, state, finished_at_us IS NOT NULL, open, dead FROM (
            SELECT n.run, n.state, n.finished_at_us,
                   (SELECT count(*) FROM chunks c WHERE c.run = n.run AND (c.state < 2 OR c.retrying = 1)) AS open,
                   (SELECT count(*) FROM chunks c WHERE c.run = n.run AND c.state = 2 AND c.retrying = 0) AS dead
            FROM runs n WHERE n.state <> 'planning')",
    )?;
    let mut found = Vec::new();
    let mut walk = runs.query(())?;
    while let Some(row) = walk.next()? {
        let (run, state, finished): (i64, String, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (open, dead): (i64, i64) = (row.get(3)?, row.get(4)?);
        let expected = match (open, dead) {
            (0, 0) => "complete",
            (0, _) => "incomplete",
            _ => "running",
        };
        if state != "cancelled" && (state != expected || finished != (open == 0)) {
            found.push(format!(
                "run {run} is stored as {state} with {open} chunks outstanding and {dead} dead"
            ));
        }
    }
    Ok(found)
}

/// Whether `latest` has of each target the newest row of the runs that ended, and when it was first seen and last up.
fn outdated(connection: &Connection) -> anyhow::Result<Vec<String>> {
    let [wrong, strange]: [i64; 2] = connection.query_row(
        "WITH newest AS (
            SELECT coalesce(r.name, r.address) AS target, max(r.probed_at_us) AS probed, min(r.probed_at_us) AS first,
                   max(CASE WHEN r.status <= 1 THEN r.probed_at_us END) AS up
            FROM results r JOIN runs n ON n.run = r.run
            WHERE n.state IN ('complete', 'incomplete', 'cancelled') GROUP BY 1)
         SELECT (SELECT count(*) FROM newest n LEFT JOIN latest_rows l ON l.target = n.target
                 WHERE l.target IS NULL OR l.probed_at_us <> n.probed OR l.first_seen_us <> n.first
                    OR l.last_up_us IS NOT n.up),
                (SELECT count(*) FROM latest_rows l
                 LEFT JOIN results r ON r.run = l.run AND r.chunk = l.chunk AND r.position = l.position
                 WHERE r.run IS NULL OR coalesce(r.name, r.address) <> l.target OR r.status <> l.status
                    OR r.probed_at_us <> l.probed_at_us)",
        (),
        |row| Ok([row.get(0)?, row.get(1)?]),
    )?;
    Ok(if wrong == 0 && strange == 0 {
        Vec::new()
    } else {
        vec![format!(
            "`latest` is not the newest of {wrong} targets, and {strange} of its rows are not those of results"
        )]
    })
}
