//! `latest` against a naive model, over several runs that end in any order.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, Result};
use pingfleet_store::{ClosedRun, RunState, Transport, Writer};
use pingfleet_wire::{DownReason, LocalLoss, Message as _, Status, WorkChunk};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
    test_runner::Config,
};
use rusqlite::{Connection, types::Value as SqlValue};
use tempfile::TempDir;

use crate::sample::{STARTED_AT_US, dead_letter, delivery, options, reader, result, start, target};

const TARGETS: usize = 4;

/// A run of some of the targets, a chunk each, and the outcome of each.
#[derive(Debug, Clone)]
struct Sweep {
    outcomes: Vec<(usize, Status)>,
    cancelled: bool,
}

/// What `latest` says of a target, times in seconds after the first run.
#[derive(Debug, Clone, PartialEq)]
struct Newest {
    run: i64,
    status: &'static str,
    first_seen: i64,
    last_up: Option<i64>,
    changed_at: i64,
}

type Latest = BTreeMap<String, Newest>;

fn sweep() -> impl Strategy<Value = Sweep> {
    let status = select(vec![
        Status::Up,
        Status::Late,
        Status::DOWN,
        Status::Down(DownReason::NoArp),
        Status::Unknown(LocalLoss::STALLED),
    ]);
    (
        subsequence((0..TARGETS).collect::<Vec<_>>(), 1..=TARGETS),
        vec(status, TARGETS),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(targets, statuses, cancelled)| Sweep {
            outcomes: targets.into_iter().zip(statuses).collect(),
            cancelled,
        })
}

/// Plans the n-th run; its targets are not those of the sample.
fn begin(store: &mut Writer, sweep: &Sweep) -> Result<(i64, Vec<WorkChunk>)> {
    let (planned, mut works) = start(store, Transport::Sweep, &vec![1; sweep.outcomes.len()])?;
    let plan = Connection::open(store.path())?;
    for (work, (number, _)) in works.iter_mut().zip(&sweep.outcomes) {
        work.targets = vec![target(*number as u32)];
        plan.execute(
            "UPDATE plan SET work = ?1 WHERE run = ?2 AND chunk = ?3",
            (work.encode(), planned.run, work.key.chunk),
        )?;
    }
    Ok((planned.run, works))
}

/// Ends a run that was probed `at` seconds after the first one.
fn end(store: &mut Writer, run: i64, works: &[WorkChunk], sweep: &Sweep, at: i64) -> Result<()> {
    for (work, (_, status)) in works.iter().zip(&sweep.outcomes) {
        let mut message = result(work, &[*status]);
        message.started_at_us = STARTED_AT_US + at as u64 * 1_000_000;
        store.apply(Transport::Sweep, &[delivery(message)])?;
    }
    if sweep.cancelled {
        store.cancel_run(run)?;
    }
    Ok(())
}

fn seconds(unix_time: i64) -> i64 {
    unix_time - STARTED_AT_US as i64 / 1_000_000
}

fn stored(store: &Writer) -> Result<Latest> {
    let connection = Connection::open(store.path())?;
    let mut statement = connection.prepare(
        "SELECT target, run, status, unixepoch(first_seen), unixepoch(last_up), unixepoch(changed_at) FROM latest",
    )?;
    let rows = statement.query_map((), |row| {
        let status: String = row.get(2)?;
        Ok((
            row.get::<_, String>(0)?,
            Newest {
                run: row.get(1)?,
                status: Status::NAMES
                    .into_iter()
                    .find(|name| *name == status)
                    .unwrap_or("another"),
                first_seen: seconds(row.get(3)?),
                last_up: row.get::<_, Option<i64>>(4)?.map(seconds),
                changed_at: seconds(row.get(5)?),
            },
        ))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The model: every row of the ended runs, looked at anew each time. `ended` is in the order of the ends.
fn model(ended: &[(i64, i64, Sweep)]) -> Latest {
    let mut rows: BTreeMap<String, Vec<(i64, i64, Status)>> = BTreeMap::new();
    for (run, at, sweep) in ended {
        for (number, status) in &sweep.outcomes {
            rows.entry(target(*number as u32).to_string())
                .or_default()
                .push((*at, *run, *status));
        }
    }
    rows.into_iter()
        .map(|(target, mut rows)| {
            rows.sort_by_key(|(at, ..)| *at);
            let newest = rows[rows.len() - 1];
            let changed_at = rows
                .iter()
                .rev()
                .take_while(|(_, _, status)| status.code() == newest.2.code())
                .last()
                .map_or(0, |(at, ..)| *at);
            let last_up = rows
                .iter()
                .rev()
                .find(|(_, _, status)| status.code() <= 1)
                .map(|(at, ..)| *at);
            let newest = Newest {
                run: newest.1,
                status: newest.2.name(),
                first_seen: rows[0].0,
                last_up,
                changed_at,
            };
            (target, newest)
        })
        .collect()
}

/// A change of a target: when it was noticed, in seconds after the first run, the status before, and the new one.
type Change = (String, i64, u8, u8);

fn stored_changes(store: &Writer) -> Result<Vec<Change>> {
    let connection = Connection::open(store.path())?;
    let mut statement = connection
        .prepare("SELECT target, changed_at_us, old_status, new_status FROM status_changes")?;
    let rows = statement.query_map((), |row| {
        let target = match row.get(0)? {
            SqlValue::Integer(number) => {
                Ipv4Addr::from_bits((number + (1 << 31)) as u32).to_string()
            }
            SqlValue::Text(name) => name,
            other => panic!("{other:?}"),
        };
        Ok((
            target,
            seconds(row.get::<_, i64>(1)? / 1_000_000),
            row.get(2)?,
            row.get(3)?,
        ))
    })?;
    let mut changes: Vec<_> = rows.collect::<Result<_, _>>()?;
    changes.sort();
    Ok(changes)
}

/// The model: each row that was newer than all rows before, and had another status than the last one that was known.
fn changes(ended: &[(i64, i64, Sweep)]) -> Vec<Change> {
    let mut seen: BTreeMap<String, (i64, Option<u8>)> = BTreeMap::new();
    let mut changes = Vec::new();
    for (_, at, sweep) in ended {
        for (number, status) in &sweep.outcomes {
            let target = target(*number as u32).to_string();
            let (newest, known) = seen.entry(target.clone()).or_insert((-1, None));
            if at <= newest {
                continue;
            }
            *newest = *at;
            if status.name() != "unknown" {
                let code = status.code();
                if let Some(old) = known.replace(code).filter(|old| *old != code) {
                    changes.push((target, *at, old, code));
                }
            }
        }
    }
    changes.sort();
    changes
}

proptest! {
    #![proptest_config(Config { cases: 40, failure_persistence: None, ..Config::default() })]

    #[test]
    fn latest_follows_the_runs_as_they_end(sweeps in vec(sweep(), 1..7)) {
        let folder = TempDir::new().unwrap();
        let mut store = options(&folder.path().join("fleet.db")).open().unwrap();
        let mut ended = Vec::new();
        for (at, sweep) in (0..).zip(sweeps) {
            let (run, works) = begin(&mut store, &sweep).unwrap();
            prop_assert_eq!(stored(&store).unwrap(), model(&ended));
            end(&mut store, run, &works, &sweep, at).unwrap();
            ended.push((run, at, sweep));
            prop_assert_eq!(stored(&store).unwrap(), model(&ended));
            prop_assert_eq!(stored_changes(&store).unwrap(), changes(&ended));
        }
    }

    /// The older run ends last, as one that is resumed after the next one: it can only change when a target was first seen
    /// and last up, and nothing about now.
    #[test]
    fn an_older_run_that_ends_late_changes_only_the_past(
        older in sweep(), newer in sweep(), later in sweep(),
    ) {
        let folder = TempDir::new().unwrap();
        let mut store = options(&folder.path().join("fleet.db")).open().unwrap();
        let mut ended = Vec::new();
        let mut begun = Vec::new();
        for sweep in [&older, &newer, &later] {
            begun.push(begin(&mut store, sweep).unwrap());
        }
        for (number, sweep) in [(1, newer), (0, older), (2, later)] {
            let (run, works) = &begun[number];
            end(&mut store, *run, works, &sweep, number as i64).unwrap();
            ended.push((*run, number as i64, sweep));
            prop_assert_eq!(stored(&store).unwrap(), model(&ended));
            prop_assert_eq!(stored_changes(&store).unwrap(), changes(&ended));
        }
    }
}

#[test]
fn a_run_that_is_closed_again_changes_only_what_is_new() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    let down = Status::DOWN;
    let batch = [delivery(result(&works[0], &[down])), dead_letter(&works[1])];
    store.apply(Transport::Broker, &batch)?;
    let before = stored(&store)?;
    anyhow::ensure!(before.len() == 1);
    store.retry_dead(planned.run)?;
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[1], &[Status::Up]))],
    )?;
    let after = stored(&store)?;
    anyhow::ensure!(after.len() == 2);
    let (target, row) = before.first_key_value().context("a row")?;
    anyhow::ensure!(after[target] == *row);
    Ok(())
}

#[test]
fn what_arrives_after_a_cancelling_is_the_latest_too() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    store.cancel_run(planned.run)?;
    anyhow::ensure!(stored(&store)?.is_empty());
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[1], &[Status::Up]))],
    )?;
    anyhow::ensure!(stored(&store)?.contains_key("10.0.0.1"));
    Ok(())
}

#[test]
fn a_large_run_is_closed_after_its_last_chunk() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let down = Status::DOWN;
    // In the second run all targets of the first chunk have changed.
    for (first, at) in [(Status::Up, 0), (down, 60)] {
        let (planned, works) = start(&mut store, Transport::Sweep, &[1000; 101])?;
        let batch: Vec<_> = (0..)
            .zip(&works)
            .map(|(chunk, work)| {
                let status = if chunk == 0 { first } else { Status::Up };
                let mut message = result(work, &[status]);
                message.started_at_us = STARTED_AT_US + at * 1_000_000;
                delivery(message)
            })
            .collect();
        let applied = store.apply(Transport::Sweep, &batch)?;
        anyhow::ensure!(applied.is_large_run_settled && applied.closed.is_empty());
        let run = planned.run;
        anyhow::ensure!(store.summary(run)?.state == RunState::Running);
        anyhow::ensure!(reader(&store)?.verify(run)?.is_consistent());
        let complete = true;
        anyhow::ensure!(
            store.close_settled_runs(Transport::Sweep)?
                == [ClosedRun {
                    run,
                    run_id: planned.run_id,
                    complete,
                }]
        );
        anyhow::ensure!(store.close_settled_runs(Transport::Sweep)?.is_empty());
        anyhow::ensure!(store.summary(run)?.state == RunState::Complete);
    }
    let latest = stored(&store)?;
    anyhow::ensure!(latest.len() == 101_000);
    anyhow::ensure!(
        latest
            .values()
            .all(|row| row.run == 2 && row.first_seen == 0)
    );
    let changed = latest.values().filter(|row| {
        **row
            == Newest {
                run: 2,
                status: "down",
                first_seen: 0,
                last_up: Some(0),
                changed_at: 60,
            }
    });
    anyhow::ensure!(changed.count() == 1000);
    let same = latest
        .values()
        .filter(|row| (row.last_up, row.changed_at) == (Some(60), 0));
    anyhow::ensure!(same.count() == 100_000);
    Ok(())
}
