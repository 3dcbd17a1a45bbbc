//! The `pingfleet` program: sweeps in one process, and all commands that use the database.

mod doctor;
mod report;
mod runs;
mod sweep;
mod verify;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use pingfleet_broker::{Broker as _, RabbitBroker};
use pingfleet_settings::{
    Common, CommonArgs, Exit, Failure, Layers, Verbosity, main_with, printed,
};
use pingfleet_store::Writer;

/// Ping sweeps whose answer can be trusted
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  pingfleet sweep 10.0.0.0/24
  pingfleet report --csv > sweep.csv
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
    /// Show the outcome of every target of a run
    Report(report::ReportArgs),
    /// Prove that every target of a run has exactly one final state
    #[command(after_help = "Examples:\n  pingfleet verify\n  pingfleet verify 3")]
    Verify(RunArgs),
    /// Continue an interrupted run
    #[command(after_help = "Examples:\n  pingfleet resume\n  pingfleet resume 3 -u")]
    Resume(ResumeArgs),
    /// Send the dead chunks of a run again
    #[command(after_help = "Examples:\n  pingfleet retry\n  pingfleet retry 3")]
    Retry(ResumeArgs),
    /// Cancel a run: nothing more of it is published
    #[command(after_help = "Examples:\n  pingfleet cancel\n  pingfleet cancel 3")]
    Cancel(RunArgs),
    /// Check what sweeps need on this machine, and print a fix for each problem
    #[command(after_help = "Examples:\n  pingfleet doctor\n  pingfleet doctor --db /srv/sweeps.db")]
    Doctor,
    /// Set up the broker
    #[command(subcommand)]
    Broker(BrokerCommand),
}

#[derive(Debug, Subcommand)]
enum BrokerCommand {
    /// Declare exchanges and queues, for users without the configure permission
    #[command(
        after_help = "Examples:\n  pingfleet broker init\n  PINGFLEET_BROKER__URL=amqp://admin@10.0.0.5:5672/%2f pingfleet broker init"
    )]
    Init,
}

/// Names a run.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// A number, the beginning of a UUID, or `latest`
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,
}

/// Names a run, and selects what is printed.
#[derive(Debug, clap::Args)]
struct ResumeArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    output: producer::OutputArgs,
}

fn main() -> ExitCode {
    main_with(program)
}

fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut layers = arguments.common.layers();
    let common = arguments
        .common
        .resolve(&mut layers, Verbosity::Warnings, "pingfleet");
    let quiet = arguments.common.quiet;
    match &arguments.command {
        Command::Sweep(args) => sweep::sweep(args, layers, &common, quiet),
        Command::Resume(args) => {
            let wanted = sweep::Rerun::Resume(args.run.run.clone());
            sweep::rerun(&wanted, &args.output, layers, &common, quiet)
        }
        Command::Retry(args) => {
            let wanted = sweep::Rerun::Retry(args.run.run.clone());
            sweep::rerun(&wanted, &args.output, layers, &common, quiet)
        }
        Command::Runs(args) => runs::runs(args, &open(layers, &common)?),
        Command::Report(args) => report::report(args, &open(layers, &common)?),
        Command::Verify(args) => verify::verify(&args.run, &mut open(layers, &common)?),
        Command::Cancel(args) => runs::cancel(&args.run, &mut open(layers, &common)?),
        Command::Doctor => {
            layers.finish()?;
            doctor::doctor(&common)
        }
        Command::Broker(BrokerCommand::Init) => {
            layers.finish()?;
            broker_init(&common)
        }
    }
}

/// Opens an existing database.
fn open(layers: Layers, common: &Common) -> Result<Writer, Failure> {
    layers.finish()?;
    Ok(common.database(false, false).open()?)
}

#[tokio::main(flavor = "current_thread")]
async fn broker_init(common: &Common) -> Result<Exit, Failure> {
    let broker = RabbitBroker::new(&common.broker)?;
    broker.check().await?;
    printed(writeln!(
        io::stdout(),
        "exchanges and queues are ready on {}",
        broker.address()
    ))?;
    Ok(Exit::Complete)
}
