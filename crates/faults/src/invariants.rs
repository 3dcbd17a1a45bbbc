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
