//! `workers`: what each worker does now.

mod text;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, printed};
use pingfleet_store::{DatabaseSettings, Fleet, Reader, WorkerRow};
use serde_json::{Value, json};

use crate::{ended_run::usage, report::write_json};

/// Between two screens of `--watch`.
const REDRAWN_EVERY: Duration = Duration::from_secs(2);

/// Arguments of `pingfleet workers`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet workers
  pingfleet workers --watch
  pingfleet workers --json | jq -r 'select(.state == \"LOST\" and (.started_again | not)) | .worker'

A worker is LOST when nothing was heard of it for 30 s. It stays in the list
for 7 days, also when it was started again: then another process of its name
was heard since. One that stopped in order leaves the list.")]
pub(crate) struct WorkersArgs {
    /// JSON, one worker per line
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Show it again every 2 s, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

pub(crate) fn workers(
    args: &WorkersArgs,
    mut layers: Layers,
    quiet: bool,
) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    if args.watch && !io::stdout().is_terminal() {
        return Err(usage(
            "--watch needs a terminal; for other programs, run pingfleet workers --json as often as needed",
        ));
    }
    let reader = Reader::open(&database.path)?;
    loop {
        let fleet = reader.fleet()?;
        if args.watch {
            text::redraw(&fleet)?;
            thread::sleep(REDRAWN_EVERY);
            continue;
        }
        if args.json {
            print_json(&fleet)?;
        } else {
            text::print(&fleet)?;
        }
        if fleet.workers.is_empty() && !quiet {
            // If standard error is closed, nobody can read it.
            drop(writeln!(io::stderr(), "{}", text::NO_WORKERS));
        }
        return Ok(Exit::Complete);
    }
}

fn print_json(fleet: &Fleet) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for worker in &fleet.workers {
        printed(write_json(&mut out, fields(fleet, worker)))?;
    }
    Ok(())
}

fn fields(fleet: &Fleet, worker: &WorkerRow) -> impl Iterator<Item = (&'static str, Value)> {
    let losses: serde_json::Map<_, _> = worker
        .local_losses
        .named()
        .map(|(cause, count)| (cause.to_owned(), json!(count)))
        .collect();
    [
        ("worker", json!(worker.worker)),
        ("login", json!(worker.login)),
        ("state", json!(worker.state.word())),
        ("started_again", json!(worker.is_started_again)),
        ("as_of", json!(time(fleet.as_of_us))),
        ("last_seen", json!(time(worker.last_seen_us))),
        ("last_seen_age_s", json!(worker.age.as_secs_f64())),
        ("group", json!(worker.group)),
        ("version", json!(worker.version)),
        ("pid", json!(worker.pid)),
        ("instance", json!(worker.instance.to_string())),
        ("chunks_in_hand", json!(worker.in_hand)),
        (
            "oldest_in_hand_s",
            json!(worker.oldest_in_hand.map(|age| age.as_secs_f64())),
        ),
        ("requests_per_s", json!(worker.requests_per_s)),
        ("requests", json!(worker.requests_sent)),
        ("replies", json!(worker.replies)),
        ("chunks_done", json!(worker.chunks_done)),
        ("targets_done", json!(worker.targets_done)),
        ("local_losses", Value::Object(losses)),
        ("threads", json!(worker.threads)),
        ("prefetch", json!(worker.prefetch)),
        ("rate", json!(worker.rate)),
    ]
    .into_iter()
}

/// RFC 3339, UTC, in milliseconds.
fn time(micros: i64) -> Option<String> {
    let time = Timestamp::from_microsecond(micros).ok()?;
    Some(format!("{time:.3}"))
}
