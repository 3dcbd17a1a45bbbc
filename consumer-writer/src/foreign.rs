//! Results and dead letters for other databases. They are published to a queue of their own, from which
//! `pingfleet broker foreign` lists and returns them, and acked after the confirm.
//!
//! Invariant: what waits for its confirm is bounded, and holds up nothing for longer than [`STALLED_AFTER`]. What finds no
//! room then goes to the quarantine.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, ConfirmedMessage, ConfirmedPublisher, DeliveryTag, KeyedMessage,
    MessageKey, QueueName,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// How many may wait for their confirm: a quarter of the prefetch, so that the writer's own results have the rest.
const MAX_UNCONFIRMED: usize = 64;

/// How many bytes may wait for their confirm.
const MAX_UNCONFIRMED_BYTES: usize = 16 << 20;

/// The writer waits this long for the next confirm when there is no room. After that it goes on without.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// A message on its way to the queue of foreign ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ForeignKey(u64);

impl MessageKey for ForeignKey {
    fn span(self) -> Span {
        tracing::error_span!("foreign", message = self.0)
    }
}

/// A message that waits for its confirm.
struct Unconfirmed {
    bytes: usize,
    /// Where it came from. None when that session has ended: the broker delivers it again.
    delivery: Option<(QueueName, DeliveryTag)>,
}

/// The messages that are set aside, over all sessions of the writer.
pub(crate) struct ForeignMessages {
    messages: mpsc::Sender<KeyedMessage<ForeignKey>>,
    confirmed: mpsc::Receiver<ConfirmedMessage<ForeignKey>>,
    unconfirmed: HashMap<ForeignKey, Unconfirmed>,
    bytes: usize,
    next_key: u64,
    /// The last confirm, or when the first of the messages that wait was sent.
    progress: Instant,
}

impl ForeignMessages {
    /// The messages, and what publishes them until `stop`. The caller polls both.
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (messages, outgoing) = mpsc::channel(MAX_UNCONFIRMED);
        let (confirming, confirmed) = mpsc::channel(MAX_UNCONFIRMED);
        let publisher = ConfirmedPublisher::new(
            broker,
            QueueName::FOREIGN,
            "results for other databases",
            MAX_UNCONFIRMED,
        );
        let publishing = async move {
            if let Err(error) = publisher.run(outgoing, confirming, stop).await {
                let advice = error.advice();
                tracing::warn!(%error, advice, "results for other databases cannot be set aside, and go to the quarantine");
            }
        };
        let foreign = Self {
            messages,
            confirmed,
            unconfirmed: HashMap::new(),
            bytes: 0,
            next_key: 0,
            progress: Instant::now(),
        };
        (foreign, publishing)
    }

    /// Deliveries of an earlier session can no longer be acked.
    pub(crate) fn begin_session(&mut self) {
        for waiting in self.unconfirmed.values_mut() {
            waiting.delivery = None;
        }
    }

    /// How many deliveries of this session wait for their confirm.
    pub(crate) fn in_hand(&self) -> usize {
        let waiting = self.unconfirmed.values();
        waiting.filter(|waiting| waiting.delivery.is_some()).count()
    }

    fn has_room(&self) -> bool {
        self.unconfirmed.len() < MAX_UNCONFIRMED && self.bytes < MAX_UNCONFIRMED_BYTES
    }

    /// Until when the next delivery has to wait for room. None when it need not wait.
    pub(crate) fn wait_until(&self) -> Option<Instant> {
        if self.has_room() || self.messages.is_closed() {
            return None;
        }
        Some(self.progress + STALLED_AFTER).filter(|stalled| *stalled > Instant::now())
    }

    /// Sets a delivery aside. Returns its body when there is no room.
    pub(crate) fn set_aside(
        &mut self,
        queue: QueueName,
        tag: DeliveryTag,
        body: Vec<u8>,
    ) -> Result<(), Vec<u8>> {
        if !self.has_room() {
            return Err(body);
        }
        let key = ForeignKey(self.next_key);
        let bytes = body.len();
        self.messages
            .try_send(KeyedMessage { key, body })
            .map_err(|refused| refused.into_inner().body)?;
        if self.unconfirmed.is_empty() {
            self.progress = Instant::now();
        }
        self.next_key += 1;
        self.bytes += bytes;
        let delivery = Some((queue, tag));
        self.unconfirmed
            .insert(key, Unconfirmed { bytes, delivery });
        Ok(())
    }

    /// Waits for confirms, and returns the deliveries to ack, by queue. Waits forever when there are none to come.
    /// Cancel-safe.
    pub(crate) async fn confirmed(&mut self) -> BTreeMap<QueueName, Vec<DeliveryTag>> {
        let Some(first) = self.confirmed.recv().await else {
            return std::future::pending().await;
        };
        let mut stored: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut next = Some(first);
        while let Some(message) = next {
            self.progress = Instant::now();
            if let Some(waiting) = self.unconfirmed.remove(&message.key) {
                self.bytes -= waiting.bytes;
                if let Some((queue, tag)) = waiting.delivery {
                    stored.entry(queue).or_default().push(tag);
                }
            }
            next = self.confirmed.recv().now_or_never().flatten();
        }
        stored
    }
}

/// Checks that the user may set messages aside, before the writer takes any.
pub(crate) async fn may_set_aside(broker: &dyn Broker) -> Result<(), BrokerError> {
    // An alarm delays publishing, and forbids nothing.
    broker.alarm(QueueName::FOREIGN).await.map(drop)
}
