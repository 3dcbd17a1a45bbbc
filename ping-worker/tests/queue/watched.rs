//! A broker that a test watches and disturbs: every call of the seam goes through the test's [`Watch`], which decides
//! whether and when it reaches the in-process broker. The tests of all three roles share this file.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Consumer, Delivery, DeliveryTag, MemoryBroker, Origin, Publisher,
    QueueDepth, QueueName,
};
use tokio::sync::{oneshot, watch};

/// A test fails when something takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A call on its way to the broker. If the test drops it, the call never arrives.
pub(crate) type Pass<'a, T> = BoxFuture<'a, Result<T, BrokerError>>;

/// What a test does with the calls of a role. Left alone, each passes.
#[async_trait]
pub(crate) trait Watch: fmt::Debug + Send + Sync {
    /// A check of the topology.
    async fn check(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    /// A session opens: for consuming a queue with a prefetch, or for publishing.
    fn opened(&self, _consumes: Option<(QueueName, u16)>) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn depth(
        &self,
        _queue: QueueName,
        pass: Pass<'_, QueueDepth>,
    ) -> Result<QueueDepth, BrokerError> {
        pass.await
    }

    async fn publish(
        &self,
        _queue: QueueName,
        _body: &[u8],
        pass: Pass<'_, Confirm>,
    ) -> Result<Confirm, BrokerError> {
        pass.await
    }

    /// Must be as cancel-safe as the seam asks.
    async fn next(
        &self,
        _queue: QueueName,
        pass: Pass<'_, Delivery>,
    ) -> Result<Delivery, BrokerError> {
        pass.await
    }

    /// One ack, with the bodies of all deliveries that it settles.
    async fn ack(
        &self,
        _queue: QueueName,
        _bodies: Vec<Vec<u8>>,
        pass: Pass<'_, ()>,
    ) -> Result<(), BrokerError> {
        pass.await
    }

    fn requeued(&self, _body: &[u8]) {}

    fn prefetched(&self, _prefetch: u16) {}

    fn stopped(&self, _queue: QueueName) {}
}

/// The watched broker.
#[derive(Debug)]
pub(crate) struct Watched<W> {
    pub(crate) watch: Arc<W>,
    pub(crate) memory: MemoryBroker,
}

/// The error of a session that the test breaks.
pub(crate) fn lost() -> BrokerError {
    BrokerError::Lost("the test cut it".into())
}

#[async_trait]
impl<W: Watch + 'static> Broker for Watched<W> {
    async fn ensure(&self, _queues: &[QueueName]) -> Result<(), BrokerError> {
        self.watch.check().await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        self.watch.opened(None)?;
        Ok(Box::new(WatchedPublisher {
            watch: Arc::clone(&self.watch),
            inner: self.memory.publisher().await?,
        }))
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        self.watch.opened(Some((queue, prefetch)))?;
        Ok(Box::new(WatchedConsumer {
            watch: Arc::clone(&self.watch),
            inner: self.memory.consumer(queue, prefetch).await?,
            queue,
            unsettled: BTreeMap::new(),
        }))
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        self.watch.depth(queue, self.memory.depth(queue)).await
    }
}

struct WatchedPublisher<W> {
    watch: Arc<W>,
    inner: Box<dyn Publisher>,
}

#[async_trait]
impl<W: Watch> Publisher for WatchedPublisher<W> {
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError> {
        let pass = self.inner.publish_again(queue, body, origin);
        self.watch.publish(queue, body, pass).await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

struct WatchedConsumer<W> {
    watch: Arc<W>,
    inner: Box<dyn Consumer>,
    queue: QueueName,
    unsettled: BTreeMap<DeliveryTag, Vec<u8>>,
}

#[async_trait]
impl<W: Watch> Consumer for WatchedConsumer<W> {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.watch.next(self.queue, self.inner.next()).await?;
        self.unsettled.insert(delivery.tag, delivery.body.clone());
        Ok(delivery)
    }

    async fn ack(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        let bodies = tags
            .iter()
            .filter_map(|tag| self.unsettled.remove(tag))
            .collect();
        let pass = self.inner.ack(tags);
        self.watch.ack(self.queue, bodies, pass).await
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        if let Some(body) = self.unsettled.remove(&tag) {
            self.watch.requeued(&body);
        }
        self.inner.requeue(tag).await
    }

    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.watch.prefetched(prefetch);
        self.inner.raise_prefetch(prefetch).await
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.watch.stopped(self.queue);
        self.inner.stop().await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

/// What happened, in order. A test waits for it.
#[derive(Debug)]
pub(crate) struct Log<E>(watch::Sender<Vec<E>>);

impl<E> Default for Log<E> {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl<E: Clone + fmt::Debug> Log<E> {
    pub(crate) fn note(&self, event: E) {
        self.0.send_modify(|events| events.push(event));
    }

    pub(crate) fn events(&self) -> Vec<E> {
        self.0.borrow().clone()
    }

    /// Waits until `wanted` is true of the events so far.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        mut wanted: impl FnMut(&[E]) -> bool,
    ) -> Result<Vec<E>> {
        let mut events = self.0.subscribe();
        let seen = within(what, events.wait_for(|events| wanted(events)));
        match seen.await {
            Ok(seen) => Ok(seen?.clone()),
            Err(error) => bail!("{error}; what happened: {:?}", self.events()),
        }
    }

    /// Waits until at least `count` events are such.
    pub(crate) async fn wait_for_some(
        &self,
        what: &str,
        count: usize,
        such: impl Fn(&E) -> bool,
    ) -> Result<Vec<E>> {
        self.wait_for(what, |events| {
            events.iter().filter(|event| such(event)).count() >= count
        })
        .await
    }
}

/// Awaits something with a timeout. It uses the real clock: a paused one would advance while another thread works.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    let (done, waiting) = mpsc::channel::<()>();
    let (expire, expired) = oneshot::channel();
    // The thread sends after the timeout, or ends when this call drops `done`.
    std::thread::spawn(move || {
        if waiting.recv_timeout(TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            expire.send(()).ok();
        }
    });
    let awaited = tokio::select! {
        awaited = future => Some(awaited),
        Ok(()) = expired => None,
    };
    drop(done);
    awaited.with_context(|| format!("waited in vain for {what}"))
}
