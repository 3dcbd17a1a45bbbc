//! A batch: deliveries that are taken from the queues and not yet committed. No I/O.
//!
//! Invariant: a tag is in the batch exactly as long as its delivery is neither committed nor returned.

use pingfleet_broker::{Delivery, DeliveryTag, QueueKind, QueueName};
use pingfleet_store::{DecodedDelivery, RawMessage, now_us};
use pingfleet_wire::{Heartbeat, MAX_MESSAGE_BYTES, Message as _, ResultChunk, WorkChunk};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{received::Received, times::impossible_times};

/// Deliveries of one batch, with the tags to ack after its commit.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) incoming: Vec<DecodedDelivery>,
    pub(crate) rows: usize,
    /// When the first delivery was received.
    pub(crate) first_at: Option<Instant>,
    pub(crate) results: Vec<DeliveryTag>,
    pub(crate) dead: Vec<DeliveryTag>,
    pub(crate) heartbeats: Vec<DeliveryTag>,
    /// Heartbeats that cannot be decoded.
    pub(crate) bad_heartbeats: u64,
}

/// A message for another database, which is not in the batch.
pub(crate) struct Foreign {
    pub(crate) database: Uuid,
    pub(crate) body: Vec<u8>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.is_empty()
    }

    /// Deliveries that are not acked.
    pub(crate) fn tags(&self) -> usize {
        self.results.len() + self.dead.len() + self.heartbeats.len()
    }

    /// Adds a delivery. One for another database is not added and stays unsettled.
    pub(crate) fn take(&mut self, received: Received, database: Uuid) -> Result<(), Foreign> {
        let Received {
            queue,
            delivery,
            length,
        } = received;
        let tag = delivery.tag;
        if length > MAX_MESSAGE_BYTES {
            self.take_too_long(queue, tag, delivery.body, length);
            return Ok(());
        }
        let (incoming, tags) = match queue.kind {
            QueueKind::Results => (Some(read_result(delivery)), &mut self.results),
            QueueKind::Dead => (Some(read_dead(delivery)), &mut self.dead),
            QueueKind::Heartbeats | QueueKind::Work | QueueKind::Foreign => {
                (read_heartbeat(&delivery.body), &mut self.heartbeats)
            }
        };
        let incoming = match incoming {
            Some(DecodedDelivery::Result { message, raw, .. }) if message.database != database => {
                return Err(Foreign::new(message.database, raw));
            }
            Some(DecodedDelivery::Dead { message, raw, .. }) if message.database != database => {
                return Err(Foreign::new(message.database, raw));
            }
            Some(DecodedDelivery::Result {
                message,
                raw,
                redelivered,
            }) => {
                // The wall clock labels; it is right enough to refuse a clock that was never set.
                let times = impossible_times(&message, now_us().unsigned_abs());
                Some(match times {
                    Some(reason) => DecodedDelivery::Unreadable { raw, reason },
                    None => DecodedDelivery::Result {
                        message,
                        raw,
                        redelivered,
                    },
                })
            }
            ours => ours,
        };
        tags.push(tag);
        self.first_at.get_or_insert_with(Instant::now);
        if let Some(incoming) = incoming {
            if let DecodedDelivery::Result { message, .. } = &incoming {
                self.rows += message.outcomes.len();
            }
            self.incoming.push(incoming);
        } else {
            self.bad_heartbeats += 1;
        }
        Ok(())
    }

    /// Adds a delivery over the limit, of which `body` is the beginning. Nothing of it is read.
    fn take_too_long(&mut self, queue: QueueName, tag: DeliveryTag, body: Vec<u8>, length: usize) {
        if queue == QueueName::HEARTBEATS {
            self.heartbeats.push(tag);
            self.bad_heartbeats += 1;
            return;
        }
        let reason = format!("a message of {length} bytes, and {MAX_MESSAGE_BYTES} are the limit");
        self.quarantine(queue, tag, body, reason);
        if let Some(DecodedDelivery::Unreadable { raw, .. }) = self.incoming.last_mut() {
            raw.length = length;
        }
    }

    /// Adds a delivery that goes to the quarantine.
    pub(crate) fn quarantine(
        &mut self,
        queue: QueueName,
        tag: DeliveryTag,
        body: Vec<u8>,
        reason: String,
    ) {
        let tags = match queue.kind {
            QueueKind::Dead => &mut self.dead,
            _ => &mut self.results,
        };
        tags.push(tag);
        self.first_at.get_or_insert_with(Instant::now);
        let raw = raw(queue, body);
        self.incoming
            .push(DecodedDelivery::Unreadable { raw, reason });
    }
}

impl Foreign {
    fn new(database: Uuid, raw: RawMessage) -> Self {
        Self {
            database,
            body: raw.body,
        }
    }
}

fn read_result(delivery: Delivery) -> DecodedDelivery {
    let raw = raw(QueueName::RESULTS, delivery.body);
    match ResultChunk::decode(&raw.body) {
        Ok(message) => DecodedDelivery::Result {
            message: Box::new(message),
            raw,
            redelivered: delivery.redelivered,
        },
        Err(error) => unreadable(raw, &error),
    }
}

fn read_dead(delivery: Delivery) -> DecodedDelivery {
    let raw = raw(QueueName::DEAD, delivery.body);
    match WorkChunk::decode(&raw.body) {
        Ok(message) => DecodedDelivery::Dead {
            message: Box::new(message),
            raw,
            reason: delivery
                .dead_letter_reason
                .unwrap_or_else(|| "the broker gave no reason".to_owned()),
        },
        Err(error) => unreadable(raw, &error),
    }
}

/// A heartbeat that cannot be decoded is counted in [`Batch::bad_heartbeats`] only.
fn read_heartbeat(body: &[u8]) -> Option<DecodedDelivery> {
    match Heartbeat::decode(body) {
        Ok(heartbeat) => Some(DecodedDelivery::Heartbeat(heartbeat)),
        Err(error) => {
            tracing::debug!(%error, "heartbeat cannot be decoded");
            None
        }
    }
}

fn raw(queue: QueueName, body: Vec<u8>) -> RawMessage {
    RawMessage::new(queue.kind.name(), body)
}

fn unreadable(raw: RawMessage, error: &pingfleet_wire::DecodeError) -> DecodedDelivery {
    let reason = error.to_string();
    DecodedDelivery::Unreadable { raw, reason }
}
