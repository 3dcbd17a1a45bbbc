//! `diff`: what changed between two runs.

mod json;
mod text;

use std::{path::PathBuf, time::Duration};

use clap::Args;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers};
use pingfleet_store::{DatabaseSettings, DiffLimits, Reader, RunState, RunSummary};

use crate::{
    ended_run::{no_run_yet, usage},
    page,
    report::layout::escaped,
};

/// The limits of a round-trip time that is a change, if none are given.
const RTT_FACTOR: &str = "2";
const RTT_MIN: &str = "5ms";

/// Arguments of `pingfleet diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet diff
  pingfleet diff 41 42
  pingfleet diff --html changes.html
  pingfleet diff --exit-code -q --json > changes.jsonl
  pingfleet diff --rtt-factor 3 --rtt-min 20ms
  pingfleet diff --json | jq -r 'select(.change == \"stopped_answering\") | .target'

A target that is `unknown` in one of the runs is no change: its answer may have been
lost on the machine that probed. Where all of a subnet changed in the same way (a /24, a
/64, or a part of a /24), the text names the subnet and not its targets.")]
pub(crate) struct DiffArgs {
    /// The first run: a number, the beginning of a UUID, or `latest`
    /// [default: the complete run of the same source before B]
    #[arg(value_name = "A")]
    before: Option<String>,
    /// The second run [default: the latest complete run]
    #[arg(value_name = "B")]
    after: Option<String>,
    /// A round-trip time is a change if it is longer or shorter by more than this factor
    #[arg(long, value_name = "FACTOR", default_value = RTT_FACTOR, value_parser = factor)]
    rtt_factor: f64,
    /// And by more than this time
    #[arg(long, value_name = "TIME", default_value = RTT_MIN, value_parser = humantime::parse_duration)]
    rtt_min: Duration,
    /// List every change, not the first 20 of each kind
    #[arg(long, conflicts_with = "json")]
    all: bool,
    /// JSON, one change per line
    #[arg(long)]
    json: bool,
    /// Write the changes as one HTML page to this file; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "all"])]
    html: Option<PathBuf>,
    /// End with 1 if anything changed
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

pub(crate) fn diff(args: &DiffArgs, mut layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let reader = Reader::open(&database.path)?;
    let (before, after) = runs(args, &reader, database.as_flags())?;
    let limits = DiffLimits {
        rtt_factor: args.rtt_factor,
        rtt_min_ns: i64::try_from(args.rtt_min.as_nanos()).unwrap_or(i64::MAX),
    };
    let total = if let Some(path) = &args.html {
        let flags = database.as_flags();
        page::write(reader, path, |reader| {
            let mut diff = reader.diff(before, after, limits)?;
            let command = text::command(&diff, flags);
            let page = pingfleet_report::diff_page(reader, &mut diff, &command)?;
            Ok((page, diff.total()))
        })?
    } else {
        let mut diff = reader.diff(before, after, limits)?;
        if args.json {
            json::print(&mut diff, quiet)?;
        } else {
            text::print(&mut diff, args.all, database.as_flags())?;
        }
        diff.total()
    };
    Ok(if args.exit_code && total > 0 {
        Exit::SomeDown
    } else {
        Exit::Complete
    })
}

/// The two runs: those that are named, or the newest that can be compared.
fn runs(args: &DiffArgs, reader: &Reader, flags: &str) -> Result<(i64, i64), Failure> {
    let summaries = reader.summaries()?;
    if summaries.is_empty() {
        return Err(no_run_yet(reader, flags));
    }
    let named = |run: &Option<String>| {
        let run = run.as_deref().map(|run| reader.find_run(run));
        run.transpose()
    };
    let (before, after) = match (named(&args.before)?, named(&args.after)?) {
        (Some(before), Some(after)) => (before, after),
        (Some(before), None) => {
            reader.summary(before)?.refuse_pruned()?;
            let newest = reader.newest_run_of_its_source(before)?.ok_or_else(|| {
                usage(format_args!(
                    "no newer complete run of its source can be compared with run {before}. Name two: pingfleet diff{flags} A B"
                ))
            })?;
            (before, newest)
        }
        (None, _) => reader
            .runs_to_compare(None)?
            .ok_or_else(|| no_two_runs(&summaries, flags))?,
    };
    for run in [before, after] {
        let summary = reader.summary(run)?;
        if matches!(summary.state, RunState::Planning | RunState::Running) {
            return Err(Failure::new(
                Exit::Incomplete,
                format_args!(
                    "run {run} is in progress: wait for its end. What is known so far: pingfleet report{flags} {run}"
                ),
            ));
        }
    }
    Ok((before, after))
}

/// Why there are no two runs to compare.
fn no_two_runs(summaries: &[RunSummary], flags: &str) -> Failure {
    let complete = summaries
        .iter()
        .rev()
        .filter(|summary| summary.state == RunState::Complete);
    let (pruned, kept): (Vec<_>, Vec<_>) = complete.partition(|summary| summary.pruned.is_some());
    match (kept.first(), pruned.len()) {
        (None, 0) => usage(format_args!(
            "no run is complete yet: pingfleet runs{flags} lists them"
        )),
        (None, _) => usage(format_args!(
            "all complete runs are pruned, so there is nothing to compare: pingfleet runs{flags} lists them"
        )),
        (Some(run), pruned) => usage(format_args!(
            "run {} is the only complete one of {}{}: sweep it again, or name two runs: pingfleet diff{flags} A B",
            run.run,
            escaped(&run.source),
            if pruned > 0 {
                " that is not pruned"
            } else {
                ""
            },
        )),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("a factor is a number of at least 1, such as 2 or 1.5".to_owned()),
    }
}
