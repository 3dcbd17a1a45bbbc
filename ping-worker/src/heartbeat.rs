//! The worker's pulse: what its heartbeats tell. Shared between the session, which changes it, and the outbox, which
//! sends it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use pingfleet_wire::{ChunkKey, Heartbeat, Version};
use uuid::Uuid;

use pingfleet_prober::probe_threads::ProbeThreads;

/// What a heartbeat tells.
pub(crate) struct Pulse {
    name: String,
    instance: Uuid,
    threads: u16,
    lanes: Arc<ProbeThreads>,
    chunks_done: AtomicU64,
    in_hand: Mutex<Vec<ChunkKey>>,
}

impl Pulse {
    pub(crate) fn new(name: &str, threads: usize, lanes: Arc<ProbeThreads>) -> Self {
        Self {
            name: name.to_owned(),
            instance: Uuid::new_v4(),
            threads: u16::try_from(threads).unwrap_or(u16::MAX),
            lanes,
            chunks_done: AtomicU64::new(0),
            in_hand: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn set_in_hand(&self, keys: Vec<ChunkKey>) {
        *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    pub(crate) fn chunk_done(&self) {
        self.chunks_done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn chunks_done(&self) -> u64 {
        self.chunks_done.load(Ordering::Relaxed)
    }

    pub(crate) fn heartbeat(&self, draining: bool) -> Heartbeat {
        let in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        Heartbeat {
            version: Version,
            worker: self.name.clone(),
            instance: self.instance,
            pid: std::process::id(),
            threads: self.threads,
            chunks_done: self.chunks_done(),
            targets_done: self.lanes.targets_done(),
            requests_sent: self.lanes.requests_sent(),
            in_hand: in_hand.clone(),
            draining,
        }
    }
}
