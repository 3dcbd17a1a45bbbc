//! The `ping-worker` program: arguments, settings, broker, [`ping_worker::run`].

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use ping_worker::{WorkerArgs, WorkerError, WorkerSettings};
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_prober::{default_prober, resolve::Resolver};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, Exit, Failure, Stop, Verbosity, main_with, run_async,
};
use tokio::sync::watch;

/// Probes chunks of targets for the master, until SIGTERM
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  PINGFLEET_BROKER__URL=amqp://worker@10.0.0.5:5672/%2f ping-worker
  ping-worker --config /etc/pingfleet.toml --name probe7 --rate 5000"
)]
struct Arguments {
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    main_with(program)
}

fn program(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut layers = arguments.common.layers(Verbosity::Normal);
    let broker = RabbitConfig::resolve(&arguments.broker, &mut layers, "ping-worker");
    let settings = arguments.worker.resolve(&mut layers);
    layers.finish()?;
    run_async(settings.files(), work(&broker, &settings))
}

/// Works until the stop signal.
async fn work(broker: &RabbitConfig, settings: &WorkerSettings) -> Result<Exit, Failure> {
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(broker)?);
    let probe_threads =
        ping_worker::start_probe_threads(&default_prober(), Resolver::from_system(), settings)
            .map_err(|error| Failure::system(&error))?;
    ping_worker::run(
        broker,
        probe_threads,
        settings,
        watch::Sender::default(),
        stop.token,
    )
    .await
    .map_err(|error| match error {
        WorkerError::Broker(error) => Failure::from(error),
        other @ (WorkerError::NoProbeThread | WorkerError::TaskFailed(_)) => {
            Failure::system(&other)
        }
    })?;
    Ok(Exit::Complete)
}
