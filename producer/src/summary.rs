//! The final summary of a run, as text.

use std::io::{self, Write};

use pingfleet_store::{RunState, RunSummary};
use pingfleet_wire::StatusKind;

use crate::NextCommands;

/// "1 chunk", "2 chunks".
pub(crate) fn counted(count: i64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Writes the summary of a run: counts per status, chunks, time. `next` are the commands that it names.
///
/// # Errors
/// What writing returns.
pub fn print_summary(
    out: &mut dyn Write,
    summary: &RunSummary,
    next: &NextCommands,
) -> io::Result<()> {
    writeln!(
        out,
        "run {} {} ({})",
        summary.run,
        summary.state.name(),
        summary.run_id
    )?;
    let width = summary.targets.to_string().len().max(7);
    writeln!(out, "  {:>width$}  targets", summary.targets)?;
    for (status, count) in summary.counts.iter() {
        // The two statuses that everybody looks for are printed even when their count is 0.
        if count > 0 || matches!(status, StatusKind::Up | StatusKind::Down) {
            let share = 100.0 * count as f64 / summary.targets.max(1) as f64;
            writeln!(out, "  {count:>width$}  {} ({share:.1}%)", status.name())?;
        }
    }
    let missing = summary.targets - summary.settled();
    if missing > 0 {
        writeln!(out, "  {missing:>width$}  not settled")?;
    }
    let rate = summary.settled() as f64 / summary.elapsed_s.max(0.001);
    write!(
        out,
        "  {}/{} chunks in {:.1} s ({rate:.0} targets/s)",
        summary.chunks_done, summary.chunks, summary.elapsed_s
    )?;
    for (count, what) in [
        (summary.chunks_dead, "dead chunk"),
        (summary.duplicates, "duplicate"),
        (summary.redelivered, "redelivered result"),
    ] {
        if count > 0 {
            write!(out, ", {}", counted(count, what))?;
        }
    }
    writeln!(out)?;
    if summary.state == RunState::Incomplete && summary.chunks_dead > 0 {
        writeln!(
            out,
            "  dead chunks are listed by `pingfleet verify{flags} {run}` and published again by \
             `pingfleet retry{flags}{broker} {run}`",
            flags = next.flags,
            broker = next.broker,
            run = summary.run
        )?;
    }
    Ok(())
}
