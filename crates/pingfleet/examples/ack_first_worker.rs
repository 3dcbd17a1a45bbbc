//! The control of the kill tests: a worker that acks each chunk before it probes it. The chunks that it has in hand when it
//! is killed are lost, and the tests must detect that. It is the real worker with a wrapped broker.

use std::sync::Arc;

use async_trait::async_trait;
use ping_worker::WorkerArgs;
use pingfleet_broker::{
    Broker, BrokerError, Consumer, Delivery, DeliveryTag, Publisher, QueueDepth, QueueName,
    RabbitBroker, RabbitConfig,
};
use pingfleet_prober::{default_prober, resolve::Resolver};
use pingfleet_settings::{BrokerArgs, CommonArgs, Verbosity, keys};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct AckFirst(RabbitBroker);

#[async_trait]
impl Broker for AckFirst {
    async fn ensure(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.0.ensure(queues).await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        self.0.publisher().await
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let consumer = self.0.consumer(queue, prefetch).await?;
        Ok(Box::new(AckingConsumer(consumer)))
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        self.0.depth(queue).await
    }
}

struct AckingConsumer(Box<dyn Consumer>);

#[async_trait]
impl Consumer for AckingConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.0.next().await?;
        self.0.ack(&[delivery.tag]).await?;
        Ok(delivery)
    }

    async fn ack(&mut self, _tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn requeue(&mut self, _tag: DeliveryTag) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.0.raise_prefetch(prefetch).await
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.0.stop().await
    }

    async fn close(self: Box<Self>) {
        self.0.close().await;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut layers = CommonArgs::default().layers(Verbosity::Normal);
    let config = RabbitConfig::resolve(&BrokerArgs::default(), &mut layers, "ack-first-worker");
    if let Some(name) = std::env::args().nth(2) {
        layers.set(&keys::WORKER_NAME, "--name", &name);
    }
    let settings = WorkerArgs::default().resolve(&mut layers);
    layers.finish()?;
    let broker = Arc::new(AckFirst(RabbitBroker::new(&config)?));
    let probe_threads =
        ping_worker::start_probe_threads(&default_prober(), Resolver::from_system(), &settings)?;
    ping_worker::run(
        broker,
        probe_threads,
        &settings,
        watch::Sender::default(),
        CancellationToken::new(),
    )
    .await?;
    Ok(())
}
