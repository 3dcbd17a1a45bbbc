//! The difference of two runs equals what a full join in plain SQL gives.

use std::{collections::BTreeMap, net::Ipv6Addr};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{ChangeKind, DiffLimits, Reader, RunDiff, StoreError, TargetChange};
use pingfleet_testbed::GeneratedRuns;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use rusqlite::{Connection, Transaction, params, types::Value as SqlValue};
use tempfile::TempDir;

use crate::sample::options;

const PAIRS: i64 = 1000;
const LIMITS: DiffLimits = DiffLimits {
    rtt_factor: 2.0,
    rtt_min_ns: 5_000_000,
};

/// A row of `results` without its place: key, address of a name, status, mean round-trip time in nanoseconds.
#[derive(Debug, Clone)]
struct Row {
    name: Option<String>,
    address: Option<SqlValue>,
    status: u8,
    rtt_ns: Option<i64>,
}

/// Twelve targets in few subnets, so that whole subnets change: IPv4, IPv6, and names whose address may change.
fn row(number: usize) -> impl Strategy<Value = Row> {
    let ipv4 = |number: usize| SqlValue::Integer(((10_i64 << 24) | number as i64) - (1 << 31));
    let ipv6 = |number: usize| {
        SqlValue::Text(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, number as u16).to_string())
    };
    let status = select(vec![0_u8, 0, 0, 1, 2, 3, 4, 5, 6, 6]);
    let rtt = select(vec![
        1_000_000_i64,
        4_000_000,
        9_000_000,
        10_000_001,
        40_000_000,
    ]);
    (status, rtt, any::<Index>()).prop_map(move |(status, rtt, moved)| {
        let name = (number % 3 == 2).then(|| format!("host-{number}.example"));
        let address = match (&name, number % 2) {
            (Some(_), _) if status == 3 => None,
            (Some(_), _) => Some(ipv4(number + 100 * moved.index(2))),
            (None, 0) => Some(ipv4(number)),
            (None, _) => Some(ipv6(number)),
        };
        Row {
            name,
            address,
            status,
            rtt_ns: (status <= 1).then_some(rtt),
        }
    })
}

/// A run of some of the targets, in any order. In one of three all targets have the status of the first one.
fn run() -> impl Strategy<Value = Vec<Row>> {
    let rows = (0..12).map(row).collect::<Vec<_>>();
    (
        rows,
        vec(any::<u32>(), 12),
        vec(prop::bool::weighted(0.8), 12),
        0..3_u8,
    )
        .prop_map(|(rows, order, present, uniform)| {
            let status = rows[0].status;
            let rows = rows.into_iter().map(|mut row| {
                if uniform == 0 && status != 3 {
                    row.status = status;
                    row.rtt_ns = (status <= 1).then(|| row.rtt_ns.unwrap_or(1_000_000));
                }
                row
            });
            let mut rows: Vec<_> = rows.zip(order).zip(present).collect();
            rows.sort_by_key(|((_, order), _)| *order);
            let present = rows.into_iter().filter(|(_, is_present)| *is_present);
            present.map(|((row, _), _)| row).collect()
        })
}

fn insert(transaction: &Transaction<'_>, run: i64, state: &str, rows: &[Row]) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO runs (run, run_id, state, transport, source, probing, started_at_us, finished_at_us,
                worst_chunk_us, targets, chunks, chunks_done)
             VALUES (?1, ?2, ?3, 'sweep', 'hosts.csv', '{}', ?1, ?1, 1, ?4, 0, 0)",
        )?
        .execute(params![run, uuid(run), state, rows.len() as i64])?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address,
            rtt_avg_ns, name)
         VALUES (?1, ?2, ?3, ?4, 1, 0, 1, 0, ?5, ?6, ?7)",
    )?;
    for (at, row) in (0..).zip(rows) {
        insert.execute(params![
            run,
            at / 5,
            at % 5,
            row.status,
            row.address,
            row.rtt_ns,
            row.name
        ])?;
    }
    Ok(())
}

fn uuid(run: i64) -> String {
    format!("00000000-0000-0000-0000-{run:012}")
}

/// A change, as it is compared.
type Found = (String, &'static str);

/// The difference in plain SQL.
fn full_join(connection: &Connection, before: i64, after: i64) -> Result<Vec<Found>> {
    connection.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS shown AS SELECT run, target, status, rtt_avg_ms, address FROM report;
         CREATE INDEX IF NOT EXISTS temp.shown_targets ON shown (run, target)",
    )?;
    let sql = "WITH b AS (SELECT * FROM shown WHERE run = ?1), a AS (SELECT * FROM shown WHERE run = ?2),
        p AS (
            SELECT coalesce(a.target, b.target) AS target, b.target AS old, a.target AS new, b.status AS bs,
                a.status AS \"as\", b.rtt_avg_ms AS br, a.rtt_avg_ms AS ar, b.address AS ba, a.address AS aa
            FROM b FULL JOIN a ON a.target = b.target)
        SELECT target, CASE
            WHEN new IS NULL THEN 'disappeared' WHEN old IS NULL THEN 'appeared'
            WHEN bs = 'unknown' OR \"as\" = 'unknown' THEN NULL
            WHEN bs <> \"as\" THEN CASE
                WHEN bs IN ('up', 'late') AND \"as\" NOT IN ('up', 'late') THEN 'stopped_answering'
                WHEN bs NOT IN ('up', 'late') AND \"as\" IN ('up', 'late') THEN 'answers_again'
                ELSE 'other_status' END
            WHEN max(br, ar) > 2 * min(br, ar) AND abs(br - ar) > 5
                THEN iif(ar > br, 'rtt_longer', 'rtt_shorter') END AS kind FROM p WHERE kind IS NOT NULL
        UNION ALL
        SELECT target, 'other_address' FROM p WHERE ba <> aa";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query((before, after))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        let kind = ChangeKind::ALL.into_iter().find(|kind| kind.name() == name);
        found.push((row.get(0)?, kind.context(name)?.name()));
    }
    found.sort_unstable();
    Ok(found)
}

fn changes(diff: &mut RunDiff) -> Result<Vec<TargetChange>> {
    Ok(diff.changes()?.collect::<Result<_, _>>()?)
}

fn compared(changes: &[TargetChange]) -> Vec<Found> {
    let found = changes
        .iter()
        .map(|change| (change.target.clone(), change.kind.name()));
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found
}

#[test]
fn the_difference_of_1000_random_pairs_is_that_of_a_full_join() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    drop(options(&path).open()?);
    let mut connection = Connection::open(&path)?;
    let mut runner = TestRunner::deterministic();
    let transaction = connection.transaction()?;
    for pair in 0..PAIRS {
        for run_number in [2 * pair + 1, 2 * pair + 2] {
            let rows = run()
                .new_tree(&mut runner)
                .map_err(anyhow::Error::msg)?
                .current();
            insert(&transaction, run_number, "complete", &rows)?;
        }
    }
    transaction.execute_batch(
        "INSERT INTO chunks (run, chunk, targets, state) SELECT DISTINCT run, chunk, 5, 3 FROM results",
    )?;
    transaction.commit()?;
    let reader = Reader::open(&path)?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in 0..PAIRS {
        let (before, after) = (2 * pair + 1, 2 * pair + 2);
        let mut diff = reader.diff(before, after, LIMITS)?;
        let found = changes(&mut diff)?;
        let expected = full_join(&connection, before, after)?;
        ensure!(
            compared(&found) == expected,
            "{pair}: {found:#?} {expected:#?}"
        );
        ensure!(diff.total() == expected.len() as i64);
        check_whole_subnets(&diff, &found)?;
        for (_, kind) in expected {
            *kinds.entry(kind).or_default() += 1;
        }
        for whole in &diff.whole_subnets {
            *kinds.entry("whole").or_default() += usize::from(whole.targets >= 4);
        }
    }
    // The control: every kind of change was among them, and whole subnets.
    ensure!(
        kinds.len() == 9 && kinds.values().all(|count| *count > 20),
        "{kinds:?}"
    );
    Ok(())
}

/// A subnet is shown as a whole exactly where its changes are marked, and their number is right.
fn check_whole_subnets(diff: &RunDiff, changes: &[TargetChange]) -> Result<()> {
    let mut marked: BTreeMap<_, i64> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.is_whole_subnet) {
        *marked.entry((change.subnet, change.kind)).or_default() += 1;
    }
    let listed = diff
        .whole_subnets
        .iter()
        .map(|whole| ((Some(whole.subnet), whole.kind), whole.targets));
    ensure!(marked == listed.collect());
    Ok(())
}

#[test]
fn a_run_of_many_pages_and_files_is_compared_whole() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let generated = GeneratedRuns {
        targets: 2100,
        runs: 3,
        seed: 7,
    };
    generated.write(&path)?;
    let (reader, connection) = (Reader::open(&path)?, Connection::open(&path)?);
    ensure!(reader.runs_to_compare(None)? == Some((2, 3)));
    ensure!(
        reader.runs_to_compare(Some(2))? == Some((1, 2))
            && reader.runs_to_compare(Some(1))?.is_none()
    );
    ensure!(
        reader.newest_run_of_its_source(1)? == Some(3)
            && reader.newest_run_of_its_source(3)?.is_none()
    );
    let mut diff = reader.diff(1, 3, LIMITS)?;
    let found = changes(&mut diff)?;
    ensure!(found.len() > 50 && compared(&found) == full_join(&connection, 1, 3)?);
    let unknown: i64 = connection.query_row(
        "SELECT count(*) FROM report b JOIN report a USING (target)
         WHERE b.run = 1 AND a.run = 3 AND 'unknown' IN (a.status, b.status)",
        (),
        |row| row.get(0),
    )?;
    ensure!(diff.unknown == unknown && unknown > 0 && diff.in_both == 2100);
    // A run against itself.
    ensure!(reader.diff(3, 3, LIMITS)?.total() == 0);
    ensure!(matches!(
        reader.diff(3, 9, LIMITS),
        Err(StoreError::NoSuchRun { .. })
    ));
    Ok(())
}

#[test]
fn what_an_incomplete_run_has_not_probed_did_not_disappear() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let generated = GeneratedRuns {
        targets: 2100,
        runs: 2,
        seed: 7,
    };
    generated.write(&path)?;
    let connection = Connection::open(&path)?;
    connection.execute_batch("DELETE FROM results WHERE run = 2 AND chunk = 0")?;
    let reader = Reader::open(&path)?;
    let disappeared = ChangeKind::Disappeared as usize;
    // The control: in a complete run they did.
    let diff = reader.diff(1, 2, LIMITS)?;
    ensure!((diff.counts[disappeared], diff.not_probed) == (250, 0));
    connection.execute_batch("UPDATE runs SET state = 'incomplete' WHERE run = 2")?;
    let mut diff = reader.diff(1, 2, LIMITS)?;
    ensure!((diff.counts[disappeared], diff.not_probed) == (0, 250));
    ensure!(
        changes(&mut diff)?
            .iter()
            .all(|change| change.kind != ChangeKind::Disappeared)
    );
    Ok(())
}
