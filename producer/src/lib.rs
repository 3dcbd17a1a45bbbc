//! The producer: targets -> plan in SQLite -> chunks on the work queue; then it waits until every chunk is settled.
//!
//! Invariants: the plan is committed before anything is published; what is published are the plan's bytes; the
//! database, not the queue, says what is outstanding.

mod args;
mod dry_run;
mod frontend;
mod plan;
mod progress;
mod publish;
mod summary;
mod wait;

use std::{io::Write, sync::Arc};

use pingfleet_broker::{Broker, BrokerError, PATIENCE, reopen};
use pingfleet_settings::{Exit, Failure};
use pingfleet_store::{
    DatabaseThread, FileLock, PlannedRun, Republish, RunState, RunSummary, StoreError, Transport,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use crate::{
    args::{OutputArgs, PlanArgs, Printed, Settings},
    dry_run::dry_run,
    frontend::{conclude, read_targets},
    summary::print_summary,
};
use pingfleet_targets::Targets;

/// Why the producer had to stop. The plan stands; the run can be resumed.
#[derive(Debug, Error)]
pub enum ProducerError {
    /// The broker, finally.
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
    /// A run goes on in the way in which it began.
    #[error("run {run} was made by `pingfleet sweep`: go on with it by `pingfleet resume {run}`")]
    OtherWay {
        /// The run's number.
        run: i64,
    },
    /// A run that was given up has nothing to resume.
    #[error("run {run} is {state}: start a new run")]
    NotOpen {
        /// The run's number.
        run: i64,
        /// Its state.
        state: &'static str,
    },
    /// The plan would be too large for the numbers of chunks.
    #[error("more than {} chunks: raise --chunk-size", u32::MAX)]
    TooManyChunks,
}

impl From<ProducerError> for Failure {
    fn from(error: ProducerError) -> Self {
        match error {
            ProducerError::Broker(error) => error.into(),
            ProducerError::Store(error) => error.into(),
            ProducerError::NotOpen { .. } | ProducerError::OtherWay { .. } => {
                Self::new(Exit::Usage, error)
            }
            other => Self::system(&other),
        }
    }
}

/// What to produce.
pub enum Wanted {
    /// A new run.
    Plan(Box<Targets>),
    /// What is outstanding of an earlier run, by its number.
    Resume(i64),
    /// The dead chunks of an earlier run, and what else is outstanding of it.
    Retry(i64),
}

/// How producing ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Produced {
    /// The run, as it stood at the end; absent when it was interrupted before its plan stood.
    pub summary: Option<RunSummary>,
    /// Why it ended.
    pub ended: Ended,
}

/// Why producing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every chunk is settled, or the run was cancelled.
    Settled,
    /// Everything is published, and the caller did not want to wait.
    Detached,
    /// The stop signal came; the state is saved.
    Interrupted,
    /// Nobody reads what is printed any more; the state is saved.
    Unread,
}

impl Produced {
    /// The stop signal came before there was a plan.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            summary: None,
            ended: Ended::Interrupted,
        }
    }

    /// The exit code of a program that does nothing but produce.
    #[must_use]
    pub fn exit(&self, fail_down: bool) -> Exit {
        let Some(summary) = &self.summary else {
            return Exit::Interrupted;
        };
        match (self.ended, summary.state) {
            (Ended::Interrupted | Ended::Unread, _) => Exit::Interrupted,
            (Ended::Settled, RunState::Complete) => {
                let answered = summary.counts[0] + summary.counts[1];
                if fail_down && answered < summary.targets {
                    Exit::SomeDown
                } else {
                    Exit::Complete
                }
            }
            (Ended::Detached, _) => Exit::Complete,
            (Ended::Settled, _) => Exit::Incomplete,
        }
    }
}

/// Plans or resumes a run, publishes its chunks, and waits until they are settled. Targets that `settings` asks for
/// are printed to `out` as their chunks are stored.
///
/// # Errors
/// [`ProducerError`]. When the plan did not stand yet, nothing of it is left.
pub async fn run(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    wanted: Wanted,
    settings: &Settings,
    out: &mut (dyn Write + Send),
    stop: CancellationToken,
) -> Result<Produced, ProducerError> {
    let interrupted = Produced::nothing();
    if !reach(&*broker, &stop).await? {
        return Ok(interrupted);
    }
    let (planned, settled) = match wanted {
        Wanted::Plan(targets) => (plan::write(db, *targets, settings, &stop).await?, None),
        Wanted::Resume(run) => (resume(db, run, settings.via, false).await?, Some(run)),
        Wanted::Retry(run) => (resume(db, run, settings.via, true).await?, Some(run)),
    };
    let Some(planned) = planned else {
        let Some(run) = settled else {
            return Ok(interrupted);
        };
        let summary = db.call(move |store| store.summary(run)).await?;
        return Ok(Produced {
            summary: Some(summary),
            ended: Ended::Settled,
        });
    };
    let run = planned.run;
    tracing::info!(run, run_id = %planned.run_id, "run started");
    let ended = wait::produce(&broker, db, run, settings, out, &stop).await;
    // Even after an error the run is let go of, so that it shows as incomplete.
    let released = db
        .call_while_busy(move |store| store.release_lease(run))
        .await;
    drop(planned.lock);
    let ended = ended?;
    released?;
    let summary = db.call(move |store| store.summary(run)).await?;
    Ok(Produced {
        summary: Some(summary),
        ended,
    })
}

/// Reaches the broker, for 15 s, and makes sure that its topology stands. Before a plan, and before a database is
/// created: a wrong password must leave nothing behind. Returns false when `stop` came first.
///
/// # Errors
/// The last [`BrokerError`].
pub async fn reach(broker: &dyn Broker, stop: &CancellationToken) -> Result<bool, BrokerError> {
    let reached = reopen(Some(PATIENCE), stop, || broker.check()).await?;
    Ok(reached.is_some())
}

/// Takes an earlier run up again: with its lock, and with everything published again that a process took with it.
/// With `retry`, its dead chunks are sent again, too. Returns nothing when every chunk is settled already.
async fn resume(
    db: &DatabaseThread,
    run: i64,
    via: Transport,
    retry: bool,
) -> Result<Option<PlannedRun>, ProducerError> {
    if db.call(move |store| store.transport(run)).await? != via {
        return Err(ProducerError::OtherWay { run });
    }
    let lock = FileLock::run(db.path(), run)?;
    if retry {
        let chunks = db
            .call_while_busy(move |store| store.retry_dead(run))
            .await?;
        tracing::info!(run, chunks, "dead chunks are sent again");
    }
    let before = db.call(move |store| store.summary(run)).await?;
    let republish = match before.transport {
        Transport::Sweep => Republish::All,
        Transport::Broker => Republish::None,
    };
    let open = db
        .call_while_busy(move |store| store.reopen_published(run, republish))
        .await?;
    if open {
        return Ok(Some(PlannedRun {
            run,
            run_id: before.run_id,
            lock,
        }));
    }
    let after = db.call(move |store| store.summary(run)).await?;
    if matches!(after.state, RunState::Complete | RunState::Incomplete) {
        // The writer may have settled the last chunk since the user looked: what was asked for is done.
        return Ok(None);
    }
    Err(ProducerError::NotOpen {
        run,
        state: after.state.name(),
    })
}
