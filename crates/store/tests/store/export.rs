//! The rows for programs are those of the view.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use pingfleet_store::{PlannedRun, Reader, ReportFilter, ReportRow, Transport};
use pingfleet_wire::{Status, StatusKind, Target};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    reader::report,
    sample::{delivery, options, plan_of, reader, result, target},
};

/// More than a page.
const TARGETS: u32 = 25_000;

/// Every third target is a name, and the first ones are addresses of IPv6.
fn targets() -> Vec<Target> {
    let v6 = (0..10).map(|number| Target::Address(Ipv6Addr::from_bits(number << 64).into()));
    v6.chain((0..TARGETS).map(target)).collect()
}

#[test]
fn an_export_has_the_values_of_the_view_in_the_same_order() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let chunks = targets().chunks(1000).map(<[_]>::to_vec).collect();
    let (planned, works) = plan_of(&mut store, Transport::Sweep, chunks)?;
    store.start_run(planned.run)?;
    for (number, work) in (0_u32..).zip(&works) {
        let mut answer = result(work, &[Status::Up, Status::Late, Status::DOWN]);
        answer.worker = format!("worker-{}", number % 3);
        for (at, outcome) in (0_u64..).zip(&mut answer.outcomes) {
            outcome.probed_after_us = at * 501;
            if let Some(rtt) = &mut outcome.rtt {
                rtt.avg_ns += at * 7;
            }
        }
        store.apply(Transport::Sweep, &[delivery(answer)])?;
    }
    // Labels of some rows, and a clock that was far behind.
    Connection::open(folder.path().join("fleet.db"))?.execute_batch(
        "INSERT OR REPLACE INTO labels SELECT run, chunk, position, json_object('at', '' || position) FROM results
            WHERE position % 7 = 3 OR chunk = 5;
         UPDATE chunks SET started_at_us = -86400123456 WHERE chunk = 2;
         UPDATE results SET rtt_min_ns = 1, rtt_max_ns = 123456789, rtt_stddev_ns = 77 WHERE position = 6;
         UPDATE results SET status = 5, reason = 'stalled', address = NULL WHERE name IS NOT NULL AND position % 5 = 0",
    )?;
    let wanted = report(&store, planned.run)?;
    ensure!(wanted.iter().any(|row| row.probed_at.starts_with("1969-")));
    let reader = reader(&store)?;
    let condition = Some(reader.report_condition("sent >= 0")?);
    let by_condition = ReportFilter {
        condition,
        ..ReportFilter::default()
    };
    let down_or_unknown = ReportFilter {
        statuses: vec![StatusKind::Down, StatusKind::Unknown],
        ..ReportFilter::default()
    };
    let labelled = ReportFilter {
        labels: vec![("at".to_owned(), "10".to_owned())],
        ..ReportFilter::default()
    };
    let is_down_or_unknown = |row: &&ReportRow| ["down", "unknown"].contains(&&*row.status);
    let is_labelled = |row: &&ReportRow| row.labels.as_deref() == Some(r#"{"at":"10"}"#);
    for (filter, wanted) in [
        (ReportFilter::default(), wanted.clone()),
        (by_condition, wanted.clone()),
        (
            down_or_unknown,
            wanted.iter().filter(is_down_or_unknown).cloned().collect(),
        ),
        (
            labelled,
            wanted.iter().filter(is_labelled).cloned().collect(),
        ),
    ] {
        let found = exported(&reader, &planned, &filter)?;
        ensure!(!found.is_empty() && found.len() == wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            ensure!(found == wanted, "{found:?} is not {wanted:?}");
        }
    }
    Ok(())
}

/// All rows of all pages.
fn exported(
    reader: &Reader,
    planned: &PlannedRun,
    filter: &ReportFilter,
) -> Result<Vec<ReportRow>> {
    let mut found = Vec::new();
    for part in reader.export(planned.run, filter) {
        for row in part?.read()?.rows() {
            let mut probed_at = String::new();
            row.write_probed_at(&mut probed_at)?;
            found.push(ReportRow {
                run: planned.run,
                run_id: planned.run_id.to_string(),
                target: row.target.to_owned(),
                address: row.address.map(str::to_owned),
                status: row.status.name().to_owned(),
                reason: row.reason.map(str::to_owned),
                sent: row.sent,
                received: row.received,
                loss_pct: row.loss_pct(),
                rtt_ms: row.rtt_ms(),
                attempts: row.attempts,
                worker: row.worker.map(str::to_owned),
                login: row.login.map(str::to_owned),
                probed_at,
                labels: row.labels.map(str::to_owned),
            });
        }
    }
    Ok(found)
}
