//! Supervises a run: keeps the publish window full, looks at the database until every chunk is settled, and publishes
//! overdue chunks again.

use std::{
    io::Write,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pingfleet_broker::{Broker, QueueName};
use pingfleet_store::{DatabaseThread, RunState, RunSummary, Transport, WindowUse};
use pingfleet_wire::{MAX_PREFETCH, timing::LEASE_RENEWAL_INTERVAL};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    EndReason, ProducerError, ProducerSettings, RunProgress, WorkConsumers,
    overdue::OverdueSearch,
    publish::{PublishCount, PublishOrders, publish},
    target_printer::{PrintedChunks, TargetPrinter},
    window::PublishWindow,
};

/// Time between two looks at the database: a share of the time that the run takes so far, within these limits. So the end
/// of a short run is seen soon.
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(250);
const LOOK_SHARE: u32 = 32;

/// Time between two counts of those who consume the queue of work, while no worker is alive.
const CONSUMER_INTERVAL: Duration = Duration::from_secs(2);

/// How long such a count may take.
const CONSUMER_COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the supervisor works with.
pub(crate) struct Supervision<'a> {
    pub(crate) broker: &'a Arc<dyn Broker>,
    pub(crate) db: &'a DatabaseThread,
    pub(crate) run: i64,
    pub(crate) settings: &'a ProducerSettings,
    /// Where progress is published.
    pub(crate) progress: &'a watch::Sender<RunProgress>,
    pub(crate) stop: &'a CancellationToken,
}

/// Publishes the chunks of a run and supervises it until its end. Returns also which chunks were printed.
pub(crate) async fn supervise(
    supervision: &Supervision<'_>,
    out: &mut (dyn Write + Send),
) -> Result<(EndReason, PrintedChunks), ProducerError> {
    let (mut supervisor, orders) = Supervisor::new(supervision, out).await?;
    let reason = publish_and_look(supervision, &mut supervisor, orders).await?;
    let printed = supervisor.printer.map(TargetPrinter::into_printed);
    Ok((reason, printed.unwrap_or_default()))
}

async fn publish_and_look(
    supervision: &Supervision<'_>,
    supervisor: &mut Supervisor<'_>,
    orders: PublishOrders,
) -> Result<EndReason, ProducerError> {
    let Supervision {
        broker,
        db,
        run,
        settings,
        stop,
        ..
    } = *supervision;
    if settings.detach {
        let chunks = supervisor.chunks;
        tracing::warn!(
            chunks,
            "all chunks are published at once, because no producer stays: `pingfleet cancel` cannot stop them"
        );
    }
    let ending = stop.child_token();
    let mut publishing = pin!(publish(Arc::clone(broker), db, run, orders, ending.clone(),));
    let began = Instant::now();
    let mut next_look = began;
    let mut next_top_up = began;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // It ends by itself, after recording what is confirmed.
                publishing.await?;
                return Ok(EndReason::Interrupted);
            }
            published = &mut publishing => {
                published?;
                return Ok(if stop.is_cancelled() {
                    EndReason::Interrupted
                } else {
                    EndReason::Detached
                });
            }
            () = tokio::time::sleep_until(next_look) => {
                let pause = (began.elapsed() / LOOK_SHARE).clamp(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL);
                next_look = Instant::now() + pause;
                if let Some(reason) = supervisor.look().await? {
                    // Nothing is left to be recorded of a run whose chunks are all done.
                    if !supervisor.is_complete() {
                        ending.cancel();
                        publishing.await?;
                    }
                    return Ok(reason);
                }
            }
            () = tokio::time::sleep_until(next_top_up), if supervisor.is_window_full() => {
                next_top_up = Instant::now() + supervisor.window.top_up_interval();
                supervisor.top_up().await?;
            }
        }
    }
}

/// Whether nothing is left to do for a run.
pub(crate) fn is_over(summary: &RunSummary) -> bool {
    match summary.state {
        RunState::Complete | RunState::Cancelled => true,
        // A run without a lease shows as incomplete, too: it is over only when nothing is outstanding.
        RunState::Incomplete => summary.outstanding() == 0,
        RunState::Planning | RunState::Running => false,
    }
}

/// The state of a supervised run.
struct Supervisor<'a> {
    broker: &'a dyn Broker,
    db: &'a DatabaseThread,
    run: i64,
    is_detached: bool,
    chunks: i64,
    progress: &'a watch::Sender<RunProgress>,
    printer: Option<TargetPrinter<'a>>,
    window: PublishWindow,
    is_unlimited: bool,
    allowed: watch::Sender<u64>,
    published: Arc<PublishCount>,
    overdue: OverdueSearch<'a>,
    lease_renewed: Instant,
    work_consumers: WorkConsumers,
    consumers_counted: Instant,
}

impl<'a> Supervisor<'a> {
    async fn new(
        supervision: &Supervision<'a>,
        out: &'a mut (dyn Write + Send),
    ) -> Result<(Self, PublishOrders), ProducerError> {
        let Supervision {
            broker,
            db,
            run,
            settings,
            progress,
            ..
        } = *supervision;
        let (summary, planned, published) = db
            .call(move |store| {
                Ok((
                    store.summary(run)?,
                    store.planned_probing(run)?,
                    store.published_unsettled(run)?,
                ))
            })
            .await?;
        let is_unlimited = planned.probing.rate.is_none();
        let now = Instant::now();
        let window = PublishWindow::new(
            now,
            published,
            summary.chunks_done + summary.chunks_dead,
            is_unlimited && summary.transport == Transport::Sweep,
        );
        let (sender, orders) = PublishOrders::new(window.allowed(), settings.detach);
        let supervisor = Self {
            broker: &**broker,
            db,
            run,
            is_detached: settings.detach,
            chunks: summary.chunks,
            progress,
            printer: settings
                .print
                .map(|filter| TargetPrinter::new(filter, out, PrintedChunks::default())),
            window,
            is_unlimited,
            allowed: sender.allowed,
            published: sender.done,
            overdue: OverdueSearch::new(
                &**broker,
                db,
                run,
                summary.transport,
                settings.finds_overtaken,
                sender.overdue,
            ),
            lease_renewed: now,
            work_consumers: WorkConsumers::None,
            consumers_counted: now,
        };
        Ok((supervisor, orders))
    }

    /// One look at the database: progress, the window, targets to print, overdue chunks, and whether the run is over.
    async fn look(&mut self) -> Result<Option<EndReason>, ProducerError> {
        let run = self.run;
        let (summary, workers) = self
            .db
            .call(move |store| Ok((store.summary(run)?, store.live_workers()?)))
            .await?;
        let prefetch = if self.is_unlimited {
            // A worker of an unlimited run raises its prefetch to the limit, if it needs to.
            workers.count.unsigned_abs() * u64::from(MAX_PREFETCH)
        } else {
            workers.prefetch.unsigned_abs()
        };
        self.window.set_prefetch(prefetch);
        self.note_settled(summary.chunks_done + summary.chunks_dead);
        self.publish_progress(&summary, workers.count);
        if let Some(printer) = &mut self.printer
            && !printer.print_new(self.db, run).await?
        {
            return Ok(Some(EndReason::OutputClosed));
        }
        if is_over(&summary) {
            return Ok(Some(EndReason::Settled));
        }
        if self.lease_renewed.elapsed() >= LEASE_RENEWAL_INTERVAL {
            self.lease_renewed = Instant::now();
            let sent = self.published.sent.load(Ordering::Relaxed);
            let window = WindowUse {
                size: self.window.size() as i64,
                in_use: self.window.in_use(sent) as i64,
            };
            self.db
                .call_while_busy(move |store| store.renew_lease(run, Some(window)))
                .await?;
        }
        self.overdue.look().await?;
        self.count_consumers(workers.count).await;
        Ok(None)
    }

    /// While no worker is alive, looks whether one is connected all the same: its heartbeats may be held back.
    async fn count_consumers(&mut self, workers: i64) {
        if workers > 0 || self.consumers_counted.elapsed() < CONSUMER_INTERVAL {
            return;
        }
        // Nothing else is done meanwhile, so a broker that is silent is not waited for.
        let depth = self.broker.depth(QueueName::WORK);
        let depth = tokio::time::timeout(CONSUMER_COUNT_TIMEOUT, depth).await;
        self.work_consumers = match depth {
            Ok(Ok(depth)) if depth.consumers > 0 => WorkConsumers::Some,
            Ok(Ok(_)) => WorkConsumers::None,
            Ok(Err(error)) => {
                let advice = error.advice().map(|advice| format!("; {advice}"));
                WorkConsumers::NotKnown(format!("{error}{}", advice.unwrap_or_default()))
            }
            Err(_) => WorkConsumers::NotKnown("the broker does not answer".to_owned()),
        };
        self.consumers_counted = Instant::now();
    }

    fn is_complete(&self) -> bool {
        self.progress.borrow().state == RunState::Complete
    }

    /// Whether more chunks could be published if the window allowed it.
    fn is_window_full(&self) -> bool {
        !self.published.is_outbox_empty.load(Ordering::Relaxed)
            && self.published.sent.load(Ordering::Relaxed) >= *self.allowed.borrow()
    }

    /// Reads how many chunks are settled, and lets as many be published.
    async fn top_up(&mut self) -> Result<(), ProducerError> {
        let run = self.run;
        let settled = self.db.call(move |store| store.settled_chunks(run)).await?;
        self.note_settled(settled);
        Ok(())
    }

    fn note_settled(&mut self, settled: i64) {
        self.window.note_settled(Instant::now(), settled);
        let allowed = self.window.allowed();
        if !self.is_detached {
            self.allowed.send_if_modified(|before| {
                let is_more = allowed > *before;
                *before = allowed;
                is_more
            });
        }
    }

    fn publish_progress(&self, summary: &RunSummary, workers: i64) {
        let sent = self.published.sent.load(Ordering::Relaxed);
        self.progress.send_replace(RunProgress {
            run: Some(summary.run),
            run_id: Some(summary.run_id),
            transport: Some(summary.transport),
            state: summary.state,
            targets: summary.targets,
            chunks: summary.chunks,
            chunks_done: summary.chunks_done,
            chunks_dead: summary.chunks_dead,
            counts: summary.counts,
            published: self.window.in_use(sent),
            window: self.window.size(),
            workers,
            work_consumers: self.work_consumers.clone(),
        });
    }
}
