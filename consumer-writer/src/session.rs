//! One session of the writer: three consumers, batches, commits and acks.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, Consumer, Delivery, DeliveryTag, QueueName, Reconnects,
};
use pingfleet_store::{
    Applied, ClosedRun, DatabaseThread, DeadChunks, DecodedDelivery, Transport, run_span,
};
use pingfleet_wire::timing::WRITER_ALIVE_INTERVAL;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    LastCommit, QUEUES, WriterError, WriterSettings, WriterSummary, batch::Batch, watch_database,
};

/// Prefetch of the results queue. It bounds the memory to 256 MiB with the largest messages. Usual ones take 5 MB.
const RESULTS_PREFETCH: u16 = 256;

/// Prefetch of the queues of dead letters and heartbeats.
const OTHER_PREFETCH: u16 = 256;

/// A batch is committed when nothing was added to it for this long: probably it has the last result of a run.
const QUIET_INTERVAL: Duration = Duration::from_millis(5);

/// A session that is closed on request goes on without acks until the prefetch is used up, or until no result came for so
/// long. Then none is on its way, which would come again: a consumer must not be cancelled before.
const QUIET_BEFORE_CLOSE: Duration = Duration::from_secs(1);

/// After this time it is closed all the same.
const MAX_TIME_WITHOUT_ACKS: Duration = Duration::from_secs(30);

/// How long the last commit may take after the stop signal.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The writer gives up when only results for other databases arrived for this long: it was probably started in the
/// wrong folder.
const ONLY_FOREIGN_WAIT: Duration = Duration::from_secs(10);

/// How often the writer warns that a policy of the broker removes chunks.
const POLICY_WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// How a session ended, if not with a [`WriterError`].
pub(crate) enum SessionEnd {
    /// By the stop signal. Everything in hand is committed and acked.
    Stopped,
    /// By a request for a new session. Everything in hand is committed and acked.
    ClosedOnRequest,
    /// By a broker error that a new session may fix.
    Lost {
        error: BrokerError,
        /// Deliveries in hand.
        unsettled: usize,
    },
}

/// Deliveries for other databases. They stay unsettled, so they return to the queue when the session ends.
#[derive(Default)]
struct ForeignResults {
    held: usize,
    theirs: Option<Uuid>,
    since: Option<Instant>,
    any_ours: bool,
}

/// Three consumers, and the batch that they fill.
pub(crate) struct WriterSession<'a> {
    db: &'a DatabaseThread,
    settings: &'a WriterSettings,
    results: Box<dyn Consumer>,
    dead: Box<dyn Consumer>,
    heartbeats: Box<dyn Consumer>,
    batch: Batch,
    /// When the batch is committed: the latest time, and the time when nothing was added for [`QUIET_INTERVAL`].
    flush_at: Option<Instant>,
    quiet_at: Option<Instant>,
    foreign: ForeignResults,
    policy_warned: Option<Instant>,
    reconnects: Reconnects,
    /// Set when the session is to be closed on request.
    last_acks: Option<LastAcks>,
    /// What is committed and not acked yet.
    unacked: BatchTags,
}

/// When a session that is closed on request acks everything and ends.
struct LastAcks {
    quiet_at: Instant,
    latest: Instant,
}

impl LastAcks {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            quiet_at: now + QUIET_BEFORE_CLOSE,
            latest: now + MAX_TIME_WITHOUT_ACKS,
        }
    }

    /// The time, when the prefetch is used up or not.
    fn at(&self, is_used_up: bool) -> Instant {
        if is_used_up {
            Instant::now()
        } else {
            self.quiet_at.min(self.latest)
        }
    }
}

/// Deliveries of the three queues.
#[derive(Default)]
struct BatchTags {
    results: Vec<DeliveryTag>,
    dead: Vec<DeliveryTag>,
    heartbeats: Vec<DeliveryTag>,
}

impl BatchTags {
    fn append(&mut self, mut other: Self) {
        self.results.append(&mut other.results);
        self.dead.append(&mut other.dead);
        self.heartbeats.append(&mut other.heartbeats);
    }
}

impl<'a> WriterSession<'a> {
    pub(crate) async fn open(
        broker: &dyn Broker,
        db: &'a DatabaseThread,
        settings: &'a WriterSettings,
    ) -> Result<Self, BrokerError> {
        let reconnects = broker.reconnects();
        broker.ensure(&QUEUES).await?;
        Ok(Self {
            db,
            settings,
            results: broker
                .consumer(QueueName::RESULTS, RESULTS_PREFETCH)
                .await?,
            dead: broker.consumer(QueueName::DEAD, OTHER_PREFETCH).await?,
            heartbeats: broker
                .consumer(QueueName::HEARTBEATS, OTHER_PREFETCH)
                .await?,
            batch: Batch::default(),
            flush_at: None,
            quiet_at: None,
            foreign: ForeignResults::default(),
            policy_warned: None,
            reconnects,
            last_acks: None,
            unacked: BatchTags::default(),
        })
    }

    pub(crate) async fn run(
        mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, WriterError> {
        match self.drain(summary, stop).await {
            Ok(end) => {
                let Self {
                    results,
                    dead,
                    heartbeats,
                    ..
                } = self;
                results.close().await;
                dead.close().await;
                heartbeats.close().await;
                Ok(end)
            }
            Err(WriterError::Broker(error)) if error.is_transient() => Ok(SessionEnd::Lost {
                error,
                unsettled: self.batch.tags() + self.unacked.results.len(),
            }),
            Err(error) => Err(error),
        }
    }

    async fn drain(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, WriterError> {
        let mut sign = tokio::time::interval(WRITER_ALIVE_INTERVAL);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // An earlier writer or session may have ended before it closed a large run.
        watch_database(
            summary,
            close_settled_runs(self.db, self.settings.transport, stop),
        )
        .await?;
        loop {
            if self.is_full() {
                self.flush(summary, stop).await?;
            }
            self.look_for_only_foreign()?;
            let close_at = (self.last_acks.as_ref()).map(|last| last.at(self.is_used_up()));
            let flush_at = [self.flush_at, self.quiet_at].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.reconnects.next(), if self.last_acks.is_none() => {
                    self.last_acks = Some(LastAcks::begin());
                }
                () = wait_until(close_at) => {
                    return self.finish_for_a_new_session(summary, stop).await;
                }
                () = wait_until(flush_at) => self.flush(summary, stop).await?,
                _ = sign.tick() => {
                    let noted = note_writer_alive(self.db, self.settings.transport, stop);
                    watch_database(summary, noted).await?;
                }
                // Heartbeats and dead letters first: they are few, and the results would starve them.
                delivery = self.heartbeats.next() => self.take(QueueName::HEARTBEATS, delivery?),
                delivery = self.dead.next() => self.take(QueueName::DEAD, delivery?),
                delivery = self.results.next() => self.take(QueueName::RESULTS, delivery?),
            }
        }
        if self.settings.transport == Transport::Sweep {
            // The queues end with this process, and the worker has stopped: take its last results.
            while let Some(delivery) = self.results.next().now_or_never() {
                self.take(QueueName::RESULTS, delivery?);
                if self.is_full() {
                    self.flush(summary, stop).await?;
                }
            }
        }
        self.results.stop().await?;
        self.dead.stop().await?;
        self.heartbeats.stop().await?;
        self.last_acks = None;
        self.flush(summary, stop).await?;
        Ok(SessionEnd::Stopped)
    }

    /// Takes what the consumers have buffered, and commits and acks all of it, so that nothing returns to the queues when the
    /// session is closed.
    async fn finish_for_a_new_session(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, WriterError> {
        for delivery in self.results.cancel().await? {
            self.take(QueueName::RESULTS, delivery);
        }
        for delivery in self.dead.cancel().await? {
            self.take(QueueName::DEAD, delivery);
        }
        for delivery in self.heartbeats.cancel().await? {
            self.take(QueueName::HEARTBEATS, delivery);
        }
        self.last_acks = None;
        self.flush(summary, stop).await?;
        Ok(SessionEnd::ClosedOnRequest)
    }

    /// Acks what is committed, or notes that it is acked later.
    async fn ack(&mut self, batch: BatchTags) -> Result<(), BrokerError> {
        self.unacked.append(batch);
        if self.last_acks.is_some() {
            return Ok(());
        }
        let BatchTags {
            results,
            dead,
            heartbeats,
        } = std::mem::take(&mut self.unacked);
        self.results.ack(&results).await?;
        self.dead.ack(&dead).await?;
        self.heartbeats.ack(&heartbeats).await
    }

    fn take(&mut self, queue: QueueName, delivery: Delivery) {
        match self.batch.take(queue, delivery, self.db.database()) {
            Ok(()) => {
                if queue == QueueName::RESULTS {
                    if let Some(last_acks) = &mut self.last_acks {
                        last_acks.quiet_at = Instant::now() + QUIET_BEFORE_CLOSE;
                    }
                    self.foreign.any_ours = true;
                    self.quiet_at = Some(Instant::now() + QUIET_INTERVAL);
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

    /// Whether the broker may deliver no more results before one is acked.
    fn is_used_up(&self) -> bool {
        let unacked = self.unacked.results.len() + self.batch.results.len() + self.foreign.held;
        unacked >= usize::from(RESULTS_PREFETCH)
    }

    /// A batch is full when it has enough rows, or half of the prefetch. The other half arrives during the commit.
    fn is_full(&self) -> bool {
        let window = usize::from(RESULTS_PREFETCH).saturating_sub(self.foreign.held);
        self.batch.rows >= self.settings.batch_size
            || self.batch.results.len() >= (window / 2).max(1)
            || self.batch.dead.len() >= usize::from(OTHER_PREFETCH / 2)
            || self.batch.heartbeats.len() >= usize::from(OTHER_PREFETCH / 2)
    }

    /// Warns, at most once a minute, that the broker removed chunks from the queue of work.
    fn warn_of_policy(&mut self, removed: u64) {
        let is_due = self
            .policy_warned
            .is_none_or(|at| at.elapsed() >= POLICY_WARNING_INTERVAL);
        if removed > 0 && is_due {
            self.policy_warned = Some(Instant::now());
            tracing::warn!(
                chunks = removed,
                "a policy of the broker (message-ttl or max-length) removes chunks from the queue of work, and they are published \
                 again: `rabbitmqctl list_policies` names it"
            );
        }
    }

    fn look_for_only_foreign(&self) -> Result<(), WriterError> {
        let ForeignResults {
            held,
            theirs: Some(theirs),
            since: Some(since),
            any_ours,
        } = self.foreign
        else {
            return Ok(());
        };
        let waited = since.elapsed() >= ONLY_FOREIGN_WAIT && !any_ours;
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
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        self.flush_at = None;
        self.quiet_at = None;
        let batch = std::mem::take(&mut self.batch);
        let mut is_large_run_settled = false;
        if !batch.is_empty() {
            // Nobody has to wake up for it.
            summary.send_if_modified(|summary| {
                summary.waiting_since = batch.first_at;
                false
            });
            let began = Instant::now();
            let commit = commit(self.db, self.settings.transport, batch.incoming, stop);
            let applied = watch_database(summary, commit).await?;
            let ended = Instant::now();
            let last_commit = LastCommit {
                rows: applied.rows,
                duration: ended - began,
                lag: batch.first_at.map_or(Duration::ZERO, |at| ended - at),
                at: Some(ended),
            };
            summary.send_modify(|summary| summary.add(&applied, last_commit));
            is_large_run_settled = applied.is_large_run_settled;
            self.warn_of_policy(applied.removed_by_policy);
            log_dead_chunks(&applied.dead);
            log_closed_runs(&applied.closed);
            tracing::debug!(
                rows = applied.rows,
                chunks = applied.applied,
                duplicates = applied.duplicates,
                quarantined = applied.quarantined,
                "batch committed"
            );
        }
        self.ack(BatchTags {
            results: batch.results,
            dead: batch.dead,
            heartbeats: batch.heartbeats,
        })
        .await?;
        if is_large_run_settled {
            watch_database(
                summary,
                close_settled_runs(self.db, self.settings.transport, stop),
            )
            .await?;
        }
        Ok(())
    }
}

// These are not methods: a consumer is not `Sync`, so a future that borrows the session cannot be spawned.

/// Records that the writer is alive. Waits while another program has the database's lock: nothing could be committed
/// meanwhile anyway.
pub(crate) async fn note_writer_alive(
    db: &DatabaseThread,
    transport: Transport,
    stop: &CancellationToken,
) -> Result<(), WriterError> {
    let holder = format!("pid {}", std::process::id());
    tokio::select! {
        seen = db.call_while_busy(move |store| store.note_writer_alive(transport, &holder)) => Ok(seen?),
        () = stop.cancelled() => Ok(()),
    }
}

/// Closes settled large runs. The stop signal ends a wait for another program's lock. The next writer closes them then.
async fn close_settled_runs(
    db: &DatabaseThread,
    transport: Transport,
    stop: &CancellationToken,
) -> Result<(), WriterError> {
    tokio::select! {
        // First, so that the call is always sent: the database's thread completes it even when this future is dropped.
        biased;
        closed = db.call_while_busy(move |store| store.close_settled_runs(transport)) => log_closed_runs(&closed?),
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Applies a batch. Waits while another program has the database's lock. Nothing is acked meanwhile.
async fn commit(
    db: &DatabaseThread,
    transport: Transport,
    batch: Vec<DecodedDelivery>,
    stop: &CancellationToken,
) -> Result<Applied, WriterError> {
    let batch = Arc::new(batch);
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    tokio::select! {
        applied = db.call_while_busy(move |store| store.apply(transport, &batch)) => Ok(applied?),
        // It is unknown whether the batch is committed. It is not acked, so it is redelivered.
        () = deadline => Err(WriterError::StopDeadline { seconds: STOP_DEADLINE.as_secs() }),
    }
}

/// Logs the runs that were closed.
fn log_closed_runs(closed: &[ClosedRun]) {
    for run in closed {
        run_span(run.run, run.run_id)
            .in_scope(|| tracing::info!(complete = run.complete, "run closed"));
    }
}

/// Logs the chunks that became dead.
fn log_dead_chunks(dead: &[DeadChunks]) {
    for dead in dead {
        run_span(dead.run, dead.run_id).in_scope(|| {
            tracing::warn!(
                chunks = dead.chunks,
                "chunks came back too often and are dead: `pingfleet verify` lists them, `pingfleet retry` publishes them again"
            );
        });
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
