//! The producer: targets -> plan in SQLite -> chunks on the work queue; then it supervises the run until every chunk is
//! settled.
//!
//! Invariants: the plan is committed before anything is published; messages are the plan's bytes; the database, not the
//! queue, decides what is outstanding.

mod args;
mod cli;
mod dry_run;
mod overdue;
mod overtaking;
mod plan;
mod progress;
mod progress_bar;
mod publish;
mod summary;
mod supervise;
mod target_printer;
mod window;

use std::{io::Write, sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, CONNECT_TIMEOUT, QueueName, open_session};
use pingfleet_settings::{Exit, Failure};
use pingfleet_store::{
    DatabaseThread, FileLock, PlannedRun, Republish, RunState, RunSummary, StoreError, Transport,
    run_span,
};
use pingfleet_targets::Targets;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use crate::{
    args::{OutputArgs, PlanArgs, PrintFilter, ProducerSettings},
    cli::{CheckRoute, NextCommands, conclude, read_targets, read_targets_of_this_machine},
    dry_run::dry_run,
    plan::EarlierTargets,
    progress::{RunProgress, WorkConsumers},
    progress_bar::{BesideBar, RunProgressBar},
    summary::print_summary,
};
use crate::{
    supervise::Supervision,
    target_printer::{PrintedChunks, TargetPrinter},
};

/// The queues that the producer uses: it publishes work, work sends its dead letters, and results wait for the writer.
const QUEUES: [QueueName; 3] = [QueueName::WORK, QueueName::DEAD, QueueName::RESULTS];

/// How long the producer may take to stop after the stop signal.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Why the producer failed. A complete plan is kept; the run can be resumed.
#[derive(Debug, Error)]
pub enum ProducerError {
    /// The broker, with an error that is not transient.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The names that were spooled to a temporary file cannot be read back.
    #[error("cannot read the spooled targets")]
    Spool(#[source] std::io::Error),
    /// The targets that were asked for cannot be printed.
    #[error("cannot print targets")]
    Print(#[source] std::io::Error),
    /// A run keeps its transport.
    #[error("run {run} was made by `pingfleet sweep`, without a broker")]
    OtherTransport {
        /// The run's number.
        run: i64,
    },
    /// A cancelled run cannot be resumed.
    #[error("run {run} is {state}: start a new run")]
    NotOpen {
        /// The run's number.
        run: i64,
        /// Its state.
        state: &'static str,
    },
    /// The database was locked all the time that a stop may take.
    #[error(
        "the database was locked for {seconds} s after the stop signal; the run can be resumed, and chunks that were \
         published last may be published again"
    )]
    StopDeadline {
        /// How long the producer waited.
        seconds: u64,
    },
    /// The plan has more chunks than a chunk number can count.
    #[error("more than {} chunks: raise --chunk-size", u32::MAX)]
    TooManyChunks,
}

impl From<ProducerError> for Failure {
    fn from(error: ProducerError) -> Self {
        match error {
            ProducerError::Broker(error) => error.into(),
            ProducerError::Store(error) => error.into(),
            ProducerError::NotOpen { .. } | ProducerError::OtherTransport { .. } => {
                Self::new(Exit::Usage, error)
            }
            other => Self::system(&other),
        }
    }
}

/// What to produce.
pub enum RunRequest {
    /// A new run.
    Plan(Box<Targets>),
    /// A new run of targets that an earlier one has.
    PlanAgain(EarlierTargets),
    /// The outstanding chunks of an earlier run, by its number.
    Resume(i64),
    /// The dead and the outstanding chunks of an earlier run.
    Retry(i64),
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOutcome {
    /// The run's summary at the end; absent when the producer was interrupted before the plan was complete.
    pub summary: Option<RunSummary>,
    /// Why the producer stopped.
    pub reason: EndReason,
    /// The chunks whose targets are printed.
    printed: PrintedChunks,
}

/// Why the producer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Every chunk is settled, or the run was cancelled.
    Settled,
    /// Everything is published, and the user asked not to wait.
    Detached,
    /// The stop signal came; the run can be resumed.
    Interrupted,
    /// Standard output was closed; the run can be resumed.
    OutputClosed,
}

impl EndReason {
    /// The word in the log.
    fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Detached => "detached",
            Self::Interrupted => "interrupted",
            Self::OutputClosed => "output closed",
        }
    }
}

impl RunOutcome {
    /// The stop signal came before the plan was complete.
    #[must_use]
    pub fn no_run() -> Self {
        Self {
            summary: None,
            reason: EndReason::Interrupted,
            printed: PrintedChunks::default(),
        }
    }

    /// Logs it, with the run if there is one.
    fn log(&self) {
        let reason = self.reason.name();
        let Some(summary) = &self.summary else {
            tracing::info!(reason, "producer stopped");
            return;
        };
        run_span(summary.run, summary.run_id).in_scope(|| {
            tracing::info!(
                reason,
                state = summary.state.name(),
                chunks = summary.chunks,
                chunks_done = summary.chunks_done,
                "producer stopped"
            );
        });
    }

    /// The exit code of a program that does nothing but produce.
    #[must_use]
    pub fn exit(&self, fail_down: bool) -> Exit {
        let Some(summary) = &self.summary else {
            return Exit::Interrupted;
        };
        match (self.reason, summary.state) {
            (EndReason::Interrupted | EndReason::OutputClosed, _) => Exit::Interrupted,
            (EndReason::Settled, RunState::Complete) => {
                let answered = summary.counts.answered();
                if fail_down && answered < summary.targets {
                    Exit::SomeDown
                } else {
                    Exit::Complete
                }
            }
            (EndReason::Detached, _) => Exit::Complete,
            (EndReason::Settled, _) => Exit::Incomplete,
        }
    }
}

/// Plans or resumes a run, publishes its chunks, and supervises it until they are settled. Targets that `settings` asks
/// for are printed to `out` when their chunks are stored. `progress` shows how far the run is.
///
/// After `stop` it takes 20 s at most. With [`ProducerError::StopDeadline`] the database's thread may still wait for a
/// lock: [`close`] does not wait for it.
///
/// # Errors
/// [`ProducerError`]. An incomplete plan is removed.
pub async fn run(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    request: RunRequest,
    settings: &ProducerSettings,
    out: &mut (dyn Write + Send),
    progress: &watch::Sender<RunProgress>,
    stop: CancellationToken,
) -> Result<RunOutcome, ProducerError> {
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    let outcome = tokio::select! {
        biased;
        outcome = run_to_end(&broker, db, request, settings, out, progress, &stop) => {
            outcome.inspect(RunOutcome::log)
        }
        () = deadline => Err(ProducerError::StopDeadline { seconds: STOP_DEADLINE.as_secs() }),
    };
    broker.close().await;
    outcome
}

/// Closes the database after [`run`] ended with `outcome`. After [`ProducerError::StopDeadline`] it is left open: its
/// thread waits for a lock, and ends with the process.
///
/// # Errors
/// As [`DatabaseThread::close`].
pub async fn close(
    db: DatabaseThread,
    outcome: &Result<RunOutcome, ProducerError>,
) -> Result<(), StoreError> {
    if matches!(outcome, Err(ProducerError::StopDeadline { .. })) {
        drop(db);
        return Ok(());
    }
    db.close().await
}

async fn run_to_end(
    broker: &Arc<dyn Broker>,
    db: &DatabaseThread,
    request: RunRequest,
    settings: &ProducerSettings,
    out: &mut (dyn Write + Send),
    progress: &watch::Sender<RunProgress>,
    stop: &CancellationToken,
) -> Result<RunOutcome, ProducerError> {
    if !check_broker(&**broker, stop).await? {
        return Ok(RunOutcome::no_run());
    }
    let (planned, settled) = match request {
        RunRequest::Plan(targets) => {
            let plan = plan::NewPlan::of_targets(*targets, settings);
            (plan::write(db, plan, settings, stop).await?, None)
        }
        RunRequest::PlanAgain(earlier) => (plan_again(db, earlier, settings, stop).await?, None),
        RunRequest::Resume(run) => (resume(db, run, settings.transport, false).await?, Some(run)),
        RunRequest::Retry(run) => (resume(db, run, settings.transport, true).await?, Some(run)),
    };
    let Some(planned) = planned else {
        let Some(run) = settled else {
            return Ok(RunOutcome::no_run());
        };
        let summary = db.call(move |store| store.summary(run)).await?;
        return Ok(RunOutcome {
            summary: Some(summary),
            reason: EndReason::Settled,
            printed: PrintedChunks::default(),
        });
    };
    let supervision = Supervision {
        broker,
        db,
        run: planned.run,
        settings,
        progress,
        stop,
    };
    let span = run_span(planned.run, planned.run_id);
    supervise_planned(planned, &supervision, out)
        .instrument(span)
        .await
}

/// Supervises a run whose plan is complete, and gives up its lease and its lock at the end.
async fn supervise_planned(
    planned: PlannedRun,
    supervision: &Supervision<'_>,
    out: &mut (dyn Write + Send),
) -> Result<RunOutcome, ProducerError> {
    let Supervision {
        db, run, settings, ..
    } = *supervision;
    let ended = supervise::supervise(supervision, out).await;
    // Also after an error the lease is released, so that the run shows as incomplete.
    let released = db
        .call_while_busy(move |store| store.release_lease(run))
        .await;
    drop(planned.lock);
    let (reason, printed) = ended?;
    released?;
    let summary = db.call(move |store| store.summary(run)).await?;
    let mut outcome = RunOutcome {
        summary: Some(summary),
        reason,
        printed,
    };
    bring_up_to_date(db, &mut outcome, settings, out).await?;
    Ok(outcome)
}

/// Brings the outcome of a run up to date with the database: results may be stored after the producer ended. A run that
/// was interrupted in its last chunks may be over then. It counts as settled, and the targets of these chunks are printed.
///
/// # Errors
/// [`ProducerError::Store`], [`ProducerError::Print`].
pub async fn bring_up_to_date(
    db: &DatabaseThread,
    outcome: &mut RunOutcome,
    settings: &ProducerSettings,
    out: &mut (dyn Write + Send),
) -> Result<(), ProducerError> {
    let Some(before) = &outcome.summary else {
        return Ok(());
    };
    let run = before.run;
    let summary = db.call(move |store| store.summary(run)).await?;
    let is_over = supervise::is_over(&summary);
    outcome.summary = Some(summary);
    if outcome.reason != EndReason::Interrupted || !is_over {
        return Ok(());
    }
    outcome.reason = EndReason::Settled;
    if let Some(filter) = settings.print {
        let printed = std::mem::take(&mut outcome.printed);
        let mut printer = TargetPrinter::new(filter, out, printed);
        if !printer.print_new(db, run).await? {
            outcome.reason = EndReason::OutputClosed;
        }
        outcome.printed = printer.into_printed();
    }
    Ok(())
}

/// Connects to the broker, trying for 15 s, and makes sure that its topology exists. Call it before a plan is written or
/// a database created: a wrong password must leave nothing behind. Returns false when `stop` came first.
///
/// # Errors
/// The last [`BrokerError`].
pub async fn check_broker(
    broker: &dyn Broker,
    stop: &CancellationToken,
) -> Result<bool, BrokerError> {
    let reached = open_session("work", Some(CONNECT_TIMEOUT), stop, || {
        broker.ensure(&QUEUES)
    })
    .await?;
    Ok(reached.is_some())
}

/// Plans a run of targets that an earlier one has. Meanwhile nobody can resume that run.
async fn plan_again(
    db: &DatabaseThread,
    earlier: EarlierTargets,
    settings: &ProducerSettings,
    stop: &CancellationToken,
) -> Result<Option<PlannedRun>, ProducerError> {
    let run = earlier.run;
    let _lock = FileLock::run(db.path(), run)?;
    db.call(move |store| store.summary(run)?.refuse_pruned())
        .await?;
    let plan = plan::NewPlan::of_earlier(earlier);
    plan::write(db, plan, settings, stop).await
}

/// Opens an earlier run again and takes its lock. The chunks of a run whose queues ended with their process become
/// unpublished. With `retry`, dead chunks are published again, too. Returns `None` when every chunk is settled already.
async fn resume(
    db: &DatabaseThread,
    run: i64,
    transport: Transport,
    retry: bool,
) -> Result<Option<PlannedRun>, ProducerError> {
    if db.call(move |store| store.transport(run)).await? != transport {
        return Err(ProducerError::OtherTransport { run });
    }
    let lock = FileLock::run(db.path(), run)?;
    db.call(move |store| store.summary(run)?.refuse_pruned())
        .await?;
    let dead_chunks = if retry {
        db.call_while_busy(move |store| store.retry_dead(run))
            .await?
    } else {
        0
    };
    let before = db.call(move |store| store.summary(run)).await?;
    let republish = match before.transport {
        Transport::Sweep => Republish::All,
        Transport::Broker => Republish::None,
    };
    let open = db
        .call_while_busy(move |store| store.take_over_run(run, republish))
        .await?;
    if open {
        run_span(run, before.run_id).in_scope(|| tracing::info!(dead_chunks, "run resumed"));
        return Ok(Some(PlannedRun {
            run,
            run_id: before.run_id,
            lock,
        }));
    }
    let after = db.call(move |store| store.summary(run)).await?;
    if matches!(after.state, RunState::Complete | RunState::Incomplete) {
        // The writer settled the last chunk in the meantime: there is nothing left to do.
        return Ok(None);
    }
    Err(ProducerError::NotOpen {
        run,
        state: after.state.name(),
    })
}
