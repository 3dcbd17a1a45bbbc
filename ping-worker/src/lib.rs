//! The worker: takes a chunk, probes its targets, publishes their outcomes, acks after the confirm.
//!
//! Invariant: a chunk is acked only after the broker has stored its result. Probing has threads of its own (crate
//! `pingfleet-prober`). Two broker connections run on the caller's runtime: [`work_consumer`] takes chunks and acks them,
//! [`result_publisher`] publishes results and heartbeats.

mod in_hand;
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
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use crate::settings::{WorkerArgs, WorkerSettings};
use crate::{status::WorkerStatus, work_consumer::WorkConsumer};

/// Results between probing and publishing. There is room for all chunks in hand, so probing never waits for long.
const RESULTS_WAITING: usize = MAX_IN_HAND;

/// How long a drained worker waits until its last heartbeat is confirmed.
const LAST_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the worker had to stop.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A final error of the broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
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
pub fn lanes(
    opener: &Arc<dyn OpenProber>,
    resolver: Resolver,
    settings: &WorkerSettings,
) -> Result<ProbeThreads, ProbeError> {
    ProbeThreads::start(settings.threads, opener, settings.rate, resolver)
}

/// Takes chunks and probes them with `lanes` until `stop`. Then finishes, publishes and acks what it has in hand.
///
/// # Errors
/// [`WorkerError`]; what was not acked is delivered to another worker.
pub async fn run(
    broker: Arc<dyn Broker>,
    lanes: ProbeThreads,
    settings: &WorkerSettings,
    stop: CancellationToken,
) -> Result<WorkerSummary, WorkerError> {
    let lanes = Arc::new(lanes);
    let status = Arc::new(WorkerStatus::new(settings, Arc::clone(&lanes)));
    let (results, outgoing) = mpsc::channel(RESULTS_WAITING);
    let (confirm, confirmed) = mpsc::channel(RESULTS_WAITING);
    let leave = CancellationToken::new();
    let mut publisher = tokio::spawn(result_publisher::run(
        Arc::clone(&broker),
        Arc::clone(&status),
        outgoing,
        confirm,
        leave.clone(),
    ));
    let mut consumer = WorkConsumer::new(
        broker,
        Arc::clone(&lanes),
        settings.clone(),
        Arc::clone(&status),
        results,
        confirmed,
    );
    let ended = tokio::select! {
        ended = consumer.run(&stop) => ended.map_err(WorkerError::from),
        // Only a final error ends the publisher before the consumer.
        ended = &mut publisher => {
            return Err(match ended {
                Ok(Err(error)) => error.into(),
                _ => WorkerError::TaskFailed("publisher"),
            });
        }
    };
    // The consumer owns the sender of results: without it the publisher ends after its last confirm.
    consumer.abandon().await;
    let timeout = match ended {
        Ok(0) => LAST_HEARTBEAT_TIMEOUT,
        _ => Duration::ZERO,
    };
    let in_time = tokio::time::timeout(timeout, &mut publisher).await;
    let joined = if let Ok(joined) = in_time {
        joined
    } else {
        leave.cancel();
        publisher.await
    };
    joined.map_err(|_| WorkerError::TaskFailed("publisher"))??;
    let left = ended?;
    let summary = WorkerSummary {
        chunks: status.chunks_done(),
        targets: lanes.targets_done(),
        requests: lanes.requests_sent(),
        left,
    };
    tracing::info!(
        chunks = summary.chunks,
        targets = summary.targets,
        requests = summary.requests,
        left = summary.left,
        "worker stopped"
    );
    drop(status);
    if let Some(lanes) = Arc::into_inner(lanes) {
        // Joining threads blocks.
        tokio::task::spawn_blocking(move || lanes.close())
            .await
            .map_err(|_| WorkerError::TaskFailed("probing"))?;
    }
    Ok(summary)
}
