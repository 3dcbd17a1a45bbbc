//! One task that makes a snapshot once a second while somebody looks, for all tabs, and one for each scrape of the metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pingfleet_http::EventStreams;
use tokio::{
    sync::{Notify, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    facts::Source,
    metrics::MetricsSnapshot,
    view::{Fragment, fragments},
    worker_totals::WorkerTotals,
};

/// How often a snapshot is made.
const INTERVAL: Duration = Duration::from_secs(1);

/// A page that was loaded without a script is loaded again within this time.
const LOADED_WITHIN: Duration = Duration::from_secs(15);

/// Every this many intervals the workers are read although nobody looks.
const UNWATCHED_INTERVALS: u64 = 5;

/// Metrics that were asked for are asked for again within this time: Prometheus scrapes at least every two minutes.
const SCRAPED_WITHIN: Duration = Duration::from_mins(3);

/// How old a snapshot may be that a new page shows.
const FRESH: Duration = Duration::from_millis(1500);

/// How long a page waits for a snapshot.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(10);

/// What all tabs show.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) fragments: Vec<Fragment>,
    /// Of the browser's tab.
    pub(super) title: String,
    /// The runs, workers and queues as JSON.
    pub(super) api: super::api::ApiFacts,
    taken: Instant,
}

/// Who looks, and at what.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) streams: EventStreams,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: watch::Sender<Option<Arc<MetricsSnapshot>>>,
    wanted: Notify,
    /// Whether somebody waits for metrics.
    are_metrics_wanted: AtomicBool,
    began: Instant,
    /// When a page was asked for last, in milliseconds since `began`, and 1.
    asked_ms: AtomicU64,
    /// The same of the metrics.
    scraped_ms: AtomicU64,
}

impl Look {
    pub(super) fn new(streams: EventStreams) -> Self {
        Self {
            streams,
            snapshots: watch::Sender::default(),
            metrics: watch::Sender::default(),
            wanted: Notify::new(),
            are_metrics_wanted: AtomicBool::new(false),
            began: Instant::now(),
            asked_ms: AtomicU64::new(0),
            scraped_ms: AtomicU64::new(0),
        }
    }

    /// Whether somebody looks.
    pub(super) fn is_watched(&self) -> bool {
        self.streams.open() > 0 || self.is_recent(&self.asked_ms, LOADED_WITHIN)
    }

    /// Whether Prometheus asks for the metrics.
    pub(super) fn is_scraped(&self) -> bool {
        self.is_recent(&self.scraped_ms, SCRAPED_WITHIN)
    }

    fn is_recent(&self, at_ms: &AtomicU64, within: Duration) -> bool {
        let at = at_ms.load(Ordering::Relaxed);
        at > 0 && self.now_ms().saturating_sub(at) < within.as_millis() as u64
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The snapshots from now on.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// The metrics from now on.
    pub(super) fn follow_metrics(&self) -> watch::Receiver<Option<Arc<MetricsSnapshot>>> {
        self.metrics.subscribe()
    }

    /// A snapshot of now. None if there is none in time.
    pub(super) async fn fresh(&self) -> Option<Arc<Snapshot>> {
        self.asked_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        let ask = || self.wanted.notify_one();
        fresh_of(self.snapshots.subscribe(), |known| known.taken, ask).await
    }

    /// The metrics of now. None if there are none in time.
    pub(super) async fn fresh_metrics(&self) -> Option<Arc<MetricsSnapshot>> {
        self.scraped_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        let ask = || {
            self.are_metrics_wanted.store(true, Ordering::Relaxed);
            self.wanted.notify_one();
        };
        fresh_of(self.metrics.subscribe(), |known| known.taken, ask).await
    }
}

/// What was published last, or if that is too old, what is published after `ask`. None if that is not in time.
async fn fresh_of<T>(
    mut published: watch::Receiver<Option<Arc<T>>>,
    taken: fn(&T) -> Instant,
    ask: impl FnOnce(),
) -> Option<Arc<T>> {
    let known = published.borrow_and_update().clone();
    if let Some(known) = known
        && taken(&known).elapsed() < FRESH
    {
        return Some(known);
    }
    ask();
    let changed = tokio::time::timeout(SNAPSHOT_WAIT, published.changed()).await;
    changed.ok()?.ok()?;
    published.borrow().clone()
}

/// Makes snapshots until `stop`. `source` makes what they are read from.
pub(super) async fn follow(source: impl Fn() -> Source, look: Arc<Look>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading = source();
    let mut totals = WorkerTotals::default();
    // The first reading is at once, before this writer is in the database.
    let mut unwatched = UNWATCHED_INTERVALS - 1;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = look.wanted.notified() => {}
            _ = ticks.tick() => {}
        }
        let is_watched = look.is_watched();
        let is_scraped = look.are_metrics_wanted.swap(false, Ordering::Relaxed);
        unwatched = if is_watched { 0 } else { unwatched + 1 };
        if !is_scraped && !unwatched.is_multiple_of(UNWATCHED_INTERVALS) {
            continue;
        }
        let making = tokio::task::spawn_blocking(move || {
            let snapshot = is_watched.then(|| take(&mut reading));
            if snapshot.is_none() {
                if is_scraped {
                    reading.read_for_metrics();
                } else {
                    reading.read_workers();
                }
            }
            (reading, snapshot)
        });
        let made = tokio::select! {
            // `stop` interrupts the reading too, but not its wait for a locked database.
            () = stop.cancelled() => return,
            made = making => made,
        };
        let snapshot;
        (reading, snapshot) = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "a snapshot of the live page failed; the next one starts anew");
                reading = source();
                continue;
            }
        };
        if let Some(snapshot) = snapshot {
            look.snapshots.send_replace(Some(Arc::new(snapshot)));
        }
        totals.take(&reading.facts.workers);
        if is_scraped {
            let metrics = MetricsSnapshot::new(&reading.facts, &totals);
            look.metrics.send_replace(Some(Arc::new(metrics)));
        }
    }
}

fn take(source: &mut Source) -> Snapshot {
    source.read();
    let facts = &source.facts;
    let (title, fragments) = fragments(facts);
    Snapshot {
        title,
        fragments,
        api: super::api::ApiFacts::new(facts),
        taken: Instant::now(),
    }
}
