//! The worker's own metrics, for Prometheus: what its process did and does. docs/metrics.md describes each series.
//!
//! The writer serves those of the whole fleet, as its heartbeats say, under other names: a sum over both would count twice.

use std::{fmt, sync::Arc};

use axum::{Router, extract::Request, http::StatusCode, routing::get};
use pingfleet_http::{
    Answer, HttpSettings, Limits, Server,
    exposition::{self, Samples, exposition},
    failed,
};
use pingfleet_settings::{Failure, Layers, keys};
use pingfleet_wire::LocalLossCounts;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{WorkerSettings, WorkerState, WorkerStatus};

/// The states of a worker, each a series.
const STATES: [(WorkerState, &str); 3] = [
    (WorkerState::Starting, "starting"),
    (WorkerState::Live, "live"),
    (WorkerState::Draining, "draining"),
];

/// The resolved settings of a worker's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    http: HttpSettings,
}

impl MetricsSettings {
    /// Resolves the settings; problems are collected in `layers`. None when the metrics are off.
    pub fn resolve(layers: &mut Layers) -> Option<Self> {
        let listen = layers.get(&keys::METRICS_LISTEN);
        let token_file = layers.optional(&keys::METRICS_TOKEN_FILE);
        let name = layers.optional(&keys::METRICS_NAME);
        Some(Self {
            http: HttpSettings {
                listen: listen?,
                flag: "--metrics",
                section: "metrics",
                name,
                token_file,
                limits: Limits::default(),
            },
        })
    }

    /// Listens.
    ///
    /// # Errors
    /// A [`Failure`] when it cannot.
    pub async fn bind(&self) -> Result<Server, Failure> {
        let server = Server::bind(&self.http).await?;
        tracing::info!(
            url = %format_args!("http://{}{}", server.address(), exposition::PATH),
            needs_token = server.needs_token(),
            "metrics ready"
        );
        Ok(server)
    }
}

/// Where the metrics come from.
#[derive(Debug)]
pub struct MetricsSource {
    name: String,
    threads: usize,
    status: watch::Receiver<WorkerStatus>,
}

impl MetricsSource {
    /// The metrics of a worker with these settings, which publishes its status here.
    #[must_use]
    pub fn new(settings: &WorkerSettings, status: watch::Receiver<WorkerStatus>) -> Self {
        Self {
            name: settings.name.clone(),
            threads: settings.threads.get(),
            status,
        }
    }
}

/// Serves the metrics until `stop`.
pub async fn serve(server: Server, source: MetricsSource, stop: CancellationToken) {
    let registry = Arc::new(registry(source));
    let metrics = move |request: Request| {
        let answer = exposition(request.headers(), &registry);
        async move { answer }
    };
    let routes = Router::new()
        .route(exposition::PATH, get(metrics))
        .fallback(nothing);
    server.serve(routes, stop).await;
}

async fn nothing(request: Request) -> Answer {
    let path = request.uri().path();
    let sentence = "There is nothing under this address. The metrics are at /metrics";
    failed(StatusCode::NOT_FOUND, path, sentence)
}

/// All metrics of a worker.
fn registry(source: MetricsSource) -> Registry {
    let mut registry = exposition::registry("ping-worker", env!("CARGO_PKG_VERSION"));
    registry.register_collector(Box::new(source));
    registry
}

impl Collector for MetricsSource {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = *self.status.borrow();
        let mut samples = Samples::new(encoder);
        counters(&mut samples, &status)?;
        self.gauges(&mut samples, &status)
    }
}

fn counters(samples: &mut Samples<'_>, status: &WorkerStatus) -> fmt::Result {
    let counts = &status.counts;
    samples.counter(
        "probing_requests",
        "Echo requests that this worker sent.",
        counts.requests_sent,
    )?;
    samples.counter(
        "probing_replies",
        "Replies to requests of settled targets.",
        counts.replies,
    )?;
    samples.counter(
        "probing_targets",
        "Targets that this worker settled.",
        counts.targets_done,
    )?;
    samples.counter(
        "probing_chunks",
        "Chunks whose result the broker confirmed.",
        counts.chunks_done,
    )?;
    let losses: &LocalLossCounts = &counts.local_losses;
    samples.counters(
        "probing_local_losses",
        "Attempts at targets that this machine may have lost itself, by cause.",
        losses
            .named()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )
}

impl MetricsSource {
    fn gauges(&self, samples: &mut Samples<'_>, status: &WorkerStatus) -> fmt::Result {
        samples.gauge(
            "probing_chunks_in_hand",
            None,
            "Chunks that this worker took and has not settled.",
            Some(status.in_hand),
        )?;
        samples.gauge(
            "probing_prefetch_chunks",
            None,
            "How many chunks this worker may have in hand now.",
            Some(u32::from(status.prefetch)),
        )?;
        samples.gauge(
            "probing_threads",
            None,
            "Probing threads of this worker.",
            Some(self.threads),
        )?;
        samples.gauge(
            "probing_broker_up",
            None,
            "Whether this worker has a session on the work queue.",
            Some(i64::from(status.connected)),
        )?;
        samples.gauges(
            "probing_state",
            None,
            "1 for the state of this worker, 0 for the others.",
            STATES.map(|(state, name)| ([("state", name)], i64::from(state == status.state))),
        )?;
        samples.infos(
            "probing",
            "The name of this worker in reports.",
            [[("worker", self.name.as_str())]],
        )
    }
}
