//! `resume`: continues an interrupted run in the way in which it was begun: in one process, or over the broker with only
//! the producer in this process.

use std::{io, path::Path, sync::Arc};

use clap::Args;
use pingfleet_broker::{RabbitBroker, RabbitConfig};
use pingfleet_settings::{
    BrokerArgs, Exit, FILES_FOR_QUEUES, Failure, Layers, ProbingSettings, Stop, run_async,
};
use pingfleet_store::{DatabaseSettings, DatabaseThread, Transport};
use producer::{
    NextCommands, OutputArgs, PlanArgs, ProducerSettings, RunProgress, RunProgressBar, RunRequest,
};
use tokio::sync::watch;

use crate::{
    RunArgs,
    one_process::{self, Roles, Sweep},
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
    continue_run(args, layers, quiet, |earlier| {
        Ok(Some(RunRequest::Resume(earlier.run)))
    })
}

/// A run that a command continues or repeats.
pub(crate) struct EarlierRun<'a> {
    /// Its number.
    pub(crate) run: i64,
    /// The file.
    pub(crate) database: &'a Path,
    /// Flags of commands that are printed.
    pub(crate) flags: &'a str,
    /// What the producer will do: with the run's transport and its settings of probing.
    pub(crate) settings: &'a mut ProducerSettings,
}

/// Carries out the request that `request` makes of an earlier run, if it makes one.
pub(crate) fn continue_run(
    args: &ResumeArgs,
    mut layers: Layers,
    quiet: bool,
    request: impl FnOnce(&mut EarlierRun<'_>) -> Result<Option<RunRequest>, Failure>,
) -> Result<Exit, Failure> {
    let roles = Roles::resolve(&mut layers);
    let mut settings = ProducerSettings::resolve(
        &PlanArgs::default(),
        &args.output,
        &mut layers,
        Transport::Sweep,
        false,
        quiet,
    );
    let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
    let database = DatabaseSettings::resolve(&args.run.database, &mut layers);
    layers.finish()?;
    let store = database.options(false, false).open()?;
    let run = store.find_run(&args.run.run)?;
    store.summary(run)?.refuse_pruned()?;
    settings.transport = store.transport(run)?;
    let planned = store.planned_probing(run)?;
    settings.probing = ProbingSettings {
        probing: planned.probing,
        chunk_size: planned.chunk_size,
    };
    store.close()?;
    let request = request(&mut EarlierRun {
        run,
        database: &database.path,
        flags: database.as_flags(),
        settings: &mut settings,
    })?;
    let Some(request) = request else {
        return Ok(Exit::Complete);
    };
    let sweep = Sweep {
        settings: &settings,
        probing: &settings.probing.probing,
        roles: &roles,
        output: &args.output,
        database: &database,
        is_quiet: quiet,
        dashboard: None,
    };
    match settings.transport {
        Transport::Sweep => one_process::run(request, &sweep),
        Transport::Broker => {
            let flags = database.as_flags();
            let broker = RabbitConfig::as_flag(&args.broker);
            let next = NextCommands {
                resume: format!("pingfleet resume{flags}{broker}"),
                flags: flags.to_owned(),
                broker,
            };
            let produced = over_the_broker(request, &sweep, &config, &next);
            run_async(FILES_FOR_QUEUES, produced)
        }
    }
}

async fn over_the_broker(
    request: RunRequest,
    sweep: &Sweep<'_>,
    config: &RabbitConfig,
    next: &NextCommands,
) -> Result<Exit, Failure> {
    let Sweep {
        settings, database, ..
    } = *sweep;
    let stop = Stop::watch_and_reconnect().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(config)?.with_reconnects(stop.reconnects));
    let db = DatabaseThread::open(database.options(false, false)).await?;
    let bar = RunProgressBar::start(settings.progress_bar);
    let (progress, follow) = watch::channel(RunProgress::default());
    let mut out = bar.output(io::stdout());
    let running = producer::run(
        broker, &db, request, settings, &mut out, &progress, stop.token,
    );
    let produced = bar.follow(follow, running).await;
    let closed = producer::close(db, &produced).await;
    let produced = produced?;
    closed?;
    producer::conclude(&produced, sweep.output, next, sweep.is_quiet)
}
