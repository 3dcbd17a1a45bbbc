//! Consuming one RabbitMQ queue with manual acks.
//!
//! Invariant: `unsettled` has every delivery that was handed out until it is settled, and a delivery tag is sent to the
//! broker at most once.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::{StreamExt, future::select_all};
use lapin::{
    Channel,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::FieldTable,
};

use super::{
    connection::RabbitConnection,
    dead_letter::dead_letter_reason,
    error::Operation,
    login::{login, original_login},
};
use crate::{BrokerError, Consumer, Delivery, DeliveryTag, QueueName};

/// A session that consumes one queue, on one channel.
///
/// A higher prefetch is one more consumer on the same channel, with the difference as its prefetch (`basic.qos` applies
/// to consumers that start after it). No consumer is cancelled for it: deliveries on their way to a cancelled consumer
/// return to the queue, and each return counts towards the delivery limit. A second channel would cost returns as well:
/// when a connection dies, the queue handles its channels one after the other and may give the deliveries of the first
/// one to the next.
pub(super) struct RabbitConsumer {
    connection: RabbitConnection,
    queue: QueueName,
    channel: Channel,
    /// The consumers, the oldest first, each with its buffered deliveries.
    streams: Vec<lapin::Consumer>,
    /// The prefetch of all of them together.
    prefetch: u16,
    /// Whether there was never more than one consumer on this channel.
    has_one_stream: bool,
    /// Handed out and not settled.
    unsettled: BTreeSet<DeliveryTag>,
    stopped: bool,
}

impl RabbitConsumer {
    pub(super) async fn open(
        connection: RabbitConnection,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let mut consumer = Self {
            channel: connection.channel().await?,
            connection,
            queue,
            streams: Vec::new(),
            prefetch: 0,
            has_one_stream: true,
            unsettled: BTreeSet::new(),
            stopped: false,
        };
        // For the broker 0 means no limit, and nothing else bounds the buffer.
        consumer.raise_prefetch(prefetch.max(1)).await?;
        Ok(consumer)
    }

    /// A delivery that is handed out.
    fn delivery(&mut self, message: lapin::message::Delivery) -> Delivery {
        let tag = DeliveryTag(message.delivery_tag);
        self.unsettled.insert(tag);
        Delivery {
            tag,
            redelivered: message.redelivered,
            dead_letter_reason: dead_letter_reason(&message.properties),
            login: login(&message.properties),
            original_login: original_login(&message.properties),
            body: message.data,
        }
    }

    /// Removes deliveries from `unsettled`. The broker closes the channel when an unknown tag is settled.
    fn settle(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        if let Some(tag) = tags.iter().find(|tag| !self.unsettled.contains(tag)) {
            return Err(BrokerError::not_unsettled(*tag));
        }
        for tag in tags {
            self.unsettled.remove(tag);
        }
        Ok(())
    }

    /// Whether everything that the broker delivered up to this one is settled. A further consumer of the channel may have
    /// buffered deliveries with lower tags; with a single one, they are handed out in the order of their tags.
    fn is_all_up_to(&self, tag: DeliveryTag) -> bool {
        self.has_one_stream && self.unsettled.first().is_none_or(|oldest| *oldest > tag)
    }

    async fn send_ack(&self, tag: DeliveryTag, multiple: bool) -> Result<(), BrokerError> {
        let ack = self.channel.basic_ack(tag.0, BasicAckOptions { multiple });
        self.connection.reply(Operation::Transfer, ack).await
    }

    async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let requeue = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        let nack = self.channel.basic_nack(tag, requeue);
        self.connection.reply(Operation::Transfer, nack).await
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        if self.stopped {
            return std::future::pending().await;
        }
        let (next, ..) = select_all(self.streams.iter_mut().map(StreamExt::next)).await;
        let message = next
            .ok_or_else(|| BrokerError::Lost("the broker cancelled the consumer".into()))?
            .map_err(|error| {
                self.connection
                    .endpoint
                    .broker_error(Operation::Transfer, error)
            })?;
        Ok(self.delivery(message))
    }

    async fn ack(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        self.settle(tags)?;
        let Some(last) = tags.iter().max() else {
            return Ok(());
        };
        // After the last consumer was cancelled nothing more comes. One acknowledgement is more than shorter: a quorum queue
        // holds back those of a channel that sends many, and forgets them when the channel is closed.
        let is_all = self.stopped && self.unsettled.is_empty();
        if is_all || self.is_all_up_to(*last) {
            return self.send_ack(*last, true).await;
        }
        for tag in tags {
            self.send_ack(*tag, false).await?;
        }
        Ok(())
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.settle(&[tag])?;
        self.nack(tag.0).await
    }

    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        let more = prefetch.saturating_sub(self.prefetch);
        if self.stopped || more == 0 {
            return Ok(());
        }
        let qos = self
            .channel
            .basic_qos(more, BasicQosOptions { global: false });
        self.connection.reply(Operation::Transfer, qos).await?;
        let consume = self.channel.basic_consume(
            self.connection.endpoint.queue(self.queue),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        self.has_one_stream = self.streams.is_empty();
        self.streams
            .push(self.connection.reply(Operation::Transfer, consume).await?);
        self.prefetch = prefetch;
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        for delivery in self.cancel().await? {
            self.requeue(delivery.tag).await?;
        }
        Ok(())
    }

    async fn cancel(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let mut buffered = Vec::new();
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(buffered);
        }
        let mut streams = std::mem::take(&mut self.streams);
        for stream in &streams {
            let cancel = self
                .channel
                .basic_cancel(stream.tag(), BasicCancelOptions::default());
            self.connection.reply(Operation::Transfer, cancel).await?;
        }
        for stream in &mut streams {
            while let Some(message) = self
                .connection
                .within(Operation::Transfer, stream.next())
                .await?
            {
                let message = message.map_err(|error| {
                    self.connection
                        .endpoint
                        .broker_error(Operation::Transfer, error)
                })?;
                buffered.push(self.delivery(message));
            }
        }
        Ok(buffered)
    }

    async fn close(self: Box<Self>) {
        self.connection.close().await;
    }
}
