//! Publishes to RabbitMQ with confirms (`confirm.select`). Every publish gets one answer, or the session is lost.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use super::{
    connection::{RabbitConnection, while_blocked},
    error::Operation,
    login::properties,
};
use crate::{BrokerError, Confirm, Confirmed, Origin, Publisher, QueueName, REPLY_TIMEOUT};

/// How long a confirm may take. While a quorum queue elects a leader it takes longer than other replies.
const CONFIRM_TIMEOUT: Duration = REPLY_TIMEOUT.saturating_mul(3);

/// `delivery-mode` of a message that the broker writes to disk.
const PERSISTENT: u8 = 2;

/// A session for publishing.
///
/// While the broker blocks the connection because of an alarm (`connection.blocked`), publishes and confirms wait. lapin
/// then sends nothing, not even AMQP heartbeats. RabbitMQ does not expect heartbeats on a blocked connection, and a dead
/// broker is still noticed because its own heartbeats stop.
pub(super) struct RabbitPublisher {
    connection: RabbitConnection,
    /// The login of the connection.
    login: String,
    /// One channel per queue. lapin assigns a returned message to any publish that the same `basic.ack` confirms, so one
    /// missing binding makes all of those seem unroutable.
    channels: HashMap<QueueName, Channel>,
    /// Set when a message is returned: exchange and queue may exist without a binding.
    unbound: Arc<AtomicBool>,
}

impl RabbitPublisher {
    pub(super) fn new(connection: RabbitConnection, unbound: Arc<AtomicBool>) -> Self {
        Self {
            login: connection.endpoint.login(),
            connection,
            channels: HashMap::new(),
            unbound,
        }
    }

    async fn channel(&mut self, queue: QueueName) -> Result<Channel, BrokerError> {
        if let Some(channel) = self.channels.get(&queue) {
            return Ok(channel.clone());
        }
        let channel = self.connection.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        self.connection.reply(Operation::Transfer, select).await?;
        self.channels.insert(queue, channel.clone());
        Ok(channel)
    }
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError> {
        let channel = self.channel(queue).await?;
        let endpoint = Arc::clone(&self.connection.endpoint);
        let status = self.connection.status().clone();
        let publish = channel.basic_publish(
            endpoint.exchange(queue),
            endpoint.queue(queue),
            BasicPublishOptions {
                mandatory: true,
                immediate: false,
            },
            body,
            properties(&self.login, queue, origin).with_delivery_mode(PERSISTENT),
        );
        let confirm = while_blocked(&status, REPLY_TIMEOUT, publish)
            .await
            .ok_or_else(|| endpoint.timed_out(Operation::Transfer))?
            .map_err(|error| endpoint.broker_error(Operation::Transfer, error))?;
        let unbound = Arc::clone(&self.unbound);
        let confirmed = async move {
            let confirmation = while_blocked(&status, CONFIRM_TIMEOUT, confirm)
                .await
                .ok_or_else(|| endpoint.timed_out(Operation::Transfer))?
                .map_err(|error| endpoint.broker_error(Operation::Transfer, error))?;
            match confirmation {
                Confirmation::Ack(None) => Ok(Confirmed::Stored),
                Confirmation::Ack(Some(_)) => {
                    unbound.store(true, Ordering::Relaxed);
                    Ok(Confirmed::Unroutable)
                }
                Confirmation::Nack(_) => Ok(Confirmed::Refused),
                Confirmation::NotRequested => Err(BrokerError::Lost(
                    io::Error::other("the channel is not in confirm mode").into(),
                )),
            }
        };
        Ok(confirmed.boxed())
    }

    async fn close(self: Box<Self>) {
        self.connection.close().await;
    }
}
