//! The live page: what runs, workers and the pipeline do now, in a browser and as JSON. It only reads: through a
//! [`pingfleet_store::Reader`] of its own, the summary that the writer publishes, and the depths of the queues.
//!
//! One task takes a snapshot once a second while somebody looks, whatever the number of tabs, a last one at the end, and a
//! smaller one for each scrape of the metrics. The page without a script and the event stream show the same fragments.

mod alerts;
mod api;
mod api_run;
mod facts;
mod metrics;
mod missing_chunks;
mod pipeline;
mod queues;
mod rates;
mod routes;
mod settings;
mod shared_names;
mod snapshot;
mod view;
mod worker_totals;
mod workers;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use pingfleet_broker::Broker;
use pingfleet_http::{EventStreams, Server};
use pingfleet_settings::Failure;
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
    /// Why the writer has ended, if it failed. The last snapshot shows it.
    pub failure: Arc<OnceLock<String>>,
    /// The flags of the commands that the page names, each behind a space.
    pub flags: String,
}

/// Serves the page, if there is a `server`, until `writing` has ended. Open tabs get one more snapshot then, which has the
/// reason if it failed. Returns what `writing` returned.
///
/// # Errors
/// Those of `writing`.
pub async fn serve_beside<T>(
    server: Option<Server>,
    sources: PageSources,
    writing: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let stop = CancellationToken::new();
    let failure = Arc::clone(&sources.failure);
    let page = async {
        if let Some(server) = server {
            serve(server, sources, stop.clone()).await;
        }
    };
    let writing = async {
        let ended = writing.await;
        if let Err(error) = &ended {
            failure.get_or_init(|| error.message.clone());
        }
        stop.cancel();
        ended
    };
    tokio::join!(writing, page).0
}

/// Serves the page until `stop`. Open tabs get one more snapshot then: that of the end.
pub async fn serve(server: Server, sources: PageSources, stop: CancellationToken) {
    let (depths, queues) = watch::channel(queues::Queues::default());
    // The streams end by themselves, behind the last snapshot.
    let streams = EventStreams::new(server.limits(), CancellationToken::new());
    let look = Arc::new(Look::new(streams));
    let ended = look.ended();
    let routes = routes::routes(Arc::clone(&look), &sources, &ended);
    let mut tasks = JoinSet::new();
    tasks.spawn(queues::follow(
        Arc::clone(&sources.broker),
        sources.transport,
        Arc::clone(&look),
        depths,
        stop.clone(),
    ));
    let token = ended.clone();
    let source = move || Source::new(&sources, queues.clone(), token.clone());
    tasks.spawn(snapshot::follow(source, look, stop));
    server.serve(routes, ended).await;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "the live page failed");
        }
    }
}
