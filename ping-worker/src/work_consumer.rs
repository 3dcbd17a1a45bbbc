//! Takes chunks from the work queue, gives them to the probing threads, sends results to the publisher, and acks after
//! the confirm.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pingfleet_broker::{
    Broker, BrokerError, ConfirmedMessage, Consumer, Delivery, DeliveryTag, KeyedMessage,
    MessageKey as _, QueueName, Reconnects, Sessions, open_session,
};
use pingfleet_prober::probe_threads::{ProbeThreadFailed, ProbeThreads, Probed};
use pingfleet_wire::{
    ChunkKey, Message, ResultChunk, Version, WorkChunk,
    timing::{BROKER_CONSUMER_TIMEOUT, MAX_RESOLUTION_TIME, MAX_TARGET_TIME},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{self, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::{
    WorkerError, WorkerSettings, clock,
    in_hand::{InHand, Receipt, Unacked},
    prefetch::Prefetch,
    status::StatusBoard,
};

/// Draining takes at most this long. Chunks that are not done by then are delivered to another worker.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A session that is closed on request goes on without acks until the prefetch is used up, or until no chunk came for so
/// long. Then none is on its way, which would come again: a consumer must not be cancelled before.
const QUIET_BEFORE_CLOSE: Duration = Duration::from_secs(1);

/// After this time it is closed all the same.
const MAX_TIME_WITHOUT_ACKS: Duration = Duration::from_secs(30);

/// What the sessions are called in the log.
const SESSION: &str = "work";

/// How often the worker checks whether it idles: it has all chunks that its prefetch allows and sent no request since
/// the last check.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Targets that are probed at a time. It bounds the memory, which grows with the targets: chunks of 10,000 would need more
/// than 1 GB with the largest prefetch. Further chunks in hand wait for their turn.
const MAX_TARGETS_PROBED: usize = 1 << 18;

/// How long a chunk waits for its turn. Then it is probed all the same: more memory is better than a chunk that the broker
/// takes back.
const MAX_WAIT_FOR_ROOM: Duration = Duration::from_mins(10);

// A chunk waits, its names are resolved, and its targets are probed, before the broker takes it back.
const _: () = assert!(
    MAX_WAIT_FOR_ROOM.as_secs() + MAX_RESOLUTION_TIME.as_secs() + MAX_TARGET_TIME.as_secs()
        < BROKER_CONSUMER_TIMEOUT.as_secs()
);

/// A chunk whose probing ended.
struct ProbedChunk {
    key: ChunkKey,
    /// The encoded result.
    result: Result<Vec<u8>, ProbeThreadFailed>,
}

/// What a session does.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Takes chunks.
    Taking,
    /// Takes chunks and acks none, before it finishes for a new session.
    Filling { quiet_at: Instant, latest: Instant },
    /// Takes none and finishes those in hand, then ends so. The stop signal sets the deadline.
    Finishing {
        end: SessionEnd,
        deadline: Option<Instant>,
    },
}

/// How a session ended, if not with an error.
#[derive(Debug, Clone, Copy)]
enum SessionEnd {
    /// By the stop signal; so many chunks are left.
    Stopped { left: usize },
    /// By a request for a new session. Everything was acked.
    ClosedOnRequest,
    /// By this chunk, for which the clock is too early. The end of the session returns it and what else is in hand.
    ClockTooEarly(ChunkKey),
}

/// The consuming side of the worker, over all its sessions.
pub(crate) struct WorkConsumer {
    broker: Arc<dyn Broker>,
    probe_threads: Arc<ProbeThreads>,
    settings: WorkerSettings,
    status: Arc<StatusBoard>,
    results: mpsc::Sender<KeyedMessage<ChunkKey>>,
    confirmed: mpsc::Receiver<ConfirmedMessage<ChunkKey>>,
    in_hand: InHand,
    probing: JoinSet<ProbedChunk>,
    /// Has a permit for each target that may be probed.
    room: Arc<Semaphore>,
    /// Which chunk each task probes, needed when a task panics.
    tasks: HashMap<task::Id, ChunkKey>,
    /// The chunk taken last: the prefetch is computed from it.
    last: Option<Arc<WorkChunk>>,
    /// A chunk that came while the clock was too early for its run. It is not taken, and ends the session.
    too_early_for: Option<ChunkKey>,
}

impl WorkConsumer {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        probe_threads: Arc<ProbeThreads>,
        settings: WorkerSettings,
        status: Arc<StatusBoard>,
        results: mpsc::Sender<KeyedMessage<ChunkKey>>,
        confirmed: mpsc::Receiver<ConfirmedMessage<ChunkKey>>,
    ) -> Self {
        Self {
            broker,
            probe_threads,
            settings,
            status,
            results,
            confirmed,
            in_hand: InHand::default(),
            probing: JoinSet::new(),
            room: Arc::new(Semaphore::new(MAX_TARGETS_PROBED)),
            tasks: HashMap::new(),
            last: None,
            too_early_for: None,
        }
    }

    /// Takes chunks until `stop`. Then drains: finishes, publishes and acks what is in hand. Returns how many chunks were
    /// left unsettled when draining timed out.
    ///
    /// # Errors
    /// [`WorkerError`]: a final error of the broker, or no chunk can be probed any more.
    pub(crate) async fn run(&mut self, stop: &CancellationToken) -> Result<usize, WorkerError> {
        if !may_publish(&*self.broker, stop).await? {
            return Ok(0);
        }
        let mut sessions = Sessions::new(SESSION);
        loop {
            let broker = Arc::clone(&self.broker);
            let mut reconnects = broker.reconnects();
            let open = || async {
                broker.ensure(&[QueueName::WORK]).await?;
                broker.consumer(QueueName::WORK, 1).await
            };
            let Some(mut consumer) = sessions.open(None, stop, open).await? else {
                return Ok(self.in_hand.len());
            };
            if self.status.set_connected(true) {
                tracing::info!(worker = self.settings.name, "worker ready");
            }
            match self.serve(&mut *consumer, stop, &mut reconnects).await {
                Ok(SessionEnd::Stopped { left }) => {
                    consumer.close().await;
                    return Ok(left);
                }
                Ok(SessionEnd::ClockTooEarly(key)) => {
                    consumer.close().await;
                    self.status.set_connected(false);
                    self.in_hand.forget_tags();
                    if !clock::wait_until_set(key, stop).await {
                        return Ok(self.in_hand.len());
                    }
                }
                Ok(SessionEnd::ClosedOnRequest) => {
                    consumer.close().await;
                    sessions.closed_on_request();
                }
                // The session ends with the process, and that returns its chunks.
                Err(_) if self.probe_threads.have_ended() => {
                    return Err(WorkerError::NoProbeThread);
                }
                Err(error) => {
                    self.status.set_connected(false);
                    let unsettled = self.in_hand.len();
                    sessions.lost(error, unsettled, "unsettled chunks are delivered again")?;
                    self.in_hand.forget_tags();
                }
            }
        }
    }

    /// Stops what is still being probed, and closes the channel of results.
    pub(crate) async fn abandon(mut self) {
        self.probing.shutdown().await;
    }

    /// One session, to its end: the stop signal, or a chunk for which the clock is too early.
    async fn serve(
        &mut self,
        consumer: &mut dyn Consumer,
        stop: &CancellationToken,
        reconnects: &mut Reconnects,
    ) -> Result<SessionEnd, BrokerError> {
        let mut prefetch = Prefetch::slow_start(self.settings.prefetch, self.settings.rate);
        let mut idle = tokio::time::interval(IDLE_CHECK_INTERVAL);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = self.probe_threads.requests_sent();
        let mut phase = Phase::Taking;
        // What is acked at the end of a session that is closed on request.
        let mut held_back = Vec::new();
        loop {
            self.status
                .set_in_hand(self.in_hand.taken(), prefetch.size());
            if let Some(key) = self.too_early_for.take() {
                consumer.ack(&held_back).await?;
                return Ok(SessionEnd::ClockTooEarly(key));
            }
            let (taking, filling, deadline) = match phase {
                Phase::Taking => (true, None, None),
                Phase::Filling { quiet_at, latest } => (false, Some(quiet_at.min(latest)), None),
                Phase::Finishing { end, .. } if self.in_hand.len() == 0 => {
                    consumer.ack(&held_back).await?;
                    return Ok(end);
                }
                Phase::Finishing { deadline, .. } => (false, None, deadline),
            };
            let unacked = self.in_hand.deliveries() + held_back.len();
            let is_full = unacked >= usize::from(prefetch.size());
            tokio::select! {
                biased;
                Some(confirmed) = self.confirmed.recv() => {
                    if taking || deadline.is_some() {
                        self.settle(consumer, confirmed.key, &mut prefetch, taking).await?;
                    } else {
                        held_back.extend(self.hold_back(confirmed.key));
                    }
                }
                Some(joined) = self.probing.join_next_with_id() => {
                    self.take_result(consumer, joined).await?;
                    // When nothing is probed, all chunks in hand wait for confirms.
                    if taking && self.probing.is_empty() {
                        self.grow(consumer, &mut prefetch).await?;
                    }
                }
                () = stop.cancelled(), if deadline.is_none() => {
                    phase = self.drain(consumer, std::mem::take(&mut held_back)).await?;
                }
                () = until(deadline) => {
                    let left = self.in_hand.len();
                    tracing::warn!(left, "draining timed out; the rest goes to another worker");
                    return Ok(SessionEnd::Stopped { left });
                }
                () = reconnects.next(), if taking => {
                    let now = Instant::now();
                    phase = Phase::Filling {
                        quiet_at: now + QUIET_BEFORE_CLOSE,
                        latest: now + MAX_TIME_WITHOUT_ACKS,
                    };
                }
                () = until(filling.map(|until| if is_full { Instant::now() } else { until })) => {
                    phase = Phase::Finishing { end: SessionEnd::ClosedOnRequest, deadline: None };
                    self.take_buffered(consumer).await?;
                }
                _ = idle.tick(), if taking && prefetch.may_grow(self.in_hand.len()) => {
                    self.grow_if_idle(consumer, &mut prefetch, &mut sent).await?;
                }
                delivery = consumer.next(), if taking || filling.is_some() => {
                    self.take(consumer, delivery?).await?;
                    if let Phase::Filling { quiet_at, .. } = &mut phase {
                        *quiet_at = Instant::now() + QUIET_BEFORE_CLOSE;
                    } else {
                        self.raise_if_exclusive(consumer, &mut prefetch).await?;
                    }
                }
            }
        }
    }

    /// Begins to stop: takes nothing new, and acks what was held back.
    async fn drain(
        &mut self,
        consumer: &mut dyn Consumer,
        held_back: Vec<DeliveryTag>,
    ) -> Result<Phase, BrokerError> {
        consumer.stop().await?;
        consumer.ack(&held_back).await?;
        self.status.start_draining();
        tracing::info!(in_hand = self.in_hand.len(), "draining");
        Ok(Phase::Finishing {
            end: SessionEnd::Stopped { left: 0 },
            deadline: Some(Instant::now() + DRAIN_TIMEOUT),
        })
    }

    /// Raises the prefetch if nothing was sent since the last check, when it was `sent`: then all chunks in hand wait for
    /// answers, to requests or to as many DNS queries as there may be. More chunks would only use up their time for the latter.
    async fn grow_if_idle(
        &self,
        consumer: &mut dyn Consumer,
        prefetch: &mut Prefetch,
        sent: &mut u64,
    ) -> Result<(), BrokerError> {
        let before = std::mem::replace(sent, self.probe_threads.requests_sent());
        if *sent == before && !self.probe_threads.is_resolver_at_limit() {
            self.grow(consumer, prefetch).await?;
        }
        Ok(())
    }

    /// Takes no more from the broker than what is here.
    async fn take_buffered(&mut self, consumer: &mut dyn Consumer) -> Result<(), BrokerError> {
        for delivery in consumer.cancel().await? {
            self.take(consumer, delivery).await?;
        }
        Ok(())
    }

    /// Raises the prefetch because the worker idles, if it may grow.
    async fn grow(
        &self,
        consumer: &mut dyn Consumer,
        prefetch: &mut Prefetch,
    ) -> Result<(), BrokerError> {
        // More chunks would only wait for room.
        let has_room = self
            .last
            .as_ref()
            .is_some_and(|chunk| self.room.available_permits() >= chunk.targets.len());
        if has_room
            && prefetch.may_grow(self.in_hand.len())
            && let Some(wanted) = prefetch.idle(self.in_hand.len())
        {
            tracing::debug!(prefetch = wanted, "prefetch raised while idle");
            consumer.raise_prefetch(wanted).await?;
        }
        Ok(())
    }

    /// Raises the prefetch at once when no other worker can take the chunks.
    async fn raise_if_exclusive(
        &self,
        consumer: &mut dyn Consumer,
        prefetch: &mut Prefetch,
    ) -> Result<(), BrokerError> {
        if self.settings.exclusive
            && let Some(chunk) = &self.last
            && let Some(wanted) = prefetch.exclusive(chunk, self.in_hand.len())
        {
            consumer.raise_prefetch(wanted).await?;
        }
        Ok(())
    }

    /// A chunk's task ended.
    async fn take_result(
        &mut self,
        consumer: &mut dyn Consumer,
        joined: Result<(task::Id, ProbedChunk), JoinError>,
    ) -> Result<(), BrokerError> {
        match joined {
            Ok((id, ended)) => {
                self.tasks.remove(&id);
                self.publish(consumer, ended).await
            }
            Err(error) => {
                let key = self.tasks.remove(&error.id());
                let span = key.map_or_else(Span::none, ChunkKey::span);
                span.in_scope(|| tracing::error!(%error, "the task of a chunk failed"));
                match key {
                    Some(key) => self.return_to_queue(consumer, key).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn take(
        &mut self,
        consumer: &mut dyn Consumer,
        delivery: Delivery,
    ) -> Result<(), BrokerError> {
        let chunk = match WorkChunk::decode(&delivery.body) {
            Ok(chunk) => Arc::new(chunk),
            Err(error) => {
                // After 20 returns it is a dead letter, and the writer quarantines it.
                tracing::warn!(%error, "work message cannot be read");
                return consumer.requeue(delivery.tag).await;
            }
        };
        // A sweep has one clock for everything, and its queue ends with it.
        if !self.settings.exclusive && clock::is_too_early(chunk.key) {
            // The end of the session returns the chunk.
            self.too_early_for = Some(chunk.key);
            return Ok(());
        }
        let span = chunk.key.span();
        span.in_scope(|| tracing::debug!(targets = chunk.targets.len(), "chunk taken"));
        self.last = Some(Arc::clone(&chunk));
        let taken = self
            .in_hand
            .take(chunk.key, delivery.tag, delivery.redelivered);
        if taken == Receipt::New {
            let probe_threads = Arc::clone(&self.probe_threads);
            let redelivered = delivery.redelivered;
            let key = chunk.key;
            let worker = self.settings.name.clone();
            let room = Arc::clone(&self.room);
            let probing = async move {
                let targets = u32::try_from(chunk.targets.len().min(MAX_TARGETS_PROBED));
                // The semaphore is never closed, and a chunk has fewer targets than it has permits.
                let room = room.acquire_many(targets.unwrap_or(1));
                let _room = tokio::time::timeout(MAX_WAIT_FOR_ROOM, room).await;
                let probed = probe_threads.probe(Arc::clone(&chunk)).await;
                ProbedChunk {
                    key,
                    result: probed.map(|probed| encode(&chunk, worker, redelivered, probed)),
                }
            };
            let task = self.probing.spawn(probing.instrument(span));
            self.tasks.insert(task.id(), key);
        }
        Ok(())
    }

    /// Sends the result of a chunk to the publisher. A chunk whose thread failed returns to the queue.
    async fn publish(
        &mut self,
        consumer: &mut dyn Consumer,
        ended: ProbedChunk,
    ) -> Result<(), BrokerError> {
        let key = ended.key;
        match ended.result {
            Ok(body) => {
                // The channel has room for all chunks in hand, so this never waits for long.
                let result = KeyedMessage::new(key, body);
                if self.results.send(result).await.is_err() {
                    key.span()
                        .in_scope(|| tracing::error!("the publisher ended early"));
                }
                Ok(())
            }
            Err(error) => {
                key.span()
                    .in_scope(|| tracing::error!(%error, "chunk returns to the queue"));
                self.return_to_queue(consumer, key).await?;
                if self.probe_threads.have_ended() {
                    return Err(BrokerError::Lost("no chunk can be probed".into()));
                }
                Ok(())
            }
        }
    }

    /// Acks a chunk whose result is stored, and raises the prefetch if the chunk allows it.
    async fn settle(
        &mut self,
        consumer: &mut dyn Consumer,
        key: ChunkKey,
        prefetch: &mut Prefetch,
        taking: bool,
    ) -> Result<(), BrokerError> {
        let Some(unacked) = self.in_hand.settle(&key) else {
            return Ok(());
        };
        let Unacked {
            tags, redelivered, ..
        } = unacked;
        consumer.ack(&tags).await?;
        self.status.chunk_done();
        // Chunks of an earlier session do not count for the slow start of this one.
        if taking
            && !tags.is_empty()
            && let Some(chunk) = self.last.clone()
            && let Some(wanted) = prefetch.settled(&chunk, redelivered, self.in_hand.len())
        {
            tracing::debug!(prefetch = wanted, "prefetch raised");
            consumer.raise_prefetch(wanted).await?;
        }
        Ok(())
    }

    /// Settles a chunk whose result is stored, and returns the deliveries that are to be acked later.
    fn hold_back(&mut self, key: ChunkKey) -> Vec<DeliveryTag> {
        let settled = self.in_hand.settle(&key);
        settled.map_or_else(Vec::new, |unacked| {
            self.status.chunk_done();
            unacked.tags
        })
    }

    /// Returns a chunk that was not probed completely to the queue.
    async fn return_to_queue(
        &mut self,
        consumer: &mut dyn Consumer,
        key: ChunkKey,
    ) -> Result<(), BrokerError> {
        let unacked = self.in_hand.settle(&key);
        for tag in unacked.into_iter().flat_map(|unacked| unacked.tags) {
            consumer.requeue(tag).await?;
        }
        Ok(())
    }
}

/// Checks that the user may publish results and heartbeats, before a chunk is taken: a worker that finds out afterwards
/// returns it, and after 21 such starts the chunk is dead. Returns false when `stop` came first.
async fn may_publish(broker: &dyn Broker, stop: &CancellationToken) -> Result<bool, BrokerError> {
    const PUBLISHED: [QueueName; 2] = [QueueName::RESULTS, QueueName::HEARTBEATS];
    let check = || async {
        broker.ensure(&PUBLISHED).await?;
        for queue in PUBLISHED {
            // An alarm delays publishing, and forbids nothing.
            broker.alarm(queue).await?;
        }
        Ok(())
    };
    Ok(open_session(SESSION, None, stop, check).await?.is_some())
}

/// Encodes the result of a chunk, in the chunk's own task: a defect in it fails that chunk only.
fn encode(chunk: &WorkChunk, worker: String, redelivered: bool, probed: Probed) -> Vec<u8> {
    let result = ResultChunk {
        version: Version,
        database: chunk.database,
        key: chunk.key,
        token: chunk.token,
        worker,
        redelivered,
        started_at_us: probed.started_at_us,
        outcomes: probed.outcomes,
    };
    result.encode()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
