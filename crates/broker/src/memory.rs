//! The in-process broker, used by a sweep without RabbitMQ and by tests. Nothing outlives the process. No I/O.
//!
//! It keeps the promises of the seam: bounded queues, redelivery in order, the delivery limit of `work`, the single
//! active consumer of `results`. A publish into a full queue waits; RabbitMQ would refuse it.

mod queues;

use std::{
    collections::BTreeMap,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::Notify;

use self::queues::{ConsumerId, QueuedMessage, Queues};
use crate::{
    Broker, BrokerError, Confirm, Confirmed, Consumer, Delivery, DeliveryTag, Origin, Publisher,
    QueueDepth, QueueKind, QueueName,
};

/// A broker inside this process. Clones share their queues.
#[derive(Debug, Clone)]
pub struct MemoryBroker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    /// Notified at every change of a queue.
    changed: Mutex<BTreeMap<QueueName, Arc<Notify>>>,
}

impl MemoryBroker {
    /// A broker whose queues each hold at most `capacity_per_queue` messages (0 counts as 1), ready and unsettled
    /// together.
    #[must_use]
    pub fn new(capacity_per_queue: usize) -> Self {
        Self(Arc::new(Shared {
            queues: Mutex::new(Queues::new(capacity_per_queue.max(1))),
            changed: Mutex::default(),
        }))
    }

    /// Drops the ready messages of a queue, as an administrator might, and returns their number.
    #[must_use = "the number of dropped messages"]
    pub fn purge(&self, queue: QueueName) -> usize {
        let purged = self.0.lock().purge(queue);
        self.0.wake(queue);
        purged
    }
}

impl Shared {
    /// No panic can happen in the middle of a change, so the state behind a poisoned lock is complete.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is notified at every change of a queue.
    fn changed(&self, queue: QueueName) -> Arc<Notify> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(changed.entry(queue).or_default())
    }

    fn wake(&self, queue: QueueName) {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        // A dead letter may have moved from a work queue to `dead`.
        let moves = |queue: &QueueName| matches!(queue.kind, QueueKind::Work | QueueKind::Dead);
        for (other, notify) in &*changed {
            if *other == queue || moves(other) && moves(&queue) {
                notify.notify_waiters();
            }
        }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn ensure(&self, _queues: &[QueueName]) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        Ok(Box::new(MemoryPublisher(Arc::clone(&self.0))))
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let id = self.0.lock().add_consumer(queue);
        Ok(Box::new(MemoryConsumer {
            shared: Arc::clone(&self.0),
            queue,
            id,
            prefetch: usize::from(prefetch.max(1)),
            next_tag: 1,
            unsettled: BTreeMap::new(),
            stopped: false,
        }))
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        let queues = self.0.lock();
        Ok(QueueDepth {
            ready: u32::try_from(queues.ready(queue)).unwrap_or(u32::MAX),
            consumers: u32::try_from(queues.consumers(queue)).unwrap_or(u32::MAX),
        })
    }
}

struct MemoryPublisher(Arc<Shared>);

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError> {
        let mut message = QueuedMessage::new(body);
        message.dead_letter_reason = origin.dead_letter_reason.map(ToOwned::to_owned);
        message.original_login = origin.login.map(ToOwned::to_owned);
        let notify = self.0.changed(queue);
        loop {
            // Registered before the queue is read, so a change in between is not missed.
            let changed = notify.notified();
            let offered = self.0.lock().offer(queue, message);
            match offered {
                Ok(()) => break,
                Err(refused) => message = refused,
            }
            changed.await;
        }
        self.0.wake(queue);
        Ok(future::ready(Ok(Confirmed::Stored)).boxed())
    }

    async fn close(self: Box<Self>) {}
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    queue: QueueName,
    id: ConsumerId,
    prefetch: usize,
    next_tag: u64,
    unsettled: BTreeMap<DeliveryTag, QueuedMessage>,
    stopped: bool,
}

impl MemoryConsumer {
    /// Removes unsettled deliveries.
    fn settle(&mut self, tags: &[DeliveryTag]) -> Result<Vec<QueuedMessage>, BrokerError> {
        if let Some(tag) = tags.iter().find(|tag| !self.unsettled.contains_key(tag)) {
            return Err(BrokerError::not_unsettled(*tag));
        }
        let messages = tags.iter().filter_map(|tag| self.unsettled.remove(tag));
        Ok(messages.collect())
    }

    fn take(&mut self) -> Option<Delivery> {
        if self.unsettled.len() >= self.prefetch {
            return None;
        }
        let message = self.shared.lock().take(self.queue, self.id)?;
        let tag = DeliveryTag(self.next_tag);
        self.next_tag += 1;
        let delivery = Delivery {
            tag,
            body: message.body.clone(),
            redelivered: message.returns > 0,
            dead_letter_reason: message.dead_letter_reason.clone(),
            login: None,
            original_login: message.original_login.clone(),
        };
        self.unsettled.insert(tag, message);
        Some(delivery)
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        if self.stopped {
            return future::pending().await;
        }
        let notify = self.shared.changed(self.queue);
        loop {
            let changed = notify.notified();
            if let Some(delivery) = self.take() {
                return Ok(delivery);
            }
            changed.await;
        }
    }

    async fn ack(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        let messages = self.settle(tags)?;
        self.shared.lock().acked(self.queue, messages.len());
        self.shared.wake(self.queue);
        Ok(())
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let messages = self.settle(&[tag])?;
        self.shared.lock().returned(self.queue, messages);
        self.shared.wake(self.queue);
        Ok(())
    }

    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.prefetch = self.prefetch.max(prefetch.into());
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.stopped = true;
        self.shared.lock().remove_consumer(self.queue, self.id);
        self.shared.wake(self.queue);
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.unsettled).into_values().collect();
        let mut queues = self.shared.lock();
        queues.remove_consumer(self.queue, self.id);
        queues.returned(self.queue, messages);
        drop(queues);
        self.shared.wake(self.queue);
    }
}
