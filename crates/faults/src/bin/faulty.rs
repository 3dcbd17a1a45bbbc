//! The real roles as one program, over a scripted prober, with faults at their boundaries. Only the fault suite uses
//! it.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, Subcommand};
use consumer_writer::{WriterArgs, WriterError};
use ping_worker::{WorkerArgs, WorkerError};
use pingfleet_broker::RabbitBroker;
use pingfleet_faults::tampered::{
    FaultArgs, Faults, HANDED_OVER, Sabotage, TamperedBroker, TamperedProber,
};
use pingfleet_prober::{default_prober, prober::OpenProber, resolve::Resolver, scripted::Scripted};
use pingfleet_settings::{CommonArgs, Exit, Failure, Stop, Verbosity, duration, main_with};
use pingfleet_store::{DatabaseThread, FileLock, Transport};
use producer::{OutputArgs, PlanArgs, ProducerSettings, RunRequest};
use tokio_util::sync::CancellationToken;

/// A role with faults
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// `ping-worker`, whose prober follows a script
    Worker {
        /// Seed of the script
        #[arg(long, default_value_t = 1)]
        script: u64,
        /// How long the probing of a chunk takes
        #[arg(long, value_parser = duration, default_value = "5ms")]
        delay: Duration,
        /// Probes in earnest instead
        #[arg(long)]
        earnest: bool,
        #[command(flatten)]
        worker: WorkerArgs,
        #[command(flatten)]
        faults: FaultArgs,
    },
    /// `consumer-writer`
    Writer {
        /// Tells at its end how many deliveries it was handed
        #[arg(long)]
        count: bool,
        #[command(flatten)]
        writer: WriterArgs,
        #[command(flatten)]
        faults: FaultArgs,
    },
    /// `producer`, which leaves when everything is published
    Producer {
        /// It waits for the end instead
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        plan: Box<PlanArgs>,
        #[command(flatten)]
        faults: FaultArgs,
    },
}

impl Role {
    fn faults(&self) -> &FaultArgs {
        match self {
            Self::Worker { faults, .. }
            | Self::Writer { faults, .. }
            | Self::Producer { faults, .. } => faults,
        }
    }
}

fn main() -> ExitCode {
    main_with(program)
}

#[tokio::main]
async fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut layers = arguments.common.layers();
    let common = arguments
        .common
        .resolve(&mut layers, Verbosity::Normal, "faulty");
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let stop = if arguments.role.faults().sabotages(Sabotage::Deaf) {
        CancellationToken::new()
    } else {
        stop.token
    };
    let broker = RabbitBroker::new(&common.broker)?;
    match &arguments.role {
        Role::Worker {
            script,
            delay,
            earnest,
            worker,
            faults,
        } => {
            let settings = worker.resolve(&mut layers);
            layers.finish()?;
            let faults = Faults::new(faults.clone());
            let inner: Arc<dyn OpenProber> = if *earnest {
                default_prober()
            } else {
                Arc::new(Scripted {
                    seed: *script,
                    delay: *delay,
                    panics_at: None,
                })
            };
            let opener: Arc<dyn OpenProber> = Arc::new(TamperedProber {
                inner,
                faults: Arc::clone(&faults),
            });
            let broker = Arc::new(TamperedBroker::new(broker, faults));
            let lanes = ping_worker::lanes(&opener, Resolver::from_system(), &settings)
                .map_err(|error| Failure::system(&error))?;
            ping_worker::run(broker, lanes, &settings, stop)
                .await
                .map_err(|error| match error {
                    WorkerError::Broker(error) => Failure::from(error),
                    disorder @ WorkerError::Disorder(_) => Failure::system(&disorder),
                })?;
            Ok(Exit::Complete)
        }
        Role::Writer {
            count,
            writer,
            faults,
        } => {
            let settings = writer.resolve(&mut layers, Transport::Broker);
            layers.finish()?;
            let handed = Faults::new(faults.clone());
            let broker = Arc::new(TamperedBroker::new(broker, Arc::clone(&handed)));
            let check = !faults.sabotages(Sabotage::NoCheck);
            let db = DatabaseThread::open(common.database(true, check)).await?;
            let locks = !faults.sabotages(Sabotage::NoLock);
            let _lock = locks.then(|| FileLock::writer(db.path())).transpose()?;
            consumer_writer::run(broker, &db, &settings, stop)
                .await
                .map_err(|error| match error {
                    WriterError::Broker(error) => Failure::from(error),
                    WriterError::Store(error) => Failure::from(error),
                    other => Failure::system(&other),
                })?;
            db.close().await?;
            if *count {
                writeln!(io::stderr(), "{HANDED_OVER}{}", handed.handed_over())
                    .map_err(|error| Failure::system(&error))?;
            }
            Ok(Exit::Complete)
        }
        Role::Producer { wait, plan, faults } => {
            let output = OutputArgs::default();
            let settings = ProducerSettings::resolve(
                plan,
                &output,
                &mut layers,
                Transport::Broker,
                !wait,
                true,
            );
            layers.finish()?;
            let Some(targets) = producer::read_targets(plan, &settings)? else {
                return Ok(Exit::Complete);
            };
            let broker = Arc::new(TamperedBroker::new(broker, Faults::new(faults.clone())));
            let db = DatabaseThread::open(common.database(true, false)).await?;
            let request = RunRequest::Plan(Box::new(targets));
            let mut out = io::sink();
            let produced = producer::run(broker, &db, request, &settings, &mut out, stop).await?;
            db.close().await?;
            Ok(produced.exit(false))
        }
    }
}
