//! Supervises a run: publishes its chunks, looks at the database until every chunk is settled, and publishes overdue chunks
//! again.

use std::{io::Write, pin::pin, sync::Arc, time::Duration};

use pingfleet_broker::{Broker, Queue};
use pingfleet_store::{Db, Overdue, RunState, Via};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    EndReason, ProducerError, ProducerSettings,
    progress::RunProgressBar,
    publish::{PublishSource, publish},
    target_printer::TargetPrinter,
};

/// Time between two looks at the database: a share of the time that the run takes so far, within these limits. So the end
/// of a short run is seen soon.
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(250);
const LOOK_SHARE: u32 = 32;

/// How often the run's lease is renewed; `run_summary` lets it expire after 15 s.
const LEASE_RENEWAL: Duration = Duration::from_secs(3);

/// How often overdue chunks are looked for.
const OVERDUE_INTERVAL: Duration = Duration::from_secs(2);

/// After this time without a live worker a warning says how to start one; it is repeated at this interval.
const NO_WORKER_WARNING: Duration = Duration::from_secs(10);
const NO_WORKER_INTERVAL: Duration = Duration::from_mins(1);

/// Chunks are overdue only when nothing was settled and no queue had a ready message for this long. It is two heartbeat
/// intervals: within them a worker lists a chunk that it took, and the writer commits its open batch.
const QUIET: Duration = Duration::from_secs(12);

/// Overdue chunks published again in one round.
const MAX_REPUBLISHED: usize = 1000;

/// Publishes the run's outbox and supervises the run until its end.
pub(crate) async fn supervise(
    broker: &Arc<dyn Broker>,
    db: &Db,
    run: i64,
    settings: &ProducerSettings,
    out: &mut (dyn Write + Send),
    stop: &CancellationToken,
) -> Result<EndReason, ProducerError> {
    let now = Instant::now();
    let mut supervisor = Supervisor {
        broker,
        db,
        run,
        via: db.call(move |store| store.via(run)).await?,
        bar: RunProgressBar::start(settings.progress),
        printer: settings.print.map(|filter| TargetPrinter::new(filter, out)),
        lease_renewed: now,
        overdue_checked: now,
        quiet: None,
        worker_seen: now,
        no_worker_logged: None,
    };
    let mut source = PublishSource::Outbox;
    let ended = loop {
        match supervisor.publish(source, settings.detach, stop).await? {
            Step::Republish(overdue) => source = PublishSource::Overdue(overdue),
            Step::End(reason) => break reason,
        }
    };
    supervisor.bar.finish();
    Ok(ended)
}

/// What follows a round of publishing.
enum Step {
    /// Overdue chunks are published again.
    Republish(Vec<u32>),
    /// The producer stops.
    End(EndReason),
}

/// The state of a supervised run.
struct Supervisor<'a> {
    broker: &'a Arc<dyn Broker>,
    db: &'a Db,
    run: i64,
    via: Via,
    bar: RunProgressBar,
    printer: Option<TargetPrinter<'a>>,
    lease_renewed: Instant,
    overdue_checked: Instant,
    /// Since when chunks are overdue with both queues empty, and how many chunks were settled then.
    quiet: Option<(Instant, i64)>,
    worker_seen: Instant,
    no_worker_logged: Option<Instant>,
}

impl Supervisor<'_> {
    /// Publishes the chunks of the source, and looks at the database meanwhile and afterwards, until the run ends or chunks
    /// are overdue.
    async fn publish(
        &mut self,
        source: PublishSource,
        detach: bool,
        stop: &CancellationToken,
    ) -> Result<Step, ProducerError> {
        let publishing = publish(
            Arc::clone(self.broker),
            self.db,
            self.run,
            source,
            stop.clone(),
        );
        let mut publishing = pin!(publishing);
        let mut is_published = false;
        let began = Instant::now();
        let mut next_look = began;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // It ends by itself, after noting what is confirmed.
                    if !is_published {
                        publishing.as_mut().await?;
                    }
                    return Ok(Step::End(EndReason::Interrupted));
                }
                done = &mut publishing, if !is_published => {
                    let chunks = done?;
                    is_published = true;
                    tracing::debug!(chunks, "chunks published");
                    if detach {
                        return Ok(Step::End(EndReason::Detached));
                    }
                }
                () = tokio::time::sleep_until(next_look) => {
                    let pause = (began.elapsed() / LOOK_SHARE).clamp(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL);
                    next_look = Instant::now() + pause;
                    if let Some(reason) = self.look().await? {
                        return Ok(Step::End(reason));
                    }
                    if is_published && let Some(overdue) = self.find_overdue().await? {
                        return Ok(Step::Republish(overdue));
                    }
                }
            }
        }
    }

    /// One look at the database: progress, targets to print, and whether the run is over.
    async fn look(&mut self) -> Result<Option<EndReason>, ProducerError> {
        let run = self.run;
        let (summary, workers) = self
            .db
            .call(move |store| Ok((store.summary(run)?, store.workers_alive()?)))
            .await?;
        self.bar.show(&summary, workers);
        if let Some(printer) = &mut self.printer
            && !printer.print_new(self.db, run, &self.bar).await?
        {
            return Ok(Some(EndReason::OutputClosed));
        }
        match summary.state {
            RunState::Complete | RunState::Cancelled => return Ok(Some(EndReason::Settled)),
            // A run without a lease shows as incomplete, too: it is over only when nothing is outstanding.
            RunState::Incomplete if summary.outstanding() == 0 => {
                return Ok(Some(EndReason::Settled));
            }
            _ => {}
        }
        if self.lease_renewed.elapsed() >= LEASE_RENEWAL {
            self.lease_renewed = Instant::now();
            self.db
                .patiently(move |store| store.hold_run(run, true))
                .await?;
        }
        self.warn_without_workers(workers);
        Ok(None)
    }

    fn warn_without_workers(&mut self, workers: i64) {
        if workers > 0 || self.via == Via::Sweep {
            self.worker_seen = Instant::now();
            return;
        }
        if self.worker_seen.elapsed() >= NO_WORKER_WARNING
            && self
                .no_worker_logged
                .is_none_or(|logged| logged.elapsed() >= NO_WORKER_INTERVAL)
        {
            self.no_worker_logged = Some(Instant::now());
            self.bar.suspend(|| {
                tracing::warn!(
                    "no worker seen for {} s: start `ping-worker` on a machine that reaches this broker, and \
                     `consumer-writer` here; the run waits",
                    self.worker_seen.elapsed().as_secs()
                );
            });
        }
    }

    /// The overdue chunks, by the whole rule: the database's part, and both queues without a ready message.
    async fn find_overdue(&mut self) -> Result<Option<Vec<u32>>, ProducerError> {
        if self.overdue_checked.elapsed() < OVERDUE_INTERVAL {
            return Ok(None);
        }
        self.overdue_checked = Instant::now();
        let (run, via) = (self.run, self.via);
        let overdue = self
            .db
            .call(move |store| store.overdue(run, via, MAX_REPUBLISHED))
            .await?;
        let chunks = match overdue {
            Overdue::Chunks(chunks)
                if !chunks.is_empty() && queues_are_empty(&**self.broker).await? =>
            {
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
}

/// Whether neither `work` nor `results` has a ready message.
async fn queues_are_empty(broker: &dyn Broker) -> Result<bool, ProducerError> {
    for queue in [Queue::Work, Queue::Results] {
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
