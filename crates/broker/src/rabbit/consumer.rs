//! Consuming one RabbitMQ queue with manual acks.
//!
//! Invariant: a delivery that was handed out stays in the books until it is settled, and a delivery tag is sent to the
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

use super::{death::death, fault::Moment, link::Link};
use crate::{BrokerError, Consumer, Delivery, DeliveryTag, Queue};

/// A session that consumes one queue, on one channel.
///
/// Wider means one more consumer there, with the rest of the prefetch (`basic.qos` holds for the consumers that come
/// after it). None is cancelled for it, since what is on its way to a consumer that is cancelled comes back, and counts
/// as a return. A second channel would cost returns as well: when the connection dies, the queue hears of its channels
/// one after the other, and may give what the first had to the next.
pub(super) struct RabbitConsumer {
    link: Link,
    queue: Queue,
    channel: Channel,
    /// The consumers, the oldest first, each with its buffered deliveries and after `basic.cancel-ok` their end.
    streams: Vec<lapin::Consumer>,
    /// What all of them together may hold.
    prefetch: u16,
    /// Handed out and not settled.
    unsettled: BTreeSet<DeliveryTag>,
    stopped: bool,
}

impl RabbitConsumer {
    pub(super) async fn open(link: Link, queue: Queue, prefetch: u16) -> Result<Self, BrokerError> {
        let mut consumer = Self {
            channel: link.channel().await?,
            link,
            queue,
            streams: Vec::new(),
            prefetch: 0,
            unsettled: BTreeSet::new(),
            stopped: false,
        };
        // To the broker 0 means no limit, and the limit is all that bounds the buffer.
        consumer.widen(prefetch.max(1)).await?;
        Ok(consumer)
    }

    /// Takes a delivery out of the books. To settle one that is not in them costs the whole channel.
    fn settle(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        if self.unsettled.remove(&tag) {
            return Ok(());
        }
        Err(BrokerError::Lost(
            format!("delivery {} is not unsettled", tag.0).into(),
        ))
    }

    async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let requeue = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        let nack = self.channel.basic_nack(tag, requeue);
        self.link.reply(Moment::Working, nack).await
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
            .map_err(|error| self.link.endpoint.fault(Moment::Working, error))?;
        let tag = DeliveryTag(message.delivery_tag);
        self.unsettled.insert(tag);
        Ok(Delivery {
            tag,
            redelivered: message.redelivered,
            death: death(&message.properties),
            body: message.data,
        })
    }

    async fn ack(&mut self, tag: DeliveryTag, multiple: bool) -> Result<(), BrokerError> {
        self.settle(tag)?;
        if multiple {
            self.unsettled = self.unsettled.split_off(&tag);
        }
        let ack = self.channel.basic_ack(tag.0, BasicAckOptions { multiple });
        self.link.reply(Moment::Working, ack).await
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.settle(tag)?;
        self.nack(tag.0).await
    }

    async fn widen(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        let more = prefetch.saturating_sub(self.prefetch);
        if self.stopped || more == 0 {
            return Ok(());
        }
        let qos = self
            .channel
            .basic_qos(more, BasicQosOptions { global: false });
        self.link.reply(Moment::Working, qos).await?;
        let consume = self.channel.basic_consume(
            self.link.endpoint.name(self.queue),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        self.streams
            .push(self.link.reply(Moment::Working, consume).await?);
        self.prefetch = prefetch;
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        let mut streams = std::mem::take(&mut self.streams);
        for stream in &streams {
            let cancel = self
                .channel
                .basic_cancel(stream.tag(), BasicCancelOptions::default());
            self.link.reply(Moment::Working, cancel).await?;
        }
        for stream in &mut streams {
            while let Some(message) = self.link.within(Moment::Working, stream.next()).await? {
                let message =
                    message.map_err(|error| self.link.endpoint.fault(Moment::Working, error))?;
                self.nack(message.delivery_tag).await?;
            }
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        self.link.close().await;
    }
}
