//! Feeds the outbox to a [`ConfirmedPublisher`], and records in the database which chunks it published.
//!
//! Invariant: only a confirmed message counts as published, and at most [`MAX_UNRECORDED`] chunks are given to the publisher
//! and not recorded. The time of a publish is the time of the last sending, so that it is a lower bound of the message's age.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use pingfleet_broker::{
    Broker, ConfirmedMessage, ConfirmedPublisher, KeyedMessage, MessageKey as _, QueueName,
};
use pingfleet_store::{DatabaseThread, MAX_UNRECORDED, OutboxChunk, PublishedChunk};
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

/// Unconfirmed messages on the channel.
const MAX_UNCONFIRMED: usize = MAX_UNRECORDED - RECORDED_AT_ONCE;

/// What the supervisor wants to be published, as the publisher sees it.
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
    /// Chunks of the outbox that were given to the publisher; a chunk that was sent again counts once.
    pub(crate) sent: AtomicU64,
    /// Whether the outbox is empty.
    pub(crate) is_outbox_empty: AtomicBool,
}

/// Where the supervisor gives its orders, and sees what was done of them.
pub(crate) struct OrderSender {
    pub(crate) allowed: watch::Sender<u64>,
    pub(crate) overdue: mpsc::Sender<Vec<u32>>,
    pub(crate) done: Arc<PublishCount>,
}

impl PublishOrders {
    /// Orders that allow `allowed` chunks of the outbox; with `detach`, all of them.
    pub(crate) fn new(allowed: u64, detach: bool) -> (OrderSender, Self) {
        let allowed = if detach { u64::MAX } else { allowed };
        let (allowed, allowed_receiver) = watch::channel(allowed);
        let (overdue, overdue_receiver) = mpsc::channel(1);
        let done = Arc::new(PublishCount::default());
        let sender = OrderSender {
            allowed,
            overdue,
            done: Arc::clone(&done),
        };
        let orders = Self {
            allowed: allowed_receiver,
            overdue: overdue_receiver,
            done,
            detach,
        };
        (sender, orders)
    }
}

/// Publishes as ordered until `stop` comes; with `detach`, until the outbox is empty and everything is confirmed.
pub(crate) async fn publish(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    run: i64,
    orders: PublishOrders,
    stop: CancellationToken,
) -> Result<(), ProducerError> {
    // Both have room for every chunk that is not recorded, so neither side ever waits for the other.
    let (messages, to_publish) = mpsc::channel(MAX_UNRECORDED);
    let (confirm, confirmed) = mpsc::channel(MAX_UNRECORDED);
    let publisher = ConfirmedPublisher::new(broker, QueueName::WORK, "chunks", MAX_UNCONFIRMED)
        .with_checked(&QUEUES);
    let feed = Feed {
        db,
        run,
        orders,
        messages: Some(messages),
        confirmed,
        after: None,
        again: BTreeSet::new(),
        unconfirmed: HashMap::new(),
        unrecorded: Vec::new(),
        record_at: None,
    };
    // The end of the publisher ends the feed, which records what is confirmed. Only an error of the feed ends both.
    let publishing = async { Ok(publisher.run(to_publish, confirm, stop).await) };
    let (published, ()) = tokio::try_join!(publishing, feed.run())?;
    published?;
    Ok(())
}

/// Gives chunks to the publisher, and records what it confirms.
struct Feed<'a> {
    db: &'a DatabaseThread,
    run: i64,
    orders: PublishOrders,
    /// To the publisher; `None` when nothing more is published.
    messages: Option<mpsc::Sender<KeyedMessage<u32>>>,
    confirmed: mpsc::Receiver<ConfirmedMessage<u32>>,
    /// The last chunk that was read from the outbox.
    after: Option<u32>,
    /// Overdue chunks that wait for room.
    again: BTreeSet<u32>,
    /// What the publisher has not confirmed, with the publish round in which it was read.
    unconfirmed: HashMap<u32, i64>,
    /// Confirmed, and not yet recorded.
    unrecorded: Vec<PublishedChunk>,
    record_at: Option<Instant>,
}

impl Feed<'_> {
    /// Runs until the publisher ends.
    async fn run(mut self) -> Result<(), ProducerError> {
        loop {
            self.give_overdue().await?;
            self.give_allowed().await?;
            let is_outbox_empty = self.is_outbox_empty();
            if self.orders.detach && is_outbox_empty && self.again.is_empty() {
                self.messages = None;
            }
            let record_at = self.record_at;
            tokio::select! {
                biased;
                confirmed = self.confirmed.recv() => match confirmed {
                    Some(confirmed) => self.take_confirm(&confirmed).await?,
                    None => return self.record().await,
                },
                () = sleep_until(record_at) => self.record().await?,
                Some(chunks) = self.orders.overdue.recv() => self.again.extend(chunks),
                Ok(()) = self.orders.allowed.changed(), if !is_outbox_empty => {}
            }
        }
    }

    fn is_outbox_empty(&self) -> bool {
        self.orders.done.is_outbox_empty.load(Ordering::Relaxed)
    }

    /// How many chunks may be given to the publisher.
    fn room(&self) -> usize {
        MAX_UNRECORDED.saturating_sub(self.unconfirmed.len() + self.unrecorded.len())
    }

    /// Gives chunks of the outbox as long as the window allows it.
    async fn give_allowed(&mut self) -> Result<(), ProducerError> {
        while !self.is_outbox_empty() {
            let allowed = *self.orders.allowed.borrow_and_update();
            let in_window = allowed.saturating_sub(self.orders.done.sent.load(Ordering::Relaxed));
            let limit = usize::try_from(in_window)
                .unwrap_or(PAGE)
                .min(PAGE)
                .min(self.room());
            if limit == 0 {
                return Ok(());
            }
            let (run, after) = (self.run, self.after);
            let page = self
                .db
                .call(move |store| store.unpublished_chunks(run, after, limit))
                .await?;
            let done = &self.orders.done;
            done.sent.fetch_add(page.len() as u64, Ordering::Relaxed);
            let Some(last) = page.last() else {
                done.is_outbox_empty.store(true, Ordering::Relaxed);
                return Ok(());
            };
            self.after = Some(last.chunk);
            self.give(page);
        }
        Ok(())
    }

    /// Gives overdue chunks, except those that were settled meanwhile, or that the publisher still has.
    async fn give_overdue(&mut self) -> Result<(), ProducerError> {
        while !self.again.is_empty() && self.room() > 0 {
            let limit = self.room().min(PAGE);
            let chunks: Vec<_> = std::iter::from_fn(|| self.again.pop_first())
                .filter(|chunk| !self.unconfirmed.contains_key(chunk))
                .take(limit)
                .collect();
            let run = self.run;
            let page = self
                .db
                .call(move |store| {
                    let works = chunks
                        .iter()
                        .map(|chunk| store.outstanding_work(run, *chunk));
                    works
                        .filter_map(Result::transpose)
                        .collect::<Result<_, _>>()
                })
                .await?;
            self.give(page);
        }
        Ok(())
    }

    fn give(&mut self, page: Vec<OutboxChunk>) {
        for OutboxChunk { chunk, work, round } in page {
            self.unconfirmed.insert(chunk, round);
            let message = KeyedMessage::new(chunk, work);
            let given = self.messages.as_ref().map(|to| to.try_send(message));
            if !matches!(given, Some(Ok(()))) {
                chunk
                    .span()
                    .in_scope(|| tracing::debug!("the publisher has ended"));
            }
        }
    }

    async fn take_confirm(
        &mut self,
        confirmed: &ConfirmedMessage<u32>,
    ) -> Result<(), ProducerError> {
        let chunk = confirmed.key;
        let Some(round) = self.unconfirmed.remove(&chunk) else {
            return Ok(());
        };
        let sent_at = confirmed.last_sent.duration_since(UNIX_EPOCH);
        self.unrecorded.push(PublishedChunk {
            chunk,
            sent_at_us: sent_at.map_or(0, |since| since.as_micros() as i64),
            // Of a chunk that was sent more than once, an older message may be settled first.
            round: if confirmed.sendings == 1 { round } else { 0 },
        });
        self.record_at
            .get_or_insert_with(|| Instant::now() + RECORD_INTERVAL);
        if self.unrecorded.len() >= RECORDED_AT_ONCE {
            self.record().await?;
        }
        Ok(())
    }

    /// Records the confirmed chunks in the database.
    async fn record(&mut self) -> Result<(), ProducerError> {
        self.record_at = None;
        if self.unrecorded.is_empty() {
            return Ok(());
        }
        let chunks = Arc::new(std::mem::take(&mut self.unrecorded));
        let run = self.run;
        self.db
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
