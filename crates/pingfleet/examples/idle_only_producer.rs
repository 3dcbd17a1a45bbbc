//! The control of the test with busy queues: a producer that publishes lost chunks again only when the queues are idle. It
//! is the real producer with one setting changed.

use std::{io, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{BrokerArgs, CommonArgs, DatabaseArgs, Stop, Verbosity};
use pingfleet_store::{DatabaseSettings, DatabaseThread, Transport};
use producer::{OutputArgs, PlanArgs, ProducerSettings, RunProgress, RunRequest};
use tokio::sync::watch;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut layers = arguments.common.layers(Verbosity::Normal);
    let broker = RabbitConfig::resolve(&arguments.broker, &mut layers, "producer");
    let database = DatabaseSettings::resolve(&arguments.database, &mut layers);
    let settings = ProducerSettings {
        finds_overtaken: false,
        ..ProducerSettings::resolve(
            &arguments.plan,
            &OutputArgs::default(),
            &mut layers,
            Transport::Broker,
            false,
            true,
        )
    };
    layers
        .finish()
        .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let targets = producer::read_targets(&arguments.plan, &settings)
        .map_err(|failure| anyhow::anyhow!("{failure:?}"))?
        .context("no plan")?;
    let stop = Stop::watch()?;
    let broker = Arc::new(RabbitBroker::new(&broker)?);
    let db = DatabaseThread::open(database.options(false, false)).await?;
    let request = RunRequest::Plan(Box::new(targets));
    let (progress, _) = watch::channel(RunProgress::default());
    let mut out = io::sink();
    producer::run(
        broker, &db, request, &settings, &mut out, &progress, stop.token,
    )
    .await?;
    Ok(db.close().await?)
}
