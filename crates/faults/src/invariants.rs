//! What must hold of an idle deployment, after any fault. `verify` is one part of it. What `verify` cannot know (the
//! expected rows, the queues, the raw tables) is checked here.

use rusqlite::Connection;

use crate::{deployment::Deployment, expected_rows};

/// The state that a case expects of the idle deployment.
#[derive(Debug, Clone, Default)]
pub struct ExpectedState {
    /// Seeds of the workers' scripted probers.
    pub seeds: Vec<u64>,
    /// Chunks that are dead.
    pub dead: i64,
    /// Whether chunks may still be outstanding, each with a message on a queue.
    pub open: bool,
    /// Messages in quarantine.
    pub quarantined: i64,
}

impl ExpectedState {
    /// All chunks done, by workers with one seed.
    #[must_use]
    pub fn done(seed: u64) -> Self {
        Self {
            seeds: vec![seed],
            ..Self::default()
        }
    }
}

/// Everything that does not hold; empty when all does.
///
/// # Errors
/// When the database or the broker cannot be queried, which is not a violation.
pub fn find_violations(
    deployment: &Deployment,
    expected: &ExpectedState,
) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let store = deployment.store()?;
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
        let messages = deployment.message_count()?;
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
    let connection = expected_rows::open(&deployment.database())?;
    found.extend(expected_rows::row_differences(
        &connection,
        &expected.seeds,
    )?);
    found.extend(runs_not_closed(&connection)?);
    found.extend(stale_latest_rows(&connection)?);
    found.extend(counter_mismatches(&connection, expected)?);
    found.extend(deployment.exceeded_limits());
    Ok(found)
}

/// The writer counts deliveries independently of the tables, so the two must agree: taken = applied + duplicates +
/// quarantined.
fn counter_mismatches(
    connection: &Connection,
    expected: &ExpectedState,
) -> anyhow::Result<Vec<String>> {
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
    // A dead chunk that became done after a retry was applied twice.
    if !(done..=done + dead).contains(&applied) {
        found.push(format!(
            "{applied} deliveries applied, {done} chunks done and {dead} that were dead"
        ));
    }
    if duplicates != counted || quarantined != kept {
        found.push(format!(
            "{duplicates} duplicates with {counted} in runs, {quarantined} quarantined with {kept} rows in quarantine"
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

/// Runs whose stored state (not the one that the view derives) contradicts their chunks: nothing is outstanding, but the
/// run is not closed, or the reverse.
fn runs_not_closed(connection: &Connection) -> anyhow::Result<Vec<String>> {
    let mut runs = connection.prepare(
        "SELECT run, state, finished_at_us IS NOT NULL, open, dead FROM (
            SELECT n.run, n.state, n.finished_at_us,
                   (SELECT count(*) FROM chunks c WHERE c.run = n.run AND (c.state < 2 OR c.retrying = 1)) AS open,
                   (SELECT count(*) FROM chunks c WHERE c.run = n.run AND c.state = 2 AND c.retrying = 0) AS dead
            FROM runs n WHERE n.state <> 'planning')",
    )?;
    let mut found = Vec::new();
    let mut rows = runs.query(())?;
    while let Some(row) = rows.next()? {
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

/// Whether `latest` has the newest row of each target over all ended runs, and the right `first_seen` and `last_up`.
fn stale_latest_rows(connection: &Connection) -> anyhow::Result<Vec<String>> {
    let [wrong, strange]: [i64; 2] = connection.query_row(
        "WITH newest AS (
            SELECT coalesce(r.name, r.address) AS target, max(c.started_at_us + r.probed_after_us) AS probed,
                   min(c.started_at_us + r.probed_after_us) AS first,
                   max(CASE WHEN r.status <= 1 THEN c.started_at_us + r.probed_after_us END) AS up
            FROM results r JOIN runs n ON n.run = r.run JOIN chunks c ON c.run = r.run AND c.chunk = r.chunk
            WHERE n.state IN ('complete', 'incomplete', 'cancelled') GROUP BY 1)
         SELECT (SELECT count(*) FROM newest n LEFT JOIN latest_rows l ON l.target = n.target
                 WHERE l.target IS NULL OR l.probed_at_us <> n.probed OR l.first_seen_us <> n.first
                    OR CASE WHEN l.status <= 1 THEN l.probed_at_us ELSE l.last_up_us END IS NOT n.up),
                (SELECT count(*) FROM latest_rows l
                 LEFT JOIN results r ON r.run = l.run AND r.chunk = l.chunk AND r.position = l.position
                 LEFT JOIN chunks c ON c.run = r.run AND c.chunk = r.chunk
                 WHERE r.run IS NULL OR coalesce(r.name, r.address) <> l.target OR r.status <> l.status
                    OR c.started_at_us + r.probed_after_us IS NOT l.probed_at_us)",
        (),
        |row| Ok([row.get(0)?, row.get(1)?]),
    )?;
    Ok(if wrong == 0 && strange == 0 {
        Vec::new()
    } else {
        vec![format!(
            "`latest` does not have the newest row of {wrong} targets, and {strange} of its rows differ from results"
        )]
    })
}
