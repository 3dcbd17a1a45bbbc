//! `retry`: sends the dead chunks of a run again, or probes targets with some statuses again in a new run.

use std::io::{self, Write as _};

use clap::{Args, builder::PossibleValuesParser};
use pingfleet_settings::{Exit, Failure, Layers, ProbingArgs, ProbingSettings, printed};
use pingfleet_store::{Reader, RunState, RunSummary};
use pingfleet_wire::{Status, StatusKind};
use producer::{EarlierTargets, RunRequest};

use crate::{
    report::layout::Screen,
    resume::{EarlierRun, ResumeArgs, continue_run},
};

/// Arguments of `pingfleet retry`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet retry
  pingfleet retry 3
  pingfleet retry 3 --only down,unknown
  pingfleet retry --only down -c 3 -t 3s -a

Without --only the dead chunks of RUN are sent again, and stay part of it.
With --only a new run probes the targets that have these statuses in RUN, in its
order and with their labels. Names are resolved anew. Settings of probing are
those of RUN, except for those that a flag gives. The new run is done as RUN
was: in this process, or over the broker.")]
pub(crate) struct RetryArgs {
    /// Probe the targets of these statuses again, in a new run
    #[arg(
        long,
        value_name = "STATUS,...",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Status::NAMES),
        hide_possible_values = true
    )]
    only: Vec<String>,
    #[command(flatten)]
    resume: ResumeArgs,
    #[command(flatten)]
    probing: ProbingArgs,
}

pub(crate) fn retry(args: &RetryArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    if args.only.is_empty() {
        if args.probing.is_given() {
            return Err(Failure::new(
                Exit::Usage,
                "dead chunks are sent again as they were planned: flags of probing need --only",
            ));
        }
        return continue_run(&args.resume, layers, quiet, |earlier| {
            Ok(Some(RunRequest::Retry(earlier.run)))
        });
    }
    continue_run(&args.resume, layers, quiet, |earlier| {
        again(args, earlier, quiet)
    })
}

/// The request for a new run, with its settings in `earlier`; none when no target is left.
fn again(
    args: &RetryArgs,
    earlier: &mut EarlierRun<'_>,
    quiet: bool,
) -> Result<Option<RunRequest>, Failure> {
    let run = earlier.run;
    let summary = Reader::open(earlier.database)?.summary(run)?;
    if matches!(summary.state, RunState::Planning | RunState::Running) {
        return Err(Failure::new(
            Exit::Usage,
            format_args!(
                "run {run} is in progress: wait for its end, or stop it with `pingfleet cancel{} {run}`",
                earlier.flags
            ),
        ));
    }
    let statuses: Vec<_> = StatusKind::ALL
        .into_iter()
        .filter(|status| args.only.iter().any(|name| name == status.name()))
        .collect();
    note_missing_rows(&summary, earlier.flags, quiet);
    let names: Vec<_> = statuses.iter().map(|status| status.name()).collect();
    let count: i64 = statuses.iter().map(|status| summary.counts[*status]).sum();
    if count == 0 {
        if !quiet {
            let nothing = Screen::of_stdout().sentence(&format!(
                "no target of run {run} is {}: there is nothing to retry",
                names.join(" or ")
            ));
            printed(writeln!(io::stdout(), "{nothing}"))?;
        }
        return Ok(None);
    }
    let before: &ProbingSettings = &earlier.settings.probing;
    earlier.settings.probing = args.probing.resolve_after(before, &format!("run {run}"))?;
    earlier.settings.seed = None;
    Ok(Some(RunRequest::PlanAgain(EarlierTargets {
        run,
        statuses,
        source: format!("{} of run {run}", names.join(", ")),
    })))
}

/// Targets without a row have no status, so that none of them is retried.
fn note_missing_rows(summary: &RunSummary, flags: &str, quiet: bool) {
    let missing = summary.targets - summary.settled();
    if missing > 0 && !quiet {
        let run = summary.run;
        let note = Screen::of_stderr().sentence(&format!(
            "{missing} of {} targets of run {run} have no result and are not retried: see `pingfleet verify{flags} {run}`",
            summary.targets
        ));
        // If standard error is closed, nobody can read it.
        drop(writeln!(io::stderr(), "{note}"));
    }
}
