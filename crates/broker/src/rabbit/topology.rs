//! The queues and exchanges on the broker: looked for passively, declared where they are missing.
//!
//! Invariant: what exists is never changed, and a user without the permission to configure can work with it.
//! Source: RabbitMQ's documentation of quorum queues, dead lettering and queue arguments.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tracing::info;

use super::{
    endpoint::Endpoint,
    fault::{Moment, is_access_refused, is_missing},
    link::Link,
};
use crate::{BrokerError, Depth, Queue};

/// How often a chunk may come back before it counts as one that kills its workers.
const WORK_DELIVERY_LIMIT: i64 = 20;

/// Out of reach, and said all the same: without a limit RabbitMQ 4 drops messages after 20 returns.
const NO_DELIVERY_LIMIT: i64 = 1_000_000;

/// After this long without one a worker counts as lost, and what it said before is of no use.
const HEARTBEAT_TTL_MS: i64 = 30_000;

/// Bounds what a fleet leaves behind while no writer reads.
const MAX_HEARTBEATS: i64 = 10_000;

/// Dead letters first: `work` points to their exchange.
const ORDER: [Queue; 4] = [Queue::Dead, Queue::Work, Queue::Results, Queue::Heartbeats];

/// Makes sure that all of it stands; `bind` when a binding may be missing, which nothing passive can see.
pub(super) async fn ensure(link: &Link, bind: bool) -> Result<(), BrokerError> {
    let missing = match first_missing(link).await? {
        Some(missing) => missing,
        None if bind => "a binding of a queue".to_owned(),
        None => return Ok(()),
    };
    info!(
        address = link.endpoint.address,
        missing, "declaring broker topology"
    );
    declare(link, &missing).await
}

/// Declares and binds everything. What stands already is left as it is, if it is the same.
async fn declare(link: &Link, missing: &str) -> Result<(), BrokerError> {
    let channel = link.channel().await?;
    for queue in ORDER {
        let declared = link.within(
            Moment::Declaring,
            declare_one(&link.endpoint, &channel, queue),
        );
        match declared.await? {
            Ok(()) => {}
            Err(error) if is_access_refused(&error) => {
                return Err(BrokerError::NoTopology {
                    address: link.endpoint.address.clone(),
                    what: missing.to_owned(),
                });
            }
            Err(error) => return Err(link.endpoint.fault(Moment::Declaring, error)),
        }
    }
    Ok(())
}

async fn declare_one(endpoint: &Endpoint, channel: &Channel, queue: Queue) -> lapin::Result<()> {
    let name = endpoint.name(queue);
    channel
        .exchange_declare(
            name.clone(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await?;
    channel
        .queue_declare(
            name.clone(),
            QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            },
            arguments(endpoint, queue),
        )
        .await?;
    channel
        .queue_bind(
            name.clone(),
            name.clone(),
            name,
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

/// The first thing that does not exist. Its 404 closes the channel, so nothing is asked on it afterwards.
async fn first_missing(link: &Link) -> Result<Option<String>, BrokerError> {
    let channel = link.channel().await?;
    for queue in ORDER {
        let name = link.endpoint.name(queue);
        let look = channel.exchange_declare(
            name.clone(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions {
                passive: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        );
        match link.within(Moment::Declaring, look).await? {
            Ok(()) => {}
            Err(error) if is_missing(&error) => return Ok(Some(format!("exchange {name}"))),
            Err(error) => return Err(link.endpoint.fault(Moment::Declaring, error)),
        }
        if depth(link, &channel, queue).await?.is_none() {
            return Ok(Some(format!("queue {name}")));
        }
    }
    Ok(None)
}

/// How full a queue is, if it exists.
pub(super) async fn depth(
    link: &Link,
    channel: &Channel,
    queue: Queue,
) -> Result<Option<Depth>, BrokerError> {
    let look = channel.queue_declare(
        link.endpoint.name(queue),
        QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        },
        FieldTable::default(),
    );
    match link.within(Moment::Declaring, look).await? {
        Ok(found) => Ok(Some(Depth {
            ready: found.message_count(),
            consumers: found.consumer_count(),
        })),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(link.endpoint.fault(Moment::Declaring, error)),
    }
}

/// The arguments of a queue. RabbitMQ refuses a later declaration with any other, so they are part of the contract:
/// what an administrator may want to change, such as a length, belongs in a policy.
fn arguments(endpoint: &Endpoint, queue: Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut set = |key: &str, value: AMQPValue| {
        arguments.insert(key.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    match queue {
        Queue::Work => {
            let dead = endpoint.name(Queue::Dead);
            set("x-queue-type", text("quorum"));
            set(
                "x-delivery-limit",
                AMQPValue::LongLongInt(WORK_DELIVERY_LIMIT),
            );
            set("x-dead-letter-exchange", text(dead.as_str()));
            set("x-dead-letter-routing-key", text(dead.as_str()));
            set("x-dead-letter-strategy", text("at-least-once"));
            // Without it RabbitMQ falls back to dead lettering at most once, and says so only in its log.
            set("x-overflow", text("reject-publish"));
        }
        Queue::Results | Queue::Dead => {
            set("x-queue-type", text("quorum"));
            set(
                "x-delivery-limit",
                AMQPValue::LongLongInt(NO_DELIVERY_LIMIT),
            );
            if queue == Queue::Results {
                set("x-single-active-consumer", AMQPValue::Boolean(true));
            }
        }
        Queue::Heartbeats => {
            // A classic queue is gone while its node is, and every role with it: all look at the whole topology.
            set("x-queue-type", text("quorum"));
            set("x-message-ttl", AMQPValue::LongLongInt(HEARTBEAT_TTL_MS));
            set("x-max-length", AMQPValue::LongLongInt(MAX_HEARTBEATS));
            set("x-overflow", text("drop-head"));
        }
    }
    arguments
}
