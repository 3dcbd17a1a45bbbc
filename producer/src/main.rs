//! The `producer` program: arguments, settings, targets, database, broker, [`producer::run`].

use std::{io, process::ExitCode, sync::Arc};

use clap::Parser;
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, DatabaseArgs, Exit, FILES_FOR_QUEUES, Failure, Stop, Verbosity,
    main_with, run_async,
};
use pingfleet_store::{DatabaseSettings, DatabaseThread, StoreError, Transport};
use pingfleet_targets::Targets;
use producer::{
    NextCommands, OutputArgs, PlanArgs, ProducerError, ProducerSettings, RunOutcome, RunProgress,
    RunProgressBar, RunRequest,
};
use tokio::sync::watch;

/// Plans a run, publishes its chunks to RabbitMQ, and supervises it until all of them are settled
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  producer hosts.txt
  producer 10.0.0.0/16 --exclude 10.0.7.0/24 --rate 5000
  producer --hosts inventory.csv --count 3 -u
  producer --dry-run 10.0.0.0/8
  producer --resume latest"
)]
struct Arguments {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Exit when everything is published
    #[arg(long, help_heading = "Run")]
    detach: bool,
    /// Continue an earlier run: a number, the beginning of a UUID, or `latest`
    #[arg(long, value_name = "RUN", help_heading = "Run", conflicts_with_all = ["targets", "hosts", "dry_run"])]
    resume: Option<String>,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    main_with(program)
}

fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut layers = arguments.common.layers(Verbosity::Warnings);
    let broker = RabbitConfig::resolve(&arguments.broker, &mut layers, "producer");
    let database = DatabaseSettings::resolve(&arguments.database, &mut layers);
    let settings = ProducerSettings::resolve(
        &arguments.plan,
        &arguments.output,
        &mut layers,
        Transport::Broker,
        arguments.detach,
        arguments.common.quiet,
    );
    let broker_flag = RabbitConfig::as_flag(&arguments.broker);
    layers.finish()?;
    let targets = match &arguments.resume {
        Some(_) => None,
        None => match producer::read_targets(&arguments.plan, &settings)? {
            Some(targets) => Some(targets),
            None => return Ok(Exit::Complete),
        },
    };
    let flags = database.as_flags();
    let next = NextCommands {
        resume: format!("producer{flags}{broker_flag} --resume"),
        flags: flags.to_owned(),
        broker: broker_flag,
    };
    let produced = produce(arguments, targets, &settings, &broker, &database, &next);
    run_async(FILES_FOR_QUEUES, produced)
}

/// Carries out the request over the broker, and reports its outcome.
async fn produce(
    arguments: &Arguments,
    targets: Option<Targets>,
    settings: &ProducerSettings,
    broker: &RabbitConfig,
    database: &DatabaseSettings,
    next: &NextCommands,
) -> Result<Exit, Failure> {
    let quiet = arguments.common.quiet;
    let conclude =
        |outcome: &RunOutcome| producer::conclude(outcome, &arguments.output, next, quiet);
    let stop = Stop::watch_and_reconnect().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(broker)?.with_reconnects(stop.reconnects));
    let db = match DatabaseThread::open(database.options(false, false)).await {
        // The database is created only after the broker was reached: a wrong password must not leave one behind.
        Err(StoreError::Missing { .. }) if targets.is_some() => {
            if !producer::check_broker(&*broker, &stop.token).await? {
                return conclude(&RunOutcome::no_run());
            }
            DatabaseThread::open(database.options(true, false)).await?
        }
        opened => opened?,
    };
    let request = match (targets, arguments.resume.clone()) {
        (Some(targets), _) => RunRequest::Plan(Box::new(targets)),
        (None, run) => {
            let run = run.unwrap_or_default();
            RunRequest::Resume(db.call(move |store| store.find_run(&run)).await?)
        }
    };
    let bar = RunProgressBar::start(settings.progress_bar);
    let (progress, follow) = watch::channel(RunProgress::default());
    let mut out = bar.output(io::stdout());
    let running = producer::run(
        broker, &db, request, settings, &mut out, &progress, stop.token,
    );
    let outcome = bar.follow(follow, running).await;
    let closed = producer::close(db, &outcome).await;
    let outcome = outcome.map_err(|error| match error {
        ProducerError::OtherTransport { run } => {
            let flags = &next.flags;
            let advice = format_args!("{error}: continue it with `pingfleet resume{flags} {run}`");
            Failure::new(Exit::Usage, advice)
        }
        other => other.into(),
    })?;
    closed?;
    conclude(&outcome)
}
