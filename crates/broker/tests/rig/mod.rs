//! Brokers for tests: the in-process one, and a private RabbitMQ node that all tests of a binary share. Each test has
//! queues of its own.

use std::{
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use pingfleet_broker::{
    Broker, Confirmed, Consumer, Delivery, MemoryBroker, QueueName, RabbitBroker, RabbitConfig,
};
use pingfleet_testbed::Rabbit;

/// A test fails when something takes longer than this.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

/// How often the queues of a test are declared before it fails.
const MAX_ATTEMPTS: u32 = 5;

/// A broker, with access for an administrator.
pub(crate) struct Rig {
    pub(crate) broker: Arc<dyn Broker>,
    outside: Outside,
}

enum Outside {
    Memory(MemoryBroker),
    Rabbit { prefix: String },
}

impl Rig {
    pub(crate) fn purge(&self, queue: QueueName) -> Result<()> {
        match &self.outside {
            Outside::Memory(broker) => {
                let _purged = broker.purge(queue);
                Ok(())
            }
            Outside::Rabbit { prefix } => node(|node| node.purge(&format!("{prefix}.{queue}"))),
        }
    }
}

/// Does something with the node of this test binary, which the first test starts.
pub(crate) fn node<T>(act: impl FnOnce(&Rabbit) -> Result<T>) -> Result<T> {
    static NODE: LazyLock<Result<RwLock<Rabbit>>> =
        LazyLock::new(|| Rabbit::start().map(RwLock::new));
    let node = NODE.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    act(&node.read().unwrap_or_else(PoisonError::into_inner))
}

/// RabbitMQ with fresh queues whose names begin with `prefix`.
pub(crate) async fn rabbit(prefix: &str) -> Result<Rig> {
    let broker = RabbitBroker::new(&config(prefix)?)?;
    // On a busy machine RabbitMQ exceeds its own time limit for a quorum queue and closes the connection with
    // INTERNAL_ERROR. The programs connect again then.
    let mut attempts = 0;
    while let Err(error) = broker.ensure(&QueueName::ALL).await {
        attempts += 1;
        ensure!(error.is_transient() && attempts < MAX_ATTEMPTS, error);
    }
    Ok(Rig {
        broker: Arc::new(broker),
        outside: Outside::Rabbit {
            prefix: prefix.to_owned(),
        },
    })
}

/// How to reach the node of this test binary.
pub(crate) fn config(prefix: &str) -> Result<RabbitConfig> {
    let mut config = RabbitConfig::new(node(|node| Ok(node.url()))?);
    prefix.clone_into(&mut config.prefix);
    Ok(config)
}

/// The in-process broker.
pub(crate) fn memory() -> Rig {
    let broker = MemoryBroker::new(100);
    Rig {
        broker: Arc::new(broker.clone()),
        outside: Outside::Memory(broker),
    }
}

/// The next delivery.
pub(crate) async fn next(consumer: &mut Box<dyn Consumer>) -> Result<Delivery> {
    let delivery = tokio::time::timeout(TIMEOUT, consumer.next());
    Ok(delivery.await.context("no delivery")??)
}

/// The bodies of the next deliveries, which stay unsettled.
pub(crate) async fn bodies(consumer: &mut Box<dyn Consumer>, count: usize) -> Result<Vec<String>> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        bodies.push(String::from_utf8(next(consumer).await?.body)?);
    }
    Ok(bodies)
}

/// Publishes one message in a session of its own, and waits for the confirm.
pub(crate) async fn publish(rig: &Rig, queue: QueueName, body: &[u8]) -> Result<Confirmed> {
    let mut publisher = rig.broker.publisher().await?;
    let confirm = publisher.publish(queue, body).await?;
    let confirmed = tokio::time::timeout(TIMEOUT, confirm);
    let confirmed = confirmed.await.context("no confirm")??;
    publisher.close().await;
    Ok(confirmed)
}

/// Publishes messages in one session, all in flight together, and makes sure that they are stored.
pub(crate) async fn stored(rig: &Rig, queue: QueueName, bodies: &[&str]) -> Result<()> {
    let mut publisher = rig.broker.publisher().await?;
    let mut confirms = Vec::new();
    for body in bodies {
        confirms.push(publisher.publish(queue, body.as_bytes()).await?);
    }
    for confirm in confirms {
        let confirmed = tokio::time::timeout(TIMEOUT, confirm);
        anyhow::ensure!(confirmed.await.context("no confirm")?? == Confirmed::Stored);
    }
    publisher.close().await;
    Ok(())
}
