//! Publishing chunks, each until its confirm, and noting in the database that they are published.
//!
//! Invariant: only a stored message counts as published. Whatever else happens, the same bytes are published again.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_broker::{Broker, BrokerError, Confirmed, Publisher, Queue, Sessions, pauses};
use pingfleet_store::{DatabaseThread, OutboxChunk};
use tokio_util::sync::CancellationToken;

use crate::ProducerError;

/// Unconfirmed messages on the channel, at most.
const UNCONFIRMED: usize = 500;

/// Chunks read from the outbox at once.
const PAGE: usize = 100;

/// Published chunks are noted in the database this many at a time.
const NOTED_AT_ONCE: usize = 100;

/// Which chunks to publish.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Everything in the outbox: planned, or wanted again, and not yet published.
    Outbox,
    /// These, which are overdue.
    Overdue(Vec<u32>),
}

/// What happens next with a chunk that was sent.
enum Next {
    /// The broker answered.
    Answer(Result<Confirmed, BrokerError>),
    /// It was refused, and its pause is over.
    SendAgain,
}

type UnderWay = FuturesUnordered<BoxFuture<'static, (OutboxChunk, Next)>>;

/// Publishes until every chunk of the source is stored by the broker. Returns how many were, also when `stop` came.
pub(crate) async fn publish(
    broker: Arc<dyn Broker>,
    db: &DatabaseThread,
    run: i64,
    source: Source,
    stop: CancellationToken,
) -> Result<u64, ProducerError> {
    let mut published = 0;
    let mut source = source;
    let mut sessions = Sessions::default();
    loop {
        let open = || async {
            broker.check().await?;
            broker.publisher().await
        };
        let Some(mut publisher) = sessions.open(None, &stop, open).await? else {
            return Ok(published);
        };
        let mut session = Session {
            db,
            run,
            under_way: FuturesUnordered::new(),
            patience: Box::new(pauses()),
            stored: Vec::new(),
            published: 0,
        };
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = session.publish(&mut *publisher, &mut source, &stop) => ended,
        };
        // Also after a fault: what is confirmed is confirmed.
        session.take_confirms(&mut source);
        session.note(1).await?;
        published += session.published;
        match ended {
            Ok(()) => {
                publisher.close().await;
                return Ok(published);
            }
            Err(ProducerError::Broker(error)) if error.is_transient() => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "session lost; unconfirmed chunks are published again");
            }
            Err(error) => return Err(error),
        }
    }
}

/// One session of publishing.
struct Session<'a> {
    db: &'a DatabaseThread,
    run: i64,
    /// Sent and unconfirmed, or refused and waiting for the next try.
    under_way: UnderWay,
    /// The pauses before further tries, until something is stored again.
    patience: Box<dyn Iterator<Item = Duration> + Send>,
    stored: Vec<u32>,
    published: u64,
}

impl Session<'_> {
    async fn publish(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut Source,
        stop: &CancellationToken,
    ) -> Result<(), ProducerError> {
        let mut after = None;
        loop {
            let (page, last) = next_page(self.db, self.run, source, after).await?;
            let Some(last) = last else {
                break;
            };
            after = Some(last);
            for outgoing in page {
                while self.under_way.len() >= UNCONFIRMED {
                    self.take_next(publisher, source).await?;
                }
                self.send(publisher, outgoing).await?;
                // Answers that are there already, so that the database follows closely.
                while let Some(Some(next)) = self.under_way.next().now_or_never() {
                    self.take(publisher, source, next).await?;
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        while !self.under_way.is_empty() {
            self.take_next(publisher, source).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        publisher: &mut dyn Publisher,
        outgoing: OutboxChunk,
    ) -> Result<(), ProducerError> {
        let answer = publisher.publish(Queue::Work, &outgoing.work).await?;
        self.under_way
            .push(async move { (outgoing, Next::Answer(answer.await)) }.boxed());
        Ok(())
    }

    async fn take_next(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut Source,
    ) -> Result<(), ProducerError> {
        if let Some(next) = self.under_way.next().await {
            self.take(publisher, source, next).await?;
        }
        Ok(())
    }

    async fn take(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut Source,
        (outgoing, next): (OutboxChunk, Next),
    ) -> Result<(), ProducerError> {
        let answer = match next {
            Next::Answer(answer) => answer?,
            Next::SendAgain => return self.send(publisher, outgoing).await,
        };
        match answer {
            Confirmed::Stored => {
                self.patience = Box::new(pauses());
                self.take_confirm(source, outgoing.chunk);
                self.note(NOTED_AT_ONCE).await
            }
            // A binding is gone: the next session's look at the topology mends it.
            Confirmed::Unroutable => Err(BrokerError::Lost(
                "a chunk was returned, for no queue is bound for it".into(),
            )
            .into()),
            Confirmed::Refused => {
                let pause = self.patience.next().unwrap_or(Duration::from_secs(30));
                tracing::warn!(
                    chunk = outgoing.chunk,
                    ?pause,
                    "chunk refused, trying again"
                );
                // It waits beside the others: a full queue refuses many at once.
                self.under_way.push(
                    async move {
                        tokio::time::sleep(pause).await;
                        (outgoing, Next::SendAgain)
                    }
                    .boxed(),
                );
                Ok(())
            }
        }
    }

    fn take_confirm(&mut self, source: &mut Source, stored: u32) {
        if let Source::Overdue(chunks) = source {
            chunks.retain(|chunk| *chunk != stored);
        }
        self.stored.push(stored);
        self.published += 1;
    }

    /// Takes the confirms that are there already, when the session is over.
    fn take_confirms(&mut self, source: &mut Source) {
        while let Some(Some((outgoing, next))) = self.under_way.next().now_or_never() {
            if matches!(next, Next::Answer(Ok(Confirmed::Stored))) {
                self.take_confirm(source, outgoing.chunk);
            }
        }
    }

    /// Notes the stored chunks in the database, when there are at least `least`.
    async fn note(&mut self, least: usize) -> Result<(), ProducerError> {
        if self.stored.len() < least {
            return Ok(());
        }
        let chunks = Arc::new(std::mem::take(&mut self.stored));
        let run = self.run;
        self.db
            .call_while_busy(move |store| store.mark_published(run, &chunks))
            .await?;
        Ok(())
    }
}

/// What to publish after chunk `after`, and the last chunk that was looked at; none at the end. A page may be
/// empty in the middle: chunks that were overdue may be done by now.
async fn next_page(
    db: &DatabaseThread,
    run: i64,
    source: &Source,
    after: Option<u32>,
) -> Result<(Vec<OutboxChunk>, Option<u32>), ProducerError> {
    let page = match source {
        Source::Outbox => {
            let page = db
                .call(move |store| store.unpublished_chunks(run, after, PAGE))
                .await?;
            let last = page.last().map(|outgoing| outgoing.chunk);
            (page, last)
        }
        Source::Overdue(chunks) => {
            let chunks: Vec<u32> = chunks
                .iter()
                .copied()
                .filter(|chunk| after.is_none_or(|after| *chunk > after))
                .take(PAGE)
                .collect();
            let last = chunks.last().copied();
            let page = db
                .call(move |store| {
                    let mut page = Vec::new();
                    for chunk in chunks {
                        page.extend(store.outstanding_work(run, chunk)?);
                    }
                    Ok(page)
                })
                .await?;
            (page, last)
        }
    };
    Ok(page)
}
