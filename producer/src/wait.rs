//! Publishing and waiting: until every chunk is settled, with what is overdue published again.

use std::{
    io::{self, Write},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use pingfleet_broker::{Broker, Queue};
use pingfleet_store::{DatabaseThread, Overdue, RunState, RunSummary, Transport};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Ended, Printed, ProducerError, Settings,
    progress::Progress,
    publish::{Source, publish},
};

/// How often the database is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How soon it is looked at again at first, and what part of the time so far lies between two looks: a short run does
/// not wait for its end to be seen.
const SOONEST_LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 32;

/// How often the run's hold is renewed; `run_summary` gives it 15 s.
const HOLD: Duration = Duration::from_secs(3);

/// How often overdue chunks are looked for.
const LOOK_FOR_OVERDUE: Duration = Duration::from_secs(2);

/// How long no worker may be seen before the user is told how to start one, and how often that is repeated.
const NO_WORKER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(1));

/// Chunks are overdue only when nothing was settled and no queue had a message for this long: two heartbeats, so that
/// what a worker took since its last one, or a writer has in its open batch, has shown itself.
const QUIET: Duration = Duration::from_secs(12);

/// Overdue chunks published at once.
const OVERDUE_PAGE: usize = 1000;

/// Publishes the run's outbox and waits for its end.
pub(crate) async fn produce(
    broker: &Arc<dyn Broker>,
    db: &DatabaseThread,
    run: i64,
    settings: &Settings,
    out: &mut (dyn Write + Send),
    stop: &CancellationToken,
) -> Result<Ended, ProducerError> {
    let mut waiting = Waiting {
        broker,
        db,
        run,
        via: db.call(move |store| store.transport(run)).await?,
        progress: Progress::start(settings.progress),
        printed: settings.printed.map(|printed| Printing {
            printed,
            done: Vec::new(),
        }),
        held: Instant::now(),
        overdue_looked: Instant::now(),
        quiet: None,
        worker_seen: Instant::now(),
        no_worker_told: None,
    };
    let mut source = Source::Outbox;
    loop {
        let publishing = publish(Arc::clone(broker), db, run, source, stop.clone());
        let mut publishing = pin!(publishing);
        let mut published = false;
        let began = Instant::now();
        let mut next_look = began;
        source = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // It ends by itself, after noting what is confirmed.
                    if !published {
                        publishing.as_mut().await?;
                    }
                    waiting.progress.finish();
                    return Ok(Ended::Interrupted);
                }
                done = &mut publishing, if !published => {
                    let chunks = done?;
                    published = true;
                    tracing::debug!(chunks, "chunks published");
                    if settings.detach {
                        waiting.progress.finish();
                        return Ok(Ended::Detached);
                    }
                }
                () = tokio::time::sleep_until(next_look) => {
                    let pause = (began.elapsed() / LOOKS).clamp(SOONEST_LOOK, LOOK);
                    next_look = Instant::now() + pause;
                    if let Some(ended) = waiting.look(out).await? {
                        waiting.progress.finish();
                        return Ok(ended);
                    }
                    if published && let Some(overdue) = waiting.look_for_overdue().await? {
                        break Source::Overdue(overdue);
                    }
                }
            }
        };
    }
}

/// What the waiting producer knows.
struct Waiting<'a> {
    broker: &'a Arc<dyn Broker>,
    db: &'a DatabaseThread,
    run: i64,
    via: Transport,
    progress: Progress,
    printed: Option<Printing>,
    held: Instant,
    overdue_looked: Instant,
    /// Since when chunks have been overdue with both queues empty, and how many chunks were settled then.
    quiet: Option<(Instant, i64)>,
    worker_seen: Instant,
    no_worker_told: Option<Instant>,
}

/// Which targets are printed, and of which chunks they were: a flag for each chunk of the run.
struct Printing {
    printed: Printed,
    done: Vec<bool>,
}

impl Waiting<'_> {
    /// One look at the database: progress, targets to print, and whether the run is over.
    async fn look(&mut self, out: &mut (dyn Write + Send)) -> Result<Option<Ended>, ProducerError> {
        let run = self.run;
        let (summary, workers) = self
            .db
            .call(move |store| Ok((store.summary(run)?, store.workers_alive()?)))
            .await?;
        self.progress.show(&summary, workers);
        if !self.print(&summary, out).await? {
            return Ok(Some(Ended::Unread));
        }
        match summary.state {
            RunState::Complete | RunState::Cancelled => return Ok(Some(Ended::Settled)),
            // Also while nobody holds the run: only with nothing outstanding it is over.
            RunState::Incomplete if summary.outstanding() == 0 => return Ok(Some(Ended::Settled)),
            _ => {}
        }
        if self.held.elapsed() >= HOLD {
            self.held = Instant::now();
            self.db
                .call_while_busy(move |store| store.renew_lease(run))
                .await?;
        }
        self.tell_about_workers(workers);
        Ok(None)
    }

    fn tell_about_workers(&mut self, workers: i64) {
        if workers > 0 || self.via == Transport::Sweep {
            self.worker_seen = Instant::now();
            return;
        }
        let (patience, again) = NO_WORKER;
        if self.worker_seen.elapsed() >= patience
            && self
                .no_worker_told
                .is_none_or(|told| told.elapsed() >= again)
        {
            self.no_worker_told = Some(Instant::now());
            self.progress.suspend(|| {
                tracing::warn!(
                    "no worker seen for {} s: start `ping-worker` on a box that reaches this broker, and \
                     `consumer-writer` here; the run waits",
                    self.worker_seen.elapsed().as_secs()
                );
            });
        }
    }

    /// Prints targets of newly stored chunks. Returns false when nobody reads them any more.
    async fn print(
        &mut self,
        summary: &RunSummary,
        out: &mut (dyn Write + Send),
    ) -> Result<bool, ProducerError> {
        let Some(printing) = &mut self.printed else {
            return Ok(true);
        };
        let run = self.run;
        printing
            .done
            .resize(usize::try_from(summary.chunks).unwrap_or(0), false);
        let done = self.db.call(move |store| store.done_chunks(run)).await?;
        let answered = printing.printed == Printed::Answered;
        for chunk in done {
            match printing.done.get_mut(chunk as usize) {
                Some(printed) if !*printed => *printed = true,
                _ => continue,
            }
            let targets = self
                .db
                .call(move |store| store.chunk_targets(run, chunk, answered))
                .await?;
            let mut text = targets.join("\n");
            if !text.is_empty() {
                text.push('\n');
            }
            let written = self
                .progress
                .suspend(|| out.write_all(text.as_bytes()).and_then(|()| out.flush()));
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                written => written.map_err(ProducerError::Print)?,
            }
        }
        Ok(true)
    }

    /// The overdue chunks, by all of the rule: the database's part, and both queues without a ready message.
    async fn look_for_overdue(&mut self) -> Result<Option<Vec<u32>>, ProducerError> {
        if self.overdue_looked.elapsed() < LOOK_FOR_OVERDUE {
            return Ok(None);
        }
        self.overdue_looked = Instant::now();
        let (run, via) = (self.run, self.via);
        let overdue = self
            .db
            .call(move |store| store.overdue(run, via, OVERDUE_PAGE))
            .await?;
        let chunks = match overdue {
            Overdue::Chunks(chunks) if !chunks.is_empty() && self.queues_are_empty().await? => {
                chunks
            }
            _ => {
                self.quiet = None;
                return Ok(None);
            }
        };
        let settled = self
            .db
            .call(move |store| Ok(store.summary(run)?.chunks_done))
            .await?;
        match self.quiet {
            Some((since, before)) if before == settled => {
                if since.elapsed() < QUIET {
                    return Ok(None);
                }
            }
            _ => {
                self.quiet = Some((Instant::now(), settled));
                return Ok(None);
            }
        }
        self.quiet = None;
        tracing::info!(chunks = chunks.len(), "overdue chunks are published again");
        Ok(Some(chunks))
    }

    async fn queues_are_empty(&self) -> Result<bool, ProducerError> {
        for queue in [Queue::Work, Queue::Results] {
            match self.broker.depth(queue).await {
                Ok(depth) if depth.ready == 0 => {}
                Ok(_) => return Ok(false),
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the depth of a queue is not known");
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}
