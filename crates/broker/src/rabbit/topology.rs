//! The queues and exchanges on the broker: checked passively, declared where they are missing.
//!
//! Invariant: what exists is never changed, and a user without configure permission can use it.
//! Source: RabbitMQ's documentation of quorum queues, dead lettering and queue arguments.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use pingfleet_wire::timing::WORKER_TIMEOUT;
use tracing::info;

use super::{
    connection::RabbitConnection,
    endpoint::Endpoint,
    error::{Operation, is_access_refused, is_missing},
};
use crate::{
    BrokerError, MAX_FOREIGN_MESSAGES, QueueDepth, QueueKind, QueueName, WORK_DELIVERY_LIMIT,
};

/// Effectively unlimited, but set explicitly: RabbitMQ 4 defaults to 20 and then drops the message.
const NO_DELIVERY_LIMIT: i64 = 1_000_000;

/// An older heartbeat says nothing: its worker counts as lost.
const HEARTBEAT_TTL_MS: i64 = WORKER_TIMEOUT.as_millis() as i64;

/// Bounds the queue while no writer reads it.
const MAX_HEARTBEATS: i64 = 10_000;

/// Bounds the queue of foreign messages, in bytes: the results of ten million targets.
const MAX_FOREIGN_BYTES: i64 = 256 << 20;

/// Makes sure that these queues exist, with their exchanges.
pub(super) async fn ensure(
    connection: &RabbitConnection,
    queues: &[QueueName],
) -> Result<(), BrokerError> {
    let mut queues = queues.to_vec();
    queues.sort_unstable();
    if let Some(missing) = first_missing(connection, &queues).await? {
        info!(
            broker = connection.endpoint.place(),
            missing, "declaring broker topology"
        );
        let channel = connection.channel().await?;
        for queue in queues {
            let declaring = declare(&connection.endpoint, &channel, queue);
            change(connection, &missing, declaring).await?;
        }
        connection.close_channel(channel).await;
    }
    Ok(())
}

/// Declares these queues again and binds them: a passive check sees neither other arguments nor a missing binding. A user
/// without the configure permission only binds them.
pub(super) async fn declare_again(
    connection: &RabbitConnection,
    queues: &[QueueName],
) -> Result<(), BrokerError> {
    for queue in queues {
        // A refusal closes the channel.
        let channel = connection.channel().await?;
        let declaring = declare(&connection.endpoint, &channel, *queue);
        match change(connection, "", declaring).await {
            Err(BrokerError::NoTopology { .. }) => {
                let channel = connection.channel().await?;
                let binding = bind(&connection.endpoint, &channel, *queue);
                change(connection, "a binding of a queue", binding).await?;
                connection.close_channel(channel).await;
            }
            declared => declared?,
        }
        connection.close_channel(channel).await;
    }
    Ok(())
}

/// Waits for a change of the topology. `missing` is what the message names when the user has no permission for it.
async fn change(
    connection: &RabbitConnection,
    missing: &str,
    change: impl Future<Output = lapin::Result<()>>,
) -> Result<(), BrokerError> {
    match connection.within(Operation::Declare, change).await? {
        Ok(()) => Ok(()),
        Err(error) if is_access_refused(&error) => Err(BrokerError::NoTopology {
            address: connection.endpoint.place(),
            what: missing.to_owned(),
        }),
        Err(error) => Err(connection.endpoint.broker_error(Operation::Declare, error)),
    }
}

/// Declares and binds a queue. What exists with the same arguments stays as it is.
async fn declare(endpoint: &Endpoint, channel: &Channel, queue: QueueName) -> lapin::Result<()> {
    channel
        .exchange_declare(
            endpoint.exchange(queue),
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
            endpoint.queue(queue),
            QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            },
            arguments(endpoint, queue.kind),
        )
        .await?;
    bind(endpoint, channel, queue).await
}

/// Binds a queue to its exchange, by its name.
async fn bind(endpoint: &Endpoint, channel: &Channel, queue: QueueName) -> lapin::Result<()> {
    let name = endpoint.queue(queue);
    channel
        .queue_bind(
            name.clone(),
            endpoint.exchange(queue),
            name,
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

/// The first queue or exchange that does not exist. The 404 closes the channel, so the check ends there.
async fn first_missing(
    connection: &RabbitConnection,
    queues: &[QueueName],
) -> Result<Option<String>, BrokerError> {
    let channel = connection.channel().await?;
    let missing = first_missing_on(connection, &channel, queues).await?;
    connection.close_channel(channel).await;
    Ok(missing)
}

async fn first_missing_on(
    connection: &RabbitConnection,
    channel: &Channel,
    queues: &[QueueName],
) -> Result<Option<String>, BrokerError> {
    for queue in queues {
        let exchange = connection.endpoint.exchange(*queue);
        let passive = channel.exchange_declare(
            exchange.clone(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions {
                passive: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        );
        match connection.within(Operation::Declare, passive).await? {
            Ok(()) => {}
            Err(error) if is_missing(&error) => return Ok(Some(format!("exchange {exchange}"))),
            Err(error) => return Err(connection.endpoint.broker_error(Operation::Declare, error)),
        }
        if depth(connection, channel, *queue).await?.is_none() {
            let name = connection.endpoint.queue(*queue);
            return Ok(Some(format!("queue {name}")));
        }
    }
    Ok(None)
}

/// How full a queue is, if it exists.
pub(super) async fn depth(
    connection: &RabbitConnection,
    channel: &Channel,
    queue: QueueName,
) -> Result<Option<QueueDepth>, BrokerError> {
    let passive = channel.queue_declare(
        connection.endpoint.queue(queue),
        QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        },
        FieldTable::default(),
    );
    match connection.within(Operation::Declare, passive).await? {
        Ok(found) => Ok(Some(QueueDepth {
            ready: found.message_count(),
            consumers: found.consumer_count(),
        })),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(connection.endpoint.broker_error(Operation::Declare, error)),
    }
}

/// The arguments of a queue. RabbitMQ refuses a later declaration with other arguments, so they cannot change. What an
/// administrator may want to change, such as a length, belongs in a policy.
fn arguments(endpoint: &Endpoint, kind: QueueKind) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut set = |key: &str, value: AMQPValue| {
        arguments.insert(key.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    match kind {
        QueueKind::Work => {
            let dead_exchange = endpoint.exchange(QueueName::DEAD);
            let dead = endpoint.queue(QueueName::DEAD);
            set("x-queue-type", text("quorum"));
            set(
                "x-delivery-limit",
                AMQPValue::LongLongInt(WORK_DELIVERY_LIMIT.into()),
            );
            set("x-dead-letter-exchange", text(dead_exchange.as_str()));
            set("x-dead-letter-routing-key", text(dead.as_str()));
            set("x-dead-letter-strategy", text("at-least-once"));
            // Without it RabbitMQ falls back to dead lettering at most once, and reports that only in its log.
            set("x-overflow", text("reject-publish"));
        }
        QueueKind::Results | QueueKind::Dead => {
            set("x-queue-type", text("quorum"));
            set(
                "x-delivery-limit",
                AMQPValue::LongLongInt(NO_DELIVERY_LIMIT),
            );
            if kind == QueueKind::Results {
                set("x-single-active-consumer", AMQPValue::Boolean(true));
            }
        }
        QueueKind::Heartbeats => {
            // A classic queue is unavailable while its node is down.
            set("x-queue-type", text("quorum"));
            set("x-message-ttl", AMQPValue::LongLongInt(HEARTBEAT_TTL_MS));
            set("x-max-length", AMQPValue::LongLongInt(MAX_HEARTBEATS));
            set("x-overflow", text("drop-head"));
        }
        QueueKind::Foreign => {
            set("x-queue-type", text("quorum"));
            set(
                "x-delivery-limit",
                AMQPValue::LongLongInt(NO_DELIVERY_LIMIT),
            );
            set(
                "x-max-length",
                AMQPValue::LongLongInt(MAX_FOREIGN_MESSAGES.into()),
            );
            set(
                "x-max-length-bytes",
                AMQPValue::LongLongInt(MAX_FOREIGN_BYTES),
            );
            // What is in it was taken from somebody: a newer message must not replace it.
            set("x-overflow", text("reject-publish"));
        }
    }
    arguments
}
