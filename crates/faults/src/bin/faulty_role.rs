//! The real roles as one program, with a scripted prober and with faults at their boundaries. For the fault suite only.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, Subcommand};
use consumer_writer::WriterArgs;
use ping_worker::{WorkerArgs, WorkerError};
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_faults::fault_injection::{
    DELIVERY_COUNT, Defect, FaultArgs, Faults, FaultyBroker, OpenFaultyProber,
};
use pingfleet_prober::{default_prober, prober::OpenProber, resolve::Resolver, scripted::Scripted};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, DatabaseArgs, Exit, Failure, Stop, Verbosity, duration, main_with,
};
use pingfleet_store::{DatabaseSettings, DatabaseThread, FileLock, OpenOptions, Transport};
use producer::{OutputArgs, PlanArgs, ProducerSettings, RunProgress, RunRequest};
use tokio::sync::watch;
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
    /// `ping-worker` with a scripted prober
    Worker {
        /// Seed of the scripted prober
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How long the scripted prober takes for a chunk
        #[arg(long, value_parser = duration, default_value = "5ms")]
        delay: Duration,
        /// Use the default prober instead
        #[arg(long)]
        real_probes: bool,
        #[command(flatten)]
        worker: WorkerArgs,
        #[command(flatten)]
        broker: BrokerArgs,
        #[command(flatten)]
        faults: FaultArgs,
    },
    /// `consumer-writer`
    Writer {
        /// Print the number of deliveries at exit
        #[arg(long)]
        count: bool,
        #[command(flatten)]
        writer: WriterArgs,
        #[command(flatten)]
        broker: BrokerArgs,
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        faults: FaultArgs,
    },
    /// `producer`, which exits when everything is published
    Producer {
        /// Supervise the run to its end instead
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        plan: Box<PlanArgs>,
        #[command(flatten)]
        broker: BrokerArgs,
        #[command(flatten)]
        database: DatabaseArgs,
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

    fn broker(&self) -> &BrokerArgs {
        match self {
            Self::Worker { broker, .. }
            | Self::Writer { broker, .. }
            | Self::Producer { broker, .. } => broker,
        }
    }
}

fn main() -> ExitCode {
    main_with(program)
}

#[tokio::main]
async fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut layers = arguments.common.layers(Verbosity::Normal);
    let config = RabbitConfig::resolve(arguments.role.broker(), &mut layers, "faulty_role");
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let stop = if arguments.role.faults().has_defect(Defect::IgnoreSigterm) {
        CancellationToken::new()
    } else {
        stop.token
    };
    let broker = RabbitBroker::new(&config)?;
    let faults = Faults::new(arguments.role.faults().clone());
    let broker = Arc::new(FaultyBroker::new(broker, Arc::clone(&faults)));
    match &arguments.role {
        Role::Worker {
            seed,
            delay,
            real_probes,
            worker,
            ..
        } => {
            let settings = worker.resolve(&mut layers);
            layers.finish()?;
            let inner: Arc<dyn OpenProber> = if *real_probes {
                default_prober()
            } else {
                Arc::new(Scripted {
                    seed: *seed,
                    delay: *delay,
                    panics_at: None,
                })
            };
            run_worker(broker, OpenFaultyProber { inner, faults }, &settings, stop).await
        }
        Role::Writer {
            count,
            writer,
            database,
            ..
        } => {
            let settings = writer.resolve(&mut layers, Transport::Broker, Some(config.login()));
            let database = DatabaseSettings::resolve(database, &mut layers);
            layers.finish()?;
            let database = database.options(true, !faults.has_defect(Defect::NoCheck));
            run_writer(broker, database, &faults, &settings, stop).await?;
            if *count {
                writeln!(io::stderr(), "{DELIVERY_COUNT}{}", faults.deliveries())
                    .map_err(|error| Failure::system(&error))?;
            }
            Ok(Exit::Complete)
        }
        Role::Producer {
            wait,
            plan,
            database,
            ..
        } => {
            let database = DatabaseSettings::resolve(database, &mut layers);
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
            let db = DatabaseThread::open(database.options(true, false)).await?;
            let request = RunRequest::Plan(Box::new(targets));
            let mut out = io::sink();
            let (progress, _) = watch::channel(RunProgress::default());
            let produced =
                producer::run(broker, &db, request, &settings, &mut out, &progress, stop).await?;
            db.close().await?;
            Ok(produced.exit(false))
        }
    }
}

async fn run_worker(
    broker: Arc<FaultyBroker<RabbitBroker>>,
    opener: OpenFaultyProber,
    settings: &ping_worker::WorkerSettings,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    let probe_threads =
        ping_worker::start_probe_threads(&opener, Resolver::from_system(), settings)
            .map_err(|error| Failure::system(&error))?;
    ping_worker::run(
        broker,
        probe_threads,
        settings,
        watch::Sender::default(),
        stop,
    )
    .await
    .map_err(|error| match error {
        WorkerError::Broker(error) => Failure::from(error),
        failed @ (WorkerError::NoProbeThread | WorkerError::TaskFailed(_)) => {
            Failure::system(&failed)
        }
    })?;
    Ok(Exit::Complete)
}

async fn run_writer(
    broker: Arc<FaultyBroker<RabbitBroker>>,
    database: OpenOptions,
    faults: &Faults,
    settings: &consumer_writer::WriterSettings,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let db = DatabaseThread::open(database).await?;
    let lock = !faults.has_defect(Defect::NoLock);
    let _lock = lock.then(|| FileLock::writer(db.path())).transpose()?;
    consumer_writer::run(broker, &db, settings, watch::Sender::default(), stop)
        .await
        .map_err(Failure::from)?;
    db.close().await?;
    Ok(())
}
