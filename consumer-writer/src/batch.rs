//! A batch: deliveries that are taken from the queues and not yet committed. No I/O.
//!
//! Invariant: a tag is in the batch exactly as long as its delivery is neither committed nor returned.

use pingfleet_broker::{Delivery, DeliveryTag, QueueKind, QueueName};
use pingfleet_store::{DecodedDelivery, RawMessage, Refusal, Transport, now_us};
use pingfleet_wire::{
    DecodeError, Heartbeat, MAX_MESSAGE_BYTES, Message as _, ResultChunk, WIRE_VERSION, WorkChunk,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    WriterSettings,
    received::Received,
    sender::{NO_LOGIN, UPGRADE, sender},
    times::impossible_times,
};

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
    /// Heartbeats without a login.
    pub(crate) heartbeats_without_login: u64,
}

/// A message for another database, which is not in the batch.
pub(crate) struct Foreign {
    pub(crate) database: Uuid,
    pub(crate) body: Vec<u8>,
    /// The login of its worker. None for a dead letter.
    pub(crate) login: Option<String>,
    /// Why it is a dead letter, if it is one.
    pub(crate) dead_letter_reason: Option<String>,
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
    pub(crate) fn take(
        &mut self,
        received: Received,
        database: Uuid,
        settings: &WriterSettings,
    ) -> Result<(), Foreign> {
        let Received {
            queue,
            delivery,
            length,
        } = received;
        let tag = delivery.tag;
        let login = sender(&delivery, settings.login.as_deref());
        if length > MAX_MESSAGE_BYTES {
            self.take_too_long(queue, tag, delivery.body, length, login);
            return Ok(());
        }
        if login.is_none() && settings.login.is_some() && queue != QueueName::DEAD {
            self.take_without_login(queue, tag, delivery.body);
            return Ok(());
        }
        let (incoming, tags) = match queue.kind {
            QueueKind::Results => (Some(read_result(delivery, login)), &mut self.results),
            QueueKind::Dead => (Some(read_dead(delivery)), &mut self.dead),
            QueueKind::Heartbeats | QueueKind::Work | QueueKind::Foreign => {
                (read_heartbeat(&delivery.body, login), &mut self.heartbeats)
            }
        };
        let incoming = match incoming {
            Some(DecodedDelivery::Result { message, raw, .. }) if message.database != database => {
                return Err(Foreign {
                    database: message.database,
                    body: raw.body,
                    login: raw.login,
                    dead_letter_reason: None,
                });
            }
            Some(DecodedDelivery::Dead {
                message,
                raw,
                reason,
            }) if message.database != database => {
                return Err(Foreign {
                    database: message.database,
                    body: raw.body,
                    login: None,
                    dead_letter_reason: Some(reason),
                });
            }
            Some(result @ DecodedDelivery::Result { .. })
                if settings.transport == Transport::Broker =>
            {
                Some(with_possible_times(result))
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
    fn take_too_long(
        &mut self,
        queue: QueueName,
        tag: DeliveryTag,
        body: Vec<u8>,
        length: usize,
        login: Option<String>,
    ) {
        if queue == QueueName::HEARTBEATS {
            self.heartbeats.push(tag);
            self.bad_heartbeats += 1;
            return;
        }
        let refusal = undecodable(&DecodeError::TooLong { length });
        self.quarantine(queue, tag, body, login, refusal);
        if let Some(DecodedDelivery::Refused { raw, .. }) = self.incoming.last_mut() {
            raw.length = length;
        }
    }

    /// Adds a delivery of which nobody knows whose it is. Nothing of it is read.
    fn take_without_login(&mut self, queue: QueueName, tag: DeliveryTag, body: Vec<u8>) {
        if queue == QueueName::HEARTBEATS {
            self.heartbeats.push(tag);
            self.first_at.get_or_insert_with(Instant::now);
            self.heartbeats_without_login += 1;
            return;
        }
        self.quarantine(queue, tag, body, None, Refusal::new(NO_LOGIN, UPGRADE));
    }

    /// Adds a delivery that goes to the quarantine.
    pub(crate) fn quarantine(
        &mut self,
        queue: QueueName,
        tag: DeliveryTag,
        body: Vec<u8>,
        login: Option<String>,
        refusal: Refusal,
    ) {
        let tags = match queue.kind {
            QueueKind::Dead => &mut self.dead,
            _ => &mut self.results,
        };
        tags.push(tag);
        self.first_at.get_or_insert_with(Instant::now);
        let raw = raw(queue, body, login);
        self.incoming
            .push(DecodedDelivery::Refused { raw, refusal });
    }
}

/// A result of another machine, if it has times that it can have. The wall clock labels; it is right enough to find one that
/// was never set.
fn with_possible_times(result: DecodedDelivery) -> DecodedDelivery {
    match result {
        DecodedDelivery::Result {
            message,
            raw,
            redelivered,
        } => match impossible_times(&message, now_us().unsigned_abs()) {
            Some(refusal) => DecodedDelivery::Refused { raw, refusal },
            None => DecodedDelivery::Result {
                message,
                raw,
                redelivered,
            },
        },
        other => other,
    }
}

fn read_result(delivery: Delivery, login: Option<String>) -> DecodedDelivery {
    let raw = raw(QueueName::RESULTS, delivery.body, login);
    match ResultChunk::decode(&raw.body) {
        Ok(message) => DecodedDelivery::Result {
            message: Box::new(message),
            raw,
            redelivered: delivery.redelivered,
        },
        Err(error) => DecodedDelivery::Refused {
            refusal: undecodable(&error),
            raw,
        },
    }
}

fn read_dead(delivery: Delivery) -> DecodedDelivery {
    let raw = raw(QueueName::DEAD, delivery.body, None);
    match WorkChunk::decode(&raw.body) {
        Ok(message) => DecodedDelivery::Dead {
            message: Box::new(message),
            raw,
            reason: delivery
                .dead_letter_reason
                .unwrap_or_else(|| "the broker gave no reason".to_owned()),
        },
        Err(error) => DecodedDelivery::Refused {
            refusal: undecodable(&error),
            raw,
        },
    }
}

/// A heartbeat that cannot be decoded is counted in [`Batch::bad_heartbeats`] only.
fn read_heartbeat(body: &[u8], login: Option<String>) -> Option<DecodedDelivery> {
    match Heartbeat::decode(body) {
        Ok(heartbeat) => Some(DecodedDelivery::Heartbeat { heartbeat, login }),
        Err(error) => {
            tracing::debug!(%error, "heartbeat cannot be decoded");
            None
        }
    }
}

fn raw(queue: QueueName, body: Vec<u8>, login: Option<String>) -> RawMessage {
    RawMessage {
        login,
        ..RawMessage::new(queue.kind.name(), body)
    }
}

/// Why bytes are not a message.
fn undecodable(error: &DecodeError) -> Refusal {
    match error {
        DecodeError::TooLong { length } => {
            Refusal::new("over the limit of a message", format!("{length} bytes"))
        }
        DecodeError::NotAMessage => Refusal::new(
            "not a pingfleet message",
            "it does not begin with an array and a version",
        ),
        DecodeError::Version { found } => Refusal::new(
            "another wire version",
            format!("version {found}, and this build reads {WIRE_VERSION}"),
        ),
        DecodeError::Malformed(problem) => Refusal::new("malformed message", problem.as_str()),
        DecodeError::TrailingBytes { extra } => {
            Refusal::new("bytes after the end of a message", extra.to_string())
        }
    }
}
