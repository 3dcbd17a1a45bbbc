//! `--dry-run`: prints what a plan would do, and does nothing of it.

use std::{
    io::{self, Write},
    time::Duration,
};

use pingfleet_targets::{Order, Targets};

use crate::{ProducerSettings, cli::read_lines, summary::counted};

/// How many targets are printed as a sample of the order.
const SAMPLE: u64 = 5;

/// Prints counts, order and time of a plan. Nothing is stored, published or probed.
///
/// # Errors
/// What writing, or reading the spooled targets, returns.
pub fn dry_run(
    out: &mut dyn Write,
    targets: &Targets,
    settings: &ProducerSettings,
) -> io::Result<()> {
    let count = targets.count();
    let probing = &settings.probing.probing;
    let chunk_size = settings.probing.chunk_size as u64;
    writeln!(
        out,
        "{} in {} of at most {chunk_size}; {}, {} excluded, {} skipped",
        counted(count as i64, "target"),
        counted(count.div_ceil(chunk_size) as i64, "chunk"),
        counted(targets.duplicates() as i64, "duplicate"),
        targets.excluded(),
        counted(targets.skipped_bad() as i64, "bad target")
    )?;
    for line in read_lines(targets) {
        writeln!(out, "{line}")?;
    }
    let (order, how) = match settings.seed {
        Some(seed) => (
            Order::shuffled(count, seed),
            format!("shuffled with --seed {seed}"),
        ),
        None => (Order::as_given(count), "as given".to_owned()),
    };
    let mut first = Vec::new();
    for n in 0..count.min(SAMPLE) {
        first.push(targets.get(order.position(n))?.target.to_string());
    }
    let more = if count > SAMPLE { ", ..." } else { "" };
    writeln!(out, "order {how}: {}{more}", first.join(", "))?;
    let fewest = count * u64::from(probing.count);
    let most = count * u64::from(probing.most_requests());
    writeln!(
        out,
        "{fewest} {} when all answer, {most} when none does",
        if fewest == 1 { "request" } else { "requests" }
    )?;
    let seconds = |time: Duration| {
        humantime::format_duration(Duration::from_millis(time.as_millis() as u64)).to_string()
    };
    match probing.rate {
        Some(rate) => writeln!(
            out,
            "with one worker at {rate} requests/s: {} when all answer, {} when none does",
            seconds(probing.sending(fewest)),
            seconds(probing.sending(most) + probing.worst_target())
        ),
        None => writeln!(
            out,
            "at an unlimited rate: as fast as the machine sends, and up to {} for the last target",
            seconds(probing.worst_target())
        ),
    }
}
