//! The `pingfleet` program: sweeps in one process, and all commands that use the database.

mod broker;
mod cancel;
mod diff;
mod doctor;
mod ended_run;
mod export;
mod filter;
mod history;
mod hosts;
mod one_process;
mod page;
mod prune;
mod read_ahead;
mod report;
mod resume;
mod retry;
mod runs;
mod sweep;
mod verify;
mod workers;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pingfleet_settings::{CommonArgs, DatabaseArgs, Exit, Failure, Layers, Verbosity, main_with};
use pingfleet_store::{DatabaseSettings, Reader, Writer};

/// Ping sweeps whose answer can be trusted
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  pingfleet sweep 10.0.0.0/24
  pingfleet report
  pingfleet diff
  pingfleet history 10.0.0.17
  pingfleet export -o sweep.csv
  pingfleet verify
  pingfleet doctor

RUN is a number, the beginning of a UUID, or `latest`."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plan, probe and store in one process, without a broker
    Sweep(Box<sweep::SweepArgs>),
    /// List the runs
    Runs(runs::RunsArgs),
    /// Show what a run found: a summary, or every target
    Report(report::ReportArgs),
    /// Write the rows of a run for other programs: JSON Lines, CSV or Parquet
    Export(export::ExportArgs),
    /// Show what changed between two runs
    Diff(diff::DiffArgs),
    /// List the targets with their newest status, and since when they have it
    Hosts(hosts::HostsArgs),
    /// Show a target or a subnet over all runs
    History(history::HistoryArgs),
    /// List the workers: which are live or lost, and what each does
    Workers(workers::WorkersArgs),
    /// Prove that every target of a run has exactly one final state
    #[command(
        after_help = "Examples:\n  pingfleet verify\n  pingfleet verify 3\n  pingfleet verify --database"
    )]
    Verify(verify::VerifyArgs),
    /// Continue an interrupted run
    #[command(after_help = "Examples:\n  pingfleet resume\n  pingfleet resume 3 -u")]
    Resume(resume::ResumeArgs),
    /// Send the dead chunks of a run again, or probe some of its targets again
    Retry(Box<retry::RetryArgs>),
    /// Cancel a run: nothing more of it is published
    #[command(after_help = "Examples:\n  pingfleet cancel\n  pingfleet cancel 3")]
    Cancel(RunArgs),
    /// Remove the rows of old runs, after archiving them if wanted
    Prune(prune::PruneArgs),
    /// Check what sweeps need on this machine, and print a fix for each problem
    #[command(after_help = "Examples:\n  pingfleet doctor\n  pingfleet doctor --db /srv/sweeps.db")]
    Doctor(doctor::DoctorArgs),
    /// Set up the broker, and the logins of those who use it
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
}

#[cfg(target_os = "linux")]
impl Command {
    /// Whether it reads the database and changes nothing.
    fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Runs(_)
                | Self::Report(_)
                | Self::Export(_)
                | Self::Diff(_)
                | Self::Hosts(_)
                | Self::History(_)
                | Self::Workers(_)
                | Self::Verify(_)
        )
    }
}

/// How much nicer a command that only reads is than who started it (nice(2)).
#[cfg(target_os = "linux")]
const READING_NICENESS: i32 = 10;

/// Names a run of a database.
#[derive(Debug, Args)]
struct RunArgs {
    /// A number, the beginning of a UUID, or `latest`
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,
    #[command(flatten)]
    database: DatabaseArgs,
}

fn main() -> ExitCode {
    main_with(program)
}

fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let layers = arguments.common.layers(Verbosity::Warnings);
    let quiet = arguments.common.quiet;
    // A sweep or a writer beside it goes first. Threads that it starts later are as nice. Without it the command works as well.
    #[cfg(target_os = "linux")]
    if arguments.command.only_reads() {
        rustix::process::nice(READING_NICENESS).ok();
    }
    match &arguments.command {
        Command::Sweep(args) => sweep::sweep(args, layers, quiet),
        Command::Resume(args) => resume::resume(args, layers, quiet),
        Command::Retry(args) => retry::retry(args, layers, quiet),
        Command::Runs(args) => runs::runs(args, &open_reader(layers, &args.database)?),
        Command::Report(args) => report::report(args, layers),
        Command::Export(args) => export::export(args, layers, quiet),
        Command::Diff(args) => diff::diff(args, layers, quiet),
        Command::Hosts(args) => hosts::hosts(args, layers, quiet),
        Command::History(args) => history::history(args, layers, quiet),
        Command::Workers(args) => workers::workers(args, layers, quiet),
        Command::Verify(args) => verify::verify(args, layers),
        Command::Cancel(args) => {
            cancel::cancel(&args.run, &mut open(layers, &args.database)?, quiet)
        }
        Command::Prune(args) => prune::prune(args, layers, quiet),
        Command::Doctor(args) => doctor::doctor(args, layers),
        Command::Broker(command) => broker::run(command, layers, quiet),
    }
}

/// Opens an existing database to read it.
fn open_reader(mut layers: Layers, args: &DatabaseArgs) -> Result<Reader, Failure> {
    let database = DatabaseSettings::resolve(args, &mut layers);
    layers.finish()?;
    Ok(Reader::open(&database.path)?)
}

/// Opens an existing database to change it.
fn open(mut layers: Layers, args: &DatabaseArgs) -> Result<Writer, Failure> {
    let database = DatabaseSettings::resolve(args, &mut layers);
    layers.finish()?;
    Ok(database.options(false, false).open()?)
}
