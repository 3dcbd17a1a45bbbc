//! The worker: takes a chunk, probes its targets, publishes their outcomes, acks after the confirm.
//!
//! Invariant: a chunk is acked only after the broker has stored its result. Probing has threads of its own
//! (crate `pingfleet-prober`); the broker's two connections run on the caller's runtime: `session` consumes, `outbox` publishes.

mod heartbeat;
mod in_hand;
mod outbox;
mod prefetch;
mod session;
mod settings;

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError};
use pingfleet_prober::{
    probe_threads::ProbeThreads,
    prober::{OpenProber, ProbeError},
    resolve::Resolver,
};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use crate::settings::{Settings, WorkerArgs};
use crate::{heartbeat::Pulse, session::Intake};

/// Results between probing and publishing: as many as there can be chunks in hand, so that neither waits for long.
const RESULTS_WAITING: usize = 512;

/// How long a worker that has nothing in hand any more waits for a broker that takes its farewell.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the worker had to stop.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The broker, finally.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A defect: one of the worker's own tasks ended in disorder. What it had in hand is delivered again.
    #[error("the worker's {0} ended in disorder")]
    Disorder(&'static str),
}

/// What a worker did, and left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Chunks probed, published and confirmed.
    pub chunks: u64,
    /// Targets settled.
    pub targets: u64,
    /// Requests sent.
    pub requests: u64,
    /// Chunks left to another worker at the drain's deadline.
    pub left: usize,
}

/// Starts the probing threads that the settings ask for. It needs a permission, but neither broker nor database.
///
/// # Errors
/// [`ProbeError`], with what is missing.
pub fn lanes(
    opener: &Arc<dyn OpenProber>,
    resolver: Resolver,
    settings: &Settings,
) -> Result<ProbeThreads, ProbeError> {
    ProbeThreads::start(settings.threads, opener, settings.rate, resolver)
}

/// Has chunks probed by `lanes` until `stop`, then finishes, publishes and acks what it has in hand.
///
/// # Errors
/// [`WorkerError`]; what was not acked is delivered to another worker.
pub async fn run(
    broker: Arc<dyn Broker>,
    lanes: ProbeThreads,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<Summary, WorkerError> {
    let lanes = Arc::new(lanes);
    let pulse = Arc::new(Pulse::new(
        &settings.name,
        settings.threads.get(),
        Arc::clone(&lanes),
    ));
    let (results, outgoing) = mpsc::channel(RESULTS_WAITING);
    let (confirm, confirmed) = mpsc::channel(RESULTS_WAITING);
    let leave = CancellationToken::new();
    let mut outbox = tokio::spawn(outbox::run(
        Arc::clone(&broker),
        Arc::clone(&pulse),
        outgoing,
        confirm,
        leave.clone(),
    ));
    let mut intake = Intake::new(
        broker,
        Arc::clone(&lanes),
        settings.clone(),
        Arc::clone(&pulse),
        results,
        confirmed,
    );
    let ended = tokio::select! {
        ended = intake.run(&stop) => ended.map_err(WorkerError::from),
        // Only a final error ends the outbox before the intake.
        ended = &mut outbox => {
            return Err(match ended {
                Ok(Err(error)) => error.into(),
                _ => WorkerError::Disorder("outbox"),
            });
        }
    };
    // The intake owns the way into the outbox: with it gone, the outbox ends after its last confirm.
    intake.abandon().await;
    let patience = match ended {
        Ok(0) => FAREWELL,
        _ => Duration::ZERO,
    };
    let in_time = tokio::time::timeout(patience, &mut outbox).await;
    let joined = if let Ok(joined) = in_time {
        joined
    } else {
        leave.cancel();
        outbox.await
    };
    joined.map_err(|_| WorkerError::Disorder("outbox"))??;
    let left = ended?;
    let summary = Summary {
        chunks: pulse.chunks_done(),
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
    drop(pulse);
    if let Some(lanes) = Arc::into_inner(lanes) {
        // Joining threads blocks.
        tokio::task::spawn_blocking(move || lanes.close())
            .await
            .map_err(|_| WorkerError::Disorder("threads"))?;
    }
    Ok(summary)
}
