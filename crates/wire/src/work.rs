//! The work message: targets, and how to probe them. No I/O.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Message, Probing, Target,
    codec::{Version, bounded},
};

/// The most targets in one chunk.
pub const MAX_CHUNK_TARGETS: usize = 10_000;

/// A chunk is cut when its encoded work message would pass this, in bytes (256 KiB).
pub const MAX_CHUNK_BYTES: usize = 256 << 10;

/// Names a chunk everywhere: the run it belongs to and its number in it, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkKey {
    /// The run's `UUIDv7`.
    pub run: Uuid,
    /// The chunk's number in the run, from 0.
    pub chunk: u32,
}

/// 16 random bytes that the plan stores and a result echoes: proof that the result answers this very plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub Uuid);

/// What a worker is asked to do. The plan stores exactly these bytes, and sends them however often it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkChunk {
    /// The wire version; always the first element.
    pub version: Version,
    /// The database that wants the results.
    pub database: Uuid,
    /// Which chunk this is.
    pub key: ChunkKey,
    /// Echoed by the result.
    pub token: Token,
    /// How to probe.
    pub probing: Probing,
    /// What to probe; 1 to [`MAX_CHUNK_TARGETS`].
    #[serde(deserialize_with = "bounded::<_, _, MAX_CHUNK_TARGETS>")]
    pub targets: Vec<Target>,
}

impl Message for WorkChunk {
    fn check(&self) -> Result<(), String> {
        if self.targets.is_empty() {
            return Err("a chunk without targets".to_owned());
        }
        self.probing.check()
    }
}
