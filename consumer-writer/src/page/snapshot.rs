//! One task that makes a snapshot once a second while somebody looks, for all tabs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
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
    view::{Fragment, fragments},
};

/// How often a snapshot is made.
const INTERVAL: Duration = Duration::from_secs(1);

/// A page that was loaded without a script is loaded again within this time.
const LOADED_WITHIN: Duration = Duration::from_secs(15);

/// Every this many intervals the workers are read although nobody looks.
const UNWATCHED_INTERVALS: u64 = 5;

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
    wanted: Notify,
    began: Instant,
    /// When a page was asked for last, in milliseconds since `began`, and 1.
    asked_ms: AtomicU64,
}

impl Look {
    pub(super) fn new(streams: EventStreams) -> Self {
        Self {
            streams,
            snapshots: watch::Sender::default(),
            wanted: Notify::new(),
            began: Instant::now(),
            asked_ms: AtomicU64::new(0),
        }
    }

    /// Whether somebody looks.
    pub(super) fn is_watched(&self) -> bool {
        let asked = self.asked_ms.load(Ordering::Relaxed);
        let now = self.began.elapsed().as_millis() as u64;
        self.streams.open() > 0
            || (asked > 0 && now.saturating_sub(asked) < LOADED_WITHIN.as_millis() as u64)
    }

    /// The snapshots from now on.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// A snapshot of now. None if there is none in time.
    pub(super) async fn fresh(&self) -> Option<Arc<Snapshot>> {
        let now = self.began.elapsed().as_millis() as u64;
        self.asked_ms.store(now + 1, Ordering::Relaxed);
        let mut snapshots = self.snapshots.subscribe();
        let known = snapshots.borrow_and_update().clone();
        if let Some(known) = known
            && known.taken.elapsed() < FRESH
        {
            return Some(known);
        }
        self.wanted.notify_one();
        let changed = tokio::time::timeout(SNAPSHOT_WAIT, snapshots.changed()).await;
        changed.ok()?.ok()?;
        snapshots.borrow().clone()
    }
}

/// Makes snapshots until `stop`. `source` makes what they are read from.
pub(super) async fn follow(source: impl Fn() -> Source, look: Arc<Look>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading = source();
    // The first reading is at once, before this writer is in the database.
    let mut unwatched = UNWATCHED_INTERVALS - 1;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = look.wanted.notified() => {}
            _ = ticks.tick() => {}
        }
        let is_watched = look.is_watched();
        unwatched = if is_watched { 0 } else { unwatched + 1 };
        if !unwatched.is_multiple_of(UNWATCHED_INTERVALS) {
            continue;
        }
        let making = tokio::task::spawn_blocking(move || {
            let snapshot = is_watched.then(|| take(&mut reading));
            if snapshot.is_none() {
                reading.read_workers();
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
