//! The `ping-worker` program: arguments, settings, broker, [`ping_worker::run`].

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use ping_worker::{
    WorkerArgs, WorkerError, WorkerSettings, WorkerStatus,
    metrics::{self, MetricsSettings, MetricsSource},
};
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_prober::{default_prober, resolve::Resolver};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, Exit, Failure, Flags, MetricsKeys, Stop, Verbosity, main_with,
    run_async,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Probes chunks of targets for the master, until SIGTERM
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  PINGFLEET_BROKER__URL=amqp://worker@10.0.0.5:5672/%2f ping-worker
  ping-worker --config /etc/pingfleet.toml --name probe7 --rate 5000
  ping-worker --metrics 127.0.0.1:9787"
)]
struct Arguments {
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    metrics: Flags<MetricsKeys>,
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
    layers.set_flags(&arguments.metrics);
    let metrics = MetricsSettings::resolve(&mut layers);
    layers.finish()?;
    let working = work(&broker, &settings, metrics.as_ref());
    run_async(settings.files(), working)
}

/// Works until the stop signal, and serves the metrics meanwhile.
async fn work(
    broker: &RabbitConfig,
    settings: &WorkerSettings,
    metrics: Option<&MetricsSettings>,
) -> Result<Exit, Failure> {
    let stop = Stop::watch_and_reconnect().map_err(|error| Failure::system(&error))?;
    let server = match metrics {
        Some(metrics) => Some(metrics.bind().await?),
        None => None,
    };
    let broker = Arc::new(RabbitBroker::new(broker)?.with_reconnects(stop.reconnects));
    let probe_threads =
        ping_worker::start_probe_threads(&default_prober(), Resolver::from_system(), settings)
            .map_err(|error| Failure::system(&error))?;
    let (status, follow) = watch::channel(WorkerStatus::default());
    let metrics_stop = CancellationToken::new();
    let serving = async {
        if let Some(server) = server {
            let source = MetricsSource::new(settings, follow);
            metrics::serve(server, source, metrics_stop.clone()).await;
        }
    };
    let working = async {
        let ended = ping_worker::run(broker, probe_threads, settings, status, stop.token).await;
        metrics_stop.cancel();
        ended
    };
    let (ended, ()) = tokio::join!(working, serving);
    ended.map_err(|error| match error {
        WorkerError::Broker(error) => Failure::from(error),
        other @ (WorkerError::NoProbeThread | WorkerError::TaskFailed(_)) => {
            Failure::system(&other)
        }
    })?;
    Ok(Exit::Complete)
}
