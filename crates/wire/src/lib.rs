//! The messages that pingfleet's roles exchange, and their MessagePack codec with its limits.
//!
//! Three messages: a [`WorkChunk`] goes from the producer to a worker, a [`ResultChunk`] from the worker to the
//! writer, a [`Heartbeat`] from the worker to the writer. `docs/wire-format.md` specifies the bytes. Everything that
//! is decoded here comes from a queue and is hostile until it is checked; nothing in this crate does I/O.

mod codec;
mod heartbeat;
mod outcome;
mod outline;
mod probing;
mod result;
mod target;
mod work;

pub use codec::{DecodeError, MAX_DEPTH, MAX_MESSAGE_BYTES, Message, Version, WIRE_VERSION};
pub use heartbeat::{Heartbeat, MAX_IN_HAND};
pub use outcome::{DnsFailure, LocalLoss, MAX_OUTCOME_BYTES, Outcome, Rtt, Status};
pub use probing::{Family, LONGEST_TARGET, Probing};
pub use result::ResultChunk;
pub use target::{MAX_NAME_BYTES, Target};
pub use work::{ChunkKey, MAX_CHUNK_BYTES, MAX_CHUNK_TARGETS, Token, WorkChunk};
