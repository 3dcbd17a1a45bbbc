//! `pingfleet sweep`, the whole process from its start to its exit, beside `fping -i 0`.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

use crate::{
    program::{Ran, run},
    rows::{Row, Rows, judge},
    site::{Site, outcome},
    targets::{self, MANY, USUAL},
};

/// A request and one retry, with waits of 1 s and 1.5 s.
const WAITS_S: f64 = 2.5;

/// Gaps between requests in milliseconds: none, and the smallest one with which fping does not run out of sequence
/// numbers.
const FASTEST: &str = "0";
const FEASIBLE: &str = "0.16";

/// fping as fast as it can, with the waits and retries of pingfleet's defaults.
pub(crate) fn fping(site: &Site, hosts: &Path) -> Command {
    fping_at(site, hosts, FASTEST, "2")
}

/// The same at another rate. It prints totals only.
fn fping_at(site: &Site, hosts: &Path, interval_ms: &str, retries: &str) -> Command {
    let mut command = site.namespace().command("fping");
    command
        .args(["-q", "-s", "-i", interval_ms, "-r", retries])
        .args(["-t", "1000", "-B", "1.5", "-f"])
        .arg(hosts);
    command
}

/// One run of it, or of several at once that share the targets.
pub(crate) fn run_fping(
    commands: Vec<Command>,
    case: &'static str,
    program: &'static str,
    round: u32,
) -> anyhow::Result<Row> {
    let ran = run(commands)?;
    let (up, down) = (total(&ran, "alive")?, total(&ran, "unreachable")?);
    Ok(Row {
        case,
        round,
        program,
        targets: (up + down).try_into()?,
        up: Some(up),
        down: Some(down),
        other: Some(0),
        seconds: Some(ran.seconds),
        cpu_seconds: Some(ran.cpu_seconds),
        peak_rss_kb: Some(ran.peak_kb),
        ..Row::default()
    })
}

/// A line of fping's totals, such as `   60000 alive`, over all that ran.
fn total(ran: &Ran, what: &str) -> anyhow::Result<u64> {
    let mut lines = ran
        .stderr
        .lines()
        .filter_map(|line| line.trim().strip_suffix(what))
        .peekable();
    lines
        .peek()
        .with_context(|| format!("fping says: {}", ran.stderr.trim()))?;
    lines.map(|number| Ok(number.trim().parse::<u64>()?)).sum()
}

/// Prints fping's error where it gives up.
fn try_fping(command: Command, what: &str) -> anyhow::Result<()> {
    let ran = run(vec![command])?;
    let said = ran.stderr.lines().find(|line| line.contains("error"));
    println!(
        "  one fping -i 0 over {what}: {}",
        said.unwrap_or("it does it, on this machine")
    );
    Ok(())
}

fn sweep(site: &Site, hosts: &Path, more: &[&str], round: u32) -> anyhow::Result<Row> {
    let database = site.fresh_database()?;
    let mut command = site.program("pingfleet");
    command
        .arg("sweep")
        .arg(hosts)
        .args(["--rate", "unlimited", "--quiet", "--db"])
        .arg(&database)
        .args(more);
    let ran = run(vec![command])?;
    ensure!(ran.success, "pingfleet: {}", ran.stderr);
    Ok(Row {
        program: "pingfleet sweep",
        round,
        seconds: Some(ran.seconds),
        cpu_seconds: Some(ran.cpu_seconds),
        peak_rss_kb: Some(ran.peak_kb),
        ..outcome(&database)?
    })
}

/// All targets answer.
pub(crate) fn answering(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const CASE: &str = "answering";
    let hosts = targets::answering(site.folder(), USUAL)?;
    for round in 1..=rounds {
        let peer = |rows: &mut Rows| {
            let row = run_fping(vec![fping(site, &hosts)], CASE, "fping", round)?;
            rows.note(row)
        };
        let own = |rows: &mut Rows| {
            rows.note(Row {
                case: CASE,
                ..sweep(site, &hosts, &[], round)?
            })
        };
        // They take turns to go first: what one leaves behind must not always affect the other.
        if round % 2 == 1 {
            peer(rows)?;
            own(rows)?;
        } else {
            own(rows)?;
            peer(rows)?;
        }
    }
    let peer = rows.seconds(CASE, "fping");
    let own = rows.seconds(CASE, "pingfleet sweep");
    judge(
        "speed, fping = 1",
        peer.median / own.median,
        1.3..=f64::INFINITY,
    );
    Ok(())
}

/// Nine in ten are silent.
pub(crate) fn silent(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const CASE: &str = "silent";
    let answering = targets::answering(site.folder(), USUAL)?;
    let whole = &targets::mostly_silent(site.folder(), USUAL, 1)?[0];
    let halves = targets::mostly_silent(site.folder(), USUAL, 2)?;
    try_fping(fping_at(site, whole, FASTEST, "1"), "all of them")?;
    for round in 1..=rounds {
        // It takes half a minute.
        let feasible = vec![fping_at(site, whole, FEASIBLE, "1")];
        rows.note(run_fping(feasible, CASE, "fping -i 0.16", round)?)?;
        let rate = vec![fping(site, &answering)];
        rows.note(run_fping(rate, CASE, "fping, all answer", round)?)?;
        let both = halves
            .iter()
            .map(|half| fping_at(site, half, FASTEST, "1"))
            .collect();
        rows.note(run_fping(both, CASE, "two fping, half each", round)?)?;
        rows.note(Row {
            case: CASE,
            ..sweep(site, whole, &["--retries", "1"], round)?
        })?;
    }
    let sending = rows.seconds(CASE, "fping, all answer");
    let one = rows.seconds(CASE, "fping -i 0.16");
    let two = rows.seconds(CASE, "two fping, half each");
    let own = rows.seconds(CASE, "pingfleet sweep");
    let requests = f64::from(USUAL + USUAL / targets::ALIVE_ONE_IN * (targets::ALIVE_ONE_IN - 1));
    let needed = WAITS_S + requests / (f64::from(USUAL) / sending.median);
    println!(
        "  the protocol needs {needed:.3} s: {WAITS_S} s of waiting, and {requests} requests at fping's rate"
    );
    judge(
        "time, what the protocol needs = 1",
        own.median / needed,
        0.0..=1.1,
    );
    judge(
        "time, fping that has enough sequence numbers = 1",
        own.median / one.median,
        0.0..=1.0,
    );
    println!(
        "  for comparison, time, two fping at once = 1: {:.2}",
        own.median / two.median
    );
    Ok(())
}

/// A million targets, beside the usual number of them.
pub(crate) fn million(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const FEW_CASE: &str = "million, 60,000 of them";
    const CASE: &str = "million";
    let few = targets::answering(site.folder(), USUAL)?;
    let many = targets::answering(site.folder(), MANY)?;
    try_fping(fping(site, &many), "all of them")?;
    for round in 1..=rounds {
        rows.note(Row {
            case: FEW_CASE,
            ..sweep(site, &few, &[], round)?
        })?;
        rows.note(Row {
            case: CASE,
            ..sweep(site, &many, &[], round)?
        })?;
    }
    let few = f64::from(USUAL) / rows.seconds(FEW_CASE, "pingfleet sweep").median;
    let many = f64::from(MANY) / rows.seconds(CASE, "pingfleet sweep").median;
    println!("  {few:.0} targets a second, and {many:.0} with a million of them");
    judge(
        "rate, of 60,000 targets = 1",
        many / few,
        0.9..=f64::INFINITY,
    );
    Ok(())
}
