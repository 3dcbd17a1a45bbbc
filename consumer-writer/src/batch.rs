//! A batch in the making: what was taken from the queues and is not yet committed. No I/O.
//!
//! Invariant: a tag is in the batch exactly as long as its delivery is neither committed nor given back.

use pingfleet_broker::{Delivery, DeliveryTag, Queue};
use pingfleet_store::{Incoming, Letter};
use pingfleet_wire::{Heartbeat, Message as _, ResultChunk, WorkChunk};
use uuid::Uuid;

/// Deliveries of one batch, with the tags to ack after its commit.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) incoming: Vec<Incoming>,
    pub(crate) rows: usize,
    pub(crate) results: Vec<DeliveryTag>,
    pub(crate) dead: Vec<DeliveryTag>,
    pub(crate) heartbeats: Vec<DeliveryTag>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.is_empty()
    }

    /// Takes a delivery in, unless it is for another database: then it returns that one's UUID, and the delivery
    /// stays unsettled.
    pub(crate) fn take(
        &mut self,
        queue: Queue,
        delivery: Delivery,
        database: Uuid,
    ) -> Result<(), Uuid> {
        let tag = delivery.tag;
        let (incoming, tags) = match queue {
            Queue::Results => (Some(read_result(delivery)), &mut self.results),
            Queue::Dead => (Some(read_dead(delivery)), &mut self.dead),
            Queue::Heartbeats | Queue::Work => {
                (read_heartbeat(&delivery.body), &mut self.heartbeats)
            }
        };
        let addressed = match &incoming {
            Some(Incoming::Result { message, .. }) => message.database,
            Some(Incoming::Dead { message, .. }) => message.database,
            _ => database,
        };
        if addressed != database {
            return Err(addressed);
        }
        tags.push(tag);
        if let Some(incoming) = incoming {
            if let Incoming::Result { message, .. } = &incoming {
                self.rows += message.outcomes.len();
            }
            self.incoming.push(incoming);
        }
        Ok(())
    }
}

fn read_result(delivery: Delivery) -> Incoming {
    let letter = letter(Queue::Results, delivery.body);
    match ResultChunk::decode(&letter.body) {
        Ok(message) => Incoming::Result {
            message: Box::new(message),
            letter,
            redelivered: delivery.redelivered,
        },
        Err(error) => unreadable(letter, &error),
    }
}

fn read_dead(delivery: Delivery) -> Incoming {
    let letter = letter(Queue::Dead, delivery.body);
    match WorkChunk::decode(&letter.body) {
        Ok(message) => Incoming::Dead {
            message: Box::new(message),
            letter,
            reason: delivery
                .dead_letter_reason
                .unwrap_or_else(|| "the broker gave no reason".to_owned()),
        },
        Err(error) => unreadable(letter, &error),
    }
}

/// Heartbeats are outside the counters: one that cannot be read is only logged.
fn read_heartbeat(body: &[u8]) -> Option<Incoming> {
    match Heartbeat::decode(body) {
        Ok(heartbeat) => Some(Incoming::Heartbeat(heartbeat)),
        Err(error) => {
            tracing::warn!(%error, "heartbeat cannot be read");
            None
        }
    }
}

fn letter(queue: Queue, body: Vec<u8>) -> Letter {
    Letter {
        queue: queue.suffix(),
        body,
    }
}

fn unreadable(letter: Letter, error: &pingfleet_wire::DecodeError) -> Incoming {
    let reason = error.to_string();
    tracing::warn!(queue = letter.queue, reason, "message goes to quarantine");
    Incoming::Unreadable { letter, reason }
}
