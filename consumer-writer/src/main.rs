//! The `consumer-writer` program: arguments, settings, database, broker, [`consumer_writer::run`].

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use consumer_writer::{
    WriterArgs, WriterSettings, WriterSummary,
    page::{self, DashboardSettings, PageSources},
};
use pingfleet_broker::{Broker, RabbitBroker, RabbitConfig};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, DashboardKeys, DatabaseArgs, Exit, FILES_FOR_QUEUES, Failure, Flags,
    Stop, Verbosity, main_with, run_async,
};
use pingfleet_store::{DatabaseSettings, DatabaseThread, FileLock, Transport};
use tokio::sync::watch;

/// Drains the results of all workers into the database, until SIGTERM
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  consumer-writer
  consumer-writer --db sweeps.db --batch-size 10000
  consumer-writer --dashboard off
  PINGFLEET_BROKER__URL=amqp://master@10.0.0.5:5672/%2f consumer-writer"
)]
struct Arguments {
    #[command(flatten)]
    writer: WriterArgs,
    #[command(flatten)]
    dashboard: Flags<DashboardKeys>,
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
    let mut layers = arguments.common.layers(Verbosity::Normal);
    let broker = RabbitConfig::resolve(&arguments.broker, &mut layers, "consumer-writer");
    let database = DatabaseSettings::resolve(&arguments.database, &mut layers);
    let settings = arguments
        .writer
        .resolve(&mut layers, Transport::Broker, Some(broker.login()));
    layers.set_flags(&arguments.dashboard);
    let dashboard = DashboardSettings::resolve(&mut layers);
    layers.finish()?;
    let writing = write(&broker, &database, &settings, dashboard.as_ref());
    run_async(FILES_FOR_QUEUES, writing)
}

/// Writes until the stop signal, and serves the live page meanwhile.
async fn write(
    broker: &RabbitConfig,
    database: &DatabaseSettings,
    settings: &WriterSettings,
    dashboard: Option<&DashboardSettings>,
) -> Result<Exit, Failure> {
    let stop = Stop::watch_and_reconnect().map_err(|error| Failure::system(&error))?;
    let broker: Arc<dyn Broker> =
        Arc::new(RabbitBroker::new(broker)?.with_reconnects(stop.reconnects));
    let db = DatabaseThread::open(database.options(true, true)).await?;
    let _lock = FileLock::writer(db.path())?;
    let server = match dashboard {
        Some(dashboard) => dashboard.bind().await?,
        None => None,
    };
    let (summary, follow) = watch::channel(WriterSummary::default());
    let sources = PageSources {
        database: db.path().to_owned(),
        broker: Arc::clone(&broker),
        transport: settings.transport,
        summary: follow,
        failure: Arc::default(),
        flags: database.as_flags().to_owned(),
    };
    let writing = async {
        let broker = Arc::clone(&broker);
        let ended = consumer_writer::run(broker, &db, settings, summary, stop.token).await;
        ended.map_err(Failure::from)
    };
    let ended = page::serve_beside(server, sources, writing).await;
    broker.close().await;
    let closed = db.close().await;
    ended?;
    closed?;
    Ok(Exit::Complete)
}
