//! The `consumer-writer` program: arguments, settings, database, broker, [`consumer_writer::run`].

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use consumer_writer::{WriterArgs, WriterError, WriterSettings};
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{
    BrokerArgs, CommonArgs, DatabaseArgs, Exit, FILES_FOR_QUEUES, Failure, Stop, Verbosity,
    main_with, run_async,
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
  PINGFLEET_BROKER__URL=amqp://master@10.0.0.5:5672/%2f consumer-writer"
)]
struct Arguments {
    #[command(flatten)]
    writer: WriterArgs,
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
    let settings = arguments.writer.resolve(&mut layers, Transport::Broker);
    layers.finish()?;
    run_async(FILES_FOR_QUEUES, write(&broker, &database, &settings))
}

/// Writes until the stop signal.
async fn write(
    broker: &RabbitConfig,
    database: &DatabaseSettings,
    settings: &WriterSettings,
) -> Result<Exit, Failure> {
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(broker)?);
    let db = DatabaseThread::open(database.options(true, true)).await?;
    let _lock = FileLock::writer(db.path())?;
    let ended =
        consumer_writer::run(broker, &db, settings, watch::Sender::default(), stop.token).await;
    let closed = db.close().await;
    ended.map_err(|error| match error {
        WriterError::Broker(error) => Failure::from(error),
        WriterError::Store(error) => Failure::from(error),
        other => Failure::system(&other),
    })?;
    closed?;
    Ok(Exit::Complete)
}
