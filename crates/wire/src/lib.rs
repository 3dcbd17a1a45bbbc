//! The messages that pingfleet's roles exchange, and their MessagePack codec with its limits.
//!
//! Three messages: a [`WorkChunk`] goes from the producer to a worker, a [`ResultChunk`] from the worker to the
//! writer, a [`Heartbeat`] from the worker to the writer. `docs/wire-format.md` specifies the bytes. Bytes
//! from a queue are untrusted until they are checked here. Nothing in this crate does I/O.

mod codec;
mod down_reason;
mod errno;
mod heartbeat;
mod host_address;
mod limits;
mod local_loss;
mod outcome;
mod outline;
mod probing;
mod result;
mod rtt;
mod target;
pub mod timing;
mod work;

pub use codec::{DecodeError, Message, Version, WIRE_VERSION};
pub use down_reason::{DownReason, LinkAddress, MAX_LINK_ADDRESS_BYTES};
pub use heartbeat::{ChunkInHand, Heartbeat, WorkerCounts};
pub use host_address::{NO_HOST_ADDRESSES, is_host_address};
pub use limits::{
    DEFAULT_GROUP, DEFAULT_QUEUE_PREFIX, MAX_ATTEMPTS, MAX_CHUNK_BYTES, MAX_CHUNK_TARGETS,
    MAX_DEPTH, MAX_GROUP_BYTES, MAX_IN_HAND, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_OUTCOME_BYTES,
    MAX_PREFETCH, MAX_PROGRAM_VERSION_CHARS, MAX_QUEUE_PREFIX_BYTES, MAX_WORKER_CHARS, check_group,
    check_program_version, check_queue_prefix, check_worker_name,
};
pub use local_loss::{LocalLoss, LocalLossCounts};
pub use outcome::{DnsFailure, Outcome, Status, StatusKind};
pub use probing::{Family, Probing};
pub use result::{MAX_STARTED_AT_US, ResultChunk};
pub use rtt::Rtt;
pub use target::Target;
pub use work::{ChunkKey, Token, WorkChunk};
