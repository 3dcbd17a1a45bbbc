//! `history`: a target or a subnet over all runs.

mod spells;
mod subnet;
mod target;

use std::io::{self, Write as _};

use clap::Args;
use ipnet::IpNet;
use pingfleet_report::words::counted;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, printed};
use pingfleet_store::{DatabaseSettings, REPORT_COLUMNS, Reader};
use serde_json::{Value, json};

use crate::{
    ended_run::{no_run_yet, usage},
    report::{
        layout::{self, Screen},
        values, write_json,
    },
};

/// Arguments of `pingfleet history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet history 10.0.5.17
  pingfleet history core-3.example.net
  pingfleet history 10.0.5.0/24
  pingfleet history 10.0.5.17 --json | jq -r '[.probed_at, .status] | @tsv'")]
pub(crate) struct HistoryArgs {
    /// A target as it was given to the sweep, or a network such as 10.0.5.0/24
    #[arg(value_name = "TARGET")]
    target: String,
    /// JSON, one run per line, the newest first
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

pub(crate) fn history(
    args: &HistoryArgs,
    mut layers: Layers,
    quiet: bool,
) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let reader = Reader::open(&database.path)?;
    let flags = database.as_flags();
    if reader.summaries()?.is_empty() {
        return Err(no_run_yet(&reader, flags));
    }
    if args.target.contains('/') {
        let network = args.target.parse::<IpNet>().map_err(|_| {
            usage("a network is ADDRESS/PREFIX, such as 10.0.5.0/24 or 2001:db8::/64")
        })?;
        subnet_history(args, &reader, network.trunc(), flags, quiet)?;
    } else {
        target_history(args, &reader, flags, quiet)?;
    }
    Ok(Exit::Complete)
}

fn subnet_history(
    args: &HistoryArgs,
    reader: &Reader,
    network: IpNet,
    flags: &str,
    quiet: bool,
) -> Result<(), Failure> {
    let found = reader.subnet_runs(network)?;
    if found.runs.is_empty() {
        let pruned = pruned(found.runs_pruned);
        return Err(usage(format_args!(
            "no run has a target in {network}{}: pingfleet hosts{flags} lists the targets",
            pruned.map_or(String::new(), |pruned| format!(" ({pruned})"))
        )));
    }
    if args.json {
        note_pruned(found.runs_pruned, quiet);
        let mut out = io::stdout().lock();
        let written = found
            .runs
            .iter()
            .try_for_each(|run| write_json(&mut out, subnet::fields(run)));
        return printed(written);
    }
    layout::print(&subnet::blocks(network, &found, Screen::of_stdout()))
}

fn target_history(
    args: &HistoryArgs,
    reader: &Reader,
    flags: &str,
    quiet: bool,
) -> Result<(), Failure> {
    let Some(found) = reader.target_runs(&args.target)? else {
        let similar = reader.similar_targets(&args.target)?;
        let hint = if similar.is_empty() {
            format!("pingfleet hosts{flags} lists the targets")
        } else {
            format!("did you mean {}?", similar.join(" or "))
        };
        return Err(usage(format_args!(
            "no run has the target {:?}: {hint}",
            args.target
        )));
    };
    if args.json {
        note_pruned(found.runs_pruned, quiet);
        let mut out = io::stdout().lock();
        let written = found.rows.iter().try_for_each(|row| {
            let fields: [Value; REPORT_COLUMNS.len()] = values(row);
            write_json(&mut out, REPORT_COLUMNS.into_iter().zip(fields))
        });
        return printed(written);
    }
    let summaries = reader.summaries()?;
    layout::print(&target::blocks(
        &args.target,
        &found,
        &summaries,
        Screen::of_stdout(),
    ))
}

/// How many runs are pruned, if any.
fn pruned(runs: usize) -> Option<String> {
    let verb = if runs == 1 { "is" } else { "are" };
    (runs > 0).then(|| format!("{} {verb} pruned", counted(runs as i64, "run")))
}

/// Says beside JSON that runs are missing there.
fn note_pruned(runs: usize, quiet: bool) {
    if let (Some(pruned), false) = (pruned(runs), quiet) {
        // If standard error is closed, nobody can read it.
        drop(writeln!(io::stderr(), "{pruned}, and left out"));
    }
}

/// A value among others as a sign of one column, from low to high.
fn level(value: f64, least: f64, most: f64) -> char {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let share = if most > least {
        (value - least) / (most - least)
    } else {
        0.0
    };
    LEVELS[((share * 8.0) as usize).min(7)]
}

/// Counts of a JSON object: a field for each status.
fn counts(counts: &pingfleet_store::StatusCounts) -> Value {
    let fields = counts
        .iter()
        .map(|(status, count)| (status.name().to_owned(), json!(count)));
    Value::Object(fields.collect())
}
