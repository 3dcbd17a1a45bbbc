//! `resume`: continues an interrupted run in the way in which it was begun: in one process, or over the broker with only
//! the producer in this process.

use std::{io, sync::Arc};

use clap::Args;
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{BrokerArgs, Exit, Failure, Layers, Stop};
use pingfleet_store::{DatabaseSettings, Db, Via};
use producer::{OutputArgs, PlanArgs, Settings, Wanted};

use crate::{
    RunArgs,
    one_process::{self, Roles},
};

/// Arguments of `pingfleet resume` and `pingfleet retry`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(crate) fn resume(args: &ResumeArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    continue_run(args, layers, quiet, Wanted::Resume)
}

/// Does what is `wanted` of an earlier run.
pub(crate) fn continue_run(
    args: &ResumeArgs,
    mut layers: Layers,
    quiet: bool,
    wanted: impl FnOnce(i64) -> Wanted,
) -> Result<Exit, Failure> {
    let roles = Roles::resolve(&mut layers);
    let mut settings = Settings::resolve(
        &PlanArgs::default(),
        &args.output,
        &mut layers,
        Via::Sweep,
        false,
        quiet,
    );
    let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
    let database = DatabaseSettings::resolve(&args.run.database, &mut layers);
    layers.finish()?;
    let store = database.options(false, false).open()?;
    let run = store.find_run(&args.run.run)?;
    settings.via = store.via(run)?;
    store.close()?;
    let wanted = wanted(run);
    match settings.via {
        Via::Sweep => one_process::run(wanted, &settings, &roles, &args.output, &database),
        Via::Broker => over_the_broker(wanted, &settings, &config, &args.output, &database),
    }
}

#[tokio::main]
async fn over_the_broker(
    wanted: Wanted,
    settings: &Settings,
    config: &RabbitConfig,
    output: &OutputArgs,
    database: &DatabaseSettings,
) -> Result<Exit, Failure> {
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(config)?);
    let db = Db::open(database.options(false, false)).await?;
    let produced =
        producer::run(broker, &db, wanted, settings, &mut io::stdout(), stop.token).await;
    let closed = db.close().await;
    let produced = produced?;
    closed?;
    let resume = format!("pingfleet resume{}", database.as_flags());
    producer::conclude(&produced, output, &resume)
}
