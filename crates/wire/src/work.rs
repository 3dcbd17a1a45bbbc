//! The work message: targets, and how to probe them. No I/O.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    MAX_CHUNK_TARGETS, Message, Probing, Target,
    codec::{Version, bounded},
};

/// Identifies a chunk: its run and its number in the run, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkKey {
    /// The run's `UUIDv7`.
    pub run: Uuid,
    /// The chunk's number in the run, from 0.
    pub chunk: u32,
}

impl ChunkKey {
    /// When the run was planned, by the clock of its producer, in microseconds since 1970-01-01 UTC. `None` when the id of
    /// the run is no `UUIDv7` (RFC 9562, section 5.7).
    #[must_use]
    pub fn planned_at_us(&self) -> Option<u64> {
        let (seconds, nanos) = self.run.get_timestamp()?.to_unix();
        Some(seconds.saturating_mul(1_000_000) + u64::from(nanos / 1000))
    }
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {} of run {}", self.chunk, self.run)
    }
}

/// 16 random bytes that the plan stores and a result echoes. They prove that the result belongs to this plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub Uuid);

/// The work of one chunk. The plan stores exactly these bytes and sends them as often as needed.
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
        if self.targets.len() > MAX_CHUNK_TARGETS {
            return Err(format!("more than {MAX_CHUNK_TARGETS} targets"));
        }
        self.targets.iter().try_for_each(Target::check)?;
        self.probing.check()
    }
}
