//! A batch: deliveries that are taken from the queues and not yet committed. No I/O.
//!
//! Invariant: a tag is in the batch exactly as long as its delivery is neither committed nor returned.

use pingfleet_broker::{Delivery, DeliveryTag, QueueKind, QueueName};
use pingfleet_store::{DecodedDelivery, RawMessage};
use pingfleet_wire::{Heartbeat, Message as _, ResultChunk, WorkChunk};
use tokio::time::Instant;
use uuid::Uuid;

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
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.is_empty()
    }

    /// Deliveries that are not acked.
    pub(crate) fn tags(&self) -> usize {
        self.results.len() + self.dead.len() + self.heartbeats.len()
    }

    /// Adds a delivery. One for another database is not added and stays unsettled: then this returns the UUID of that
    /// database.
    pub(crate) fn take(
        &mut self,
        queue: QueueName,
        delivery: Delivery,
        database: Uuid,
    ) -> Result<(), Uuid> {
        let tag = delivery.tag;
        let (incoming, tags) = match queue.kind {
            QueueKind::Results => (Some(read_result(delivery)), &mut self.results),
            QueueKind::Dead => (Some(read_dead(delivery)), &mut self.dead),
            QueueKind::Heartbeats | QueueKind::Work => {
                (read_heartbeat(&delivery.body), &mut self.heartbeats)
            }
        };
        let addressed = match &incoming {
            Some(DecodedDelivery::Result { message, .. }) => message.database,
            Some(DecodedDelivery::Dead { message, .. }) => message.database,
            _ => database,
        };
        if addressed != database {
            return Err(addressed);
        }
        tags.push(tag);
        self.first_at.get_or_insert_with(Instant::now);
        if let Some(incoming) = incoming {
            if let DecodedDelivery::Result { message, .. } = &incoming {
                self.rows += message.outcomes.len();
            }
            self.incoming.push(incoming);
        }
        Ok(())
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

/// Heartbeats are not counted, so one that cannot be decoded is only logged.
fn read_heartbeat(body: &[u8]) -> Option<DecodedDelivery> {
    match Heartbeat::decode(body) {
        Ok(heartbeat) => Some(DecodedDelivery::Heartbeat(heartbeat)),
        Err(error) => {
            tracing::warn!(%error, "heartbeat cannot be decoded");
            None
        }
    }
}

fn raw(queue: QueueName, body: Vec<u8>) -> RawMessage {
    RawMessage {
        queue: queue.kind.name(),
        body,
    }
}

fn unreadable(raw: RawMessage, error: &pingfleet_wire::DecodeError) -> DecodedDelivery {
    let reason = error.to_string();
    tracing::warn!(queue = raw.queue, reason, "message goes to quarantine");
    DecodedDelivery::Unreadable { raw, reason }
}
