//! What the worker is doing: for its heartbeats, and for whoever watches it in this process.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use pingfleet_prober::probe_threads::ProbeThreads;
use pingfleet_settings::Rate;
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, WorkerCounts};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use crate::WorkerSettings;

/// A small summary of what a worker is doing, published by [`run`](crate::run).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Where it is between its start and its end.
    pub state: WorkerState,
    /// Whether it has a session on the work queue.
    pub connected: bool,
    /// Chunks in hand.
    pub in_hand: usize,
    /// How many chunks it may have in hand.
    pub prefetch: u16,
    /// What it did so far.
    pub counts: WorkerCounts,
}

/// Where a worker is between its start and its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkerState {
    /// It had no session on the work queue yet.
    #[default]
    Starting,
    /// It takes chunks.
    Live,
    /// It finishes what it has in hand and takes no new chunks.
    Draining,
}

/// Where the worker's parts note what they do.
pub(crate) struct StatusBoard {
    name: String,
    instance: Uuid,
    threads: u16,
    rate: Rate,
    probe_threads: Arc<ProbeThreads>,
    chunks_done: AtomicU64,
    current: Mutex<Current>,
    watched: watch::Sender<WorkerStatus>,
    /// Notified when the next heartbeat should leave at once.
    pub(crate) heartbeat_due: Notify,
}

#[derive(Default)]
struct Current {
    state: WorkerState,
    connected: bool,
    /// With the time when each was taken.
    in_hand: Vec<(ChunkKey, Instant)>,
    prefetch: u16,
}

impl StatusBoard {
    pub(crate) fn new(
        settings: &WorkerSettings,
        probe_threads: Arc<ProbeThreads>,
        watched: watch::Sender<WorkerStatus>,
    ) -> Self {
        Self {
            name: settings.name.clone(),
            instance: Uuid::new_v4(),
            threads: u16::try_from(settings.threads.get()).unwrap_or(u16::MAX),
            rate: settings.rate,
            probe_threads,
            chunks_done: AtomicU64::new(0),
            current: Mutex::default(),
            watched,
            heartbeat_due: Notify::new(),
        }
    }

    /// The worker has a session on the work queue, or lost it. Returns whether it is the first one.
    pub(crate) fn set_connected(&self, connected: bool) -> bool {
        let mut current = self.current();
        current.connected = connected;
        let is_first = connected && current.state == WorkerState::Starting;
        if is_first {
            current.state = WorkerState::Live;
        }
        drop(current);
        self.show();
        is_first
    }

    /// Whether the worker has a session on the work queue.
    pub(crate) fn is_connected(&self) -> bool {
        self.current().connected
    }

    pub(crate) fn set_in_hand(&self, in_hand: Vec<(ChunkKey, Instant)>, prefetch: u16) {
        let mut current = self.current();
        current.in_hand = in_hand;
        current.prefetch = prefetch;
    }

    /// The worker takes no new chunks. A heartbeat reports it at once.
    pub(crate) fn start_draining(&self) {
        self.current().state = WorkerState::Draining;
        self.show();
        self.heartbeat_due.notify_one();
    }

    pub(crate) fn chunk_done(&self) {
        self.chunks_done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> WorkerCounts {
        WorkerCounts {
            chunks_done: self.chunks_done.load(Ordering::Relaxed),
            targets_done: self.probe_threads.targets_done(),
            requests_sent: self.probe_threads.requests_sent(),
            replies: self.probe_threads.replies(),
            local_losses: self.probe_threads.local_losses(),
        }
    }

    /// Publishes the status to those who watch it, if it changed.
    pub(crate) fn show(&self) {
        let current = self.current();
        let status = WorkerStatus {
            state: current.state,
            connected: current.connected,
            in_hand: current.in_hand.len(),
            prefetch: current.prefetch,
            counts: self.counts(),
        };
        self.watched.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let current = self.current();
        let in_hand = current.in_hand.iter().map(|(key, taken)| ChunkInHand {
            key: *key,
            age_ms: u32::try_from(taken.elapsed().as_millis()).unwrap_or(u32::MAX),
        });
        Heartbeat {
            threads: self.threads,
            prefetch: current.prefetch,
            rate: self.rate,
            draining: current.state == WorkerState::Draining,
            counts: self.counts(),
            in_hand: in_hand.collect(),
            ..Heartbeat::new(&self.name, self.instance)
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
