//! The heartbeat: what a worker reports about itself, with the chunks that it has in hand. No I/O.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ChunkKey, DEFAULT_GROUP, LocalLossCounts, MAX_IN_HAND, Message, check_group,
    check_program_version, check_worker_name,
    codec::{Version, bounded},
};

/// What a worker reports about itself. Its age counts from when the writer received it: clocks of workers are not
/// trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The wire version; always the first element.
    pub version: Version,
    /// The worker's name; 1 to 100 printable characters.
    pub worker: String,
    /// Random for each start of the process: two workers of one name differ in it.
    pub instance: Uuid,
    /// Process id on the worker's machine.
    pub pid: u32,
    /// The version of the worker's program; 1 to 50 printable characters.
    pub program_version: String,
    /// The worker's group; 1 to 32 letters, digits, '-' or '_'.
    pub group: String,
    /// Probing threads.
    pub threads: u16,
    /// How many chunks the worker may have in hand at the moment.
    pub prefetch: u16,
    /// The worker's ceiling over all runs, in requests a second; unlimited when absent.
    pub rate: Option<NonZeroU32>,
    /// Whether the worker is stopping: it takes no new chunks.
    pub draining: bool,
    /// What it did so far.
    pub counts: WorkerCounts,
    /// Chunks in hand: taken and not settled. At most 512.
    #[serde(deserialize_with = "bounded::<_, _, MAX_IN_HAND>")]
    pub in_hand: Vec<ChunkInHand>,
}

impl Heartbeat {
    /// The heartbeat of a worker that did nothing yet.
    #[must_use]
    pub fn new(worker: impl Into<String>, instance: Uuid) -> Self {
        Self {
            version: Version,
            worker: worker.into(),
            instance,
            pid: std::process::id(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            group: DEFAULT_GROUP.to_owned(),
            threads: 1,
            prefetch: 1,
            rate: None,
            draining: false,
            counts: WorkerCounts::default(),
            in_hand: Vec::new(),
        }
    }
}

/// What a worker did since its process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounts {
    /// Chunks settled.
    pub chunks_done: u64,
    /// Targets settled.
    pub targets_done: u64,
    /// Requests sent.
    pub requests_sent: u64,
    /// Replies to requests of settled targets.
    pub replies: u64,
    /// Attempts at targets that this machine may have lost, by cause.
    pub local_losses: LocalLossCounts,
}

/// A chunk that a worker has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkInHand {
    /// Which chunk.
    pub key: ChunkKey,
    /// Since the worker took it, in milliseconds.
    pub age_ms: u32,
}

impl ChunkInHand {
    /// A chunk that was taken now.
    #[must_use]
    pub fn just_taken(key: ChunkKey) -> Self {
        Self { key, age_ms: 0 }
    }
}

impl Message for Heartbeat {
    fn check(&self) -> Result<(), String> {
        let max = i64::MAX as u64;
        let counts = [
            self.counts.chunks_done,
            self.counts.targets_done,
            self.counts.requests_sent,
            self.counts.replies,
        ];
        if counts
            .iter()
            .chain(&self.counts.local_losses.by_cause())
            .any(|count| *count > max)
        {
            return Err("a count over 2^63".to_owned());
        }
        if self.in_hand.len() > MAX_IN_HAND {
            return Err(format!("more than {MAX_IN_HAND} chunks in hand"));
        }
        check_worker_name(&self.worker)?;
        check_program_version(&self.program_version)?;
        check_group(&self.group)
    }
}
