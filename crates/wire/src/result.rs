//! The result message: the outcomes of one chunk, in the order of its targets. No I/O.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ChunkKey, MAX_CHUNK_TARGETS, Message, Outcome, Token, check_worker_name,
    codec::{Version, bounded},
};

/// The end of the year 9999, in microseconds since 1970: later times have no RFC 3339 text.
const MAX_TIMESTAMP_US: u64 = 253_402_300_799_999_999;

/// The latest beginning of a chunk, in microseconds since 1970: a day before, so that each of its targets was probed in
/// that year as well. A worker whose clock is later uses this.
pub const MAX_STARTED_AT_US: u64 = MAX_TIMESTAMP_US - 86_400_000_000;

/// The outcome of one complete probing of one chunk by one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultChunk {
    /// The wire version; always the first element.
    pub version: Version,
    /// The database that the work came from.
    pub database: Uuid,
    /// Which chunk this answers.
    pub key: ChunkKey,
    /// The work's token.
    pub token: Token,
    /// The worker's name; 1 to 100 printable characters.
    pub worker: String,
    /// Whether the broker had delivered the work to some worker before.
    pub redelivered: bool,
    /// When the worker began with the chunk, by its own clock, in microseconds since 1970-01-01 UTC.
    pub started_at_us: u64,
    /// The n-th outcome belongs to the n-th target of the chunk.
    #[serde(deserialize_with = "bounded::<_, _, MAX_CHUNK_TARGETS>")]
    pub outcomes: Vec<Outcome>,
}

impl Message for ResultChunk {
    fn check(&self) -> Result<(), String> {
        check_worker_name(&self.worker)?;
        if self.outcomes.len() > MAX_CHUNK_TARGETS {
            return Err(format!("more than {MAX_CHUNK_TARGETS} outcomes"));
        }
        let latest_after_us = self
            .outcomes
            .iter()
            .map(|outcome| outcome.probed_after_us)
            .max()
            .unwrap_or(0);
        if self.started_at_us.saturating_add(latest_after_us) > MAX_TIMESTAMP_US {
            return Err("the worker's clock is off by thousands of years".to_owned());
        }
        self.outcomes.iter().try_for_each(Outcome::check)
    }
}
