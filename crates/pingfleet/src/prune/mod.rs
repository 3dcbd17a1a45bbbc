//! `prune`: removes the rows of old runs, and archives them before if that is wanted.
//!
//! Order for each run: its archive is whole on disk and read back, then the run is marked as pruned, then its rows go in
//! short transactions. Killed at any moment and repeated, no row is lost and none is archived twice.

mod archive;
mod choice;
mod vacuum;

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgGroup, Args};
use pingfleet_report::words::counted;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, Stop, printed, run_async};
use pingfleet_store::{
    DatabaseSettings, FileLock, Reader, RemovedRows, RunSummary, StoreError, Writer,
};
use tokio_util::sync::CancellationToken;

use self::{
    archive::Archive,
    choice::{Choice, Rule},
};
use crate::{export::check_parquet, report::layout::Screen};

/// Files that are open: the database twice with its companions, an archive file, and the runtime's.
const FILES: u64 = 32;

/// Arguments of `pingfleet prune`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("rule").required(true).args(["keep", "older_than"])),
    after_help = "\
Examples:
  pingfleet prune --keep 30 --dry-run
  pingfleet prune --older-than 30d
  pingfleet prune --older-than 30d --archive archive
  pingfleet prune --keep 10 --vacuum

A pruned run stays in `pingfleet runs` and in the view run_summary with all its
counts. Its rows go, except for those that `latest` shows: the newest row of
each target, and since when it has its status, are never lost. A run in
progress, or one that can still be resumed or retried, is kept.

--archive writes the rows of each run to DIR/run-N-UUID.parquet before they are
removed. DuckDB and pandas read the folder as one table: docs/queries.md.

The file does not get smaller by itself: later runs use the free room. --vacuum
rewrites it. If prune is interrupted, the same command continues."
)]
pub(crate) struct PruneArgs {
    /// Keep the newest N runs, prune the others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Prune the runs that ended longer ago than this, such as 30d or 12h
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Write the rows of each run to this folder as Parquet before they are removed
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    /// Make the file smaller afterwards; nobody can write meanwhile
    #[arg(long)]
    vacuum: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// An age with its unit.
fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| format!("{text:?} is not an age with a unit, such as 30d or 12h"))
}

impl PruneArgs {
    fn rule(&self) -> Rule {
        match (self.keep, self.older_than) {
            (_, Some(age)) => Rule::OlderThan(age),
            (keep, None) => Rule::Keep(keep.map_or(usize::MAX, |keep| keep as usize)),
        }
    }
}

pub(crate) fn prune(args: &PruneArgs, mut layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    if args.archive.is_some() {
        check_parquet("prune without --archive")?;
    }
    run_async(FILES, async {
        let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
        tokio::task::block_in_place(|| prune_runs(args, &database, &stop.token, quiet))
    })
}

fn prune_runs(
    args: &PruneArgs,
    database: &DatabaseSettings,
    stop: &CancellationToken,
    quiet: bool,
) -> Result<Exit, Failure> {
    let reader = Reader::open(&database.path)?.interrupted_by(stop.clone());
    let choice = Choice::of(&reader.summaries()?, args.rule());
    if !quiet {
        say(&choice.notes(database.as_flags()));
    }
    if args.dry_run {
        return dry_run(args, &choice, &reader.latest_counts()?);
    }
    let archive = args.archive.as_deref().map(Archive::open).transpose()?;
    let mut pruning = Pruning {
        database: &database.path,
        writer: database.options(false, false).open()?,
        archive,
        stop,
        quiet,
        removed: 0,
        pruned: 0,
        failed: Vec::new(),
    };
    // What an interrupted call left, and what `latest` showed until a newer run had the target.
    for run in pruning.writer.pruned_runs_to_clean(&reader)? {
        pruning.remove_rows(run)?;
    }
    for chosen in &choice.runs {
        pruning.prune(chosen.run)?;
    }
    pruning.conclude(args, &choice)
}

/// Prints what would be done.
fn dry_run(
    args: &PruneArgs,
    choice: &Choice,
    in_latest: &HashMap<i64, i64>,
) -> Result<Exit, Failure> {
    let mut lines = Vec::new();
    let mut total = 0;
    for summary in &choice.runs {
        let kept = in_latest.get(&summary.run).copied().unwrap_or(0);
        let rows = summary.settled() - kept;
        total += rows;
        let rows = rows_of(rows, "to remove", kept);
        let after = args.archive.as_deref().map_or(String::new(), |folder| {
            format!(", after {}", Archive::file_in(folder, summary).display())
        });
        lines.push(format!("run {}: {rows}{after}", summary.run));
    }
    lines.push(format!(
        "{} would be pruned, {} removed; nothing was changed",
        counted(choice.runs.len() as i64, "run"),
        counted(total, "row")
    ));
    lines.iter().try_for_each(|line| print(line))?;
    Ok(Exit::Complete)
}

/// "1,000 rows removed, 3 rows that `latest` shows are kept".
fn rows_of(rows: i64, verb: &str, kept: i64) -> String {
    let kept = match kept {
        0 => String::new(),
        kept => format!(", {} that `latest` shows kept", counted(kept, "row")),
    };
    format!("{} {verb}{kept}", counted(rows, "row"))
}

/// A call of `prune`.
struct Pruning<'a> {
    database: &'a Path,
    writer: Writer,
    archive: Option<Archive>,
    stop: &'a CancellationToken,
    quiet: bool,
    /// Rows that were removed.
    removed: u64,
    /// Runs that were pruned.
    pruned: i64,
    /// A message for each run whose rows are not those that it counts.
    failed: Vec<String>,
}

impl Pruning<'_> {
    /// Archives, marks and removes the rows of one run, unless somebody uses it.
    fn prune(&mut self, run: i64) -> Result<(), Failure> {
        if self.stop.is_cancelled() {
            return Err(self.interrupted());
        }
        let _lock = match FileLock::run(self.database, run) {
            Ok(lock) => lock,
            Err(error @ StoreError::AlreadyLocked { .. }) => {
                self.note(&format!("{error}: it is kept"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let reader = Reader::open(self.database)?;
        let summary = reader.summary(run)?;
        if summary.pruned.is_some() {
            // Another call was faster.
            return Ok(());
        }
        let archived = match self.archive_rows(reader, &summary)? {
            Ok(file) => file,
            Err(rows) => {
                self.failed.push(format!(
                    "run {run} counts {} rows and has {rows}: it is not pruned; `pingfleet verify {run}` shows why",
                    summary.settled()
                ));
                return Ok(());
            }
        };
        let marked = self.writer.mark_pruned(&summary, archived.as_deref());
        if !marked.map_err(|error| self.failure(error))? {
            archived.as_deref().map_or(Ok(()), Archive::remove)?;
            self.note(&format!(
                "run {run} changed meanwhile: it is kept; prune again"
            ));
            return Ok(());
        }
        self.pruned += 1;
        let rows = self.remove_rows(run)?;
        if self.quiet {
            return Ok(());
        }
        let removed = rows_of(rows.removed as i64, "removed", rows.kept as i64);
        let place = archived.map_or(String::new(), |file| format!("; all are in {file}"));
        print(&format!("run {run}: {removed}{place}"))
    }

    /// Writes the file of a run if that is wanted. Returns its name, or how many rows the run has when it counts another
    /// number.
    fn archive_rows(
        &self,
        reader: Reader,
        summary: &RunSummary,
    ) -> Result<Result<Option<String>, u64>, Failure> {
        let Some(archive) = &self.archive else {
            return Ok(Ok(None));
        };
        match archive.write(reader, summary, self.stop) {
            Ok(written) => Ok(written.map(Some)),
            Err(error) if error.exit == Exit::Interrupted => Err(self.interrupted()),
            Err(error) => Err(error),
        }
    }

    fn remove_rows(&mut self, run: i64) -> Result<RemovedRows, Failure> {
        let rows = self
            .writer
            .remove_pruned_rows(run, self.stop)
            .map_err(|error| self.failure(error))?;
        self.removed += rows.removed;
        Ok(rows)
    }

    /// Vacuums if that is wanted, and prints the sum.
    fn conclude(mut self, args: &PruneArgs, choice: &Choice) -> Result<Exit, Failure> {
        let did_nothing = self.pruned == 0 && self.removed == 0;
        if !self.quiet && (!did_nothing || self.failed.is_empty()) {
            let sum = if did_nothing {
                format!("nothing to prune: {}", choice.why_nothing(args.rule()))
            } else {
                format!(
                    "{} pruned, {} removed",
                    counted(self.pruned, "run"),
                    counted(self.removed as i64, "row")
                )
            };
            print(&sum)?;
        }
        if args.vacuum {
            match vacuum::vacuum(&mut self.writer) {
                Ok(sizes) if !self.quiet => print(&sizes)?,
                Ok(_) => {}
                // What failed before it is said as well.
                Err(failure) if self.failed.is_empty() => return Err(failure),
                Err(failure) => self.failed.push(failure.message),
            }
        }
        self.writer.close()?;
        if self.failed.is_empty() {
            return Ok(Exit::Complete);
        }
        Err(Failure::new(Exit::System, self.failed.join("; ")))
    }

    /// After the stop signal a database that stays locked is no failure of its own.
    fn failure(&self, error: StoreError) -> Failure {
        let waited = error.is_transient() && self.stop.is_cancelled();
        if waited || matches!(error, StoreError::Interrupted) {
            self.interrupted()
        } else {
            error.into()
        }
    }

    fn interrupted(&self) -> Failure {
        Failure::new(
            Exit::Interrupted,
            format_args!(
                "interrupted; {} pruned. The same command continues",
                counted(self.pruned, "run")
            ),
        )
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            say(&[line.to_owned()]);
        }
    }
}

/// Prints a sentence, which fits a terminal.
fn print(sentence: &str) -> Result<(), Failure> {
    let sentence = Screen::of_stdout().sentence(sentence);
    printed(writeln!(io::stdout(), "{sentence}"))
}

/// Prints sentences beside the data.
fn say(sentences: &[String]) {
    let screen = Screen::of_stderr();
    for sentence in sentences {
        // If standard error is closed, nobody can read it.
        drop(writeln!(io::stderr(), "{}", screen.sentence(sentence)));
    }
}
