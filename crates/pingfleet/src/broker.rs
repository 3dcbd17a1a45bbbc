//! `broker`: sets up the broker.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{BrokerArgs, Exit, FILES_FOR_QUEUES, Failure, Layers, printed, run_async};

use crate::foreign::ForeignArgs;

/// Commands of `pingfleet broker`.
#[derive(Debug, Subcommand)]
pub(crate) enum BrokerCommand {
    /// Declare exchanges and queues, for users without the configure permission
    #[command(
        after_help = "Examples:\n  pingfleet broker init\n  PINGFLEET_BROKER__URL=amqp://admin@10.0.0.5:5672/%2f pingfleet broker init"
    )]
    Init(InitArgs),
    /// List results for other databases that writers set aside, or return them
    Foreign(ForeignArgs),
}

/// Arguments of `pingfleet broker init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(crate) fn init(args: &InitArgs, mut layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
    layers.finish()?;
    run_async(FILES_FOR_QUEUES, declare(&config, quiet))
}

async fn declare(config: &RabbitConfig, quiet: bool) -> Result<Exit, Failure> {
    let broker = RabbitBroker::new(config)?;
    broker.declare().await?;
    if quiet {
        return Ok(Exit::Complete);
    }
    printed(writeln!(
        io::stdout(),
        "exchanges and queues are ready on {}",
        broker.place()
    ))?;
    Ok(Exit::Complete)
}
