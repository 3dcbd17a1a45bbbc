//! `export`: the rows of a run for other programs, as JSON Lines, CSV or Parquet. They are streamed: memory holds a few
//! pages of rows.

mod metadata;
pub(crate) mod output;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(not(feature = "parquet"))]
#[path = "no_parquet.rs"]
mod parquet;
mod text;

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, Stop, run_async};
use pingfleet_store::{ExportPage, ExportPart, Reader, ReportFilter, RunSummary, StoreError};
use tokio_util::sync::CancellationToken;

use self::metadata::Metadata;
pub(crate) use self::output::Output;
use crate::{
    filter::FilterArgs,
    read_ahead::{self, read_ahead},
};

/// Files that an export has open: the database with its companions, two files that are written, and the runtime's.
const FILES: u64 = 24;

/// Arguments of `pingfleet export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet export > sweep.jsonl
  pingfleet export 3 -o sweep.csv --status down --status unknown
  pingfleet export -o sweep.csv --metadata sweep.json
  pingfleet export --format csv --where 'rtt_avg_ms > 50' | head
  pingfleet export -o sweep.csv --excel-safe
  pingfleet export | jq -r 'select(.rtt_avg_ms > 50) | .target'

JSON Lines is one object per line, and no JSON array: `jq -s .` makes one of it.
CSV is that of RFC 4180: its lines end with CR LF, and a field is empty for what
was not measured. Parquet is in builds with the cargo feature `parquet`: times
are instants in UTC, round-trip times are exact decimal numbers, and each
100,000 rows are sorted by address.
A file appears when it is whole, in the place of an older one.")]
pub(crate) struct ExportArgs {
    /// A number, the beginning of a UUID, or `latest`
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,
    /// jsonl, csv or parquet [default: by the ending of FILE; jsonl for standard output]
    #[arg(long, value_name = "FORMAT", value_enum, hide_possible_values = true)]
    format: Option<Format>,
    /// The file to write; - is standard output
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "-",
        hide_default_value = true
    )]
    output: PathBuf,
    /// Also write the run, the filters and the number of rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// CSV: put ' before text that a spreadsheet would take for a formula
    #[arg(long)]
    excel_safe: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(alias = "ndjson")]
    Jsonl,
    Csv,
    Parquet,
}

impl Format {
    fn of(args: &ExportArgs) -> Result<Self, Failure> {
        if let Some(format) = args.format {
            return Ok(format);
        }
        if is_stdout(&args.output) {
            return Ok(Self::Jsonl);
        }
        let ending = args.output.extension().map(OsStr::to_ascii_lowercase);
        match ending.as_deref().and_then(OsStr::to_str) {
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(usage(format_args!(
                "the ending of {} is not .jsonl, .csv or .parquet: add --format",
                args.output.display()
            ))),
        }
    }
}

/// Why rows are not written.
enum WriteError {
    Store(StoreError),
    Output(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The pages of an export.
type Pages<'a> = read_ahead::Pages<'a, ExportPage>;

pub(crate) fn export(args: &ExportArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let format = Format::of(args)?;
    if format == Format::Parquet {
        parquet::check("export csv or jsonl")?;
    }
    if args.excel_safe && format != Format::Csv {
        return Err(usage("--excel-safe is for CSV: add --format csv"));
    }
    let reader = crate::open_reader(layers, &args.database)?;
    check_paths(args, reader.path())?;
    if is_stdout(&args.output) {
        if format == Format::Parquet && io::stdout().is_terminal() {
            return Err(usage("Parquet is no text: name a file with -o"));
        }
        // Ctrl-C ends the program at once: nothing is left behind.
        return write(args, format, reader, &CancellationToken::new(), quiet);
    }
    run_async(FILES, async {
        let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
        tokio::task::block_in_place(|| write(args, format, reader, &stop.token, quiet))
    })
}

/// Refuses files that would replace the database or each other.
fn check_paths(args: &ExportArgs, database: &Path) -> Result<(), Failure> {
    let output = Some(&args.output).filter(|path| !is_stdout(path));
    for path in output.into_iter().chain(&args.metadata) {
        refuse_database(path, database)?;
    }
    if let (Some(output), Some(metadata)) = (output, &args.metadata)
        && is_same(output, metadata)
    {
        return Err(usage("-o and --metadata name the same file"));
    }
    Ok(())
}

/// Refuses a file that would replace the database, or one of the files beside it: SQLite's log and its index, and locks.
pub(crate) fn refuse_database(path: &Path, database: &Path) -> Result<(), Failure> {
    if is_same(path, database) {
        return Err(usage(format_args!("{} is the database", path.display())));
    }
    let (Some(place), Some(database)) = (place(path), place(database)) else {
        return Ok(());
    };
    let place = place.to_string_lossy();
    let beside = place.strip_prefix(&*database.to_string_lossy());
    if beside.is_some_and(|end| {
        ["-wal", "-shm", "-journal"].contains(&end)
            || end.starts_with('-')
                && Path::new(end)
                    .extension()
                    .is_some_and(|found| found == "lock")
    }) {
        return Err(usage(format_args!(
            "{} belongs to the database",
            path.display()
        )));
    }
    Ok(())
}

/// Whether two paths name one file, also when it does not exist yet.
fn is_same(one: &Path, other: &Path) -> bool {
    same_file::is_same_file(one, other).unwrap_or(false)
        || place(one).is_some_and(|one| Some(one) == place(other))
}

/// The folder in which a file is or will be, without links and dots, with the file's name.
fn place(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    Some(folder.canonicalize().ok()?.join(path.file_name()?))
}

fn write(
    args: &ExportArgs,
    format: Format,
    reader: Reader,
    stop: &CancellationToken,
    quiet: bool,
) -> Result<Exit, Failure> {
    let reader = &reader.interrupted_by(stop.clone());
    let run = reader.find_run(&args.run)?;
    let filter = args.filter.resolve(reader)?;
    let summary = reader.summary(run)?;
    summary.refuse_pruned()?;
    let mut metadata = Metadata::new(reader, &summary, &args.filter)?;
    // Both are opened before anything is read, so that a path that cannot be written is known at once.
    let mut output = Output::open(&args.output)?;
    let mut about = args.metadata.as_deref().map(Output::open).transpose()?;
    if !quiet && summary.outstanding() > 0 {
        say(&format!(
            "run {run} is {}: {} of its {} targets have a row",
            summary.state.name(),
            summary.settled(),
            summary.targets
        ));
    }
    let parts = reader.export(run, &filter);
    let written = read_ahead(parts, ExportPart::read, stop, |pages| match format {
        Format::Jsonl => text::write_json_lines(&summary, pages, &mut metadata, &mut output),
        Format::Csv => {
            let is_safe = args.excel_safe;
            text::write_csv(&summary, pages, is_safe, &mut metadata, &mut output)
        }
        Format::Parquet => parquet::write(&summary, pages, &mut metadata, &mut output),
    });
    match written {
        Ok(()) => {}
        Err(WriteError::Store(StoreError::Interrupted)) => {
            let file = args.output.display();
            return Err(Failure::new(
                Exit::Interrupted,
                format_args!("interrupted: {file} is not written"),
            ));
        }
        Err(WriteError::Store(error)) => return Err(error.into()),
        // The reader of a pipe has enough.
        Err(WriteError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Ok(Exit::Complete);
        }
        Err(WriteError::Output(error)) => return Err(output.failure(&error)),
    }
    // A run that is pruned meanwhile loses rows that were not read yet. The reader is interrupted by now.
    Reader::open(reader.path())?.summary(run)?.refuse_pruned()?;
    if let Some(about) = &mut about {
        let written = metadata.write(&mut *about);
        written.map_err(|error| about.failure(&error))?;
    }
    output.finish()?;
    about.map_or(Ok(()), Output::finish)?;
    if !quiet && !is_stdout(&args.output) {
        let file = args.output.display();
        say(&format!("{} rows of run {run} in {file}", metadata.rows));
    }
    Ok(Exit::Complete)
}

/// Refuses to write Parquet in a build without its library. `otherwise` is what can be done instead.
///
/// # Errors
/// [`Exit::Usage`].
pub(crate) fn check_parquet(otherwise: &str) -> Result<(), Failure> {
    parquet::check(otherwise)
}

/// Writes all rows of a run as one Parquet file, which appears whole or not at all, and counts the rows that can be read
/// back from it. When the run has another number of rows than it counts, that number is returned, and there is no new
/// file. `stop` interrupts it.
///
/// # Errors
/// [`Exit::System`] when the file cannot be written, or does not have the rows that were written; [`Exit::Interrupted`].
pub(crate) fn write_parquet_file(
    reader: Reader,
    summary: &RunSummary,
    file: &Path,
    stop: &CancellationToken,
) -> Result<u64, Failure> {
    // Its end interrupts the reading of this run only.
    let stop = stop.child_token();
    let reader = reader.interrupted_by(stop.clone());
    let mut metadata = Metadata::new(&reader, summary, &FilterArgs::default())?;
    let mut output = Output::open(file)?;
    output.restrict_to_readers_of(reader.path())?;
    let all = ReportFilter::default();
    let parts = reader.export(summary.run, &all);
    let written = read_ahead(parts, ExportPart::read, &stop, |pages| {
        parquet::write(summary, pages, &mut metadata, &mut output)
    });
    match written {
        Ok(()) => {}
        Err(WriteError::Store(error)) => return Err(error.into()),
        Err(WriteError::Output(error)) => return Err(output.failure(&error)),
    }
    if metadata.rows as i64 != summary.settled() {
        return Ok(metadata.rows);
    }
    output.finish()?;
    let found = parquet::read_rows(file).map_err(|error| {
        let file = file.display();
        Failure::new(
            Exit::System,
            format_args!("cannot read {file} back: {error}"),
        )
    })?;
    if found == metadata.rows {
        return Ok(found);
    }
    Err(Failure::new(
        Exit::System,
        format_args!(
            "{} has {found} of {} rows: the disk or the file system is damaged",
            file.display(),
            metadata.rows
        ),
    ))
}

pub(crate) fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, message)
}

/// Prints a line beside the data.
fn say(line: &str) {
    // If standard error is closed, nobody can read it.
    drop(writeln!(io::stderr(), "{line}"));
}
