//! The worker: takes a chunk, probes its targets, publishes their outcomes, acks after the confirm.
//!
//! Invariant: a chunk is acked only after the broker has stored its result. Probing has threads of its own (crate
//! `pingfleet-prober`). Two broker connections run on the caller's runtime: `work_consumer` takes chunks and acks them,
//! `result_publisher` publishes results and heartbeats.

mod clock;
mod heartbeats;
mod in_hand;
pub mod metrics;
mod prefetch;
mod result_publisher;
mod settings;
mod status;
mod work_consumer;

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError};
use pingfleet_prober::{
    probe_threads::ProbeThreads,
    prober::{OpenProber, ProbeError},
    resolve::Resolver,
};
use pingfleet_wire::MAX_IN_HAND;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{result_publisher::ResultPublisher, status::StatusBoard, work_consumer::WorkConsumer};
pub use crate::{
    settings::{WorkerArgs, WorkerSettings},
    status::{WorkerState, WorkerStatus},
};

/// How long a drained worker waits until its last heartbeat is confirmed.
const LAST_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the worker had to stop.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A final error of the broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// All probing threads have ended, because none could open its sockets again.
    #[error(
        "no probing thread is left: none could open its sockets again, and the log says why; start the worker again"
    )]
    NoProbeThread,
    /// A defect: one of the worker's own tasks failed. What it had in hand is delivered again.
    #[error("the worker's {0} task failed")]
    TaskFailed(&'static str),
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerSummary {
    /// Chunks probed, published and confirmed.
    pub chunks: u64,
    /// Targets settled.
    pub targets: u64,
    /// Requests sent.
    pub requests: u64,
    /// Chunks left to other workers when draining timed out.
    pub left: usize,
}

/// Starts the probing threads. It needs permission for ICMP sockets, but neither broker nor database.
///
/// # Errors
/// [`ProbeError`], with what is missing.
pub fn start_probe_threads(
    opener: &Arc<dyn OpenProber>,
    resolver: Resolver,
    settings: &WorkerSettings,
) -> Result<ProbeThreads, ProbeError> {
    ProbeThreads::start(settings.threads, opener, settings.rate, resolver)
}

/// Takes chunks and probes them with `probe_threads` until `stop`. Then finishes, publishes and acks what it has in hand.
/// Publishes what it is doing on `status`.
///
/// # Errors
/// [`WorkerError`]; what was not acked is delivered to another worker.
pub async fn run(
    broker: Arc<dyn Broker>,
    probe_threads: ProbeThreads,
    settings: &WorkerSettings,
    status: watch::Sender<WorkerStatus>,
    stop: CancellationToken,
) -> Result<WorkerSummary, WorkerError> {
    let probe_threads = Arc::new(probe_threads);
    let board = Arc::new(StatusBoard::new(
        settings,
        Arc::clone(&probe_threads),
        status,
    ));
    let left = consume_and_publish(broker, &probe_threads, settings, &board, stop).await?;
    let counts = board.counts();
    let summary = WorkerSummary {
        chunks: counts.chunks_done,
        targets: counts.targets_done,
        requests: counts.requests_sent,
        left,
    };
    tracing::info!(
        chunks = summary.chunks,
        targets = summary.targets,
        requests = summary.requests,
        left = summary.left,
        "worker stopped"
    );
    drop(board);
    if let Some(probe_threads) = Arc::into_inner(probe_threads) {
        // Joining threads blocks.
        tokio::task::spawn_blocking(move || probe_threads.close())
            .await
            .map_err(|_| WorkerError::TaskFailed("probing"))?;
    }
    Ok(summary)
}

/// Runs the worker's two connections. Returns how many chunks were left to other workers.
async fn consume_and_publish(
    broker: Arc<dyn Broker>,
    probe_threads: &Arc<ProbeThreads>,
    settings: &WorkerSettings,
    board: &Arc<StatusBoard>,
    stop: CancellationToken,
) -> Result<usize, WorkerError> {
    let (results, messages) = mpsc::channel(MAX_IN_HAND);
    let (confirm, confirmed) = mpsc::channel(MAX_IN_HAND);
    let mut publisher =
        ResultPublisher::start(Arc::clone(&broker), Arc::clone(board), messages, confirm);
    let mut consumer = WorkConsumer::new(
        broker,
        Arc::clone(probe_threads),
        settings.clone(),
        Arc::clone(board),
        results,
        confirmed,
    );
    let ended = tokio::select! {
        ended = consumer.run(&stop) => ended,
        error = publisher.failed() => return Err(error),
    };
    // The consumer owns the sender of results. The publisher ends after the last confirm and the last heartbeat.
    consumer.abandon().await;
    let timeout = match ended {
        // Without a broker nobody can receive a last heartbeat.
        Ok(0) if board.is_connected() => LAST_HEARTBEAT_TIMEOUT,
        _ => Duration::ZERO,
    };
    publisher.finish(timeout).await?;
    ended
}
