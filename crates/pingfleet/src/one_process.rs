//! The three roles in one process over in-process queues. It composes their `run` functions and adds nothing.

use std::{
    io::{self, Write as _},
    pin::{Pin, pin},
    sync::Arc,
};

use consumer_writer::{
    WriterArgs, WriterError, WriterSummary,
    page::{self, DashboardSettings, PageSources},
};
use ping_worker::{WorkerArgs, WorkerError};
use pingfleet_broker::{Broker, MemoryBroker};
use pingfleet_http::Server;
use pingfleet_prober::{
    check_egress, default_prober, probe_threads::ProbeThreads, resolve::Resolver,
};
use pingfleet_settings::{Exit, Failure, Layers, Stop, run_async};
use pingfleet_store::{DatabaseSettings, DatabaseThread, Transport};
use pingfleet_wire::Probing;
use producer::{
    NextCommands, OutputArgs, ProducerError, ProducerSettings, RunOutcome, RunProgress,
    RunProgressBar, RunRequest,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most messages in each in-process queue, ready and unacked: twice the largest prefetch, so that neither the worker
/// nor the writer waits for the queue. All other chunks wait in the database.
const MAX_QUEUED: usize = 512;

/// The settings of the worker and the writer.
pub(crate) struct Roles {
    worker: ping_worker::WorkerSettings,
    writer: consumer_writer::WriterSettings,
}

impl Roles {
    /// Resolves their settings; problems are collected in `layers`.
    pub(crate) fn resolve(layers: &mut Layers) -> Self {
        Self {
            worker: ping_worker::WorkerSettings {
                exclusive: true,
                ..WorkerArgs::default().resolve(layers)
            },
            writer: WriterArgs::default().resolve(layers, Transport::Sweep, None),
        }
    }
}

/// One token for each role. When a role ends, it stops those that would wait for it forever.
struct Stops {
    producer: CancellationToken,
    worker: CancellationToken,
    writer: CancellationToken,
}

/// What a sweep in one process needs to know.
pub(crate) struct Sweep<'a> {
    pub(crate) settings: &'a ProducerSettings,
    /// How the run is probed: a resumed run keeps its own settings.
    pub(crate) probing: &'a Probing,
    pub(crate) roles: &'a Roles,
    pub(crate) output: &'a OutputArgs,
    pub(crate) database: &'a DatabaseSettings,
    pub(crate) is_quiet: bool,
    /// The live page, if there is to be one.
    pub(crate) dashboard: Option<&'a DashboardSettings>,
}

/// Carries out the request, prints how it ended, and returns the exit code.
pub(crate) fn run(request: RunRequest, sweep: &Sweep<'_>) -> Result<Exit, Failure> {
    run_async(sweep.roles.worker.files(), run_and_conclude(request, sweep))
}

async fn run_and_conclude(request: RunRequest, sweep: &Sweep<'_>) -> Result<Exit, Failure> {
    let Sweep {
        settings,
        roles,
        database,
        ..
    } = *sweep;
    let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
    // Before anything is written: without the permission to send pings, no run is planned.
    let probe_threads =
        ping_worker::start_probe_threads(&default_prober(), Resolver::from_system(), &roles.worker)
            .map_err(|error| Failure::system(&error))?;
    check_egress(sweep.probing).map_err(|error| Failure::new(Exit::Usage, error))?;
    let server = match sweep.dashboard {
        Some(dashboard) => dashboard.bind().await?,
        None => None,
    };
    if let Some(server) = &server
        && !sweep.is_quiet
    {
        // If standard error is closed, nobody can read it.
        drop(writeln!(
            io::stderr(),
            "live page: http://{}/",
            server.address()
        ));
    }
    let db = DatabaseThread::open(database.options(true, true)).await?;
    let running = run_roles(request, sweep, probe_threads, &db, server, &stop.token);
    let (mut produced, probed, written) = Box::pin(running).await?;
    let mut updated = Ok(());
    if let Ok(produced) = &mut produced {
        // The writer stored more rows after the producer ended.
        updated = producer::bring_up_to_date(&db, produced, settings, &mut io::stdout()).await;
    }
    let closed = producer::close(db, &produced).await;
    // The failure that causes the others: the writer's, else the worker's, else the producer's.
    written?;
    probed.map_err(|error| Failure::system(&error))?;
    updated?;
    let flags = database.as_flags();
    let next = NextCommands {
        resume: format!("pingfleet resume{flags}"),
        flags: flags.to_owned(),
        broker: String::new(),
    };
    let exit = producer::conclude(&produced?, sweep.output, &next, sweep.is_quiet)?;
    closed?;
    Ok(exit)
}

/// Runs the three roles to their end.
async fn run_roles(
    request: RunRequest,
    sweep: &Sweep<'_>,
    probe_threads: ProbeThreads,
    db: &DatabaseThread,
    server: Option<Server>,
    stop: &CancellationToken,
) -> Result<Outcomes, Failure> {
    let Sweep {
        settings,
        roles,
        database,
        ..
    } = *sweep;
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(MAX_QUEUED));
    let stops = Stops {
        producer: stop.child_token(),
        worker: stop.child_token(),
        writer: CancellationToken::new(),
    };
    let bar = RunProgressBar::start(settings.progress_bar);
    let (progress, follow) = watch::channel(RunProgress::default());
    let producing = async {
        let (queue, stop) = (Arc::clone(&broker), stops.producer.clone());
        let mut out = bar.output(io::stdout());
        let running = producer::run(queue, db, request, settings, &mut out, &progress, stop);
        let produced = bar.follow(follow, running).await;
        stops.worker.cancel();
        produced
    };
    let probing = async {
        let (queue, stop) = (Arc::clone(&broker), stops.worker.clone());
        let status = watch::Sender::default();
        let probed = ping_worker::run(queue, probe_threads, &roles.worker, status, stop).await;
        stops.producer.cancel();
        // The worker's last results are queued now. The writer stores them before it stops.
        stops.writer.cancel();
        probed
    };
    let (summary, follow) = watch::channel(WriterSummary::default());
    let sources = PageSources {
        database: db.path().to_owned(),
        broker: Arc::clone(&broker),
        transport: Transport::Sweep,
        summary: follow,
        failure: Arc::default(),
        flags: database.as_flags().to_owned(),
    };
    let writing = async {
        let queue = Arc::clone(&broker);
        let written = write_rows(queue, &roles.writer, database, summary, &stops.writer).await;
        stops.producer.cancel();
        stops.worker.cancel();
        written.map_err(Failure::from)
    };
    let writing = page::serve_beside(server, sources, writing);
    join(pin!(producing), pin!(probing), pin!(writing)).await
}

type Outcomes = (
    Result<RunOutcome, ProducerError>,
    Result<ping_worker::WorkerSummary, WorkerError>,
    Result<consumer_writer::WriterSummary, Failure>,
);

/// Waits for all three roles. If the writer fails, the others are not waited for.
async fn join(
    producing: Pin<&mut impl Future<Output = Result<RunOutcome, ProducerError>>>,
    probing: Pin<&mut impl Future<Output = Result<ping_worker::WorkerSummary, WorkerError>>>,
    mut writing: Pin<&mut impl Future<Output = Result<consumer_writer::WriterSummary, Failure>>>,
) -> Result<Outcomes, Failure> {
    let mut others = pin!(async { tokio::join!(producing, probing) });
    let ((produced, probed), written) = tokio::select! {
        others = &mut others => (others, writing.await),
        written = &mut writing => match written {
            // Without a writer nothing can be finished: chunks in hand stay outstanding in the database.
            Err(failure) => return Err(failure),
            // It was stopped like the others, and ended first.
            written => (others.await, written),
        },
    };
    Ok((produced, probed, written))
}

/// The writer, with its own database connection as in its own process: its commits and the producer's reads do not wait
/// for each other.
async fn write_rows(
    broker: Arc<dyn Broker>,
    settings: &consumer_writer::WriterSettings,
    database: &DatabaseSettings,
    summary: watch::Sender<WriterSummary>,
    stop: &CancellationToken,
) -> Result<consumer_writer::WriterSummary, WriterError> {
    let db = DatabaseThread::open(database.options(true, false)).await?;
    let ended = consumer_writer::run(broker, &db, settings, summary, stop.clone()).await;
    let closed = db.close().await;
    let summary = ended?;
    closed?;
    Ok(summary)
}
