//! Publishing to RabbitMQ with confirms (`confirm.select`): every publish gets one answer, or the session is lost.

use std::{
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
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use super::{
    fault::Moment,
    link::{Link, patiently},
};
use crate::{BrokerError, Confirm, Confirmed, Publisher, Queue, REPLY_TIMEOUT};

/// How long a confirm may take. A quorum queue that elects a leader takes longer than any other reply.
const CONFIRM_TIMEOUT: Duration = REPLY_TIMEOUT.saturating_mul(3);

/// `delivery-mode` of a message that the broker writes to disk.
const PERSISTENT: u8 = 2;

/// A session for publishing.
///
/// While the broker blocks the connection for an alarm, publishes and confirms wait as long as that lasts. The broker
/// tells so by `connection.blocked`, and the client library then sends nothing, heartbeats included; RabbitMQ does not
/// miss those of a connection that it blocks, and a dead broker is still noticed by the lack of its own.
pub(super) struct RabbitPublisher {
    link: Link,
    /// A channel for each queue: the client library assigns a returned message to any publish that the same
    /// `basic.ack` confirms, so on a channel all must share their fate.
    channels: [Option<Channel>; Queue::ALL.len()],
    /// Set when a message is returned: exchange and queue may be there without being bound.
    unbound: Arc<AtomicBool>,
}

impl RabbitPublisher {
    pub(super) fn new(link: Link, unbound: Arc<AtomicBool>) -> Self {
        Self {
            link,
            channels: Default::default(),
            unbound,
        }
    }

    async fn channel(&mut self, queue: Queue) -> Result<Channel, BrokerError> {
        if let Some(channel) = &self.channels[queue as usize] {
            return Ok(channel.clone());
        }
        let channel = self.link.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        self.link.reply(Moment::Working, select).await?;
        self.channels[queue as usize] = Some(channel.clone());
        Ok(channel)
    }
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&mut self, queue: Queue, body: &[u8]) -> Result<Confirm, BrokerError> {
        let channel = self.channel(queue).await?;
        let endpoint = Arc::clone(&self.link.endpoint);
        let status = self.link.status().clone();
        let publish = channel.basic_publish(
            endpoint.name(queue),
            endpoint.name(queue),
            BasicPublishOptions {
                mandatory: true,
                immediate: false,
            },
            body,
            BasicProperties::default().with_delivery_mode(PERSISTENT),
        );
        let confirm = patiently(&status, REPLY_TIMEOUT, publish)
            .await
            .ok_or_else(|| endpoint.silence(Moment::Working))?
            .map_err(|error| endpoint.fault(Moment::Working, error))?;
        let unbound = Arc::clone(&self.unbound);
        let confirmed = async move {
            let confirmation = patiently(&status, CONFIRM_TIMEOUT, confirm)
                .await
                .ok_or_else(|| endpoint.silence(Moment::Working))?
                .map_err(|error| endpoint.fault(Moment::Working, error))?;
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
        self.link.close().await;
    }
}
