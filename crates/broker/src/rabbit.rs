//! The queue seam over RabbitMQ (AMQP 0-9-1). Each session has a connection of its own.

mod common_name;
pub(crate) mod connect_problem;
mod connection;
mod consumer;
mod dead_letter;
mod endpoint;
mod error;
mod login;
mod mechanisms;
mod permissions;
mod publisher;
mod stream;
mod tls;
mod topology;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt, future};
use lapin::{
    Event,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::sync::watch;

use self::{
    connection::RabbitConnection, consumer::RabbitConsumer, endpoint::Endpoint, error::Operation,
    publisher::RabbitPublisher,
};
pub use self::{
    endpoint::{BrokerAddress, RabbitConfig},
    permissions::{Role, exactly},
    tls::TlsFiles,
};
use crate::{Broker, BrokerError, Consumer, Origin, Publisher, QueueDepth, QueueName, Reconnects};

/// A RabbitMQ broker, 3.10 or later. It connects when a session is opened, not before.
///
/// A prefetch of 0 counts as 1 here; for RabbitMQ it would mean no limit.
pub struct RabbitBroker {
    endpoint: Arc<Endpoint>,
    /// Set when a message was returned: the next check binds again, because a passive check cannot see a missing binding.
    unbound: Arc<AtomicBool>,
    /// The connection of the last [`Broker::depth`], kept for the next one, and how many requests for new ones there were
    /// when it was opened.
    depth_connection: Mutex<Option<(RabbitConnection, u64)>>,
    reconnects: Reconnects,
}

impl RabbitBroker {
    /// Reads the configuration; opens no connection.
    ///
    /// # Errors
    /// [`BrokerError::Url`] when the URL or the prefix cannot be used. The text never holds the password.
    pub fn new(config: &RabbitConfig) -> Result<Self, BrokerError> {
        Ok(Self {
            endpoint: Arc::new(Endpoint::new(config)?),
            unbound: Arc::default(),
            depth_connection: Mutex::default(),
            reconnects: Reconnects::default(),
        })
    }

    /// Its sessions are closed in order and opened anew at each of these requests.
    #[must_use]
    pub fn with_reconnects(mut self, requests: watch::Receiver<u64>) -> Self {
        self.reconnects = Reconnects::new(requests);
        self
    }

    /// Host, port and virtual host, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        self.endpoint.place()
    }

    /// Where the broker is, and the login.
    #[must_use]
    pub fn address(&self) -> BrokerAddress {
        self.endpoint.parts()
    }

    /// The name of a queue on the broker, which is also the routing key that binds it.
    #[must_use]
    pub fn queue_name(&self, queue: QueueName) -> String {
        self.endpoint.queue(queue).to_string()
    }

    /// The name of the exchange that feeds a queue.
    #[must_use]
    pub fn exchange_name(&self, queue: QueueName) -> String {
        self.endpoint.exchange(queue).to_string()
    }

    /// Opens a connection and closes it in order, which shows whether the broker accepts the login.
    ///
    /// # Errors
    /// [`BrokerError::Login`], [`BrokerError::Forbidden`] for a virtual host that the user may not use, and any other
    /// [`BrokerError`].
    pub async fn login(&self) -> Result<(), BrokerError> {
        let connection = RabbitConnection::open(&self.endpoint).await?;
        connection.close().await;
        Ok(())
    }

    /// Declares and binds all queues, whether or not they exist, which repairs a missing binding. What exists already stays
    /// as it is.
    ///
    /// # Errors
    /// [`BrokerError::OtherTopology`] when something exists with other arguments, and any other [`BrokerError`].
    pub async fn declare(&self) -> Result<(), BrokerError> {
        let connection = RabbitConnection::open(&self.endpoint).await?;
        topology::ensure(&connection, &QueueName::ALL).await?;
        topology::declare_again(&connection, &QueueName::ALL).await?;
        connection.close().await;
        Ok(())
    }

    /// The broker's reason for taking no messages now (`connection.blocked`: a memory or disk alarm), if it has one. The
    /// broker says so only to those who publish, so this publishes two empty messages that no queue takes.
    ///
    /// # Errors
    /// [`BrokerError::Forbidden`] when the user may not write to the exchange of `queue`, and any other [`BrokerError`].
    pub async fn alarm(&self, queue: QueueName) -> Result<Option<String>, BrokerError> {
        let connection = RabbitConnection::connect(&self.endpoint).await?;
        let mut alarms = connection.events().filter_map(|event| {
            future::ready(match event {
                Event::ConnectionBlocked(reason) => Some(reason),
                _ => None,
            })
        });
        let login = self.endpoint.login();
        // The broker reads on until the end of the first message.
        let publishing = async {
            let channel = connection.channel().await?;
            let select = channel.confirm_select(ConfirmSelectOptions::default());
            connection.reply(Operation::Transfer, select).await?;
            for _ in 0..2 {
                let publish = async {
                    let options = BasicPublishOptions {
                        mandatory: true,
                        immediate: false,
                    };
                    let exchange = self.endpoint.exchange(queue);
                    // With the login, which the broker checks.
                    let properties = login::properties(&login, queue, Origin::default());
                    channel
                        .basic_publish(exchange, "no queue".into(), options, &[], properties)
                        .await?
                        .await
                };
                connection.reply(Operation::Transfer, publish).await?;
            }
            connection.close_channel(channel).await;
            Ok(())
        };
        let alarm = tokio::select! {
            Some(reason) = alarms.next() => Some(reason),
            published = publishing => {
                published?;
                None
            }
        };
        // A blocked connection does not answer to its close: dropping it ends it as well.
        if alarm.is_none() {
            connection.close().await;
        }
        Ok(alarm)
    }

    /// Takes the kept connection. A call at the same time opens another one.
    fn kept(&self) -> Option<RabbitConnection> {
        let mut kept = self
            .depth_connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (connection, requests) = kept.take()?;
        let is_new = requests == self.reconnects.count();
        (is_new && connection.status().connected()).then_some(connection)
    }

    fn keep(&self, connection: RabbitConnection, requests: u64) {
        let mut kept = self
            .depth_connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *kept = Some((connection, requests));
    }
}

impl fmt::Debug for RabbitBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitBroker")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn alarm(&self, queue: QueueName) -> Result<Option<String>, BrokerError> {
        RabbitBroker::alarm(self, queue).await
    }

    async fn ensure(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        let connection = RabbitConnection::open(&self.endpoint).await?;
        topology::ensure(&connection, queues).await?;
        if self.unbound.swap(false, Ordering::Relaxed) {
            match topology::declare_again(&connection, queues).await {
                // Somebody else has to bind it, and may have done so. The next returned message sets the flag again.
                Err(error @ BrokerError::NoTopology { .. }) => {
                    tracing::warn!(%error, "the queues cannot be bound again");
                }
                declared => declared?,
            }
        }
        connection.close().await;
        Ok(())
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        let connection = RabbitConnection::open(&self.endpoint).await?;
        let unbound = Arc::clone(&self.unbound);
        Ok(Box::new(RabbitPublisher::new(connection, unbound)))
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let connection = RabbitConnection::open(&self.endpoint).await?;
        Ok(Box::new(
            RabbitConsumer::open(connection, queue, prefetch).await?,
        ))
    }

    fn reconnects(&self) -> Reconnects {
        self.reconnects.from_now()
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        let requests = self.reconnects.count();
        let connection = match self.kept() {
            Some(connection) => connection,
            None => RabbitConnection::open(&self.endpoint).await?,
        };
        let channel = connection.channel().await?;
        let depth = topology::depth(&connection, &channel, queue).await?;
        connection.close_channel(channel).await;
        self.keep(connection, requests);
        depth.ok_or_else(|| BrokerError::NoTopology {
            address: self.endpoint.place(),
            what: format!("queue {}", self.endpoint.queue(queue)),
        })
    }

    async fn close(&self) {
        if let Some(connection) = self.kept() {
            connection.close().await;
        }
    }
}
