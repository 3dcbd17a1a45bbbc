//! The overview of a run equals what plain SQL on the views counts.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use pingfleet_store::{NotUp, Reader, ReportFilter, RowOrder, RunDetail, RunOverview};
use pingfleet_testbed::GeneratedRuns;
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, Row, types::FromSql};
use tempfile::TempDir;

/// Two runs of targets in 200 subnets, and a connection for plain SQL.
fn generated() -> Result<(TempDir, Reader, Connection)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let generated = GeneratedRuns {
        targets: 2100,
        runs: 2,
        seed: 7,
    };
    generated.write(&path)?;
    Ok((folder, Reader::open(&path)?, Connection::open(&path)?))
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map((), read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn value<T: FromSql>(connection: &Connection, sql: &str) -> Result<T> {
    Ok(connection.query_row(sql, (), |row| row.get(0))?)
}

#[test]
fn totals_and_reasons_are_those_of_the_view() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let overview = reader.overview(2)?;
    let [sent, received] = ["sent", "received"].map(|column| {
        value::<i64>(
            &connection,
            &format!("SELECT sum({column}) FROM report WHERE run = 2"),
        )
    });
    ensure!((overview.requests, overview.replies) == (sent?, received?));
    let mut expected = rows(
        &connection,
        "SELECT status, CASE WHEN reason GLOB 'a*ed* *' THEN substr(reason, 1, instr(reason, ' ') - 1) ELSE reason END AS why,
                count(*)
         FROM report WHERE run = 2 AND received = 0 GROUP BY status, why",
        |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let mut found: Vec<(String, Option<String>, i64)> = Vec::new();
    for (status, reason, count) in overview.reasons {
        found.push((status.to_owned(), reason, count));
    }
    found.sort();
    expected.sort();
    ensure!(found == expected, "{found:?} {expected:?}");
    Ok(())
}

#[test]
fn percentiles_are_exact_to_a_thousandth() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let rtt = reader.overview(2)?.rtt.context("targets answered")?;
    let sorted = rows(
        &connection,
        "SELECT rtt_avg_ns FROM results WHERE run = 2 AND rtt_avg_ns IS NOT NULL ORDER BY 1",
        |row| row.get::<_, i64>(0),
    )?;
    ensure!(rtt.min_ns == sorted[0] && rtt.max_ns == sorted[sorted.len() - 1]);
    for (share, found) in [(0.5, rtt.p50_ns), (0.95, rtt.p95_ns), (0.99, rtt.p99_ns)] {
        let rank = (share * sorted.len() as f64).ceil() as usize - 1;
        let difference = (found - sorted[rank]).abs();
        // A microsecond is the unit of the histogram.
        ensure!(difference <= sorted[rank] / 1000 + 1000, "{share}: {found}");
    }
    Ok(())
}

#[test]
fn worst_subnets_slowest_targets_and_workers_are_those_of_the_rows() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let overview = reader.overview(2)?;
    ensure!(overview.worst_subnets.len() == 20);
    for counts in &overview.worst_subnets {
        let filter = ReportFilter {
            subnets: vec![counts.subnet],
            ..ReportFilter::default()
        };
        let inside = reader.report(2, &filter).next_page()?;
        let not_up = inside.iter().filter(|row| row.received == 0).count() as i64;
        ensure!(
            (counts.targets, counts.not_up) == (inside.len() as i64, not_up),
            "{counts:?}"
        );
    }
    let shares = overview.worst_subnets.iter();
    let shares: Vec<_> = shares
        .map(|counts| counts.not_up as f64 / counts.targets as f64)
        .collect();
    ensure!(shares.is_sorted_by(|one, other| one >= other), "{shares:?}");
    let mut sorted = reader.sorted_report(2, &ReportFilter::default(), RowOrder::Rtt)?;
    ensure!(overview.slowest == sorted.next_page()?[..20]);
    let workers = rows(
        &connection,
        "SELECT worker, count(*), sum(attempts - 1 + (status = 'unknown')) FROM report WHERE run = 2
         GROUP BY worker ORDER BY worker",
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let found = overview.workers.into_iter();
    let found: Vec<_> = found
        .map(|part| (part.worker, part.targets, part.local_losses))
        .collect();
    ensure!(found == workers, "{found:?} {workers:?}");
    Ok(())
}

#[test]
fn changes_are_those_between_the_runs_and_unknown_is_none() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let changed = |condition: &str| {
        value::<i64>(
            &connection,
            &format!(
                "SELECT count(*) FROM report a JOIN report b ON b.target = a.target
                 WHERE a.run = 1 AND b.run = 2 AND a.status <> b.status AND {condition}"
            ),
        )
    };
    let found = reader
        .overview(2)?
        .changes
        .context("it is the newest run")?;
    ensure!(found.changed_up == changed("b.received > 0")?, "{found:?}");
    ensure!(
        found.changed_not_up == changed("b.received = 0 AND b.status <> 'unknown'")?,
        "{found:?}"
    );
    ensure!(found.changed_up > 0 && found.changed_not_up > 0 && found.first_seen == 0);
    // A newer run has probed the targets of the first one.
    let first = reader.overview(1)?;
    ensure!(first.changes.is_none() && first.not_up.iter().all(|found| found.history.is_none()));
    Ok(())
}

#[test]
fn what_changed_last_comes_first() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let newest = rows(
        &connection,
        "SELECT target, address FROM latest WHERE received = 0 ORDER BY changed_at DESC",
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)),
    )?;
    let overview = reader.overview(2)?;
    let subnets = &overview.subnets_not_up;
    ensure!(overview.subnets_not_up_count == subnets.len() as i64 && subnets.len() > 1);
    // Without those of whole subnets.
    let newest = newest.into_iter().filter(|(_, address)| {
        let address = address
            .as_ref()
            .and_then(|address| address.parse::<IpAddr>().ok());
        !address.is_some_and(|address| subnets.iter().any(|found| found.subnet.contains(&address)))
    });
    let newest: Vec<_> = newest.map(|(target, _)| target).take(20).collect();
    let found = overview.not_up;
    let mut targets: Vec<_> = found.iter().map(|found| found.row.target.clone()).collect();
    let times: Vec<_> = found
        .iter()
        .map(|found| found.history.map(|times| times.changed_at_us))
        .collect();
    ensure!(times.is_sorted_by(|one, other| one >= other), "{times:?}");
    let mut newest = newest;
    targets.sort();
    newest.sort();
    ensure!(targets == newest, "{targets:?} {newest:?}");
    Ok(())
}

/// The targets of chunk 0 are 10.9.3.0 to 10.9.3.249. Those from .128 on are down since run 2, one of them a name; so is
/// .5, for another reason.
const HALF_SILENT: &str = "
UPDATE results SET name = NULL, status = 0, reason = NULL, received = 1, rtt_avg_ns = 1000000,
    address = ((10 << 24) | (9 << 16) | (3 << 8) | position) - 2147483648 WHERE chunk = 0;
UPDATE results SET status = 6, reason = 'no_arp', sent = 3, received = 0, rtt_avg_ns = NULL
    WHERE run = 2 AND chunk = 0 AND position >= 128;
UPDATE results SET name = 'printer.example' WHERE chunk = 0 AND position = 200;
UPDATE results SET status = 6, sent = 1, received = 0, rtt_avg_ns = NULL WHERE run = 2 AND chunk = 0 AND position = 5;
DELETE FROM latest_rows WHERE chunk = 0;
INSERT INTO latest_rows (target, run, chunk, position, status, probed_at_us, first_seen_us, last_up_us, changed_at_us)
SELECT coalesce(name, address), 2, 0, position, status, 5000000, 1000000 + position, iif(status = 6, 2000000, NULL),
    iif(status = 6, 9000000000000000, NULL) FROM results WHERE run = 2 AND chunk = 0";

/// The names of the subnets in 10.9.3.0/24 in which no target answered.
fn silent_parts(overview: &RunOverview) -> Vec<String> {
    let all = overview.subnets_not_up.iter();
    let mut names: Vec<_> = all.map(|found| found.subnet.to_string()).collect();
    names.retain(|name| name.starts_with("10.9.3."));
    names
}

#[test]
fn a_subnet_in_which_no_target_answered_is_named_and_its_targets_are_not() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    connection.execute_batch(HALF_SILENT)?;
    let overview = reader.overview(2)?;
    // The newest change comes first.
    let found = overview.subnets_not_up.first().context("a subnet")?;
    ensure!(found.subnet.to_string() == "10.9.3.128/25", "{found:?}");
    ensure!(found.counts[StatusKind::Down] == 122 && found.counts.total() == 122);
    let same = found.same.as_ref().context("all are the same")?;
    ensure!(
        (same.status, same.reason.as_deref(), same.sent) == (StatusKind::Down, Some("no_arp"), 3)
    );
    let history = found.history.context("it is the newest run")?;
    let times = (
        history.first_seen_us,
        history.last_up_us,
        history.changed_at_us,
    );
    ensure!(
        times == (1_000_128, Some(2_000_000), 9_000_000_000_000_000),
        "{times:?}"
    );
    let half: IpNet = "10.9.3.128/25".parse()?;
    let is_inside = |found: &NotUp| {
        let address = found
            .row
            .address
            .as_ref()
            .and_then(|address| address.parse().ok());
        address.is_some_and(|address: IpAddr| half.contains(&address))
    };
    ensure!(overview.not_up.len() == 20 && !overview.not_up.iter().any(is_inside));
    // With the detail the targets are listed one by one.
    let (detailed, _) = reader.overview_with_detail(2)?;
    ensure!(
        detailed
            .not_up
            .iter()
            .filter(|found| is_inside(found))
            .count()
            == 122
    );
    // The controls: one that answers, and one that may have, are in no such subnet.
    for status in [0, 5] {
        connection.execute(
            "UPDATE results SET status = ?1 WHERE run = 2 AND chunk = 0 AND position = 190",
            [status],
        )?;
        let parts = silent_parts(&reader.overview(2)?);
        let expected = [
            "10.9.3.192/26",
            "10.9.3.128/27",
            "10.9.3.160/28",
            "10.9.3.176/29",
        ];
        ensure!(parts == expected, "{parts:?}");
    }
    // Another outcome is not the same, and beside the subnet it is none of it.
    connection.execute_batch(
        "UPDATE results SET status = 2, reason = NULL WHERE run = 2 AND chunk = 0 AND position = 190",
    )?;
    let overview = reader.overview(2)?;
    let found = overview.subnets_not_up.first().context("a subnet")?;
    ensure!(
        found.same.is_none() && found.counts[StatusKind::Unreachable] == 1,
        "{found:?}"
    );
    // Where a newer run has probed some targets, it is not known since when.
    connection.execute_batch("DELETE FROM latest_rows WHERE chunk = 0 AND position = 3")?;
    let overview = reader.overview(2)?;
    ensure!(silent_parts(&overview) == ["10.9.3.128/25"]);
    ensure!(
        overview
            .subnets_not_up
            .iter()
            .all(|found| found.history.is_none())
    );
    ensure!(overview.not_up.len() == 20 && !overview.not_up.iter().any(is_inside));
    Ok(())
}

#[test]
fn the_detail_has_the_counts_of_plain_sql() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    let (overview, detail) = reader.overview_with_detail(2)?;
    let not_up: i64 = value(
        &connection,
        "SELECT count(*) FROM report WHERE run = 2 AND received = 0",
    )?;
    ensure!(overview.not_up.len() as i64 == not_up && not_up > 20);
    let plain = reader.overview(2)?;
    ensure!(overview.worst_subnets == plain.worst_subnets);
    // The list of the detail has the targets of whole subnets as well.
    let listed = overview
        .not_up
        .iter()
        .filter(|found| plain.not_up.contains(found));
    ensure!(listed.count() == 20 && overview.subnets_not_up.is_empty());
    for bin in &detail.rtt {
        let sql = format!(
            "SELECT count(*) FROM results WHERE run = 2 AND rtt_avg_ns >= {} AND rtt_avg_ns < {}",
            bin.from_ns, bin.to_ns
        );
        ensure!(bin.targets == value::<i64>(&connection, &sql)?, "{bin:?}");
    }
    let answered: i64 = detail.rtt.iter().map(|bin| bin.targets).sum();
    ensure!(answered == overview.summary.counts.answered());
    let started = "(SELECT started_at_us FROM runs WHERE run = 2)";
    for bin in &detail.timeline[1..detail.timeline.len() - 1] {
        let [from, to] = [bin.from_s, bin.from_s + bin.length_s].map(|s| (s * 1e6).round() as i64);
        let sql = format!(
            "SELECT coalesce(sum(received > 0), 0), coalesce(sum(received = 0), 0)
             FROM results r JOIN chunks c USING (run, chunk)
             WHERE run = 2 AND started_at_us + probed_after_us - {started} >= {from}
               AND started_at_us + probed_after_us - {started} < {to}"
        );
        let found = connection.query_row(&sql, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
        ensure!((bin.answered, bin.not_up) == found, "{bin:?} {found:?}");
    }
    let timed: i64 = detail
        .timeline
        .iter()
        .map(|bin| bin.answered + bin.not_up)
        .sum();
    ensure!(timed == 2100);
    for subnet in &detail.subnets {
        let filter = ReportFilter {
            subnets: vec![subnet.subnet],
            ..ReportFilter::default()
        };
        let inside = reader.report(2, &filter).next_page()?;
        for (status, count) in subnet.counts.iter() {
            let same = inside.iter().filter(|row| row.status == status.name());
            ensure!(same.count() as i64 == count, "{subnet:?}");
        }
    }
    // So many subnets of a /8 are too many for single addresses.
    ensure!(detail.addresses.is_none() && detail.subnets.len() > RunDetail::ADDRESS_SUBNETS);
    Ok(())
}

#[test]
fn single_addresses_are_kept_where_a_map_has_room_for_them() -> Result<()> {
    let (_folder, reader, connection) = generated()?;
    // All in 10.0.0.0/12, and two targets with one address.
    connection.execute_batch(
        "UPDATE results SET address = (167772160 + chunk * 300 + position) - 2147483648 WHERE run = 2;
         UPDATE results SET address = 167772160 - 2147483648, status = 6 WHERE run = 2 AND chunk = 0 AND position = 1;",
    )?;
    let (_, detail) = reader.overview_with_detail(2)?;
    let addresses = detail.addresses.context("they are in a /12")?;
    let stored = rows(
        &connection,
        "SELECT address + 2147483648, max(status) FROM results WHERE run = 2 GROUP BY 1 ORDER BY 1",
        |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u8>(1)?)),
    )?;
    let found: Vec<_> = addresses
        .iter()
        .map(|(address, status)| (address.to_bits(), status.code()))
        .collect();
    ensure!(found == stored && found.len() == 2099 && found[0].1 == 6);
    ensure!(RunDetail::ADDRESS_PREFIX == 12);
    Ok(())
}
