//! A target over all runs, and the newest row of each target, beside plain SQL.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{HostFilter, HostOrder, HostRow, Reader, ReportFilter};
use pingfleet_testbed::GeneratedRuns;
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, types::Value};
use tempfile::TempDir;

const RUNS: i64 = 6;

fn generated() -> Result<(TempDir, Reader, Connection)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let generated = GeneratedRuns {
        targets: 2100,
        runs: RUNS as u32,
        seed: 7,
    };
    generated.write(&path)?;
    Ok((folder, Reader::open(&path)?, Connection::open(&path)?))
}

fn texts(connection: &Connection, sql: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map((), |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn listed(reader: &Reader, filter: &HostFilter, order: HostOrder) -> Result<Vec<HostRow>> {
    let mut hosts = Vec::new();
    for part in reader.hosts(filter, order)? {
        hosts.extend(part?.read()?.0.hosts());
    }
    Ok(hosts)
}

fn targets(hosts: &[HostRow]) -> Vec<&str> {
    hosts.iter().map(|host| host.row.target.as_str()).collect()
}

#[test]
fn a_target_is_found_in_each_run_wherever_its_plan_has_it() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    // Run 2 has another order, and run 3 fewer targets.
    connection.execute_batch(
        "UPDATE results SET chunk = 100 - chunk, position = 1000 - position WHERE run = 2;
         UPDATE chunks SET chunk = 100 - chunk WHERE run = 2;
         UPDATE labels SET chunk = 100 - chunk, position = 1000 - position WHERE run = 2;
         DELETE FROM results WHERE run = 3 AND chunk = 0 AND position < 100",
    )?;
    for target in texts(
        &connection,
        "SELECT target FROM report WHERE run = 1 ORDER BY row_number() OVER (ORDER BY target) % 90 LIMIT 40",
    )? {
        let found = reader.target_runs(&target)?.context("a target")?;
        let expected = texts(
            &connection,
            &format!(
                "SELECT printf('%d %s %s', run, status, probed_at) FROM report WHERE target = '{target}' ORDER BY run DESC"
            ),
        )?;
        let rows = found.rows.iter();
        let shown: Vec<_> = rows
            .map(|row| format!("{} {} {}", row.run, row.status, row.probed_at))
            .collect();
        ensure!(shown == expected, "{target}: {shown:?} {expected:?}");
        ensure!(found.runs_without == RUNS as usize - shown.len());
        let latest = found.latest.context("it is in `latest`")?;
        ensure!(Some(&latest.row) == found.rows.first());
    }
    let names = texts(
        &connection,
        "SELECT DISTINCT target FROM report WHERE target LIKE 'host-%' LIMIT 3",
    )?;
    for name in &names {
        ensure!(
            reader
                .target_runs(name)?
                .is_some_and(|found| found.rows.len() >= 5)
        );
    }
    ensure!(
        reader.target_runs("nobody.example")?.is_none()
            && reader.target_runs("192.0.2.1")?.is_none()
    );
    Ok(())
}

#[test]
fn changes_are_those_between_the_rows_without_what_is_unknown() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let mut all = 0;
    for target in texts(
        &connection,
        "SELECT target FROM latest WHERE changes_30d >= 0 LIMIT 300",
    )? {
        let found = reader.target_runs(&target)?.context("a target")?;
        let known = found
            .rows
            .iter()
            .rev()
            .filter(|row| row.status != "unknown");
        let statuses: Vec<_> = known.map(|row| row.status.clone()).collect();
        let expected: Vec<_> = statuses
            .windows(2)
            .filter(|pair| pair[0] != pair[1])
            .collect();
        let shown = found.changes.iter();
        let shown: Vec<_> = shown
            .map(|change| [change.old.name(), change.new.name()])
            .collect();
        ensure!(shown == expected, "{target}: {shown:?} {statuses:?}");
        all += shown.len();
    }
    ensure!(all > 10);
    Ok(())
}

#[test]
fn a_subnet_is_counted_in_each_run() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    for (subnet, pattern) in [
        ("10.3.0.0/24", "10.3.0.*"),
        ("2001:db8:0:9::/64", "2001:db8:0:9::*"),
    ] {
        let found = reader.subnet_runs(subnet.parse()?)?;
        let runs = &found.runs;
        ensure!(
            found.runs_pruned == 0
                && runs.len() == RUNS as usize
                && runs.is_sorted_by_key(|run| -run.summary.run)
        );
        for run in runs {
            for (status, count) in run.counts.iter() {
                let sql = format!(
                    "SELECT count(*) FROM report WHERE run = {} AND status = '{}' AND address GLOB '{pattern}'",
                    run.summary.run,
                    status.name()
                );
                let expected: i64 = connection.query_row(&sql, (), |row| row.get(0))?;
                ensure!(count == expected, "{subnet} {status:?}: {count} {expected}");
            }
            ensure!(run.counts.total() > 0);
        }
    }
    let other = reader.subnet_runs("192.0.2.0/24".parse()?)?;
    ensure!(other.runs.is_empty());
    Ok(())
}

#[test]
fn pruned_runs_are_left_out_of_a_subnet_and_counted_apart_for_a_target() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    // Run 1 has lost all rows, and run 2 those of one chunk; run 3 never had that chunk.
    connection.execute_batch(
        "INSERT INTO pruned_runs VALUES (1, 0, NULL), (2, 0, NULL);
         DELETE FROM results WHERE run = 1 OR (run IN (2, 3) AND chunk = 0)",
    )?;
    let found = reader.subnet_runs("10.0.0.0/8".parse()?)?;
    let runs: Vec<_> = found.runs.iter().map(|run| run.summary.run).collect();
    ensure!((runs.as_slice(), found.runs_pruned) == ([6, 5, 4, 3].as_slice(), 2));
    for (chunk, rows, without, pruned) in [(0, 3, 1, 2), (3, 5, 0, 1)] {
        let target = &texts(
            &connection,
            &format!(
                "SELECT p.target FROM report p JOIN results r ON r.run = p.run AND coalesce(r.name, '') = p.target
                 WHERE r.run = 6 AND r.chunk = {chunk} AND r.name IS NOT NULL LIMIT 1"
            ),
        )?[0];
        let found = reader.target_runs(target)?.context("a target")?;
        ensure!(
            (found.rows.len(), found.runs_without, found.runs_pruned) == (rows, without, pruned),
            "{target}: {found:#?}"
        );
    }
    Ok(())
}

#[test]
fn what_a_user_may_have_meant_is_near() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let mut addresses: Vec<Ipv4Addr> = texts(
        &connection,
        "SELECT target FROM latest WHERE target = address",
    )?
    .iter()
    .filter_map(|target| target.parse().ok())
    .collect();
    addresses.sort_unstable();
    let missing = Ipv4Addr::new(10, 3, 0, 200);
    let behind = addresses.partition_point(|address| *address < missing);
    let near = [addresses[behind - 1], addresses[behind]].map(|address| address.to_string());
    ensure!(
        near[0].starts_with("10.3.0.") && reader.similar_targets(&missing.to_string())? == near
    );
    let name = &texts(
        &connection,
        "SELECT target FROM latest WHERE target LIKE 'host-%' LIMIT 1",
    )?[0];
    let typed = name.replace("host", "hosst").to_uppercase();
    ensure!(reader.similar_targets(&typed)?.first() == Some(name));
    ensure!(reader.similar_targets("zzzzzz")?.is_empty());
    let address: String = connection.query_row(
        "SELECT address FROM latest WHERE target LIKE 'host-%' AND address LIKE '10.%' LIMIT 1",
        (),
        |row| row.get(0),
    )?;
    let by_address = reader.similar_targets(&address)?;
    ensure!(by_address.iter().all(|name| name.starts_with("host-")) && !by_address.is_empty());
    Ok(())
}

#[test]
fn hosts_are_the_rows_of_latest_in_the_wanted_order() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let all = HostFilter::default();
    let hosts = listed(&reader, &all, HostOrder::Target)?;
    ensure!(hosts.len() == 2100);
    for host in &hosts {
        let sql = "SELECT unixepoch(first_seen, 'subsec'), unixepoch(last_up, 'subsec'), unixepoch(changed_at, 'subsec'),
                changes_30d, status
            FROM latest WHERE target = ?1";
        // Too slow for each of them: the view has no index by text.
        if host.row.target.ends_with(".7") {
            let (expected, counts) = connection.query_row(sql, [&host.row.target], |row| {
                let times: [Option<f64>; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
                Ok((times, (row.get::<_, i64>(3)?, row.get::<_, String>(4)?)))
            })?;
            let found = [
                Some(host.first_seen_us),
                host.last_up_us,
                Some(host.changed_at_us),
            ];
            for (found, expected) in found.into_iter().zip(expected) {
                let found = found.map(|us| us as f64 / 1_000_000.0);
                let difference = found.zip(expected).map(|(one, other)| (one - other).abs());
                ensure!(found.is_some() == expected.is_some() && difference < Some(0.001));
            }
            ensure!((host.changes_30d, host.row.status.clone()) == counts);
        }
    }
    for (order, sql) in [
        (HostOrder::Rtt, "rtt_avg_ms DESC NULLS LAST"),
        (HostOrder::Changed, "changed_at DESC"),
    ] {
        let sorted = listed(&reader, &all, order)?;
        let expected = texts(
            &connection,
            &format!("SELECT target FROM latest ORDER BY {sql}"),
        )?;
        let value = |target: &str| hosts.iter().find(|host| host.row.target == target);
        for (found, expected) in targets(&sorted).into_iter().zip(&expected).step_by(50) {
            let (found, expected) = (
                value(found).context("a host")?,
                value(expected).context("a host")?,
            );
            let is_same = match order {
                HostOrder::Rtt => found.row.rtt_ms == expected.row.rtt_ms,
                // The view rounds to milliseconds.
                _ => (found.changed_at_us - expected.changed_at_us).abs() <= 1000,
            };
            ensure!(is_same, "{found:?} {expected:?}");
        }
    }
    Ok(())
}

/// A host as the view `latest` has it.
fn as_in_the_view(connection: &Connection, host: &HostRow) -> Result<Vec<Value>> {
    let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::Text);
    let real = |number: Option<f64>| number.map_or(Value::Null, Value::Real);
    let time = |us: Option<i64>| -> Result<Value> {
        let sql = "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000000.0, 'unixepoch')";
        Ok(connection
            .prepare_cached(sql)?
            .query_row([us], |row| row.get(0))?)
    };
    let row = &host.row;
    let [min, avg, max, stddev] = row.rtt_ms.map(real);
    Ok(vec![
        row.run.into(),
        row.run_id.clone().into(),
        row.target.clone().into(),
        text(&row.address),
        row.status.clone().into(),
        text(&row.reason),
        row.sent.into(),
        row.received.into(),
        real(row.loss_pct),
        min,
        avg,
        max,
        stddev,
        row.attempts.into(),
        text(&row.worker),
        text(&row.login),
        row.probed_at.clone().into(),
        text(&row.labels),
        time(Some(host.first_seen_us))?,
        time(host.last_up_us)?,
        time(Some(host.changed_at_us))?,
        host.changes_30d.into(),
    ])
}

#[test]
fn each_value_of_a_host_is_that_of_the_view_however_it_is_read() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    // The newest rows are those of two runs, and a clock was far behind.
    connection.execute_batch(
        "UPDATE latest_rows SET run = 5 WHERE chunk = 0;
         UPDATE chunks SET started_at_us = -86400123456 WHERE chunk = 2;
         UPDATE chunks SET login = 'login-' || chunk WHERE chunk < 2;
         UPDATE status_changes SET changed_at_us = changed_at_us + 1000 * (unixepoch() * 1000 - 1698796800000)",
    )?;
    let mut statement = connection.prepare("SELECT * FROM latest")?;
    let columns = statement.column_count();
    let rows = statement.query_map((), |row| (0..columns).map(|at| row.get(at)).collect());
    let view: Vec<Vec<Value>> = rows?.collect::<Result<_, _>>()?;
    let view: HashMap<_, _> = view
        .iter()
        .map(|row| (format!("{:?}", row[2]), row))
        .collect();
    let (labels, changes) = (columns - 5, columns - 1);
    ensure!(
        view.values()
            .any(|row| row[labels] != Value::Null && row[changes] != Value::Integer(0))
    );
    let condition = Some(reader.latest_condition("sent >= 0")?);
    let by_condition = HostFilter {
        rows: ReportFilter {
            condition,
            ..ReportFilter::default()
        },
        ..HostFilter::default()
    };
    for (filter, order) in [
        (HostFilter::default(), HostOrder::Target),
        (HostFilter::default(), HostOrder::Changes),
        (HostFilter::default(), HostOrder::Rtt),
        (by_condition, HostOrder::Target),
    ] {
        let hosts = listed(&reader, &filter, order)?;
        ensure!(hosts.len() == view.len());
        for host in &hosts {
            let found = as_in_the_view(&connection, host)?;
            let expected = view.get(&format!("{:?}", found[2])).context("a target")?;
            ensure!(found == **expected, "{found:?} is not {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn hosts_are_filtered_by_status_condition_and_age() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let count = |sql: &str| -> Result<usize> {
        let count: i64 = connection.query_row(
            &format!("SELECT count(*) FROM latest WHERE {sql}"),
            (),
            |row| row.get(0),
        )?;
        Ok(count as usize)
    };
    let down = HostFilter {
        rows: ReportFilter {
            statuses: vec![StatusKind::Down],
            ..ReportFilter::default()
        },
        ..HostFilter::default()
    };
    let found = listed(&reader, &down, HostOrder::Target)?;
    ensure!(found.len() == count("status = 'down'")? && !found.is_empty());
    let changed =
        HostFilter {
            rows: ReportFilter {
                condition: Some(reader.latest_condition(
                    "last_up < first_seen OR changes_30d > 0 OR last_up IS NULL",
                )?),
                ..ReportFilter::default()
            },
            ..HostFilter::default()
        };
    let found = listed(&reader, &changed, HostOrder::Changes)?;
    ensure!(found.len() == count("last_up IS NULL OR changes_30d > 0")?);
    // Columns of another view, and other tables, are refused.
    ensure!(reader.latest_condition("work IS NULL").is_err());
    ensure!(reader.report_condition("last_up IS NULL").is_err());
    ensure!(
        reader
            .latest_condition("(SELECT count(*) FROM plan) > 0")
            .is_err()
    );
    // Run 6 leaves out one chunk, so its targets are stale.
    let newest: i64 =
        connection.query_row("SELECT started_at_us FROM runs WHERE run = 6", (), |row| {
            row.get(0)
        })?;
    let stale = HostFilter {
        probed_before_us: Some(newest),
        ..HostFilter::default()
    };
    ensure!(listed(&reader, &stale, HostOrder::Target)?.is_empty());
    connection.execute_batch(
        "UPDATE latest_rows SET run = 5, probed_at_us = probed_at_us - 3600000000 WHERE chunk = 0",
    )?;
    ensure!(listed(&reader, &stale, HostOrder::Target)?.len() == 250);
    Ok(())
}
