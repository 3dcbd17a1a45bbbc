//! Consuming one RabbitMQ queue with manual acks.
//!
//! Invariant: a delivery that was handed out stays in the books of its channel until it is settled, and a delivery
//! tag is sent to the broker at most once.

use std::collections::{BTreeSet, VecDeque};

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::{
    Channel,
    message::Delivery as Message,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::FieldTable,
};

use super::{death::death, fault::Moment, link::Link};
use crate::{BrokerError, Consumer, Delivery, DeliveryTag, Queue};

/// A channel with its one consumer. A consumer that was cancelled is never followed by another one on its channel:
/// RabbitMQ 3.10 closes the channel then.
struct Intake {
    number: u32,
    channel: Channel,
    /// Buffered deliveries, and after `basic.cancel-ok` its end.
    stream: lapin::Consumer,
    /// The stream has told its end. It does so once: asked again, it waits for ever.
    ended: bool,
    /// Handed out and not settled.
    unsettled: BTreeSet<u64>,
}

impl Intake {
    async fn open(
        link: &Link,
        queue: Queue,
        prefetch: u16,
        number: u32,
    ) -> Result<Self, BrokerError> {
        let channel = link.channel().await?;
        // To the broker 0 means no limit, and the limit is all that bounds the buffer.
        let qos = channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false });
        link.reply(Moment::Working, qos).await?;
        let consume = channel.basic_consume(
            link.endpoint.name(queue),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let stream = link.reply(Moment::Working, consume).await?;
        Ok(Self {
            number,
            channel,
            stream,
            ended: false,
            unsettled: BTreeSet::new(),
        })
    }

    async fn cancel(&self, link: &Link) -> Result<(), BrokerError> {
        let cancel = self
            .channel
            .basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        link.reply(Moment::Working, cancel).await
    }

    async fn requeue(&self, link: &Link, tag: u64) -> Result<(), BrokerError> {
        let requeue = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        link.reply(Moment::Working, self.channel.basic_nack(tag, requeue))
            .await
    }

    fn hand_out(&mut self, message: Message) -> Delivery {
        self.unsettled.insert(message.delivery_tag);
        Delivery {
            tag: DeliveryTag {
                channel: self.number,
                tag: message.delivery_tag,
            },
            redelivered: message.redelivered,
            death: death(&message.properties),
            body: message.data,
        }
    }
}

/// A session that consumes one queue.
pub(super) struct RabbitConsumer {
    link: Link,
    queue: Queue,
    /// The last one takes in; those before it only wait for their deliveries to be settled.
    intakes: VecDeque<Intake>,
    opened: u32,
    stopped: bool,
}

impl RabbitConsumer {
    pub(super) async fn open(link: Link, queue: Queue, prefetch: u16) -> Result<Self, BrokerError> {
        let intake = Intake::open(&link, queue, prefetch, 0).await?;
        Ok(Self {
            link,
            queue,
            intakes: VecDeque::from([intake]),
            opened: 1,
            stopped: false,
        })
    }

    /// The intake that a delivery came by, if that is unsettled. To settle another one costs the whole channel.
    fn intake_of(&mut self, tag: DeliveryTag) -> Result<&mut Intake, BrokerError> {
        self.intakes
            .iter_mut()
            .find(|intake| intake.number == tag.channel && intake.unsettled.contains(&tag.tag))
            .ok_or_else(|| {
                BrokerError::Lost(format!("delivery {} is not unsettled", tag.tag).into())
            })
    }

    /// Closes the channels that have nothing left to hand out or to settle.
    async fn close_finished(&mut self) -> Result<(), BrokerError> {
        while self.intakes.len() > 1 {
            let Some(position) = self
                .intakes
                .iter()
                .position(|intake| intake.ended && intake.unsettled.is_empty())
            else {
                break;
            };
            if let Some(finished) = self.intakes.remove(position) {
                let close = finished.channel.close(200, "OK".into());
                self.link.reply(Moment::Working, close).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        if self.stopped {
            return std::future::pending().await;
        }
        loop {
            let newest = self.opened - 1;
            let Some(intake) = self.intakes.iter_mut().find(|intake| !intake.ended) else {
                return Err(BrokerError::Lost("the session is over".into()));
            };
            match intake.stream.next().await {
                Some(Ok(message)) => return Ok(intake.hand_out(message)),
                Some(Err(error)) => return Err(self.link.endpoint.fault(Moment::Working, error)),
                None => intake.ended = true,
            }
            if intake.number == newest {
                return Err(BrokerError::Lost(
                    "the broker cancelled the consumer".into(),
                ));
            }
        }
    }

    async fn ack(&mut self, tag: DeliveryTag, multiple: bool) -> Result<(), BrokerError> {
        let intake = self.intake_of(tag)?;
        if multiple {
            intake.unsettled = intake.unsettled.split_off(&(tag.tag + 1));
        } else {
            intake.unsettled.remove(&tag.tag);
        }
        let channel = intake.channel.clone();
        let ack = channel.basic_ack(tag.tag, BasicAckOptions { multiple });
        self.link.reply(Moment::Working, ack).await?;
        self.close_finished().await
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let intake = self.intake_of(tag)?;
        intake.unsettled.remove(&tag.tag);
        let channel = intake.channel.clone();
        let requeue = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        self.link
            .reply(Moment::Working, channel.basic_nack(tag.tag, requeue))
            .await?;
        self.close_finished().await
    }

    async fn set_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.stopped {
            return Ok(());
        }
        if let Some(newest) = self.intakes.back() {
            newest.cancel(&self.link).await?;
        }
        let intake = Intake::open(&self.link, self.queue, prefetch, self.opened).await?;
        self.opened += 1;
        self.intakes.push_back(intake);
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        if let Some(newest) = self.intakes.back() {
            newest.cancel(&self.link).await?;
        }
        for intake in self.intakes.iter_mut().filter(|intake| !intake.ended) {
            while let Some(message) = self
                .link
                .within(Moment::Working, intake.stream.next())
                .await?
            {
                let message =
                    message.map_err(|error| self.link.endpoint.fault(Moment::Working, error))?;
                intake.requeue(&self.link, message.delivery_tag).await?;
            }
            intake.ended = true;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        self.link.close().await;
    }
}
