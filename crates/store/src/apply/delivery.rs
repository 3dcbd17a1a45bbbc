//! What a writer took from its queues, for a batch. No I/O.

use pingfleet_wire::{Heartbeat, ResultChunk, WorkChunk};

use super::Refusal;

/// A delivery, decoded as far as possible.
#[derive(Debug, Clone)]
pub enum DecodedDelivery {
    /// The outcomes of a chunk.
    Result {
        /// The message.
        message: Box<ResultChunk>,
        /// Its bytes, for the quarantine.
        raw: RawMessage,
        /// Whether the broker redelivered the result.
        redelivered: bool,
    },
    /// A chunk that the broker dead-lettered.
    Dead {
        /// The message.
        message: Box<WorkChunk>,
        /// Its bytes, for the quarantine.
        raw: RawMessage,
        /// The broker's reason (`x-death`): `delivery_limit` of a chunk that killed its workers. After `expired` and
        /// `maxlen` (a policy removed its message) and `rejected` (a consumer did) the chunk is published again.
        reason: String,
    },
    /// A message that is refused before it is compared with the plan, most often because it cannot be decoded.
    Refused {
        /// Its bytes.
        raw: RawMessage,
        /// Why it is refused.
        refusal: Refusal,
    },
    /// A worker's heartbeat. The counters do not include it.
    Heartbeat {
        /// The message.
        heartbeat: Heartbeat,
        /// The login that published it. None within one process.
        login: Option<String>,
    },
}

/// The bytes of a message, and the queue that they came from.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// Name of the queue.
    pub queue: &'static str,
    /// The body, or its beginning.
    pub body: Vec<u8>,
    /// Bytes of the whole body.
    pub length: usize,
    /// The login that published it, as the broker checked it. None within one process, and for dead letters.
    pub login: Option<String>,
}

impl RawMessage {
    /// A message whose whole body is here, without a login.
    #[must_use]
    pub fn new(queue: &'static str, body: Vec<u8>) -> Self {
        Self {
            queue,
            length: body.len(),
            body,
            login: None,
        }
    }
}
