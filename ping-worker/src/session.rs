//! The consuming half: takes chunks, has them probed, hands results to the outbox, acks after the confirm.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, Consumer, Delivery, Queue, Sessions};
use pingfleet_prober::probe_threads::{ProbeThreadFailed, ProbeThreads, Probed};
use pingfleet_wire::{ChunkKey, Message, ResultChunk, Version, WorkChunk};
use tokio::{
    sync::mpsc,
    task::{self, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    heartbeat::Pulse,
    in_hand::{Held, InHand, Taken},
    outbox::Outgoing,
    prefetch::Prefetch,
};

/// All of leaving in order takes at most this long; what is not done by then is delivered again to another worker.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// A worker that sent nothing for this long, with all that it may take in hand, idles.
const IDLE: Duration = Duration::from_millis(5);

/// What a chunk's probing ended with.
struct Ended {
    chunk: Arc<WorkChunk>,
    redelivered: bool,
    probed: Result<Probed, ProbeThreadFailed>,
}

/// The worker's consuming side, over all its sessions.
pub(crate) struct Intake {
    broker: Arc<dyn Broker>,
    lanes: Arc<ProbeThreads>,
    settings: Settings,
    pulse: Arc<Pulse>,
    outbox: mpsc::Sender<Outgoing>,
    confirmed: mpsc::Receiver<ChunkKey>,
    in_hand: InHand,
    probing: JoinSet<Ended>,
    /// Which chunk each task probes, for the one that ends in disorder.
    tasks: HashMap<task::Id, ChunkKey>,
    /// The chunk taken last: what the prefetch follows from.
    last: Option<Arc<WorkChunk>>,
}

impl Intake {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        lanes: Arc<ProbeThreads>,
        settings: Settings,
        pulse: Arc<Pulse>,
        outbox: mpsc::Sender<Outgoing>,
        confirmed: mpsc::Receiver<ChunkKey>,
    ) -> Self {
        Self {
            broker,
            lanes,
            settings,
            pulse,
            outbox,
            confirmed,
            in_hand: InHand::default(),
            probing: JoinSet::new(),
            tasks: HashMap::new(),
            last: None,
        }
    }

    /// Takes chunks until `stop`, then drains: finishes, publishes and acks what is in hand. Returns how many chunks
    /// were left to redelivery at the deadline.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub(crate) async fn run(&mut self, stop: &CancellationToken) -> Result<usize, BrokerError> {
        let mut sessions = Sessions::default();
        loop {
            let broker = Arc::clone(&self.broker);
            let open = || async {
                broker.check().await?;
                broker.consumer(Queue::Work, 1).await
            };
            let Some(mut consumer) = sessions.open(None, stop, open).await? else {
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
        let mut prefetch = Prefetch::slow_start(self.settings.prefetch, self.settings.rate);
        let mut idle = tokio::time::interval(IDLE);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = self.lanes.requests_sent();
        let mut deadline: Option<Instant> = None;
        loop {
            self.pulse.set_in_hand(self.in_hand.keys());
            if deadline.is_some() && self.in_hand.len() == 0 {
                return Ok(0);
            }
            tokio::select! {
                biased;
                Some(key) = self.confirmed.recv() => {
                    self.settle(consumer, key, &mut prefetch, deadline.is_none()).await?;
                }
                Some(joined) = self.probing.join_next_with_id() => match joined {
                    Ok((id, ended)) => {
                        self.tasks.remove(&id);
                        self.publish(consumer, ended).await?;
                        // All that is in hand only waits for confirms.
                        let idle = deadline.is_none() && self.probing.is_empty();
                        if idle && prefetch.may_grow(self.in_hand.len()) {
                            self.grow(consumer, &mut prefetch).await?;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "a chunk's task ended in disorder");
                        if let Some(key) = self.tasks.remove(&error.id()) {
                            self.give_back(consumer, key).await?;
                        }
                    }
                },
                () = stop.cancelled(), if deadline.is_none() => {
                    consumer.stop().await?;
                    deadline = Some(Instant::now() + DRAIN_DEADLINE);
                    tracing::info!(in_hand = self.in_hand.len(), "draining");
                }
                () = until(deadline) => {
                    tracing::warn!(left = self.in_hand.len(), "drain deadline: the rest goes to another worker");
                    return Ok(self.in_hand.len());
                }
                _ = idle.tick(), if deadline.is_none() && prefetch.may_grow(self.in_hand.len()) => {
                    // Nothing was sent for a while, so everything in hand only waits for answers.
                    let before = std::mem::replace(&mut sent, self.lanes.requests_sent());
                    if sent == before {
                        self.grow(consumer, &mut prefetch).await?;
                    }
                }
                delivery = consumer.next(), if deadline.is_none() => {
                    self.take(consumer, delivery?).await?;
                    if self.settings.alone
                        && let Some(chunk) = &self.last
                        && let Some(wanted) = prefetch.alone(chunk, self.in_hand.len())
                    {
                        consumer.widen(wanted).await?;
                    }
                }
            }
        }
    }

    /// Opens the window further, because the worker idles.
    async fn grow(
        &self,
        consumer: &mut dyn Consumer,
        prefetch: &mut Prefetch,
    ) -> Result<(), BrokerError> {
        if let Some(wanted) = prefetch.idle(self.in_hand.len()) {
            tracing::debug!(prefetch = wanted, "prefetch widened while idle");
            consumer.widen(wanted).await?;
        }
        Ok(())
    }

    async fn take(
        &mut self,
        consumer: &mut dyn Consumer,
        delivery: Delivery,
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
        self.last = Some(Arc::clone(&chunk));
        let taken = self
            .in_hand
            .take(chunk.key, delivery.tag, delivery.redelivered);
        if taken == Taken::New {
            let lanes = Arc::clone(&self.lanes);
            let redelivered = delivery.redelivered;
            let key = chunk.key;
            let task = self.probing.spawn(async move {
                let probed = lanes.probe(Arc::clone(&chunk)).await;
                Ended {
                    chunk,
                    redelivered,
                    probed,
                }
            });
            self.tasks.insert(task.id(), key);
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
                self.give_back(consumer, key).await
            }
        }
    }

    /// Acks a chunk whose result is stored, and opens the window when there is reason to.
    async fn settle(
        &mut self,
        consumer: &mut dyn Consumer,
        key: ChunkKey,
        prefetch: &mut Prefetch,
        taking: bool,
    ) -> Result<(), BrokerError> {
        let Held { tags, returned } = self.in_hand.settle(&key);
        for tag in &tags {
            consumer.ack(*tag, false).await?;
        }
        self.pulse.chunk_done();
        // A chunk of an earlier session says nothing about this one.
        if taking
            && !tags.is_empty()
            && let Some(chunk) = self.last.clone()
            && let Some(wanted) = prefetch.settled(&chunk, returned, self.in_hand.len())
        {
            tracing::debug!(prefetch = wanted, "prefetch widened");
            consumer.widen(wanted).await?;
        }
        Ok(())
    }

    /// Returns a chunk that was not probed as a whole to the queue.
    async fn give_back(
        &mut self,
        consumer: &mut dyn Consumer,
        key: ChunkKey,
    ) -> Result<(), BrokerError> {
        for tag in self.in_hand.settle(&key).tags {
            consumer.requeue(tag).await?;
        }
        Ok(())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
