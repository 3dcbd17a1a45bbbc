//! One task that makes a snapshot once a second while somebody looks, for all tabs, a last one at the end, and one for each
//! scrape of the metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pingfleet_http::EventStreams;
use pingfleet_store::Transport;
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
use crate::WriterSummary;

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

/// How long the last snapshot may take.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// How long a scrape waits for the database. Prometheus itself waits for 10 s.
const METRICS_WAIT: Duration = Duration::from_secs(5);

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
    /// Whether the program that serves the page ends with it, and is not started again.
    pub(super) is_end: bool,
    taken: Instant,
}

/// Who looks, and at what.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) streams: EventStreams,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    metrics: watch::Sender<Option<Arc<MetricsSnapshot>>>,
    wanted: Notify,
    queues_wanted: Notify,
    /// Cancelled when there is no further snapshot.
    ended: CancellationToken,
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
            queues_wanted: Notify::new(),
            ended: CancellationToken::new(),
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

    /// Is cancelled when the last snapshot is there, or was not made in time.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// The snapshots from now on.
    pub(super) fn follow(&self) -> FollowedSnapshots {
        let mut snapshots = self.snapshots.subscribe();
        let is_fresh = snapshots
            .borrow()
            .as_ref()
            .is_some_and(|known| known.taken.elapsed() < FRESH);
        if is_fresh {
            snapshots.mark_changed();
        }
        FollowedSnapshots {
            snapshots,
            ended: self.ended.clone(),
        }
    }

    /// The metrics from now on.
    pub(super) fn follow_metrics(&self) -> watch::Receiver<Option<Arc<MetricsSnapshot>>> {
        self.metrics.subscribe()
    }

    /// A snapshot of now. None if there is none in time.
    pub(super) async fn fresh(&self) -> Option<Arc<Snapshot>> {
        self.asked_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        let ask = || self.wanted.notify_one();
        fresh_of(
            self.snapshots.subscribe(),
            |known| known.taken,
            ask,
            SNAPSHOT_WAIT,
        )
        .await
    }

    /// The metrics of now. None if there are none in time.
    pub(super) async fn fresh_metrics(&self) -> Option<Arc<MetricsSnapshot>> {
        self.scraped_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        let ask = || {
            self.are_metrics_wanted.store(true, Ordering::Relaxed);
            self.wanted.notify_one();
        };
        fresh_of(
            self.metrics.subscribe(),
            |known| known.taken,
            ask,
            METRICS_WAIT,
        )
        .await
    }

    /// Notes for the metrics that the database does not answer. Returns whether there are metrics of an earlier time.
    pub(super) fn note_unreadable(&self, writer: &WriterSummary) -> bool {
        let mut is_known = false;
        self.metrics.send_if_modified(|known| {
            let Some(earlier) = known else {
                return false;
            };
            is_known = true;
            let is_late = earlier.taken.elapsed() >= FRESH;
            if is_late {
                *known = Some(Arc::new(earlier.unreadable(writer)));
            }
            is_late
        });
        is_known
    }

    /// Has the queues read now.
    pub(super) fn want_queues(&self) {
        self.queues_wanted.notify_one();
    }

    /// Waits until somebody wants the queues read.
    pub(super) async fn queues_wanted(&self) {
        self.queues_wanted.notified().await;
    }
}

/// Each snapshot that is published, for one tab: one that takes them slowly gets the newest one.
#[derive(Debug)]
pub(super) struct FollowedSnapshots {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    ended: CancellationToken,
}

impl FollowedSnapshots {
    /// The next one: at first the last one that was published. None behind the last one.
    pub(super) async fn next(&mut self) -> Option<Arc<Snapshot>> {
        loop {
            tokio::select! {
                // First, so that the last snapshot is not left out.
                biased;
                changed = self.snapshots.changed() => changed.ok()?,
                () = self.ended.cancelled() => return None,
            }
            let found = self.snapshots.borrow_and_update().clone();
            if found.is_some() {
                return found;
            }
        }
    }
}

/// What was published last, or if that is too old, what is published after `ask`. None if that is not in time.
async fn fresh_of<T>(
    mut published: watch::Receiver<Option<Arc<T>>>,
    taken: fn(&T) -> Instant,
    ask: impl FnOnce(),
    wait: Duration,
) -> Option<Arc<T>> {
    let known = published.borrow_and_update().clone();
    if let Some(known) = known
        && taken(&known).elapsed() < FRESH
    {
        return Some(known);
    }
    ask();
    let changed = tokio::time::timeout(wait, published.changed()).await;
    changed.ok()?.ok()?;
    published.borrow().clone()
}

/// Makes snapshots until `stop`, and then a last one if somebody looks. `source` makes what they are read from.
pub(super) async fn follow(source: impl Fn() -> Source, look: Arc<Look>, stop: CancellationToken) {
    // The tabs and the server end in any case.
    let _ended = look.ended.clone().drop_guard();
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WAIT).await;
    };
    tokio::select! {
        () = follow_to_the_end(source, &look, &stop) => {}
        () = too_late => tracing::debug!("the live page ended without its last snapshot"),
    }
}

async fn follow_to_the_end(source: impl Fn() -> Source, look: &Look, stop: &CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading = source();
    let mut totals = WorkerTotals::default();
    // The first reading is at once, before this writer is in the database.
    let mut unwatched = UNWATCHED_INTERVALS - 1;
    let mut is_last = false;
    while !is_last {
        tokio::select! {
            biased;
            () = stop.cancelled() => is_last = true,
            () = look.wanted.notified() => {}
            _ = ticks.tick() => {}
        }
        let is_watched = look.is_watched();
        let is_scraped = look.are_metrics_wanted.swap(false, Ordering::Relaxed);
        unwatched = if is_watched { 0 } else { unwatched + 1 };
        let is_idle = !is_scraped && !unwatched.is_multiple_of(UNWATCHED_INTERVALS);
        if is_idle || (is_last && !is_watched) {
            continue;
        }
        if is_watched || is_scraped {
            reading.wait_for_queues(look).await;
        }
        if is_last {
            // The lists and charts too.
            reading.expect_changes();
        }
        let making = tokio::task::spawn_blocking(move || {
            let snapshot = is_watched.then(|| take(&mut reading, is_last));
            if snapshot.is_none() {
                if is_scraped {
                    reading.read_for_metrics();
                } else {
                    reading.read_workers();
                }
            }
            (reading, snapshot)
        });
        let snapshot;
        (reading, snapshot) = match making.await {
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

fn take(source: &mut Source, is_last: bool) -> Snapshot {
    source.read();
    let facts = &source.facts;
    let (title, fragments) = fragments(facts);
    Snapshot {
        title,
        fragments,
        api: super::api::ApiFacts::new(facts),
        is_end: is_last && facts.transport == Some(Transport::Sweep),
        taken: Instant::now(),
    }
}

#[cfg(test)]
mod tests {
    use pingfleet_http::Limits;

    use super::{
        super::{facts::Facts, metrics},
        *,
    };
    use crate::WriterState;

    /// What a scrape gets when nobody answers it, as the database is stuck.
    async fn scrape(look: &Look) -> Option<String> {
        let registry = metrics::registry(Transport::Broker, look.follow_metrics());
        let writer = WriterSummary {
            state: WriterState::WaitingForDatabase,
            ..WriterSummary::default()
        };
        let is_fresh = look.fresh_metrics().await.is_some();
        let is_known = is_fresh || look.note_unreadable(&writer);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        is_known.then_some(text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_scrape_of_a_stuck_database_has_the_earlier_values_and_says_so() {
        let look = Look::new(EventStreams::new(
            &Limits::default(),
            CancellationToken::new(),
        ));
        let began = tokio::time::Instant::now();
        // There are none before the first answer.
        assert_eq!(scrape(&look).await, None);
        assert_eq!(began.elapsed(), METRICS_WAIT);
        let mut facts = Facts::default();
        facts.quarantine.total = 7;
        let publish = |taken: Instant| {
            let mut earlier = MetricsSnapshot::new(&facts, &WorkerTotals::default());
            earlier.taken = taken;
            look.metrics.send_replace(Some(Arc::new(earlier)));
        };
        let has = |text: &str, line: &str| text.lines().any(|found| found == line);
        // The control: those of now are as they are.
        publish(Instant::now());
        let text = scrape(&look).await.unwrap();
        assert!(has(&text, "pingfleet_database_up 1"), "{text}");
        publish(Instant::now().checked_sub(FRESH).unwrap());
        let text = scrape(&look).await.unwrap();
        assert!(has(&text, "pingfleet_database_up 0"), "{text}");
        assert!(has(&text, "pingfleet_quarantine_messages 7"), "{text}");
        let state = "pingfleet_writer_state{state=\"waiting_for_database\"} 1";
        assert!(has(&text, state), "{text}");
    }
}
