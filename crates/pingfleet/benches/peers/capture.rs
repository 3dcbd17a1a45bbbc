//! Round-trip times in the report beside those of a capture on the link, in which the kernel stamps both messages: by how
//! much they differ, request by request.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context, ensure};
use pingfleet_store::{Reader, ReportFilter};

use crate::{
    program::run,
    rows::{Row, Rows, Spread, judge},
    rtt::percentile,
    site::{Site, outcome, report},
    targets::{self, USUAL},
};

const CASE: &str = "capture";
const PROGRAM: &str = "pingfleet sweep less the capture";

/// Requests a second.
const RATE: &str = "50000";

/// Targets that all answer.
pub(crate) fn capture(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    let hosts = targets::answering(site.folder(), USUAL)?;
    for round in 1..=rounds {
        rows.note(sweep(site, &hosts, round)?)?;
    }
    let median = rows.spread(CASE, PROGRAM, |row| row.rtt_median_us);
    let p99 = rows.spread(CASE, PROGRAM, |row| row.rtt_p99_us);
    println!("  difference to the capture: median {median} us   99th percentile {p99} us");
    judge("microseconds, median", median.median, 0.0..=5.0);
    judge("microseconds, 99th percentile", p99.median, 0.0..=50.0);
    Ok(())
}

/// One sweep; its round-trip times are the differences.
fn sweep(site: &Site, hosts: &Path, round: u32) -> anyhow::Result<Row> {
    let database = site.fresh_database()?;
    let capture = site.namespace().capture()?;
    let mut command = site.program("pingfleet");
    command
        .arg("sweep")
        .arg(hosts)
        .args(["--rate", RATE, "--quiet", "--db"])
        .arg(&database);
    let ran = run(vec![command])?;
    ensure!(ran.success, "pingfleet: {}", ran.stderr);
    let captured = capture.round_trips()?;
    let mut differences = Vec::new();
    for row in report(&Reader::open(&database)?, &ReportFilter::default())? {
        let Some(reported_ms) = row.rtt_ms[1] else {
            continue;
        };
        let address: Ipv4Addr = row.target.parse()?;
        let on_link = captured
            .get(&address)
            .with_context(|| format!("{address} is not in the capture"))?;
        // Of several requests the report has the mean.
        if let [on_link] = on_link[..] {
            differences.push((reported_ms * 1000.0 - on_link.as_secs_f64() * 1e6).abs());
        }
    }
    ensure!(
        differences.len() > USUAL as usize / 2,
        "only {} of {USUAL} targets were asked once and answered",
        differences.len()
    );
    Ok(Row {
        case: CASE,
        round,
        program: PROGRAM,
        seconds: Some(ran.seconds),
        cpu_seconds: Some(ran.cpu_seconds),
        rtt_p99_us: Some(percentile(&differences, 0.99)),
        rtt_median_us: Some(Spread::of(differences).median),
        ..outcome(&database)?
    })
}
