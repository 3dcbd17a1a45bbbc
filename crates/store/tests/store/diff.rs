//! The difference of two runs equals what a full join in plain SQL gives.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

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
use tokio_util::sync::CancellationToken;

use crate::sample::options;

/// Random pairs of targets, and how many of them stand side by side in two runs: to open the database costs more than
/// to compare twelve targets.
const PAIRS: usize = 1000;
const PAIRS_OF_A_RUN: usize = 20;
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

/// One of twelve targets in few subnets, so that whole subnets change: IPv4, IPv6, and names whose address may change.
/// Another `group` has other subnets.
fn row(group: usize, number: usize) -> impl Strategy<Value = Row> {
    let ipv4 = move |number: usize| {
        SqlValue::Integer(((10_i64 << 24) | ((group << 8) | number) as i64) - (1 << 31))
    };
    let ipv6 = move |number: usize| {
        let group = group as u16;
        SqlValue::Text(Ipv6Addr::new(0x2001, 0xdb8, 0, group, 0, 0, 0, number as u16).to_string())
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
        let name = (number % 3 == 2).then(|| format!("host-{group}-{number}.example"));
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

/// Some of the targets of a group, each with its place in any order. In one of three all have the status of the first one.
fn rows(group: usize) -> impl Strategy<Value = Vec<(Row, u32)>> {
    let rows = (0..12).map(|number| row(group, number)).collect::<Vec<_>>();
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
            let rows = rows.zip(order).zip(present);
            let present = rows.filter(|(_, is_present)| *is_present);
            present.map(|(row, _)| row).collect()
        })
}

/// The rows of a run of several groups.
fn run(runner: &mut TestRunner) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for group in 0..PAIRS_OF_A_RUN {
        let rows = rows(group).new_tree(runner).map_err(anyhow::Error::msg)?;
        all.extend(rows.current());
    }
    all.sort_by_key(|(_, order)| *order);
    Ok(all.into_iter().map(|(row, _)| row).collect())
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
        SELECT target, 'other_address' FROM p WHERE ba <> aa AND 'unknown' NOT IN (bs, \"as\")";
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
    let run_pairs = (PAIRS / PAIRS_OF_A_RUN) as i64;
    for run_number in 1..=2 * run_pairs {
        insert(&transaction, run_number, "complete", &run(&mut runner)?)?;
    }
    transaction.execute_batch(
        "INSERT INTO chunks (run, chunk, targets, state) SELECT DISTINCT run, chunk, 5, 3 FROM results",
    )?;
    transaction.commit()?;
    let reader = Reader::open(&path)?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in 0..run_pairs {
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

/// Two runs of 10.9.3.1 to 10.9.3.254. In the second one those from .128 on are down, except for one.
fn half_silent(exception: Option<u8>, twin: bool) -> Result<(TempDir, RunDiff)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    drop(options(&path).open()?);
    let mut connection = Connection::open(&path)?;
    let transaction = connection.transaction()?;
    for run in [1, 2] {
        let address = |last: u8| i64::from(u32::from_be_bytes([10, 9, 3, last])) - (1 << 31);
        let row = |last: u8, name: Option<&str>| {
            let is_down = run == 2 && last >= 128 && exception != Some(last);
            Row {
                name: name.map(str::to_owned),
                address: Some(SqlValue::Integer(address(last))),
                status: if is_down { 6 } else { 0 },
                rtt_ns: (!is_down).then_some(1_000_000),
            }
        };
        let mut rows: Vec<_> = (1..255).map(|last| row(last, None)).collect();
        rows.extend(twin.then(|| row(200, Some("printer.example"))));
        insert(&transaction, run, "complete", &rows)?;
    }
    transaction.commit()?;
    let diff = Reader::open(&path)?.diff(1, 2, LIMITS)?;
    Ok((folder, diff))
}

#[test]
fn a_part_of_a_subnet_that_stopped_is_named() -> Result<()> {
    let split = [
        "10.9.3.128/27",
        "10.9.3.160/28",
        "10.9.3.176/29",
        "10.9.3.192/26",
    ];
    for (exception, twin, subnets, listed) in [
        (None, false, ["10.9.3.128/25"].as_slice(), 0),
        // The controls: one of it answers, or two targets have one address.
        (Some(190), false, &split, 7),
        (None, true, &[], 128),
    ] {
        let (_folder, mut diff) = half_silent(exception, twin)?;
        let found = changes(&mut diff)?;
        check_whole_subnets(&diff, &found)?;
        let mut names = Vec::new();
        for whole in &diff.whole_subnets {
            ensure!(whole.kind == ChangeKind::StoppedAnswering);
            names.push(whole.subnet.to_string());
        }
        ensure!(names == subnets, "{names:?}");
        let single = found.iter().filter(|change| !change.is_whole_subnet);
        ensure!(single.count() == listed, "{exception:?} {twin}");
    }
    Ok(())
}

#[test]
fn generated_runs_are_compared_whole() -> Result<()> {
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
    // Pruned runs are no runs to compare.
    for (pruned, pair) in [(2, Some((1, 3))), (3, None)] {
        connection.execute("INSERT INTO pruned_runs VALUES (?1, 0, NULL)", [pruned])?;
        ensure!(reader.runs_to_compare(None)? == pair);
        ensure!(reader.runs_to_compare(Some(pruned))?.is_none());
        let newest = pair.map(|(_, newest)| newest);
        ensure!(reader.newest_run_of_its_source(1)? == newest);
        for (before, after) in [(1, pruned), (pruned, 1)] {
            let refused = reader.diff(before, after, LIMITS);
            ensure!(matches!(refused, Err(StoreError::Pruned { .. })));
        }
    }
    ensure!(matches!(
        reader.diff(1, 9, LIMITS),
        Err(StoreError::NoSuchRun { .. })
    ));
    Ok(())
}

#[test]
fn a_run_of_several_pages_and_a_file_is_compared_whole() -> Result<()> {
    // Pages have 50,000 rows, and a file 250,000.
    const TARGETS: i64 = 260_000;
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    drop(options(&path).open()?);
    let mut connection = Connection::open(&path)?;
    let transaction = connection.transaction()?;
    for (run, targets) in [(1, TARGETS), (2, 60_000)] {
        insert(&transaction, run, "complete", &[])?;
        // In the second run the targets are in the opposite order, and one of a thousand is down.
        transaction.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)
             INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address)
             SELECT ?1, i / 1000, i % 1000, iif(?1 = 2 AND i % 1000 = 0, 6, 0), 1, 0, 1, 0,
                iif(?1 = 1, i, ?2 - 1 - i) FROM n",
            (run, targets),
        )?;
    }
    transaction.commit()?;
    let mut diff = Reader::open(&path)?.diff(1, 2, LIMITS)?;
    let count = |kind: ChangeKind| diff.counts[kind as usize];
    ensure!(count(ChangeKind::StoppedAnswering) == 60 && count(ChangeKind::Disappeared) == 200_000);
    ensure!(diff.total() == 200_060 && diff.in_both == 60_000);
    let found = diff.changes()?.collect::<Result<Vec<_>, _>>()?;
    // In the order of the addresses, of which the first one is 128.0.0.0.
    let addresses: Vec<u32> = found
        .iter()
        .map(|change| Ok(change.target.parse::<Ipv4Addr>()?.to_bits() - (1 << 31)))
        .collect::<Result<_>>()?;
    let expected = (0..60)
        .map(|i| 1000 * i + 999)
        .chain(60_000..TARGETS as u32);
    ensure!(addresses.into_iter().eq(expected));
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

#[test]
fn a_pass_over_the_sorted_rows_can_be_interrupted() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let generated = GeneratedRuns {
        targets: 2100,
        runs: 2,
        seed: 7,
    };
    generated.write(&path)?;
    let stop = CancellationToken::new();
    let reader = Reader::open(&path)?.interrupted_by(stop.clone());
    let mut diff = reader.diff(1, 2, LIMITS)?;
    // The control: without the signal it comes to its end.
    ensure!(changes(&mut diff)?.len() as i64 == diff.total());
    let mut pass = diff.changes()?;
    ensure!(pass.next().is_some_and(|change| change.is_ok()));
    stop.cancel();
    let error = pass
        .find_map(std::result::Result::err)
        .context("it came to its end")?;
    ensure!(matches!(
        StoreError::from_sorted_rows(error),
        StoreError::Interrupted
    ));
    Ok(())
}
