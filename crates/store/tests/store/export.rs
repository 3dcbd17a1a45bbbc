//! The rows for programs are those of the view.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use pingfleet_store::{ReportFilter, ReportRow, Transport};
use pingfleet_wire::{Status, Target};
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
    let wanted = report(&store, planned.run)?;
    let times = Connection::open_in_memory()?;
    let mut time =
        times.prepare("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000.0, 'unixepoch')")?;
    let reader = reader(&store)?;
    let run_id = planned.run_id.to_string();
    let mut pages = reader.export(planned.run, &ReportFilter::default());
    let (mut found, mut page_count) = (Vec::new(), 0);
    loop {
        let page = pages.next_page()?;
        if page.is_empty() {
            break;
        }
        page_count += 1;
        for row in page.rows() {
            found.push(ReportRow {
                run: planned.run,
                run_id: run_id.clone(),
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
                probed_at: time.query_row([row.probed_at_ms], |row| row.get(0))?,
                labels: row.labels.map(str::to_owned),
            });
        }
    }
    ensure!(
        page_count > 1 && found.len() == wanted.len(),
        "{page_count}, {}",
        found.len()
    );
    for (found, wanted) in found.iter().zip(&wanted) {
        ensure!(found == wanted, "{found:?} is not {wanted:?}");
    }
    Ok(())
}
