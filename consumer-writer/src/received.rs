//! The consumers of a session, and what they deliver while a batch is committed.
//!
//! Invariant: every delivery is taken from the client library at once, also while the database is locked, and what is over
//! the limit of a message is cut. So the memory of a session is bounded by its prefetch and that limit.

use std::{collections::VecDeque, pin::pin};

use pingfleet_broker::{Broker, BrokerError, Consumer, Delivery, QueueKind, QueueName};
use pingfleet_wire::MAX_MESSAGE_BYTES;

use crate::QUEUES;

/// Prefetch of the results queue. It bounds the memory to 256 MiB with the largest messages. Usual ones take 5 MB.
pub(crate) const RESULTS_PREFETCH: u16 = 256;

/// Prefetch of the queues of dead letters and heartbeats.
pub(crate) const OTHER_PREFETCH: u16 = 256;

/// What is left of a message over the limit, in bytes.
const KEPT_BYTES: usize = 64;

/// A delivery, and the length of its whole body in bytes.
pub(crate) struct Received {
    pub(crate) queue: QueueName,
    pub(crate) delivery: Delivery,
    pub(crate) length: usize,
}

impl Received {
    pub(crate) fn new(queue: QueueName, mut delivery: Delivery) -> Self {
        let length = delivery.body.len();
        if length > MAX_MESSAGE_BYTES {
            delivery.body = delivery.body[..KEPT_BYTES].to_vec();
        }
        Self {
            queue,
            delivery,
            length,
        }
    }
}

/// The consumers of a session.
pub(crate) struct SessionConsumers {
    pub(crate) results: Box<dyn Consumer>,
    pub(crate) dead: Box<dyn Consumer>,
    pub(crate) heartbeats: Box<dyn Consumer>,
    /// What they delivered while something else was awaited.
    waiting: VecDeque<Received>,
    /// The session ended meanwhile.
    lost: Option<BrokerError>,
}

impl SessionConsumers {
    pub(crate) async fn open(broker: &dyn Broker) -> Result<Self, BrokerError> {
        broker.ensure(&QUEUES).await?;
        let results = broker.consumer(QueueName::RESULTS, RESULTS_PREFETCH);
        Ok(Self {
            results: results.await?,
            dead: broker.consumer(QueueName::DEAD, OTHER_PREFETCH).await?,
            heartbeats: broker
                .consumer(QueueName::HEARTBEATS, OTHER_PREFETCH)
                .await?,
            waiting: VecDeque::new(),
            lost: None,
        })
    }

    /// What was delivered while something else was awaited, the oldest first.
    pub(crate) fn take_waiting(&mut self) -> Option<Received> {
        self.waiting.pop_front()
    }

    /// Fails when the session ended while something else was awaited.
    pub(crate) fn check(&mut self) -> Result<(), BrokerError> {
        self.lost.take().map_or(Ok(()), Err)
    }

    /// The consumer of a queue.
    pub(crate) fn of(&mut self, queue: QueueName) -> &mut dyn Consumer {
        match queue.kind {
            QueueKind::Dead => &mut *self.dead,
            QueueKind::Heartbeats => &mut *self.heartbeats,
            QueueKind::Results | QueueKind::Work | QueueKind::Foreign => &mut *self.results,
        }
    }

    /// Waits for the next delivery. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Received, BrokerError> {
        let (queue, delivery) = tokio::select! {
            biased;
            // Heartbeats and dead letters first: they are few, and the results would starve them.
            delivery = self.heartbeats.next() => (QueueName::HEARTBEATS, delivery),
            delivery = self.dead.next() => (QueueName::DEAD, delivery),
            delivery = self.results.next() => (QueueName::RESULTS, delivery),
        };
        Ok(Received::new(queue, delivery?))
    }

    /// Awaits `work`, and keeps what is delivered meanwhile: at most the prefetch, because nothing is settled.
    pub(crate) async fn receive_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let is_open = self.lost.is_none();
            tokio::select! {
                biased;
                done = &mut work => return done,
                received = self.next(), if is_open => match received {
                    Ok(received) => self.waiting.push_back(received),
                    Err(error) => self.lost = Some(error),
                },
            }
        }
    }

    /// Takes no more deliveries.
    pub(crate) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.results.stop().await?;
        self.dead.stop().await?;
        self.heartbeats.stop().await
    }

    /// Takes no more from the broker than what is here; [`Self::take_waiting`] returns it.
    pub(crate) async fn cancel(&mut self) -> Result<(), BrokerError> {
        for queue in [QueueName::HEARTBEATS, QueueName::DEAD, QueueName::RESULTS] {
            let buffered = self.of(queue).cancel().await?;
            let received = buffered
                .into_iter()
                .map(|delivery| Received::new(queue, delivery));
            self.waiting.extend(received);
        }
        Ok(())
    }

    pub(crate) async fn close(self) {
        self.results.close().await;
        self.dead.close().await;
        self.heartbeats.close().await;
    }
}
