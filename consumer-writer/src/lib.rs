//! The writer: drains the results queue into SQLite in batches, and acks after the commit.
//!
//! Invariant: a delivery is acked only after the transaction that applied it was committed. A delivery whose
//! ack was lost is redelivered and counted as a duplicate. Each delivery is applied, a duplicate, or quarantined. A
//! result for another database is acked after the queue of foreign messages has it.

mod batch;
mod commit;
mod foreign;
pub mod page;
mod received;
mod sender;
mod session;
mod set_aside;
mod settings;
mod summary;
mod times;
mod warnings;

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, QueueName, Sessions, open_session};
use pingfleet_settings::Failure;
use pingfleet_store::{DatabaseThread, StoreError, Transport, Writer};
use thiserror::Error;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    foreign::ForeignMessages,
    received::SessionConsumers,
    session::{SessionEnd, WriterSession},
    set_aside::SetAside,
};
pub use crate::{
    settings::{WriterArgs, WriterSettings},
    summary::{CommitTimes, LastCommit, WriterState, WriterSummary},
};

/// The queues that the writer uses.
const QUEUES: [QueueName; 4] = [
    QueueName::RESULTS,
    QueueName::DEAD,
    QueueName::HEARTBEATS,
    QueueName::FOREIGN,
];

/// What the writer's sessions are for, in the log.
const SESSION: &str = "results, dead letters and heartbeats";

/// How long a second writer waits for the first one to leave the queue.
const SECOND_WRITER_WAIT: Duration = Duration::from_secs(30);

/// How often a waiting second writer checks the queue.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the writer stopped with an error.
#[derive(Debug, Error)]
pub enum WriterError {
    /// A broker error that a new session does not fix.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A database error that waiting does not fix. Only committed deliveries were acked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The last batch was not committed within the stop deadline.
    #[error(
        "the last batch was not committed within {seconds} s of the stop signal; it was not acked, and comes again"
    )]
    StopDeadline {
        /// How long the writer waited, in seconds.
        seconds: u64,
    },
    /// Another consumer has the results queue.
    #[error(
        "queue {queue} already has a consumer{who}; only one writer for each broker: stop that one first"
    )]
    SecondWriter {
        /// The queue.
        queue: &'static str,
        /// " (the last writer of this database was pid 12)", or empty when it is unknown.
        who: String,
    },
}

impl From<WriterError> for Failure {
    fn from(error: WriterError) -> Self {
        match error {
            WriterError::Broker(error) => error.into(),
            WriterError::Store(error) => error.into(),
            other => Self::system(&other),
        }
    }
}

/// Publishes the state, if it is another one than before.
fn set_state(summary: &watch::Sender<WriterSummary>, state: WriterState) {
    summary.send_if_modified(|summary| std::mem::replace(&mut summary.state, state) != state);
}

/// How long a commit may take before it counts as waiting.
const WAITS_AFTER: Duration = Duration::from_secs(1);

/// Awaits something of the database. Meanwhile the writer is [`WriterState::WaitingForDatabase`], if it takes long.
/// Cancel-safe if that is.
async fn watch_database<T>(
    summary: &watch::Sender<WriterSummary>,
    work: impl Future<Output = T>,
) -> T {
    // On the heap: the futures of a writer are large.
    let mut work = Box::pin(work);
    let before = summary.borrow().state;
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(WAITS_AFTER) => {}
    }
    set_state(summary, WriterState::WaitingForDatabase);
    let done = work.await;
    set_state(summary, before);
    done
}

/// Drains the queues until `stop`, then commits and acks what it has in hand. Publishes on `summary` what it did so far.
///
/// # Errors
/// [`WriterError`]. Only committed deliveries were acked.
pub async fn run(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    settings: &WriterSettings,
    summary: watch::Sender<WriterSummary>,
    stop: CancellationToken,
) -> Result<WriterSummary, WriterError> {
    summary.send_if_modified(|before| std::mem::take(before) != WriterSummary::default());
    let foreign_stop = CancellationToken::new();
    let (foreign, publishing) = ForeignMessages::new(Arc::clone(&broker), foreign_stop.clone());
    let draining = async {
        let set_aside = SetAside::new(foreign);
        let ended = drain(&*broker, db, settings, set_aside, &summary, &stop).await;
        // What is not confirmed is not acked either, and comes again.
        foreign_stop.cancel();
        ended
    };
    // On the heap: the futures of a writer are large.
    let (ended, ()) = tokio::join!(Box::pin(draining), Box::pin(publishing));
    ended?;
    let summary = *summary.borrow();
    tracing::info!(
        rows = summary.rows,
        applied = summary.applied,
        duplicates = summary.duplicates,
        quarantined = summary.quarantined,
        foreign = summary.foreign,
        "writer stopped"
    );
    Ok(summary)
}

/// Drains the queues until `stop`, over as many sessions as that takes.
async fn drain(
    broker: &dyn Broker,
    db: &DatabaseThread,
    settings: &WriterSettings,
    mut set_aside: SetAside,
    summary: &watch::Sender<WriterSummary>,
    stop: &CancellationToken,
) -> Result<(), WriterError> {
    // Consume nothing before a test commit has worked.
    if !watch_database(summary, may_commit(db, stop)).await? {
        return Ok(());
    }
    if settings.transport == Transport::Broker
        && !(may_set_aside(broker, stop).await?
            && wait_for_the_other(broker, db, summary, stop).await?)
    {
        return Ok(());
    }
    commit::note_writer_alive(db, settings.transport, stop).await?;
    let mut sessions = Sessions::new(SESSION);
    tracing::info!(database = %db.database(), path = %db.path().display(), "writer ready");
    loop {
        let reconnects = broker.reconnects();
        let open = || SessionConsumers::open(broker);
        let Some(consumers) = sessions.open(None, stop, open).await? else {
            return Ok(());
        };
        let session = WriterSession::new(consumers, reconnects, db, settings, &mut set_aside);
        set_state(summary, WriterState::Connected);
        match Box::pin(session.run(summary, stop)).await? {
            // The last snapshot of the live page has the state before the stop.
            SessionEnd::Stopped => return Ok(()),
            SessionEnd::ClosedOnRequest => sessions.closed_on_request(),
            SessionEnd::Lost { error, unsettled } => {
                set_state(summary, WriterState::NoBroker);
                sessions.lost(error, unsettled, "unsettled deliveries come again")?;
            }
        }
    }
}

/// Waits until a transaction can be committed: another program may have the database's lock. Returns false when `stop`
/// came first.
async fn may_commit(db: &DatabaseThread, stop: &CancellationToken) -> Result<bool, WriterError> {
    tokio::select! {
        committed = db.call_while_busy(Writer::try_commit) => Ok(committed.map(|()| true)?),
        () = stop.cancelled() => Ok(false),
    }
}

/// Checks that the user may publish to the queue of foreign messages. Returns false when `stop` came first.
async fn may_set_aside(broker: &dyn Broker, stop: &CancellationToken) -> Result<bool, WriterError> {
    let check = || async {
        broker.ensure(&QUEUES).await?;
        foreign::may_set_aside(broker).await
    };
    Ok(open_session(SESSION, None, stop, check).await?.is_some())
}

/// Waits until the results queue has no consumer. Returns false when `stop` came first.
async fn wait_for_the_other(
    broker: &dyn Broker,
    db: &DatabaseThread,
    summary: &watch::Sender<WriterSummary>,
    stop: &CancellationToken,
) -> Result<bool, WriterError> {
    let mut seen: Option<Instant> = None;
    loop {
        let look = || async {
            broker.ensure(&QUEUES).await?;
            broker.depth(QueueName::RESULTS).await
        };
        let Some(depth) = open_session(SESSION, None, stop, look).await? else {
            return Ok(false);
        };
        if depth.consumers == 0 {
            set_state(summary, WriterState::NoBroker);
            return Ok(true);
        }
        set_state(summary, WriterState::WaitingForOtherWriter);
        let since = *seen.get_or_insert_with(|| {
            tracing::info!("another writer consumes the results queue; waiting for it to leave");
            Instant::now()
        });
        if since.elapsed() >= SECOND_WRITER_WAIT {
            let sign = db
                .call(|store| store.writer_liveness(Transport::Broker))
                .await?;
            return Err(WriterError::SecondWriter {
                queue: QueueName::RESULTS.kind.name(),
                who: sign.map_or_else(String::new, |sign| {
                    format!(" (the last writer of this database was {})", sign.holder)
                }),
            });
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(RECHECK_INTERVAL) => {}
        }
    }
}
