//! The queue seam: what the roles need of a broker, over RabbitMQ and in one process.
//!
//! Invariant of both: a message whose publish was [`Confirmed::Stored`] is delivered until it is acked, at least once,
//! and a delivery that is not settled when its consumer is dropped comes back.
//!
//! One session is one fresh connection. After any [`BrokerError`] of a publisher or a consumer the caller drops it
//! and opens another one; nothing here reconnects by itself.

mod memory;
mod rabbit;
mod reopen;
mod settings;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use thiserror::Error;

pub use self::{
    memory::MemoryBroker,
    rabbit::{DEFAULT_PREFIX, RabbitBroker, RabbitConfig},
    reopen::{PATIENCE, Sessions, pauses, reopen},
};

/// The queues. Each has an exchange of its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Chunks for the workers.
    Work,
    /// Outcomes for the writer; one consumer at a time.
    Results,
    /// Chunks that reached their delivery limit.
    Dead,
    /// Signs of life of the workers; old ones are dropped.
    Heartbeats,
}

impl Queue {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Work, Self::Results, Self::Dead, Self::Heartbeats];

    /// The name without the prefix.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Results => "results",
            Self::Dead => "dead",
            Self::Heartbeats => "heartbeats",
        }
    }
}

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The broker has it, on disk where the queue is durable.
    Stored,
    /// The broker refused it (`basic.nack`: an overflow, or a queue that is not available). The same bytes may be
    /// published again later.
    Refused,
    /// No queue is bound for it (`basic.return`). The topology is broken.
    Unroutable,
}

/// The future of one publish: it resolves when the broker has answered.
pub type Confirm = BoxFuture<'static, Result<Confirmed, BrokerError>>;

/// Names one delivery of one session, for settling it: its delivery tag (AMQP `basic.deliver`), from 1. Ordered by
/// delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// One message as it was delivered. It is not settled by being dropped.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// For settling it.
    pub tag: DeliveryTag,
    /// The message's bytes, as they came.
    pub body: Vec<u8>,
    /// Whether the broker had delivered it before. Proves nothing when false.
    pub redelivered: bool,
    /// Of a dead letter: why it is one, as the broker tells (`x-death`: `delivery_limit`).
    pub death: Option<String>,
}

/// How full a queue is (`queue.declare`, passive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for a consumer.
    pub ready: u32,
    /// Consumers of the queue.
    pub consumers: u32,
}

/// Why a session is over, by what the caller does about it.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or the session broke: try again with a new one.
    #[error("broker {address} cannot be reached")]
    Unreachable {
        /// Host and port, without credentials.
        address: String,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker does not know the user or the password: final.
    #[error("broker {address} refuses the login of user {user:?}")]
    Login {
        /// Host and port, without credentials.
        address: String,
        /// The user that was refused.
        user: String,
    },
    /// The user lacks a permission or the vhost does not exist: final.
    #[error("broker {address} does not permit it: {reason}")]
    Forbidden {
        /// Host and port, without credentials.
        address: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue or exchange is missing, and this user may not declare it: somebody has to.
    #[error("{what} is missing on broker {address}")]
    NoTopology {
        /// Host and port, without credentials.
        address: String,
        /// Name of the first thing that is missing.
        what: String,
    },
    /// A queue or exchange exists with other arguments than ours: final.
    #[error("the topology on broker {address} is not ours: {reason}")]
    OtherTopology {
        /// Host and port, without credentials.
        address: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker's URL cannot be used: final.
    #[error("broker URL: {0}")]
    Url(String),
    /// The session broke after it had been established: try again with a new one.
    #[error("connection to the broker was lost")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BrokerError {
    /// Whether a new session may succeed where this one failed. The one place that decides it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoTopology { .. } | Self::Lost(_) => true,
            Self::Login { .. }
            | Self::Forbidden { .. }
            | Self::OtherTopology { .. }
            | Self::Url(_) => false,
        }
    }
}

/// A broker: opens sessions.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// Opens a session, and makes sure that the topology stands: looks passively first, and declares only what is
    /// missing and may be declared.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn check(&self) -> Result<(), BrokerError>;

    /// Opens a session for publishing.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError>;

    /// Opens a session that consumes one queue, with at most `prefetch` unsettled deliveries.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn consumer(&self, queue: Queue, prefetch: u16)
    -> Result<Box<dyn Consumer>, BrokerError>;

    /// How full a queue is.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError>;
}

/// A session for publishing. One task owns it.
#[async_trait]
pub trait Publisher: Send {
    /// Sends a message, persistent and mandatory, and returns the future of its confirm. May wait while the broker
    /// blocks publishers or an in-process queue is full. Not cancel-safe: whether it was sent is unknown after that.
    ///
    /// # Errors
    /// [`BrokerError::Lost`] and the like: the session is over, and what is unconfirmed may or may not be stored.
    async fn publish(&mut self, queue: Queue, body: &[u8]) -> Result<Confirm, BrokerError>;

    /// Ends the session in order. Unconfirmed publishes stay unknown.
    async fn close(self: Box<Self>);
}

/// A session that consumes one queue. One task owns it. Dropping it returns what is unsettled to the queue.
#[async_trait]
pub trait Consumer: Send {
    /// The next delivery. Waits for it, for ever if need be. Cancel-safe.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over, and everything unsettled comes back.
    async fn next(&mut self) -> Result<Delivery, BrokerError>;

    /// Acknowledges one delivery, or with `multiple` all unsettled ones up to it. Acks of one consumer
    /// reach the broker in the order of the calls.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over; the delivery may come back.
    async fn ack(&mut self, tag: DeliveryTag, multiple: bool) -> Result<(), BrokerError>;

    /// Returns one delivery to the queue (`basic.nack` with requeue).
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over, which returns it too.
    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError>;

    /// Goes on with a prefetch of `prefetch`, if that is more than before. Nothing is returned to the queue for it.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over.
    async fn widen(&mut self, prefetch: u16) -> Result<(), BrokerError>;

    /// Stops intake (`basic.cancel`). What was delivered and not yet handed out is returned to the queue; what was
    /// handed out can still be settled. [`Self::next`] then waits for ever.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over.
    async fn stop(&mut self) -> Result<(), BrokerError>;

    /// Ends the session in order; what is unsettled returns to the queue.
    async fn close(self: Box<Self>);
}

/// How long anything that should take milliseconds may take before the session counts as lost.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
