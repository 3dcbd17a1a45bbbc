//! `sweep`, `resume` and `retry`: the three roles in one process over in-process queues.
//! A run that was published to a broker is continued over the broker, with only the producer in this process.

use std::{io, pin::pin, sync::Arc};

use clap::Args;
use consumer_writer::{WriterArgs, WriterError};
use ping_worker::{WorkerArgs, WorkerError};
use pingfleet_broker::{Broker, MemoryBroker, RabbitBroker};
use pingfleet_prober::{default_prober, resolve::Resolver};
use pingfleet_settings::{Common, Exit, Failure, Layers, Stop};
use pingfleet_store::{DatabaseThread, Transport};
use producer::{OutputArgs, PlanArgs, ProducerError, ProducerSettings, RunOutcome, RunRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most messages in each in-process queue, ready and unacked: twice the largest prefetch, so that neither the worker
/// nor the writer waits for the queue. All other chunks wait in the database.
const MAX_QUEUED: usize = 512;

/// Arguments of `pingfleet sweep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet sweep 10.0.0.0/24
  pingfleet sweep hosts.txt -c 3 --rate unlimited
  pingfleet sweep 10.0.0.0/16 --exclude 10.0.7.0/24 -u")]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// An earlier run, and what of it is done.
pub(crate) enum Rerun {
    /// All outstanding chunks.
    Resume(String),
    /// The dead chunks.
    Retry(String),
}

/// The settings of the roles beside the producer.
struct Roles {
    worker: ping_worker::WorkerSettings,
    writer: consumer_writer::WriterSettings,
}

pub(crate) fn sweep(
    args: &SweepArgs,
    mut layers: Layers,
    common: &Common,
    quiet: bool,
) -> Result<Exit, Failure> {
    let settings = ProducerSettings::resolve(
        &args.plan,
        &args.output,
        &mut layers,
        Transport::Sweep,
        false,
        quiet,
    );
    let roles = Roles::resolve(&mut layers);
    layers.finish()?;
    let Some(targets) = producer::read_targets(&args.plan, &settings)? else {
        return Ok(Exit::Complete);
    };
    let request = RunRequest::Plan(Box::new(targets));
    in_one_process(request, &settings, &roles, &args.output, common)
}

pub(crate) fn rerun(
    request: &Rerun,
    output: &OutputArgs,
    mut layers: Layers,
    common: &Common,
    quiet: bool,
) -> Result<Exit, Failure> {
    let roles = Roles::resolve(&mut layers);
    let mut settings = ProducerSettings::resolve(
        &PlanArgs::default(),
        output,
        &mut layers,
        Transport::Sweep,
        false,
        quiet,
    );
    layers.finish()?;
    let store = common.database(false, false).open()?;
    let (run, retry) = match request {
        Rerun::Resume(run) => (store.find_run(run)?, false),
        Rerun::Retry(run) => (store.find_run(run)?, true),
    };
    settings.via = store.transport(run)?;
    let request = if retry {
        RunRequest::Retry(run)
    } else {
        RunRequest::Resume(run)
    };
    store.close()?;
    match settings.via {
        Transport::Sweep => in_one_process(request, &settings, &roles, output, common),
        Transport::Broker => over_the_broker(request, &settings, output, common),
    }
}

impl Roles {
    fn resolve(layers: &mut Layers) -> Self {
        Self {
            worker: ping_worker::WorkerSettings {
                exclusive: true,
                ..WorkerArgs::default().resolve(layers)
            },
            writer: WriterArgs::default().resolve(layers, Transport::Sweep),
        }
    }
}

#[tokio::main]
async fn over_the_broker(
    request: RunRequest,
    settings: &ProducerSettings,
    output: &OutputArgs,
    common: &Common,
) -> Result<Exit, Failure> {
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    let broker = Arc::new(RabbitBroker::new(&common.broker)?);
    let db = DatabaseThread::open(common.database(false, false)).await?;
    let produced = producer::run(
        broker,
        &db,
        request,
        settings,
        &mut io::stdout(),
        stop.token,
    )
    .await;
    let closed = db.close().await;
    let produced = produced?;
    closed?;
    producer::conclude(
        &produced,
        output,
        &format!("pingfleet{} resume", common.repeated()),
    )
}

#[tokio::main]
async fn in_one_process(
    request: RunRequest,
    settings: &ProducerSettings,
    roles: &Roles,
    output: &OutputArgs,
    common: &Common,
) -> Result<Exit, Failure> {
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    // Before anything is written: without the permission to send pings, no run is planned.
    let lanes = ping_worker::lanes(&default_prober(), Resolver::from_system(), &roles.worker)
        .map_err(|error| Failure::system(&error))?;
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(MAX_QUEUED));
    let db = DatabaseThread::open(common.database(true, true)).await?;

    let worker_stop = stop.token.child_token();
    let writer_stop = CancellationToken::new();
    // Stops the producer if a role ends early, because then it would wait forever.
    let producer_stop = stop.token.child_token();
    let producing = async {
        let produced = producer::run(
            Arc::clone(&broker),
            &db,
            request,
            settings,
            &mut io::stdout(),
            producer_stop.clone(),
        )
        .await;
        worker_stop.cancel();
        produced
    };
    let probing = async {
        let ended = ping_worker::run(
            Arc::clone(&broker),
            lanes,
            &roles.worker,
            watch::Sender::default(),
            worker_stop.clone(),
        )
        .await;
        producer_stop.cancel();
        // The worker's last results are queued now. The writer stores them before it stops.
        writer_stop.cancel();
        ended
    };
    let writing = async {
        let ended = write_rows(Arc::clone(&broker), &roles.writer, common, &writer_stop).await;
        producer_stop.cancel();
        worker_stop.cancel();
        ended
    };
    let (ended, written) = {
        let mut writing = pin!(writing);
        let mut both = pin!(async { tokio::join!(producing, probing) });
        tokio::select! {
            both = &mut both => (both, writing.await),
            written = &mut writing => match written {
                // Without a writer nothing can be finished: chunks in hand stay outstanding in the database.
                Err(error) => return Err(Failure::system(&error)),
                // It was stopped like the others, and ended first.
                written => (both.await, written),
            },
        }
    };
    let (mut produced, probed) = ended;
    if let Ok(produced) = &mut produced
        && let Some(before) = &produced.summary
    {
        // The writer stored more rows after the producer ended.
        let run = before.run;
        produced.summary = Some(db.call(move |store| store.summary(run)).await?);
    }
    let closed = db.close().await;
    let resume = format!("pingfleet{} resume", common.repeated());
    conclude((produced, probed), written, output, &resume).and_then(|exit| {
        closed?;
        Ok(exit)
    })
}

/// The writer, with its own database connection as in its own process: its commits and the producer's reads do not wait
/// for each other.
async fn write_rows(
    broker: Arc<dyn Broker>,
    settings: &consumer_writer::WriterSettings,
    common: &Common,
    stop: &CancellationToken,
) -> Result<consumer_writer::WriterSummary, WriterError> {
    let db = DatabaseThread::open(common.database(true, false)).await?;
    let ended = consumer_writer::run(broker, &db, settings, stop.clone()).await;
    let closed = db.close().await;
    let summary = ended?;
    closed?;
    Ok(summary)
}

/// Reports the failure that causes the others: the writer's, else the worker's, else the producer's.
fn conclude(
    (produced, probed): (
        Result<RunOutcome, ProducerError>,
        Result<ping_worker::WorkerSummary, WorkerError>,
    ),
    written: Result<consumer_writer::WriterSummary, WriterError>,
    output: &OutputArgs,
    resume: &str,
) -> Result<Exit, Failure> {
    written.map_err(|error| Failure::system(&error))?;
    probed.map_err(|error| Failure::system(&error))?;
    producer::conclude(&produced?, output, resume)
}
