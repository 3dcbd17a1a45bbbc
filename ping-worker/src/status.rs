//! The worker's status, from which its heartbeats are made. The work consumer changes it, the result publisher sends it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use pingfleet_prober::probe_threads::ProbeThreads;
use pingfleet_settings::Rate;
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, WorkerCounts};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use crate::WorkerSettings;

/// What a heartbeat reports.
pub(crate) struct WorkerStatus {
    name: String,
    instance: Uuid,
    threads: u16,
    rate: Rate,
    probe_threads: Arc<ProbeThreads>,
    chunks_done: AtomicU64,
    current: Mutex<Current>,
    /// Notified when the next heartbeat should leave at once.
    pub(crate) heartbeat_due: Notify,
}

/// What changes with every chunk.
#[derive(Default)]
struct Current {
    /// With the time when each was taken.
    in_hand: Vec<(ChunkKey, Instant)>,
    prefetch: u16,
    draining: bool,
}

impl WorkerStatus {
    pub(crate) fn new(settings: &WorkerSettings, probe_threads: Arc<ProbeThreads>) -> Self {
        Self {
            name: settings.name.clone(),
            instance: Uuid::new_v4(),
            threads: u16::try_from(settings.threads.get()).unwrap_or(u16::MAX),
            rate: settings.rate,
            probe_threads,
            chunks_done: AtomicU64::new(0),
            current: Mutex::default(),
            heartbeat_due: Notify::new(),
        }
    }

    pub(crate) fn set_in_hand(&self, in_hand: Vec<(ChunkKey, Instant)>, prefetch: u16) {
        let mut current = self.current();
        current.in_hand = in_hand;
        current.prefetch = prefetch;
    }

    /// The worker takes no new chunks. The writer learns it at once.
    pub(crate) fn start_draining(&self) {
        self.current().draining = true;
        self.heartbeat_due.notify_one();
    }

    pub(crate) fn chunk_done(&self) {
        self.chunks_done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn chunks_done(&self) -> u64 {
        self.chunks_done.load(Ordering::Relaxed)
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
            draining: current.draining,
            counts: WorkerCounts {
                chunks_done: self.chunks_done(),
                targets_done: self.probe_threads.targets_done(),
                requests_sent: self.probe_threads.requests_sent(),
                replies: self.probe_threads.replies(),
                local_losses: self.probe_threads.local_losses(),
            },
            in_hand: in_hand.collect(),
            ..Heartbeat::new(&self.name, self.instance)
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
