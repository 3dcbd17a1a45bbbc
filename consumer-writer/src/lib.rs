//! The writer: drains the results queue into SQLite in batches, and acks after the commit.
//!
//! Invariant: a delivery is acked only after the transaction that applied it was committed. What is not acked comes
//! again, and is then counted as a duplicate. Each delivery ends as applied, duplicate or quarantined; a result for
//! another database is never acked at all.

mod batch;
mod session;
mod settings;

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, Queue, Sessions, open_session};
use pingfleet_store::{Db, Store, StoreError, Via};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::session::{End, Session};
pub use crate::settings::{Settings, WriterArgs};

/// How long a second writer waits for the first one to go.
const SECOND_WRITER: Duration = Duration::from_secs(30);

/// How often a waiting second writer looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why the writer had to stop.
#[derive(Debug, Error)]
pub enum WriterError {
    /// The broker, finally.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The database, finally: nothing that is not committed was acked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The last batch was not committed in the time that a stop allows.
    #[error(
        "the last batch was not committed within {seconds} s of the stop signal; it was not acked, and comes again"
    )]
    StopDeadline {
        /// How long it was waited for.
        seconds: u64,
    },
    /// Another consumer has the results queue.
    #[error("queue {queue} already has a consumer{who}; one writer a broker: stop it first")]
    SecondWriter {
        /// The queue.
        queue: &'static str,
        /// " (pid 12)", when the database knows it.
        who: String,
    },
    /// Everything on the queue belongs to another database.
    #[error(
        "the results queue holds results for database {theirs}, but {path} is database {ours}; nothing was acked: \
             start the writer on the other database, or give this one a broker prefix of its own (broker.prefix)"
    )]
    OtherDatabase {
        /// The database of this writer.
        ours: Uuid,
        /// The database that the results are for.
        theirs: Uuid,
        /// The file of this writer.
        path: String,
    },
}

/// What a writer did, and left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions committed with deliveries in them.
    pub batches: u64,
    /// Rows stored.
    pub rows: u64,
    /// Deliveries applied.
    pub applied: u64,
    /// Deliveries that repeated what was stored.
    pub duplicates: u64,
    /// Deliveries put into quarantine.
    pub quarantined: u64,
}

/// Drains the queues until `stop`, then commits and acks what it has in hand.
///
/// # Errors
/// [`WriterError`]; nothing was acked that was not committed.
pub async fn run(
    broker: Arc<dyn Broker>,
    db: &Db,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<Summary, WriterError> {
    // Nothing is taken before a commit is known to be possible.
    db.patiently(Store::try_commit).await?;
    let mut summary = Summary::default();
    if settings.via == Via::Broker && !wait_for_the_other(&*broker, db, &stop).await? {
        return Ok(summary);
    }
    let holder = format!("pid {}", std::process::id());
    let via = settings.via;
    db.patiently(move |store| store.writer_seen(via, &holder))
        .await?;
    let mut sessions = Sessions::default();
    tracing::info!(database = %db.database(), path = %db.path().display(), "writer ready");
    loop {
        let open = || Session::open(&*broker, db, settings);
        let Some(session) = sessions.open(None, &stop, open).await? else {
            break;
        };
        match session.run(&mut summary, &stop).await? {
            End::Stopped => break,
            End::Lost(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "session lost; unsettled deliveries come again");
            }
        }
    }
    tracing::info!(
        rows = summary.rows,
        applied = summary.applied,
        duplicates = summary.duplicates,
        quarantined = summary.quarantined,
        "writer stopped"
    );
    Ok(summary)
}

/// Waits until the results queue has no consumer. Returns false when `stop` came first.
async fn wait_for_the_other(
    broker: &dyn Broker,
    db: &Db,
    stop: &CancellationToken,
) -> Result<bool, WriterError> {
    let mut seen: Option<Instant> = None;
    loop {
        let look = || async {
            broker.check().await?;
            broker.depth(Queue::Results).await
        };
        let Some(depth) = open_session(None, stop, look).await? else {
            return Ok(false);
        };
        if depth.consumers == 0 {
            return Ok(true);
        }
        if seen.get_or_insert_with(Instant::now).elapsed() >= SECOND_WRITER {
            let sign = db.call(|store| store.writer_sign(Via::Broker)).await?;
            return Err(WriterError::SecondWriter {
                queue: Queue::Results.suffix(),
                who: sign.map_or_else(String::new, |sign| {
                    format!(" (the last writer of this database was {})", sign.holder)
                }),
            });
        }
        tracing::info!("another writer consumes the results queue; waiting for it to leave");
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}
