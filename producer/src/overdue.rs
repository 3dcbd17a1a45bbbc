//! Looks for overdue chunks, in two ways: while the queues are idle, and while they are busy (see [`crate::overtaking`]).
//! Chunks whose message a policy of the broker or a foreign consumer removed are published again at once.
//!
//! Nothing is published again only because a queue is long or the writer is away, or because a worker is slow, as long as its
//! claim counts: see `crates/store/src/liveness/claims.rs`.

use std::time::Duration;

use pingfleet_broker::{Broker, QueueName};
use pingfleet_store::{DatabaseThread, Overdue, Transport};
use tokio::{sync::mpsc, time::Instant};

use crate::{ProducerError, overtaking::Overtaking};

/// How often overdue chunks are looked for.
const OVERDUE_INTERVAL: Duration = Duration::from_secs(2);

/// Without later chunks, chunks are overdue only when nothing was settled and no queue had a ready message for this long.
/// It is two heartbeat intervals and 2 s: within them a worker lists a chunk that it took, and the writer commits its open batch.
const QUIET: Duration = Duration::from_secs(12);

/// Overdue chunks published again in one round.
const MAX_REPUBLISHED: usize = 1000;

/// The search for overdue chunks of one run.
pub(crate) struct OverdueSearch<'a> {
    broker: &'a dyn Broker,
    db: &'a DatabaseThread,
    run: i64,
    transport: Transport,
    /// Where the chunks go that are to be published again.
    again: mpsc::Sender<Vec<u32>>,
    began: Instant,
    looked: Instant,
    /// Since when chunks are overdue with both queues empty, and how many chunks were settled then.
    quiet: Option<(Instant, i64)>,
    /// Absent when only idle queues are looked at.
    overtaking: Option<Overtaking>,
}

impl<'a> OverdueSearch<'a> {
    pub(crate) fn new(
        broker: &'a dyn Broker,
        db: &'a DatabaseThread,
        run: i64,
        transport: Transport,
        finds_overtaken: bool,
        again: mpsc::Sender<Vec<u32>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            broker,
            db,
            run,
            transport,
            again,
            began: now,
            looked: now,
            quiet: None,
            overtaking: finds_overtaken.then(Overtaking::default),
        }
    }

    /// Looks for overdue chunks, when it is time, and has them published again.
    pub(crate) async fn look(&mut self) -> Result<(), ProducerError> {
        if self.looked.elapsed() < OVERDUE_INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        let run = self.run;
        let removed = self
            .db
            .call(move |store| store.removed_chunks(run, MAX_REPUBLISHED))
            .await?;
        let mut chunks = self.overtaken().await?;
        chunks.extend(self.quiet().await?);
        chunks.retain(|chunk| removed.binary_search(chunk).is_err());
        let (overdue, removed_count) = (chunks.len(), removed.len());
        chunks.extend(removed);
        chunks.sort_unstable();
        chunks.dedup();
        // While the publisher has not taken the last ones, these are found again later.
        if chunks.is_empty() || self.again.try_send(chunks).is_err() {
            return Ok(());
        }
        if overdue > 0 {
            tracing::info!(chunks = overdue, "overdue chunks are published again");
        }
        if removed_count > 0 {
            tracing::info!(
                chunks = removed_count,
                "chunks that the broker removed are published again"
            );
        }
        Ok(())
    }

    /// Chunks that later ones have overtaken.
    async fn overtaken(&mut self) -> Result<Vec<u32>, ProducerError> {
        let Some(overtaking) = &mut self.overtaking else {
            return Ok(Vec::new());
        };
        let (run, transport) = (self.run, self.transport);
        let facts = self
            .db
            .call(move |store| store.overtaking_facts(run, transport, MAX_REPUBLISHED))
            .await?;
        let lost = overtaking.observe(self.began.elapsed(), &facts);
        if overtaking.needs_round() {
            let round = self
                .db
                .call_while_busy(move |store| store.begin_publish_round(transport))
                .await?;
            if let Some(round) = round {
                overtaking.round_began(round);
            }
        }
        Ok(lost)
    }

    /// Chunks that are overdue because nothing happens any more: no queue has a ready message, and nothing is settled.
    async fn quiet(&mut self) -> Result<Vec<u32>, ProducerError> {
        let (run, transport) = (self.run, self.transport);
        let overdue = self
            .db
            .call(move |store| store.overdue(run, transport, MAX_REPUBLISHED))
            .await?;
        let chunks = match overdue {
            Overdue::Chunks(chunks)
                if !chunks.is_empty() && queues_are_empty(self.broker).await? =>
            {
                chunks
            }
            _ => {
                self.quiet = None;
                return Ok(Vec::new());
            }
        };
        let settled = self.db.call(move |store| store.settled_chunks(run)).await?;
        match self.quiet {
            Some((since, before)) if before == settled => {
                if since.elapsed() < QUIET {
                    return Ok(Vec::new());
                }
            }
            _ => {
                self.quiet = Some((Instant::now(), settled));
                return Ok(Vec::new());
            }
        }
        self.quiet = None;
        Ok(chunks)
    }
}

/// Whether neither `work` nor `results` has a ready message.
async fn queues_are_empty(broker: &dyn Broker) -> Result<bool, ProducerError> {
    for queue in [QueueName::WORK, QueueName::RESULTS] {
        match broker.depth(queue).await {
            Ok(depth) if depth.ready == 0 => {}
            Ok(_) => return Ok(false),
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "cannot read the depth of a queue");
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
