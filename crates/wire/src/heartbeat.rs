//! The heartbeat: what a worker reports about itself, with the chunks that it has in hand. No I/O.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ChunkKey, MAX_IN_HAND, Message, check_worker_name,
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
    /// Whether the worker is stopping: it takes no new chunks.
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
        check_worker_name(&self.worker)
    }
}
