//! The consuming half: takes chunks, has them probed, hands results to the outbox, acks after the confirm.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, Consumer, Delivery, DeliveryTag, Queue, reopen};
use pingfleet_wire::{ChunkKey, Message, ResultChunk, Version, WorkChunk};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Settings,
    heartbeat::Pulse,
    in_hand::{InHand, Taken},
    lanes::{LaneGone, Lanes, Probed},
    outbox::Outgoing,
    prefetch,
};

/// All of leaving in order takes at most this long; what is not done by then is delivered again to another worker.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// What a chunk's probing ended with.
struct Ended {
    chunk: Arc<WorkChunk>,
    redelivered: bool,
    probed: Result<Probed, LaneGone>,
}

/// The worker's consuming side, over all its sessions.
pub(crate) struct Intake {
    broker: Arc<dyn Broker>,
    lanes: Arc<Lanes>,
    settings: Settings,
    pulse: Arc<Pulse>,
    outbox: mpsc::Sender<Outgoing>,
    confirmed: mpsc::Receiver<ChunkKey>,
    in_hand: InHand,
    probing: JoinSet<()>,
    ended_in: mpsc::Sender<Ended>,
    ended: mpsc::Receiver<Ended>,
}

/// The window of one session: 1 until the first chunk is settled, then what the run needs (DESIGN section 4).
struct Window {
    size: u16,
    /// The run that the window was made for; none before the first chunk is settled.
    run: Option<Uuid>,
    unlimited: bool,
    /// Chunk that the next window follows from: the last one taken.
    last: Option<Arc<WorkChunk>>,
}

impl Intake {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        lanes: Arc<Lanes>,
        settings: Settings,
        pulse: Arc<Pulse>,
        outbox: mpsc::Sender<Outgoing>,
        confirmed: mpsc::Receiver<ChunkKey>,
    ) -> Self {
        // Each chunk in hand ends once, and there are never more of them.
        let (ended_in, ended) = mpsc::channel(2 * usize::from(prefetch::MOST));
        Self {
            broker,
            lanes,
            settings,
            pulse,
            outbox,
            confirmed,
            in_hand: InHand::default(),
            probing: JoinSet::new(),
            ended_in,
            ended,
        }
    }

    /// Takes chunks until `stop`, then drains: finishes, publishes and acks what is in hand. Returns how many chunks
    /// were left to redelivery at the deadline.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub(crate) async fn run(&mut self, stop: &CancellationToken) -> Result<usize, BrokerError> {
        loop {
            let broker = Arc::clone(&self.broker);
            let open = || async {
                broker.check().await?;
                broker.consumer(Queue::Work, 1).await
            };
            let Some(mut consumer) = reopen(None, stop, open).await? else {
                return Ok(self.in_hand.len());
            };
            tracing::info!(worker = self.settings.name, "worker ready");
            match self.serve(&mut *consumer, stop).await {
                Ok(left) => {
                    consumer.close().await;
                    return Ok(left);
                }
                Err(error) if error.is_transient() => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, in_hand = self.in_hand.len(), "session lost; unsettled chunks come again");
                    self.in_hand.forget_tags();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives up what is still being probed, and closes the way into the outbox.
    pub(crate) async fn abandon(mut self) {
        self.probing.shutdown().await;
    }

    /// One session, to its end.
    async fn serve(
        &mut self,
        consumer: &mut dyn Consumer,
        stop: &CancellationToken,
    ) -> Result<usize, BrokerError> {
        let mut window = Window {
            size: 1,
            run: None,
            unlimited: false,
            last: None,
        };
        let mut deadline: Option<Instant> = None;
        loop {
            self.pulse.set_in_hand(self.in_hand.keys());
            if deadline.is_some() && self.in_hand.len() == 0 {
                return Ok(0);
            }
            tokio::select! {
                biased;
                Some(key) = self.confirmed.recv() => {
                    self.settle(consumer, key, &mut window, deadline.is_none()).await?;
                }
                Some(ended) = self.ended.recv() => self.publish(consumer, ended).await?,
                Some(joined) = self.probing.join_next() => {
                    if let Err(error) = joined {
                        tracing::error!(%error, "a chunk's task ended in disorder");
                    }
                }
                () = stop.cancelled(), if deadline.is_none() => {
                    consumer.stop().await?;
                    deadline = Some(Instant::now() + DRAIN_DEADLINE);
                    tracing::info!(in_hand = self.in_hand.len(), "draining");
                }
                () = until(deadline) => {
                    tracing::warn!(left = self.in_hand.len(), "drain deadline: the rest goes to another worker");
                    return Ok(self.in_hand.len());
                }
                delivery = consumer.next(), if deadline.is_none() => {
                    self.take(consumer, delivery?, &mut window).await?;
                }
            }
        }
    }

    async fn take(
        &mut self,
        consumer: &mut dyn Consumer,
        delivery: Delivery,
        window: &mut Window,
    ) -> Result<(), BrokerError> {
        let chunk = match WorkChunk::decode(&delivery.body) {
            Ok(chunk) => Arc::new(chunk),
            Err(error) => {
                // After its delivery limit the broker hands it to the writer, which quarantines it.
                tracing::warn!(%error, "work message cannot be read");
                return consumer.requeue(delivery.tag).await;
            }
        };
        tracing::debug!(run = %chunk.key.run, chunk = chunk.key.chunk, targets = chunk.targets.len(), "chunk taken");
        window.last = Some(Arc::clone(&chunk));
        if self.in_hand.take(chunk.key, delivery.tag) == Taken::New {
            let lanes = Arc::clone(&self.lanes);
            let ended = self.ended_in.clone();
            let redelivered = delivery.redelivered;
            self.probing.spawn(async move {
                let probed = lanes.probe(Arc::clone(&chunk)).await;
                let end = Ended {
                    chunk,
                    redelivered,
                    probed,
                };
                // Nobody listens only when the worker is leaving.
                drop(ended.send(end).await);
            });
        }
        Ok(())
    }

    /// Hands the result of a chunk to the outbox; a chunk whose thread failed goes back to the queue.
    async fn publish(
        &mut self,
        consumer: &mut dyn Consumer,
        ended: Ended,
    ) -> Result<(), BrokerError> {
        let key = ended.chunk.key;
        match ended.probed {
            Ok(probed) => {
                let result = ResultChunk {
                    version: Version,
                    database: ended.chunk.database,
                    key,
                    token: ended.chunk.token,
                    worker: self.settings.name.clone(),
                    redelivered: ended.redelivered,
                    started_at_us: probed.started_at_us,
                    outcomes: probed.outcomes,
                };
                let body = result.encode();
                // The outbox holds as many results as there can be chunks in hand, so this never waits for long.
                if self.outbox.send(Outgoing { key, body }).await.is_err() {
                    tracing::error!(chunk = key.chunk, "the outbox is closed");
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, run = %key.run, chunk = key.chunk, "chunk goes back to the queue");
                for tag in self.in_hand.settle(&key) {
                    consumer.requeue(tag).await?;
                }
                Ok(())
            }
        }
    }

    /// Acks a chunk whose result is stored, and opens the window when there is reason to.
    async fn settle(
        &mut self,
        consumer: &mut dyn Consumer,
        key: ChunkKey,
        window: &mut Window,
        taking: bool,
    ) -> Result<(), BrokerError> {
        let tags: Vec<DeliveryTag> = self.in_hand.settle(&key);
        for tag in &tags {
            consumer.ack(*tag, false).await?;
        }
        self.pulse.chunk_done();
        if !taking || tags.is_empty() {
            return Ok(());
        }
        let wanted = window.wanted(&self.settings, self.in_hand.len());
        if wanted != window.size {
            tracing::debug!(from = window.size, to = wanted, "prefetch");
            consumer.set_prefetch(wanted).await?;
            window.size = wanted;
        }
        Ok(())
    }
}

impl Window {
    /// The window after a chunk was settled, with `in_hand` chunks left.
    fn wanted(&mut self, settings: &Settings, in_hand: usize) -> u16 {
        let Some(last) = &self.last else {
            return self.size;
        };
        if let Some(fixed) = settings.prefetch {
            return NonZeroU16::get(fixed);
        }
        if self.run != Some(last.key.run) {
            self.run = Some(last.key.run);
            self.unlimited = last.probing.rate.is_none() && settings.rate.is_none();
            return prefetch::window(last, settings.rate);
        }
        // Unlimited: as long as threads run out of chunks, take more ahead.
        if self.unlimited && in_hand <= settings.threads.get() {
            return self.size.saturating_mul(2).min(prefetch::MOST);
        }
        self.size
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
