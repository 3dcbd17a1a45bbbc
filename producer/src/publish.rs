//! Publishes chunks, waits for each confirm, and notes in the database that they are published.
//!
//! Invariant: only a confirmed message counts as published. After any other answer the same bytes are published again.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_broker::{Broker, BrokerError, Confirmed, Publisher, Queue, Sessions, pauses};
use pingfleet_store::{Db, Outgoing};
use tokio_util::sync::CancellationToken;

use crate::ProducerError;

/// Unconfirmed messages on the channel.
const MAX_UNCONFIRMED: usize = 500;

/// Chunks read from the outbox at once.
const PAGE: usize = 100;

/// Published chunks are noted in the database this many at a time.
const NOTED_AT_ONCE: usize = 100;

/// Which chunks to publish.
#[derive(Debug, Clone)]
pub(crate) enum PublishSource {
    /// Every unpublished chunk.
    Outbox,
    /// These chunks, which are overdue.
    Overdue(Vec<u32>),
}

/// What happens to a chunk that was sent.
enum SendEvent {
    /// The broker answered.
    Answer(Result<Confirmed, BrokerError>),
    /// The broker refused it, and its pause is over.
    SendAgain,
}

type InFlightChunks = FuturesUnordered<BoxFuture<'static, (Outgoing, SendEvent)>>;

/// Publishes until every chunk of the source is confirmed, or `stop` came. Returns how many were confirmed.
pub(crate) async fn publish(
    broker: Arc<dyn Broker>,
    db: &Db,
    run: i64,
    source: PublishSource,
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
        let mut session = PublishSession {
            db,
            run,
            in_flight: FuturesUnordered::new(),
            refusal_pauses: Box::new(pauses()),
            confirmed: Vec::new(),
            published: 0,
        };
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = session.publish(&mut *publisher, &mut source, &stop) => ended,
        };
        // Also after an error: confirms that arrived before it count.
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
struct PublishSession<'a> {
    db: &'a Db,
    run: i64,
    /// Sent and unconfirmed, or refused and waiting for the next try.
    in_flight: InFlightChunks,
    /// The pauses before refused chunks are sent again; they start anew when a chunk is confirmed.
    refusal_pauses: Box<dyn Iterator<Item = Duration> + Send>,
    confirmed: Vec<u32>,
    published: u64,
}

impl PublishSession<'_> {
    async fn publish(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut PublishSource,
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
                while self.in_flight.len() >= MAX_UNCONFIRMED {
                    self.take_next(publisher, source).await?;
                }
                self.send(publisher, outgoing).await?;
                // Handle the answers that arrived already, so that the database follows closely.
                while let Some(Some(next)) = self.in_flight.next().now_or_never() {
                    self.take(publisher, source, next).await?;
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        while !self.in_flight.is_empty() {
            self.take_next(publisher, source).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        publisher: &mut dyn Publisher,
        outgoing: Outgoing,
    ) -> Result<(), ProducerError> {
        let answer = publisher.publish(Queue::Work, &outgoing.work).await?;
        self.in_flight
            .push(async move { (outgoing, SendEvent::Answer(answer.await)) }.boxed());
        Ok(())
    }

    async fn take_next(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut PublishSource,
    ) -> Result<(), ProducerError> {
        if let Some(next) = self.in_flight.next().await {
            self.take(publisher, source, next).await?;
        }
        Ok(())
    }

    async fn take(
        &mut self,
        publisher: &mut dyn Publisher,
        source: &mut PublishSource,
        (outgoing, next): (Outgoing, SendEvent),
    ) -> Result<(), ProducerError> {
        let answer = match next {
            SendEvent::Answer(answer) => answer?,
            SendEvent::SendAgain => return self.send(publisher, outgoing).await,
        };
        match answer {
            Confirmed::Stored => {
                self.refusal_pauses = Box::new(pauses());
                self.take_confirm(source, outgoing.chunk);
                self.note(NOTED_AT_ONCE).await
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

    fn take_confirm(&mut self, source: &mut PublishSource, confirmed: u32) {
        if let PublishSource::Overdue(chunks) = source {
            chunks.retain(|chunk| *chunk != confirmed);
        }
        self.confirmed.push(confirmed);
        self.published += 1;
    }

    /// Takes the confirms that arrived before the session ended.
    fn take_confirms(&mut self, source: &mut PublishSource) {
        while let Some(Some((outgoing, next))) = self.in_flight.next().now_or_never() {
            if matches!(next, SendEvent::Answer(Ok(Confirmed::Stored))) {
                self.take_confirm(source, outgoing.chunk);
            }
        }
    }

    /// Notes the confirmed chunks in the database, when there are at least `least`.
    async fn note(&mut self, least: usize) -> Result<(), ProducerError> {
        if self.confirmed.len() < least {
            return Ok(());
        }
        let chunks = Arc::new(std::mem::take(&mut self.confirmed));
        let run = self.run;
        self.db
            .patiently(move |store| store.mark_published(run, &chunks))
            .await?;
        Ok(())
    }
}

/// The next chunks to publish after chunk `after`, and the last chunk that was examined; none at the end. A page may be
/// empty before the end: chunks that were overdue may be done by now.
async fn next_page(
    db: &Db,
    run: i64,
    source: &PublishSource,
    after: Option<u32>,
) -> Result<(Vec<Outgoing>, Option<u32>), ProducerError> {
    let page = match source {
        PublishSource::Outbox => {
            let page = db
                .call(move |store| store.outgoing(run, after, PAGE))
                .await?;
            let last = page.last().map(|outgoing| outgoing.chunk);
            (page, last)
        }
        PublishSource::Overdue(chunks) => {
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
