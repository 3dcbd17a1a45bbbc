//! The live page: what runs, workers and the pipeline do now, in a browser and as JSON. It only reads: through a
//! [`pingfleet_store::Reader`] of its own, the summary that the writer publishes, and the depths of the queues.
//!
//! One task takes a snapshot once a second while somebody looks, whatever the number of tabs, and a smaller one for each
//! scrape of the metrics. The page without a script and the event stream show the same fragments.

mod alerts;
mod api;
mod facts;
mod metrics;
mod pipeline;
mod queues;
mod rates;
mod routes;
mod settings;
mod snapshot;
mod view;
mod worker_totals;
mod workers;

use std::{path::PathBuf, sync::Arc};

use pingfleet_broker::Broker;
use pingfleet_http::{EventStreams, Server};
use pingfleet_store::Transport;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::settings::{DEFAULT_LISTEN, DashboardSettings};
use self::{facts::Source, snapshot::Look};
use crate::WriterSummary;

/// Where the page has its facts from.
#[derive(Debug, Clone)]
pub struct PageSources {
    /// The database.
    pub database: PathBuf,
    /// The queues.
    pub broker: Arc<dyn Broker>,
    /// What carries the messages.
    pub transport: Transport,
    /// What the writer does.
    pub summary: watch::Receiver<WriterSummary>,
    /// The flags of the commands that the page names, each behind a space.
    pub flags: String,
}

/// Serves the page until `stop`.
pub async fn serve(server: Server, sources: PageSources, stop: CancellationToken) {
    let (depths, queues) = watch::channel(queues::Queues::default());
    let streams = EventStreams::new(server.limits(), stop.clone());
    let look = Arc::new(Look::new(streams));
    let routes = routes::routes(Arc::clone(&look), &sources, &stop);
    let mut tasks = JoinSet::new();
    tasks.spawn(queues::follow(
        Arc::clone(&sources.broker),
        sources.transport,
        Arc::clone(&look),
        depths,
        stop.clone(),
    ));
    let token = stop.clone();
    let source = move || Source::new(&sources, queues.clone(), token.clone());
    tasks.spawn(snapshot::follow(source, look, stop.clone()));
    server.serve(routes, stop).await;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "the live page failed");
        }
    }
}
