//! The queue seam over RabbitMQ (AMQP 0-9-1): sessions, each on a fresh connection.

mod consumer;
mod death;
mod endpoint;
mod fault;
mod link;
mod publisher;
mod topology;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;

pub use self::endpoint::{DEFAULT_PREFIX, RabbitConfig};
use self::{consumer::RabbitConsumer, endpoint::Endpoint, link::Link, publisher::RabbitPublisher};
use crate::{Broker, BrokerError, Consumer, Depth, Publisher, Queue};

/// A RabbitMQ broker, 3.10 or later. It connects when a session is opened, not before.
///
/// A prefetch of 0, which means no limit to RabbitMQ, counts as 1 here.
pub struct RabbitBroker {
    endpoint: Arc<Endpoint>,
    /// A message was returned: the next check binds, even if nothing is missing to the eye.
    unbound: Arc<AtomicBool>,
    /// The connection of the last [`Broker::depth`], for the next one.
    looking: Mutex<Option<Link>>,
}

impl RabbitBroker {
    /// A broker by its configuration.
    ///
    /// # Errors
    /// [`BrokerError::Url`] when the URL or the prefix cannot be used. The text never holds the password.
    pub fn new(config: &RabbitConfig) -> Result<Self, BrokerError> {
        Ok(Self {
            endpoint: Arc::new(Endpoint::new(config)?),
            unbound: Arc::default(),
            looking: Mutex::default(),
        })
    }

    /// Host and port, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.endpoint.address
    }

    /// Declares and binds everything, whether or not it seems to stand. What stands already is left as it is.
    ///
    /// # Errors
    /// [`BrokerError::OtherTopology`] when something stands with other arguments, and any other [`BrokerError`].
    pub async fn declare(&self) -> Result<(), BrokerError> {
        self.ensure(true).await
    }

    async fn ensure(&self, bind: bool) -> Result<(), BrokerError> {
        let link = Link::open(&self.endpoint).await?;
        topology::ensure(&link, bind).await?;
        link.close().await;
        Ok(())
    }

    /// The kept connection; whoever comes meanwhile opens another one.
    fn kept(&self) -> Option<Link> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        looking.take().filter(|link| link.status().connected())
    }

    fn keep(&self, link: Link) {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        *looking = Some(link);
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
    async fn check(&self) -> Result<(), BrokerError> {
        self.ensure(self.unbound.load(Ordering::Relaxed)).await?;
        self.unbound.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        let link = Link::open(&self.endpoint).await?;
        let unbound = Arc::clone(&self.unbound);
        Ok(Box::new(RabbitPublisher::new(link, unbound)))
    }

    async fn consumer(
        &self,
        queue: Queue,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let link = Link::open(&self.endpoint).await?;
        Ok(Box::new(RabbitConsumer::open(link, queue, prefetch).await?))
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError> {
        let link = match self.kept() {
            Some(link) => link,
            None => Link::open(&self.endpoint).await?,
        };
        let channel = link.channel().await?;
        let depth = topology::depth(&link, &channel, queue).await?;
        drop(channel);
        self.keep(link);
        depth.ok_or_else(|| BrokerError::NoTopology {
            address: self.endpoint.address.clone(),
            what: format!("queue {}", self.endpoint.name(queue)),
        })
    }
}
