//! One session of the writer: three consumers, batches, commits, acks.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use pingfleet_broker::{Broker, BrokerError, Consumer, Delivery, DeliveryTag, Queue};
use pingfleet_store::{Applied, ClosedRun, Db, Incoming, Via};
use pingfleet_wire::timing::WRITER_ALIVE_INTERVAL;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Settings, Summary, WriterError, batch::Batch};

/// Results in hand, at most. With the largest message that bounds the memory to 256 MiB; usual ones take 5 MB.
const RESULTS_PREFETCH: u16 = 256;

/// Dead letters and heartbeats in hand, at most.
const SIGNS_PREFETCH: u16 = 256;

/// A batch to which nothing was added for this long is not worth waiting for: the last one of a run ends it.
const QUIET: Duration = Duration::from_millis(5);

/// How long the last commit may take once the writer was told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Results for another database, and none of ours for this long: somebody started the writer in the wrong folder.
const ONLY_FOREIGN: Duration = Duration::from_secs(10);

/// How a session ended without a final error.
pub(crate) enum End {
    /// As asked: everything in hand is committed and acked.
    Stopped,
    /// The broker; a new session goes on.
    Lost(BrokerError),
}

/// Deliveries for other databases: held unsettled, so that they return to the queue with the session.
#[derive(Default)]
struct Foreign {
    held: usize,
    theirs: Option<Uuid>,
    since: Option<Instant>,
    any_ours: bool,
}

/// Three consumers and the batch between them and the database.
pub(crate) struct Session<'a> {
    db: &'a Db,
    settings: &'a Settings,
    results: Box<dyn Consumer>,
    dead: Box<dyn Consumer>,
    heartbeats: Box<dyn Consumer>,
    batch: Batch,
    /// Of the batch: by when it is committed at the latest, and when it has been quiet.
    flush_at: Option<Instant>,
    quiet_at: Option<Instant>,
    foreign: Foreign,
}

impl<'a> Session<'a> {
    pub(crate) async fn open(
        broker: &dyn Broker,
        db: &'a Db,
        settings: &'a Settings,
    ) -> Result<Self, BrokerError> {
        broker.check().await?;
        Ok(Self {
            db,
            settings,
            results: broker.consumer(Queue::Results, RESULTS_PREFETCH).await?,
            dead: broker.consumer(Queue::Dead, SIGNS_PREFETCH).await?,
            heartbeats: broker.consumer(Queue::Heartbeats, SIGNS_PREFETCH).await?,
            batch: Batch::default(),
            flush_at: None,
            quiet_at: None,
            foreign: Foreign::default(),
        })
    }

    pub(crate) async fn run(
        mut self,
        summary: &mut Summary,
        stop: &CancellationToken,
    ) -> Result<End, WriterError> {
        match self.drain(summary, stop).await {
            Ok(()) => {
                let Self {
                    results,
                    dead,
                    heartbeats,
                    ..
                } = self;
                results.close().await;
                dead.close().await;
                heartbeats.close().await;
                Ok(End::Stopped)
            }
            Err(WriterError::Broker(error)) if error.is_transient() => Ok(End::Lost(error)),
            Err(error) => Err(error),
        }
    }

    async fn drain(
        &mut self,
        summary: &mut Summary,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        let mut sign = tokio::time::interval(WRITER_ALIVE_INTERVAL);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A writer that was killed, or a session that was lost, may have left large runs to this one.
        close_settled(self.db, self.settings.via, stop).await?;
        loop {
            if self.is_full() {
                self.flush(summary, stop).await?;
            }
            self.look_for_only_foreign()?;
            let flush_at = [self.flush_at, self.quiet_at].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = wait_until(flush_at) => self.flush(summary, stop).await?,
                _ = sign.tick() => note_sign_of_life(self.db, self.settings.via, stop).await?,
                // The few before the many, which would starve them.
                delivery = self.heartbeats.next() => self.take(Queue::Heartbeats, delivery?),
                delivery = self.dead.next() => self.take(Queue::Dead, delivery?),
                delivery = self.results.next() => self.take(Queue::Results, delivery?),
            }
        }
        if self.settings.via == Via::Sweep {
            // Its queues end with this process, and its worker has left: take what it published last.
            while let Some(delivery) = self.results.next().now_or_never() {
                self.take(Queue::Results, delivery?);
                if self.is_full() {
                    self.flush(summary, stop).await?;
                }
            }
        }
        self.results.stop().await?;
        self.dead.stop().await?;
        self.heartbeats.stop().await?;
        self.flush(summary, stop).await
    }

    fn take(&mut self, queue: Queue, delivery: Delivery) {
        match self.batch.take(queue, delivery, self.db.database()) {
            Ok(()) => {
                if queue == Queue::Results {
                    self.foreign.any_ours = true;
                    self.quiet_at = Some(Instant::now() + QUIET);
                }
                if self.flush_at.is_none() {
                    self.flush_at = Some(Instant::now() + self.settings.batch_interval);
                }
            }
            Err(theirs) => {
                if self.foreign.held == 0 {
                    tracing::warn!(%theirs, ours = %self.db.database(), "result for another database; it is left alone");
                }
                self.foreign.held += 1;
                self.foreign.theirs = Some(theirs);
                self.foreign.since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// A batch is full by its rows, or when half of the prefetch window is in it: the other half goes on arriving.
    fn is_full(&self) -> bool {
        let window = usize::from(RESULTS_PREFETCH).saturating_sub(self.foreign.held);
        self.batch.rows >= self.settings.batch_size
            || self.batch.results.len() >= (window / 2).max(1)
            || self.batch.dead.len() >= usize::from(SIGNS_PREFETCH / 2)
            || self.batch.heartbeats.len() >= usize::from(SIGNS_PREFETCH / 2)
    }

    fn look_for_only_foreign(&self) -> Result<(), WriterError> {
        let Foreign {
            held,
            theirs: Some(theirs),
            since: Some(since),
            any_ours,
        } = self.foreign
        else {
            return Ok(());
        };
        let waited = since.elapsed() >= ONLY_FOREIGN && !any_ours;
        if waited || held >= usize::from(RESULTS_PREFETCH) {
            return Err(WriterError::OtherDatabase {
                ours: self.db.database(),
                theirs,
                path: self.db.path().display().to_string(),
            });
        }
        Ok(())
    }

    /// Commits the batch, then acks it.
    async fn flush(
        &mut self,
        summary: &mut Summary,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        self.flush_at = None;
        self.quiet_at = None;
        let batch = std::mem::take(&mut self.batch);
        let mut is_large_run_settled = false;
        if !batch.is_empty() {
            let applied = commit(self.db, self.settings.via, batch.incoming, stop).await?;
            summary.batches += 1;
            summary.rows += applied.rows;
            summary.applied += applied.applied;
            summary.duplicates += applied.duplicates;
            summary.quarantined += applied.quarantined;
            is_large_run_settled = applied.is_large_run_settled;
            tell(&applied.closed);
            tracing::debug!(
                rows = applied.rows,
                chunks = applied.applied,
                duplicates = applied.duplicates,
                quarantined = applied.quarantined,
                "batch committed"
            );
        }
        let held = self.foreign.held > 0;
        ack(&mut *self.results, &batch.results, held).await?;
        ack(&mut *self.dead, &batch.dead, held).await?;
        ack(&mut *self.heartbeats, &batch.heartbeats, false).await?;
        if is_large_run_settled {
            close_settled(self.db, self.settings.via, stop).await?;
        }
        Ok(())
    }
}

// Both stand outside of the session: a consumer is not `Sync`, so a borrowed session would keep the writer's future
// from being spawned.

/// Waits for another program's lock, too: without it nothing could be committed, and trying again at each tick would
/// keep everything else from its turn.
async fn note_sign_of_life(db: &Db, via: Via, stop: &CancellationToken) -> Result<(), WriterError> {
    let holder = format!("pid {}", std::process::id());
    tokio::select! {
        seen = db.patiently(move |store| store.writer_seen(via, &holder)) => Ok(seen?),
        () = stop.cancelled() => Ok(()),
    }
}

/// Closes the large runs that are settled. A stop does not wait for a lock that is in the way: then the next writer
/// does it.
async fn close_settled(db: &Db, via: Via, stop: &CancellationToken) -> Result<(), WriterError> {
    tokio::select! {
        // First, so that it is begun whatever comes: the database's thread ends what it has begun.
        biased;
        closed = db.patiently(move |store| store.close_settled(via)) => tell(&closed?),
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Applies a batch; waits for another program's lock, with nothing acked meanwhile.
async fn commit(
    db: &Db,
    via: Via,
    batch: Vec<Incoming>,
    stop: &CancellationToken,
) -> Result<Applied, WriterError> {
    let batch = Arc::new(batch);
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    tokio::select! {
        applied = db.patiently(move |store| store.apply(via, &batch)) => Ok(applied?),
        // Whether it is committed is unknown now; it is not acked, so redelivery tells.
        () = deadline => Err(WriterError::StopDeadline { seconds: STOP_DEADLINE.as_secs() }),
    }
}

/// Tells of runs that were closed.
fn tell(closed: &[ClosedRun]) {
    for run in closed {
        tracing::info!(run = run.run, complete = run.complete, "run closed");
    }
}

/// Acks tags in their order: with one frame, unless deliveries between them must stay unsettled.
async fn ack(
    consumer: &mut dyn Consumer,
    tags: &[DeliveryTag],
    one_by_one: bool,
) -> Result<(), BrokerError> {
    if one_by_one {
        for tag in tags {
            consumer.ack(*tag, false).await?;
        }
    } else if let Some(last) = tags.last() {
        consumer.ack(*last, true).await?;
    }
    Ok(())
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
