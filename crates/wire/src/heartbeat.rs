//! The heartbeat: a worker's sign of life, with the chunks that it has in hand. No I/O.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ChunkKey, Message,
    codec::{Version, bounded},
};

/// The most chunks that a worker has in hand: twice the largest prefetch, for the moment of a change of channels.
pub const MAX_IN_HAND: usize = 512;

/// The longest name of a worker, in characters.
const MAX_WORKER_CHARS: usize = 100;

/// A worker's sign of life. Its age is the writer's receive time; no clock of the worker is trusted for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The wire version; always the first element.
    pub version: Version,
    /// The worker's name; 1 to 100 printable characters.
    pub worker: String,
    /// One start of the worker's process: two workers of one name differ in it.
    pub instance: Uuid,
    /// Process id on the worker's box.
    pub pid: u32,
    /// Probing threads.
    pub threads: u16,
    /// Chunks settled since the process started.
    pub chunks_done: u64,
    /// Targets settled since the process started.
    pub targets_done: u64,
    /// Requests sent since the process started.
    pub requests_sent: u64,
    /// Chunks in hand: taken and not settled. At most 512.
    #[serde(deserialize_with = "bounded::<_, _, MAX_IN_HAND>")]
    pub in_hand: Vec<ChunkKey>,
    /// Whether the worker is leaving: it takes nothing new.
    pub draining: bool,
}

impl Message for Heartbeat {
    fn check(&self) -> Result<(), String> {
        let most = i64::MAX as u64;
        if [self.chunks_done, self.targets_done, self.requests_sent]
            .iter()
            .any(|count| *count > most)
        {
            return Err("a count over 2^63".to_owned());
        }
        check_worker(&self.worker)
    }
}

pub(crate) fn check_worker(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if (1..=MAX_WORKER_CHARS).contains(&length) && !name.chars().any(char::is_control) {
        Ok(())
    } else {
        Err("a worker's name is 1 to 100 printable characters".to_owned())
    }
}
