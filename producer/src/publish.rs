//! Publishes chunks, waits for each confirm, and records in the database that they are published.
//!
//! Invariant: only a confirmed message counts as published. After any other answer the same bytes are published again.
//! The time of a publish is the time of the last sending, so that it is a lower bound of the message's age.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_broker::{Broker, BrokerError, Confirmed, Publisher, QueueName, Sessions, backoff};
use pingfleet_store::{DatabaseThread, MAX_UNRECORDED, OutboxChunk, PublishedChunk, now_us};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{ProducerError, QUEUES};

/// Chunks read from the database at once.
const PAGE: usize = 100;

/// Published chunks are recorded in the database in groups of this size, or after this time.
const RECORDED_AT_ONCE: usize = 100;
const RECORD_INTERVAL: Duration = Duration::from_millis(250);

/// Unconfirmed messages on the channel. Together with those that are confirmed and not yet recorded they are at most as
/// many as the database expects after a crash.
const MAX_UNCONFIRMED: usize = MAX_UNRECORDED - RECORDED_AT_ONCE;

/// What the supervisor wants to be published.
pub(crate) struct PublishOrders {
    /// How many chunks of the outbox may have been sent.
    pub(crate) allowed: watch::Receiver<u64>,
    /// Chunks to publish again.
    pub(crate) overdue: mpsc::Receiver<Vec<u32>>,
    /// What was done of it.
    pub(crate) done: Arc<PublishCount>,
    /// Whether to return when the outbox is empty.
    pub(crate) detach: bool,
}

/// What is published so far.
#[derive(Debug, Default)]
pub(crate) struct PublishCount {
    /// Chunks of the outbox that were sent; a chunk that was sent again counts once.
    pub(crate) sent: AtomicU64,
    /// Whether the outbox is empty.
    pub(crate) is_outbox_empty: AtomicBool,
}

/// What happens to a chunk that was sent.
enum SendEvent {
    /// The broker answered.
    Answer(Result<Confirmed, BrokerError>),
    /// The broker refused it, and its pause is over.
    SendAgain,
}

type InFlightChunks = FuturesUnordered<BoxFuture<'static, (OutboxChunk, SendEvent)>>;

/// Publishes as ordered until `stop` comes; with `detach`, until the outbox is empty and everything is confirmed.
pub(crate) async fn publish(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    run: i64,
    orders: PublishOrders,
    stop: CancellationToken,
) -> Result<(), ProducerError> {
    let mut publishing = Publishing {
        db,
        run,
        orders,
        after: None,
        again: BTreeSet::new(),
        unconfirmed: HashMap::new(),
    };
    let mut sessions = Sessions::default();
    loop {
        let open = || async {
            broker.check(&QUEUES).await?;
            broker.publisher().await
        };
        let Some(mut publisher) = sessions.open(None, &stop, open).await? else {
            return Ok(());
        };
        let mut session = PublishSession {
            publishing: &mut publishing,
            in_flight: FuturesUnordered::new(),
            refusal_pauses: Box::new(backoff()),
            confirmed: Vec::new(),
            record_at: None,
        };
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = session.publish(&mut *publisher) => ended,
        };
        // Also after an error: confirms that arrived before it count.
        session.take_confirms();
        session.record().await?;
        match ended {
            Ok(()) => publisher.close().await,
            Err(ProducerError::Broker(error)) if error.is_transient() => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "session lost; unconfirmed chunks are published again");
                let unconfirmed = publishing.unconfirmed.keys().copied();
                publishing.again.extend(unconfirmed);
                continue;
            }
            Err(error) => return Err(error),
        }
        if stop.is_cancelled() || publishing.orders.detach {
            return Ok(());
        }
        // Everything is published: no session is open until chunks are overdue.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(chunks) = publishing.orders.overdue.recv() => publishing.again.extend(chunks),
        }
    }
}

/// What outlives a session.
struct Publishing<'a> {
    db: &'a DatabaseThread,
    run: i64,
    orders: PublishOrders,
    /// The last chunk that was read from the outbox.
    after: Option<u32>,
    /// Chunks to send again: overdue, or unconfirmed when a session was lost.
    again: BTreeSet<u32>,
    /// What was sent and not confirmed, in this session or in an earlier one.
    unconfirmed: HashMap<u32, Unconfirmed>,
}

/// A chunk that was sent.
struct Unconfirmed {
    sent_at_us: i64,
    /// The round in which it was sent; 0 when it was sent more than once.
    round: i64,
}

/// One session of publishing.
struct PublishSession<'a, 'b> {
    publishing: &'a mut Publishing<'b>,
    /// Sent and unconfirmed, or refused and waiting for the next try.
    in_flight: InFlightChunks,
    /// The pauses before refused chunks are sent again; they start anew when a chunk is confirmed.
    refusal_pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// Confirmed, and not yet recorded.
    confirmed: Vec<PublishedChunk>,
    record_at: Option<Instant>,
}

impl PublishSession<'_, '_> {
    /// Publishes what is ordered. Returns when nothing is left and no more can come from the outbox.
    async fn publish(&mut self, publisher: &mut dyn Publisher) -> Result<(), ProducerError> {
        self.send_again(publisher).await?;
        loop {
            self.send_allowed(publisher).await?;
            let is_outbox_empty = self.is_outbox_empty();
            if is_outbox_empty && self.in_flight.is_empty() {
                return Ok(());
            }
            let record_at = self.record_at;
            tokio::select! {
                biased;
                Some(event) = self.in_flight.next() => self.take(publisher, event).await?,
                Some(chunks) = self.publishing.orders.overdue.recv() => {
                    self.publishing.again.extend(chunks);
                    self.send_again(publisher).await?;
                }
                () = sleep_until(record_at) => self.record().await?,
                Ok(()) = self.publishing.orders.allowed.changed(), if !is_outbox_empty => {}
            }
        }
    }

    fn is_outbox_empty(&self) -> bool {
        let done = &self.publishing.orders.done;
        done.is_outbox_empty.load(Ordering::Relaxed)
    }

    /// Sends chunks of the outbox as long as the window allows it.
    async fn send_allowed(&mut self, publisher: &mut dyn Publisher) -> Result<(), ProducerError> {
        let run = self.publishing.run;
        while !self.is_outbox_empty() {
            let orders = &mut self.publishing.orders;
            let allowed = *orders.allowed.borrow_and_update();
            let room = allowed.saturating_sub(orders.done.sent.load(Ordering::Relaxed));
            let limit = usize::try_from(room).unwrap_or(PAGE).min(PAGE);
            if limit == 0 {
                return Ok(());
            }
            let after = self.publishing.after;
            let page = self
                .publishing
                .db
                .call(move |store| store.unpublished_chunks(run, after, limit))
                .await?;
            if page.is_empty() {
                let done = &self.publishing.orders.done;
                done.is_outbox_empty.store(true, Ordering::Relaxed);
            }
            for outgoing in page {
                self.make_room(publisher).await?;
                // From here on it is among the unconfirmed ones, also when the session is lost.
                self.publishing.after = Some(outgoing.chunk);
                let done = &self.publishing.orders.done;
                done.sent.fetch_add(1, Ordering::Relaxed);
                self.send(publisher, outgoing).await?;
                self.take_answers(publisher).await?;
            }
        }
        Ok(())
    }

    async fn send_again(&mut self, publisher: &mut dyn Publisher) -> Result<(), ProducerError> {
        let run = self.publishing.run;
        for chunk in self.publishing.again.clone() {
            let work = self
                .publishing
                .db
                .call(move |store| store.outstanding_work(run, chunk))
                .await?;
            if let Some(outgoing) = work {
                self.make_room(publisher).await?;
                self.send(publisher, outgoing).await?;
                self.take_answers(publisher).await?;
            } else {
                // It was settled meanwhile.
                self.publishing.again.remove(&chunk);
                self.publishing.unconfirmed.remove(&chunk);
            }
        }
        Ok(())
    }

    /// Waits until fewer than [`MAX_UNCONFIRMED`] are unconfirmed.
    async fn make_room(&mut self, publisher: &mut dyn Publisher) -> Result<(), ProducerError> {
        while self.in_flight.len() >= MAX_UNCONFIRMED {
            if let Some(event) = self.in_flight.next().await {
                self.take(publisher, event).await?;
            }
        }
        Ok(())
    }

    /// Handles the answers that arrived already, so that the database follows closely.
    async fn take_answers(&mut self, publisher: &mut dyn Publisher) -> Result<(), ProducerError> {
        while let Some(Some(event)) = self.in_flight.next().now_or_never() {
            self.take(publisher, event).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        publisher: &mut dyn Publisher,
        outgoing: OutboxChunk,
    ) -> Result<(), ProducerError> {
        let sent_at_us = now_us();
        self.publishing
            .unconfirmed
            .entry(outgoing.chunk)
            .and_modify(|unconfirmed| {
                unconfirmed.sent_at_us = sent_at_us;
                unconfirmed.round = 0;
            })
            .or_insert(Unconfirmed {
                sent_at_us,
                round: outgoing.round,
            });
        let answer = publisher.publish(QueueName::WORK, &outgoing.work).await?;
        self.in_flight
            .push(async move { (outgoing, SendEvent::Answer(answer.await)) }.boxed());
        Ok(())
    }

    async fn take(
        &mut self,
        publisher: &mut dyn Publisher,
        (outgoing, event): (OutboxChunk, SendEvent),
    ) -> Result<(), ProducerError> {
        let answer = match event {
            SendEvent::Answer(answer) => answer?,
            SendEvent::SendAgain => return self.send(publisher, outgoing).await,
        };
        match answer {
            Confirmed::Stored => {
                self.refusal_pauses = Box::new(backoff());
                self.take_confirm(outgoing.chunk);
                if self.confirmed.len() >= RECORDED_AT_ONCE {
                    self.record().await?;
                }
                Ok(())
            }
            // A binding is missing: the next session declares the topology again.
            Confirmed::Unroutable => Err(BrokerError::Lost(
                "a chunk was returned because no queue is bound for it".into(),
            )
            .into()),
            Confirmed::Refused => {
                let pause = self
                    .refusal_pauses
                    .next()
                    .unwrap_or(Duration::from_secs(30));
                tracing::warn!(
                    chunk = outgoing.chunk,
                    ?pause,
                    "chunk refused, trying again"
                );
                // The others are not held up: a full queue refuses many at once.
                self.in_flight.push(
                    async move {
                        tokio::time::sleep(pause).await;
                        (outgoing, SendEvent::SendAgain)
                    }
                    .boxed(),
                );
                Ok(())
            }
        }
    }

    fn take_confirm(&mut self, chunk: u32) {
        self.publishing.again.remove(&chunk);
        if let Some(sent) = self.publishing.unconfirmed.remove(&chunk) {
            self.confirmed.push(PublishedChunk {
                chunk,
                sent_at_us: sent.sent_at_us,
                round: sent.round,
            });
            self.record_at
                .get_or_insert_with(|| Instant::now() + RECORD_INTERVAL);
        }
    }

    /// Takes the confirms that arrived before the session ended.
    fn take_confirms(&mut self) {
        while let Some(Some((outgoing, event))) = self.in_flight.next().now_or_never() {
            if matches!(event, SendEvent::Answer(Ok(Confirmed::Stored))) {
                self.take_confirm(outgoing.chunk);
            }
        }
    }

    /// Records the confirmed chunks in the database.
    async fn record(&mut self) -> Result<(), ProducerError> {
        self.record_at = None;
        if self.confirmed.is_empty() {
            return Ok(());
        }
        let chunks = Arc::new(std::mem::take(&mut self.confirmed));
        let run = self.publishing.run;
        self.publishing
            .db
            .call_while_busy(move |store| store.mark_published(run, &chunks))
            .await?;
        Ok(())
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
