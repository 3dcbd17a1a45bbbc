//! The queue seam: what the roles need of a broker, implemented over RabbitMQ and inside one process.
//!
//! Invariant of both: a message whose publish was [`Confirmed::Stored`] is delivered at least once, until it is acked.
//! A delivery that is unsettled when its consumer is dropped returns to the queue.
//!
//! One session is one new connection. After any [`BrokerError`] of a publisher or a consumer the caller drops it
//! and opens another one; nothing here reconnects by itself.

mod confirmed_publisher;
mod memory;
mod queue_name;
mod rabbit;
mod reconnects;
mod sessions;
mod settings;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use thiserror::Error;

use self::rabbit::connect_problem::ConnectProblem;
pub use self::{
    confirmed_publisher::{ConfirmedMessage, ConfirmedPublisher, KeyedMessage, MessageKey},
    memory::MemoryBroker,
    queue_name::{Group, MAX_FOREIGN_MESSAGES, QueueKind, QueueName, WORK_DELIVERY_LIMIT},
    rabbit::{BrokerAddress, RabbitBroker, RabbitConfig, Role, TlsFiles, exactly},
    reconnects::Reconnects,
    sessions::{CONNECT_TIMEOUT, Sessions, backoff, open_session},
};

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The broker has it, on disk where the queue is durable.
    Stored,
    /// The broker refused it (`basic.nack`: an overflow, or a queue that is not available). The same bytes may be
    /// published again later.
    Refused,
    /// No queue is bound for it, so the broker returned it (`basic.return`). The topology is incomplete.
    Unroutable,
}

/// The future of one publish: it resolves when the broker has answered.
pub type Confirm = BoxFuture<'static, Result<Confirmed, BrokerError>>;

/// The delivery tag of one delivery in one session (AMQP `basic.deliver`), from 1. Ordered by delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// One delivered message. Dropping it does not settle it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Settles it.
    pub tag: DeliveryTag,
    /// The message's bytes.
    pub body: Vec<u8>,
    /// Whether the broker delivered it before. `false` proves nothing.
    pub redelivered: bool,
    /// Why it is a dead letter, as the broker reports (`x-death`: `delivery_limit`), or as it was published by
    /// [`Publisher::publish_again`]. `None` for other messages.
    pub dead_letter_reason: Option<String>,
    /// The login that published it (the property `user_id`, which the broker checks). `None` within one process, for messages
    /// that carry none, and for those of queues whose messages need none.
    pub login: Option<String>,
    /// The [`Origin::login`] that it was published with. Anybody who may publish can write any.
    pub original_login: Option<String>,
}

/// What a message that is published again by another program had of its first publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Why it is a dead letter: its next delivery has that as [`Delivery::dead_letter_reason`].
    pub dead_letter_reason: Option<&'a str>,
    /// The login that published it first: its next delivery has that as [`Delivery::original_login`].
    pub login: Option<&'a str>,
}

/// How full a queue is (`queue.declare`, passive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages that wait for a consumer.
    pub ready: u32,
    /// Consumers of the queue.
    pub consumers: u32,
}

/// Why a session failed. Each variant is one decision of the caller.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The broker cannot be reached: try again.
    #[error("broker {address} cannot be reached")]
    Unreachable {
        /// Host and port, without credentials.
        address: String,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS, its certificates or the way to log in do not fit the broker, and no connection was open before: final. A
    /// connection that was open before may be open again when somebody renews a certificate, so its loss is
    /// [`Self::Unreachable`].
    #[error("broker {address} cannot be reached")]
    Tls {
        /// Host and port, without credentials.
        address: String,
        /// What does not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker knows no user of the certificate's name: final.
    #[error("broker {address} refuses the login by the certificate in {certificate}")]
    CertificateLogin {
        /// Host and port, without credentials.
        address: String,
        /// The file of the certificate.
        certificate: String,
    },
    /// The broker refuses the user or the password: final.
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
        /// Host, port and virtual host, without credentials.
        address: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue or exchange is missing and this user may not declare it: try again after an administrator did.
    #[error("{what} is missing on broker {address}")]
    NoTopology {
        /// Host, port and virtual host, without credentials.
        address: String,
        /// Name of the first thing that is missing.
        what: String,
    },
    /// A queue or exchange exists with other arguments: final.
    #[error("a queue or exchange on broker {address} has other arguments: {reason}")]
    OtherTopology {
        /// Host, port and virtual host, without credentials.
        address: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker's URL cannot be used: final.
    #[error("broker URL: {0}")]
    Url(String),
    /// The session broke: open a new one.
    #[error("connection to the broker was lost")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BrokerError {
    /// A delivery was settled before, or never handed out.
    fn not_unsettled(tag: DeliveryTag) -> Self {
        Self::Lost(format!("delivery {} is not unsettled", tag.0).into())
    }

    /// What the user can do about it, if the message does not say it.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        if let Some(problem) = self.connect_problem() {
            return Some(problem.advice());
        }
        let advice = match self {
            Self::Unreachable { address, source } | Self::Tls { address, source } => {
                unreachable_advice(address, &**source)
            }
            Self::CertificateLogin { .. } => {
                "the broker needs a user of the name in it (its subject, or by `ssl_cert_login_from = common_name` its common \
                 name): `pingfleet broker add-worker` makes pingfleet-worker-NAME"
            }
            Self::Login { .. } => {
                "give its password in PINGFLEET_BROKER__PASSWORD, or name a file that has it in broker.password_file"
            }
            Self::NoTopology { .. } => {
                "declare it with `pingfleet broker init`, as a user with the configure permission"
            }
            Self::OtherTopology { .. } => "choose another broker.prefix, the same for all programs",
            Self::Forbidden { .. } | Self::Url(_) | Self::Lost(_) => return None,
        };
        Some(advice.to_owned())
    }

    /// Whether something answered at the broker's address, although no connection was opened.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Unreachable { .. }) || self.connect_problem().is_some()
    }

    /// Whether the broker closed a TLS connection without a reason.
    fn is_closed_early_over_tls(&self) -> bool {
        let closed = ConnectProblem::ClosedEarly { is_tls: true };
        self.connect_problem() == Some(&closed)
    }

    fn connect_problem(&self) -> Option<&ConnectProblem> {
        match self {
            Self::Unreachable { source, .. } | Self::Tls { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// Whether a new session may succeed where this one failed. The one place that decides it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoTopology { .. } | Self::Lost(_) => true,
            Self::Login { .. }
            | Self::CertificateLogin { .. }
            | Self::Tls { .. }
            | Self::Forbidden { .. }
            | Self::OtherTopology { .. }
            | Self::Url(_) => false,
        }
    }
}

/// What the user can do about a broker of which nothing is seen.
fn unreachable_advice(address: &str, source: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut causes = std::iter::successors(Some(source), |error| error.source());
    let is_silent = causes.clone().any(|error| {
        let system: Option<&std::io::Error> = error.downcast_ref();
        system.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    });
    // std has no kind for it, but a text on Unix, and on Windows the numbers from WSAHOST_NOT_FOUND to WSANO_DATA.
    let is_unknown = causes.any(|error| {
        let system: Option<&std::io::Error> = error.downcast_ref();
        let errno = system.and_then(std::io::Error::raw_os_error);
        cfg!(windows) && errno.is_some_and(|errno| (11001..=11004).contains(&errno))
            || error.to_string().starts_with("failed to lookup address")
    });
    let is_here = ["127.", "[::1]", "localhost"]
        .iter()
        .any(|start| address.starts_with(start));
    if is_unknown {
        "look for an error in the name of its host, and for the name servers of this machine"
    } else if is_silent {
        "look for a firewall between here and there, and whether this is the port of the broker"
    } else if is_here {
        "start one with `docker-compose up -d`, or name yours with --broker"
    } else {
        "start it there, or name another one with --broker"
    }
}

/// A broker: opens sessions.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// Makes sure that these queues and their exchanges exist: declares what is missing if this user may. A role names the
    /// queues that it uses.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn ensure(&self, queues: &[QueueName]) -> Result<(), BrokerError>;

    /// Opens a session for publishing.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError>;

    /// Opens a session that consumes one queue with at most `prefetch` unsettled deliveries.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError>;

    /// How full a queue is.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError>;

    /// The broker's reason for taking no messages now, if it has one.
    ///
    /// # Errors
    /// [`BrokerError::Forbidden`] when the user may not publish to `queue`, and any other [`BrokerError`].
    async fn alarm(&self, queue: QueueName) -> Result<Option<String>, BrokerError> {
        let _ = queue;
        Ok(None)
    }

    /// Closes what was kept open for [`Self::depth`]. Sessions are closed by their owners.
    async fn close(&self) {}

    /// Requests to close the sessions in order and to open new ones. By default there are none.
    fn reconnects(&self) -> Reconnects {
        Reconnects::default()
    }
}

/// A session for publishing. One task owns it.
#[async_trait]
pub trait Publisher: Send {
    /// Sends a message, persistent and mandatory, and returns the future of its confirm. Waits while the broker blocks
    /// publishers or an in-process queue is full. Not cancel-safe: a cancelled call may or may not have sent it.
    ///
    /// # Errors
    /// Any [`BrokerError`]: the session is over, and what is unconfirmed may or may not be stored.
    async fn publish(&mut self, queue: QueueName, body: &[u8]) -> Result<Confirm, BrokerError> {
        self.publish_again(queue, body, Origin::default()).await
    }

    /// As [`Self::publish`], for a message that was published before.
    ///
    /// # Errors
    /// As [`Self::publish`].
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError>;

    /// Closes the connection. Whether unconfirmed messages are stored stays unknown.
    async fn close(self: Box<Self>);
}

/// A session that consumes one queue. One task owns it. Dropping it returns what is unsettled to the queue.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next delivery. Cancel-safe.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over, and everything unsettled returns to the queue.
    async fn next(&mut self) -> Result<Delivery, BrokerError>;

    /// Acknowledges these deliveries and no others. Each was returned by [`Self::next`] and is unsettled. Acks of one
    /// consumer reach the broker in the order of the calls.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over, and the deliveries may return to the queue.
    async fn ack(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError>;

    /// Returns one delivery to the queue (`basic.nack` with requeue).
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over, and that returns the delivery too.
    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError>;

    /// Raises the prefetch to `prefetch`. A lower value changes nothing. No delivery returns to the queue for it.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over.
    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError>;

    /// Stops taking deliveries (`basic.cancel`). Buffered deliveries return to the queue; those that [`Self::next`]
    /// returned can still be settled. Afterwards [`Self::next`] waits forever.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over.
    async fn stop(&mut self) -> Result<(), BrokerError>;

    /// Stops taking deliveries as [`Self::stop`] does, but returns those that are buffered here: they are settled like those
    /// of [`Self::next`]. What the broker sends at this moment returns to the queue, unless the prefetch is used up.
    ///
    /// # Errors
    /// [`BrokerError`]: the session is over.
    async fn cancel(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        self.stop().await?;
        Ok(Vec::new())
    }

    /// Closes the connection. What is unsettled returns to the queue.
    async fn close(self: Box<Self>);
}

/// A session counts as lost when the broker does not reply for this long.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn advice_about_a_broker_that_is_not_seen_follows_the_cause() {
        let advice = |address: &str, source: io::Error| {
            let error = BrokerError::Unreachable {
                address: address.to_owned(),
                source: source.into(),
            };
            error.advice().unwrap_or_default()
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let lookup = "failed to lookup address information: Name or service not known";
        for (advice, part) in [
            (advice("127.0.0.1:5672", refused()), "docker-compose"),
            (advice("10.0.0.5:5672", refused()), "start it there"),
            (
                advice("10.0.0.5:5672", io::ErrorKind::TimedOut.into()),
                "firewall",
            ),
            (
                advice("brokr:5672", io::Error::other(lookup)),
                "name of its host",
            ),
        ] {
            assert!(advice.contains(part), "{advice}");
        }
    }
}
