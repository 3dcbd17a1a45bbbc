//! `runs`: the list of runs.

use std::io::{self, Write};

use clap::Args;
use pingfleet_report::json::run_fields;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, printed};
use pingfleet_store::Reader;
use pingfleet_wire::StatusKind;

use crate::report::{layout::escaped, table, write_json};

/// Arguments of `pingfleet runs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet runs
  pingfleet runs --json | jq 'select(.state == \"incomplete\") | .run'")]
pub(crate) struct RunsArgs {
    /// JSON, one object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

pub(crate) fn runs(args: &RunsArgs, reader: &Reader) -> Result<Exit, Failure> {
    let summaries = reader.summaries()?;
    let mut out = io::stdout().lock();
    if args.json {
        for summary in &summaries {
            printed(write_json(&mut out, run_fields(summary)))?;
        }
        return Ok(Exit::Complete);
    }
    let mut table = table(&[
        "RUN",
        "STATE",
        "STARTED",
        "TIME",
        "TARGETS",
        "UP",
        "DOWN",
        "OTHER",
        "CHUNKS",
        "TRANSPORT",
        "SOURCE",
    ]);
    for summary in &summaries {
        let answered = summary.counts.answered();
        let down = summary.counts[StatusKind::Down];
        table.add_row([
            summary.run.to_string(),
            match &summary.pruned {
                Some(_) => format!("{}, pruned", summary.state.name()),
                None => summary.state.name().to_owned(),
            },
            to_the_second(&summary.started_at),
            format!("{:.1}s", summary.elapsed_s),
            summary.targets.to_string(),
            answered.to_string(),
            down.to_string(),
            (summary.settled() - answered - down).to_string(),
            format!("{}/{}", summary.chunks_done, summary.chunks),
            summary.transport.name().to_owned(),
            escaped(&summary.source).into_owned(),
        ]);
    }
    printed(writeln!(out, "{}", table.trim_fmt()))?;
    Ok(Exit::Complete)
}

/// A time without its fraction, to keep the table narrow.
fn to_the_second(time: &str) -> String {
    time.split_once('.')
        .map_or_else(|| time.to_owned(), |(second, _)| format!("{second}Z"))
}
