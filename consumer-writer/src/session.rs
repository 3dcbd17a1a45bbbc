//! One session of the writer: three consumers, batches, commits and acks.

use std::{collections::BTreeMap, time::Duration};

use futures_util::FutureExt;
use pingfleet_broker::{BrokerError, DeliveryTag, QueueName, Reconnects};
use pingfleet_store::{DatabaseThread, Refusal, Transport};
use pingfleet_wire::timing::WRITER_ALIVE_INTERVAL;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    LastCommit, WriterError, WriterSettings, WriterSummary,
    batch::{Batch, Foreign},
    commit::{close_settled_runs, commit, log_closed_runs, log_dead_chunks, note_writer_alive},
    foreign::{ForeignAnswers, ForeignDelivery},
    received::{OTHER_PREFETCH, RESULTS_PREFETCH, Received, SessionConsumers},
    sender::NO_LOGIN,
    set_aside::{SetAside, of_login},
    watch_database,
};

/// A batch is committed when nothing was added to it for this long: probably it has the last result of a run.
const QUIET_INTERVAL: Duration = Duration::from_millis(5);

/// A session that is closed on request goes on without acks until the prefetch is used up, or until no result came for so
/// long. Then none is on its way, which would come again: a consumer must not be cancelled before.
const QUIET_BEFORE_CLOSE: Duration = Duration::from_secs(1);

/// After this time it is closed all the same.
const MAX_TIME_WITHOUT_ACKS: Duration = Duration::from_secs(30);

/// How long it waits for the confirms of results for other databases. The broker delivers those again that have none.
const MAX_WAIT_FOR_FOREIGN: Duration = Duration::from_secs(30);

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

/// Three consumers, and the batch that they fill.
pub(crate) struct WriterSession<'a> {
    db: &'a DatabaseThread,
    settings: &'a WriterSettings,
    consumers: SessionConsumers,
    set_aside: &'a mut SetAside,
    batch: Batch,
    /// When the batch is committed: the latest time, and the time when nothing was added for [`QUIET_INTERVAL`].
    flush_at: Option<Instant>,
    quiet_at: Option<Instant>,
    is_stopping: bool,
    reconnects: Reconnects,
    /// Set when the session is to be closed on request.
    last_acks: Option<LastAcks>,
    /// What is settled and acked later, because the session is to be closed.
    held_back: BTreeMap<QueueName, Vec<DeliveryTag>>,
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

impl<'a> WriterSession<'a> {
    pub(crate) fn new(
        consumers: SessionConsumers,
        reconnects: Reconnects,
        db: &'a DatabaseThread,
        settings: &'a WriterSettings,
        set_aside: &'a mut SetAside,
    ) -> Self {
        set_aside.foreign.begin_session();
        Self {
            db,
            settings,
            consumers,
            set_aside,
            batch: Batch::default(),
            flush_at: None,
            quiet_at: None,
            is_stopping: false,
            reconnects,
            last_acks: None,
            held_back: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(
        mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, WriterError> {
        let ended = self.drain(summary, stop).await;
        self.set_aside.warn(self.db.database(), true);
        match ended {
            Ok(end) => {
                self.consumers.close().await;
                Ok(end)
            }
            Err(WriterError::Broker(error)) if error.is_transient() => Ok(SessionEnd::Lost {
                error,
                unsettled: self.batch.tags()
                    + self.held_back.values().map(Vec::len).sum::<usize>()
                    + self.set_aside.foreign.in_hand(QueueName::RESULTS)
                    + self.set_aside.foreign.in_hand(QueueName::DEAD),
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
        self.close_settled_runs(summary, stop).await?;
        loop {
            if self.is_full() {
                self.flush(summary, stop).await?;
            }
            if let Some(received) = self.consumers.take_waiting() {
                self.take(received);
                continue;
            }
            self.consumers.check()?;
            let close_at = (self.last_acks.as_ref()).map(|last| last.at(self.is_used_up()));
            let flush_at = [self.flush_at, self.quiet_at].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.reconnects.next(), if self.last_acks.is_none() => {
                    self.last_acks = Some(LastAcks::begin());
                }
                () = wait_until(close_at) => {
                    self.finish_for_a_new_session(summary, stop).await?;
                    return Ok(SessionEnd::ClosedOnRequest);
                }
                () = wait_until(flush_at) => self.flush(summary, stop).await?,
                _ = sign.tick() => {
                    let noted = note_writer_alive(self.db, self.settings.transport, stop);
                    let noted = watch_database(summary, noted);
                    self.consumers.receive_while(noted).await?;
                    self.set_aside.warn(self.db.database(), false);
                }
                answers = self.set_aside.foreign.answers() => self.settle_foreign(answers, summary).await?,
                received = self.consumers.next() => self.take(received?),
            }
        }
        self.is_stopping = true;
        if let Some(answers) = self.set_aside.foreign.answers().now_or_never() {
            self.settle_foreign(answers, summary).await?;
        }
        if self.settings.transport == Transport::Broker {
            self.consumers.stop().await?;
        }
        self.take_waiting(summary, stop).await?;
        if self.settings.transport == Transport::Sweep {
            // The queues end with this process, and the worker has stopped: take its last results.
            while let Some(delivery) = self.consumers.results.next().now_or_never() {
                self.take(Received::new(QueueName::RESULTS, delivery?));
                self.take_waiting(summary, stop).await?;
            }
            self.consumers.stop().await?;
        }
        self.flush_and_ack_all(summary, stop).await?;
        Ok(SessionEnd::Stopped)
    }

    /// Takes what the consumers have buffered, and settles all of it, so that nothing returns to the queues when the session
    /// is closed.
    async fn finish_for_a_new_session(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        self.consumers.cancel().await?;
        self.take_waiting(summary, stop).await?;
        let latest = Instant::now() + MAX_WAIT_FOR_FOREIGN;
        let mut sign = tokio::time::interval(WRITER_ALIVE_INTERVAL);
        while self.set_aside.foreign.has_in_hand() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = sign.tick() => {
                    let noted = note_writer_alive(self.db, self.settings.transport, stop);
                    watch_database(summary, noted).await?;
                }
                answers = self.set_aside.foreign.answers() => self.settle_foreign(answers, summary).await?,
                () = tokio::time::sleep_until(latest) => break,
            }
        }
        self.flush_and_ack_all(summary, stop).await
    }

    /// Commits the batch, and acks it with what was held back.
    async fn flush_and_ack_all(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        self.flush(summary, stop).await?;
        self.last_acks = None;
        for (queue, tags) in std::mem::take(&mut self.held_back) {
            self.consumers.of(queue).ack(&tags).await?;
        }
        Ok(())
    }

    /// Acks what is settled, or notes that it is acked later.
    async fn ack(&mut self, queue: QueueName, tags: Vec<DeliveryTag>) -> Result<(), BrokerError> {
        if self.last_acks.is_some() {
            self.held_back.entry(queue).or_default().extend(tags);
            return Ok(());
        }
        self.consumers.of(queue).ack(&tags).await
    }

    /// Takes what arrived during a commit, and commits full batches.
    async fn take_waiting(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        loop {
            if self.is_full() {
                self.flush(summary, stop).await?;
            }
            let Some(received) = self.consumers.take_waiting() else {
                return Ok(());
            };
            self.take(received);
        }
    }

    async fn close_settled_runs(
        &mut self,
        summary: &watch::Sender<WriterSummary>,
        stop: &CancellationToken,
    ) -> Result<(), WriterError> {
        let closed = close_settled_runs(self.db, self.settings.transport, stop);
        let closed = watch_database(summary, closed);
        self.consumers.receive_while(closed).await
    }

    fn take(&mut self, received: Received) {
        let (queue, tag) = (received.queue, received.delivery.tag);
        let database = self.db.database();
        if queue == QueueName::RESULTS
            && let Some(last_acks) = &mut self.last_acks
        {
            last_acks.quiet_at = Instant::now() + QUIET_BEFORE_CLOSE;
        }
        if let Err(foreign) = self.batch.take(received, database, self.settings) {
            // Those that a stopping writer takes stay unsettled, and so return to their queue.
            if !self.is_stopping {
                let Foreign {
                    database,
                    body,
                    login,
                    dead_letter_reason,
                } = foreign;
                let name = of_login(&database.to_string(), login.as_deref());
                self.set_aside.for_others.add(name, 1);
                self.set_aside.foreign.set_aside(ForeignDelivery {
                    queue,
                    tag,
                    database,
                    body,
                    login,
                    dead_letter_reason,
                });
            }
            return;
        }
        if queue == QueueName::RESULTS {
            self.quiet_at = Some(Instant::now() + QUIET_INTERVAL);
        }
        self.flush_soon();
    }

    fn flush_soon(&mut self) {
        if self.flush_at.is_none() {
            self.flush_at = Some(Instant::now() + self.settings.batch_interval);
        }
    }

    /// Acks deliveries that the queue of foreign messages has. What it does not take goes to the quarantine.
    async fn settle_foreign(
        &mut self,
        answers: ForeignAnswers,
        summary: &watch::Sender<WriterSummary>,
    ) -> Result<(), WriterError> {
        for (queue, tags) in answers.stored {
            summary.send_modify(|summary| summary.foreign += tags.len() as u64);
            self.ack(queue, tags).await?;
        }
        for (queue, tag) in answers.unknown {
            self.consumers.of(queue).requeue(tag).await?;
        }
        for refused in answers.refused {
            let refusal = Refusal::new(
                "for another database, and the queue `foreign` takes no more",
                format!("database {}", refused.database),
            );
            let ForeignDelivery {
                queue,
                tag,
                body,
                login,
                ..
            } = refused;
            self.batch.quarantine(queue, tag, body, login, refusal);
            self.quiet_at = Some(Instant::now() + QUIET_INTERVAL);
            self.flush_soon();
        }
        Ok(())
    }

    /// Whether the broker may deliver no more of a queue before something is acked.
    fn is_used_up(&self) -> bool {
        let queues = [
            (QueueName::RESULTS, &self.batch.results, RESULTS_PREFETCH),
            (QueueName::DEAD, &self.batch.dead, OTHER_PREFETCH),
            (
                QueueName::HEARTBEATS,
                &self.batch.heartbeats,
                OTHER_PREFETCH,
            ),
        ];
        queues.iter().any(|(queue, batch, prefetch)| {
            let held_back = self.held_back.get(queue).map_or(0, Vec::len);
            let foreign = self.set_aside.foreign.in_hand(*queue);
            held_back + batch.len() + foreign >= usize::from(*prefetch)
        })
    }

    /// A batch is full when it has enough rows, or half of the prefetch. The other half arrives during the commit.
    fn is_full(&self) -> bool {
        let half = |prefetch: u16, queue| {
            let in_hand = self.set_aside.foreign.in_hand(queue);
            (usize::from(prefetch).saturating_sub(in_hand) / 2).max(1)
        };
        self.batch.rows >= self.settings.batch_size
            || self.batch.results.len() >= half(RESULTS_PREFETCH, QueueName::RESULTS)
            || self.batch.dead.len() >= half(OTHER_PREFETCH, QueueName::DEAD)
            || self.batch.heartbeats.len() >= usize::from(OTHER_PREFETCH / 2)
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
        if batch.bad_heartbeats > 0 {
            let name = "that cannot be read".to_owned();
            (self.set_aside.refused_heartbeats).add(name, batch.bad_heartbeats);
        }
        if batch.heartbeats_without_login > 0 {
            let (name, count) = (NO_LOGIN.to_owned(), batch.heartbeats_without_login);
            self.set_aside.refused_heartbeats.add(name, count);
        }
        if !batch.is_empty() {
            // Nobody has to wake up for it.
            summary.send_if_modified(|summary| {
                summary.waiting_since = batch.first_at;
                false
            });
            let began = Instant::now();
            let commit = commit(self.db, self.settings.transport, batch.incoming, stop);
            let commit = watch_database(summary, commit);
            let applied = self.consumers.receive_while(commit).await?;
            let ended = Instant::now();
            let last_commit = LastCommit {
                rows: applied.rows,
                duration: ended - began,
                lag: batch.first_at.map_or(Duration::ZERO, |at| ended - at),
                at: Some(ended),
            };
            summary.send_modify(|summary| summary.add(&applied, last_commit));
            is_large_run_settled = applied.is_large_run_settled;
            self.set_aside.count(&applied);
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
        // The deliveries of a session that has ended come again.
        self.consumers.check()?;
        self.ack(QueueName::RESULTS, batch.results).await?;
        self.ack(QueueName::DEAD, batch.dead).await?;
        self.ack(QueueName::HEARTBEATS, batch.heartbeats).await?;
        if is_large_run_settled {
            self.close_settled_runs(summary, stop).await?;
        }
        Ok(())
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
