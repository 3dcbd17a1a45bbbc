//! The times on which several roles must agree. Each stands here once, and every crate imports it.

use std::time::Duration;

/// How often a worker sends a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A worker whose last heartbeat is older than this counts as lost. The heartbeats queue drops messages of this age.
pub const WORKER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the writer records in the database that it is alive.
pub const WRITER_ALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// A writer that did not record itself for this long counts as away.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a producer's lease on a run lasts unless the producer renews it.
pub const RUN_LEASE: Duration = Duration::from_secs(15);

/// How often a producer renews its lease on a run.
pub const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// RabbitMQ closes the channel of a consumer that does not settle a delivery for this long (its `consumer_timeout`).
pub const BROKER_CONSUMER_TIMEOUT: Duration = Duration::from_mins(30);

/// Settings are refused when one target can take longer than this: a chunk is settled long before
/// [`BROKER_CONSUMER_TIMEOUT`]. An answer that took longer does not count: a busy worker may keep a target for longer than
/// its plan needs, because its requests wait for those of other targets.
pub const MAX_TARGET_TIME: Duration = Duration::from_mins(10);

/// How much the clock of a worker may differ from that of the master. The times only label rows, so the limit is generous:
/// it finds a clock that was never set, not one that is a little late.
pub const CLOCK_ALLOWANCE: Duration = Duration::from_hours(24);

/// The names of a chunk are resolved within this time, counted from when the worker began with the chunk.
pub const MAX_RESOLUTION_TIME: Duration = Duration::from_mins(5);

// Names are resolved before their targets are probed, and both together take at most half of what the broker allows.
const _: () = assert!(
    2 * (MAX_RESOLUTION_TIME.as_secs() + MAX_TARGET_TIME.as_secs())
        <= BROKER_CONSUMER_TIMEOUT.as_secs()
);

/// The longest single wait of a probing setting.
pub(crate) const MAX_WAIT: Duration = Duration::from_hours(1);
