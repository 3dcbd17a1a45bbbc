//! Publishes messages until the broker has stored each of them, over as many sessions as that takes.
//!
//! Invariant: a message is forgotten only after its confirm, or given back to the caller after a refusal, if he wants that.
//! After any other answer, and after a lost session, the same bytes are published again, so a message may be stored more
//! than once.
//!
//! A session is open only while there is something to publish: it is opened for the first message, and closed when nothing
//! was sent for 10 s. So a broker that is away while there is nothing to publish is not noticed.

mod outgoing;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_wire::ChunkKey;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use self::outgoing::{Latest, Outgoing, next_latest};
use crate::{
    Broker, BrokerError, Confirmed, Origin, Publisher, QueueName, Reconnects, Sessions, backoff,
};

/// The longest pause before a refused message is published again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// A session is closed when nothing was sent for this long and nothing is unconfirmed. Heartbeats are more frequent, so a
/// worker keeps its session.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Names a message: for the publisher's caller, and in the log.
pub trait MessageKey: Copy + Send {
    /// The span of the log lines about the message. It is an error span: no level of the log leaves it out.
    fn span(self) -> Span;
}

/// A chunk, with its run.
impl MessageKey for ChunkKey {
    fn span(self) -> Span {
        tracing::error_span!("chunk", run_id = %self.run, chunk = self.chunk)
    }
}

/// A chunk of the run in whose span the publisher runs.
impl MessageKey for u32 {
    fn span(self) -> Span {
        tracing::error_span!("chunk", chunk = self)
    }
}

/// A message that is published until it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedMessage<K> {
    /// Names the message for the caller.
    pub key: K,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Why it is a dead letter, if it is one (see [`Origin`]).
    pub dead_letter_reason: Option<String>,
    /// Who published it first, if that was another login (see [`Origin`]).
    pub original_login: Option<String>,
}

impl<K> KeyedMessage<K> {
    /// A message that was not published before.
    pub fn new(key: K, body: Vec<u8>) -> Self {
        Self {
            key,
            body,
            dead_letter_reason: None,
            original_login: None,
        }
    }

    fn origin(&self) -> Origin<'_> {
        Origin {
            dead_letter_reason: self.dead_letter_reason.as_deref(),
            login: self.original_login.as_deref(),
        }
    }
}

/// A message that the broker has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedMessage<K> {
    /// The key of the [`KeyedMessage`].
    pub key: K,
    /// When it was sent for the last time. No stored copy of it that was sent later exists.
    pub last_sent: SystemTime,
    /// How often it was sent, in all sessions. The broker may have stored as many copies.
    pub sendings: u32,
}

/// What a [`ConfirmedPublisher`] publishes, and where.
#[derive(Debug)]
pub struct ConfirmedPublisher {
    broker: Arc<dyn Broker>,
    queue: QueueName,
    /// The queues that each new session checks.
    checked: Vec<QueueName>,
    /// What the messages are, for the log.
    what: &'static str,
    max_unconfirmed: usize,
    latest: Option<Latest>,
}

impl ConfirmedPublisher {
    /// Publishes to `queue`, with at most `max_unconfirmed` messages (0 counts as 1) that are not confirmed. `what` names
    /// the messages in the log.
    #[must_use]
    pub fn new(
        broker: Arc<dyn Broker>,
        queue: QueueName,
        what: &'static str,
        max_unconfirmed: usize,
    ) -> Self {
        Self {
            broker,
            queue,
            checked: vec![queue],
            what,
            max_unconfirmed: max_unconfirmed.max(1),
            latest: None,
        }
    }

    /// Checks these queues, too, before a session is opened (see [`Broker::ensure`]).
    #[must_use]
    pub fn with_checked(mut self, queues: &[QueueName]) -> Self {
        self.checked.extend(queues);
        self
    }

    /// Publishes `bodies` to `queue` beside the other messages. Only the newest one matters: it is published once, and
    /// again after each lost session. [`Self::run`] ends after the last one is answered.
    #[must_use]
    pub fn with_latest(
        mut self,
        queue: QueueName,
        mut bodies: watch::Receiver<Option<Vec<u8>>>,
    ) -> Self {
        bodies.mark_changed();
        self.checked.push(queue);
        self.latest = Some(Latest { queue, bodies });
        self
    }

    /// Publishes `messages`, in their order, until that channel is closed and all are confirmed. Sends each confirmed one to
    /// `confirmed`; the caller must receive them while it sends messages. `stop` ends it at once, but confirms that arrived
    /// before count. Returns how many messages are unconfirmed.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub async fn run<K: MessageKey>(
        self,
        messages: mpsc::Receiver<KeyedMessage<K>>,
        confirmed: mpsc::Sender<ConfirmedMessage<K>>,
        stop: CancellationToken,
    ) -> Result<usize, BrokerError> {
        self.publish(messages, confirmed, None, stop).await
    }

    /// As [`Self::run`], but a message that the broker refuses ([`Confirmed::Refused`]) is not published again: it is sent to
    /// `refused`, which the caller must receive as well.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub async fn run_without_repeats<K: MessageKey>(
        self,
        messages: mpsc::Receiver<KeyedMessage<K>>,
        confirmed: mpsc::Sender<ConfirmedMessage<K>>,
        refused: mpsc::Sender<KeyedMessage<K>>,
        stop: CancellationToken,
    ) -> Result<usize, BrokerError> {
        self.publish(messages, confirmed, Some(refused), stop).await
    }

    async fn publish<K: MessageKey>(
        self,
        messages: mpsc::Receiver<KeyedMessage<K>>,
        confirmed: mpsc::Sender<ConfirmedMessage<K>>,
        refused: Option<mpsc::Sender<KeyedMessage<K>>>,
        stop: CancellationToken,
    ) -> Result<usize, BrokerError> {
        let mut outgoing = Outgoing {
            refused,
            latest: self.latest,
            ..Outgoing::new(self.queue, self.max_unconfirmed, messages, confirmed)
        };
        let mut sessions = Sessions::new(self.what);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(outgoing.unconfirmed.len()),
                () = outgoing.wait() => {}
            }
            if outgoing.is_done() {
                return Ok(0);
            }
            // Not those that came before: the session to come is a new one anyway.
            let mut reconnects = self.broker.reconnects();
            let open = || async {
                self.broker.ensure(&self.checked).await?;
                self.broker.publisher().await
            };
            let Some(publisher) = sessions.open(None, &stop, open).await? else {
                return Ok(outgoing.unconfirmed.len());
            };
            let mut session = Session::new(publisher);
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = session.publish_all(&mut outgoing, &mut reconnects) => ended,
            };
            // Confirms that arrived before the end of the session count.
            session.take_ready_confirms(&mut outgoing);
            match ended {
                Ok(()) => {
                    // A broker that owes an answer may owe one to the close as well.
                    if session.answers.is_empty() {
                        session.publisher.close().await;
                    }
                    if stop.is_cancelled() {
                        return Ok(outgoing.unconfirmed.len());
                    }
                    // It was closed on purpose, so the next one is opened without a pause.
                    if session.is_ending {
                        sessions.closed_on_request();
                    } else {
                        sessions = Sessions::new(self.what);
                    }
                }
                Err(error) => {
                    sessions.lost(
                        error,
                        outgoing.unconfirmed.len(),
                        format_args!("unconfirmed {} are published again", self.what),
                    )?;
                    if let Some(latest) = &mut outgoing.latest {
                        latest.bodies.mark_changed();
                    }
                }
            }
        }
    }
}

/// The number of a message, and what the broker answered.
type Answer = (Option<u64>, Result<Confirmed, BrokerError>);

/// One session of publishing.
struct Session {
    publisher: Box<dyn Publisher>,
    /// The answers to come. Messages of which only the newest matters have no number.
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Refused messages that wait for their next try.
    refused: FuturesUnordered<BoxFuture<'static, u64>>,
    /// The pauses before refused messages are published again. They start anew when a message is stored.
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// When the session is closed, unless something is sent until then.
    idle_at: Instant,
    /// A new session is wanted: this one is closed when everything that was sent is answered.
    is_ending: bool,
}

impl Session {
    fn new(publisher: Box<dyn Publisher>) -> Self {
        Self {
            publisher,
            answers: FuturesUnordered::new(),
            refused: FuturesUnordered::new(),
            pauses: Box::new(backoff()),
            idle_at: Instant::now() + IDLE_TIMEOUT,
            is_ending: false,
        }
    }

    /// Publishes until no more can come, until the session is idle, or until a new one is wanted.
    async fn publish_all<K: MessageKey>(
        &mut self,
        outgoing: &mut Outgoing<K>,
        reconnects: &mut Reconnects,
    ) -> Result<(), BrokerError> {
        let queue = outgoing.queue;
        for (number, unconfirmed) in &mut outgoing.unconfirmed {
            self.send_numbered(queue, *number, unconfirmed.sending())
                .await?;
        }
        while !outgoing.is_done() || !self.answers.is_empty() {
            if self.is_ending && self.answers.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some((number, answer)) = self.answers.next() => {
                    if let Some(number) = number {
                        self.take_answer(outgoing, number, answer?).await?;
                    } else {
                        answer?;
                    }
                }
                () = reconnects.next() => self.is_ending = true,
                // A new session sends what was refused again.
                Some(number) = self.refused.next(), if !self.is_ending => {
                    self.send_message(outgoing, number).await?;
                }
                latest = next_latest(outgoing.latest.as_mut()), if !self.is_ending => match latest {
                    Some((queue, body)) => self.send(queue, None, &body, Origin::default()).await?,
                    None => outgoing.latest = None,
                },
                message = outgoing.messages.recv(), if outgoing.has_room() && !self.is_ending => match message {
                    Some(message) => {
                        // Added before it is sent: a publish that breaks the session must not lose the message.
                        let number = outgoing.add(message);
                        self.send_message(outgoing, number).await?;
                    }
                    None => outgoing.is_open = false,
                },
                () = tokio::time::sleep_until(self.idle_at),
                    if outgoing.unconfirmed.is_empty() && self.answers.is_empty() => return Ok(()),
            }
        }
        Ok(())
    }

    async fn send_message<K: Copy>(
        &mut self,
        outgoing: &mut Outgoing<K>,
        number: u64,
    ) -> Result<(), BrokerError> {
        let queue = outgoing.queue;
        if let Some(unconfirmed) = outgoing.unconfirmed.get_mut(&number) {
            self.send_numbered(queue, number, unconfirmed.sending())
                .await?;
        }
        Ok(())
    }

    async fn send_numbered<K>(
        &mut self,
        queue: QueueName,
        number: u64,
        message: &KeyedMessage<K>,
    ) -> Result<(), BrokerError> {
        self.send(queue, Some(number), &message.body, message.origin())
            .await
    }

    async fn send(
        &mut self,
        queue: QueueName,
        number: Option<u64>,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<(), BrokerError> {
        let publish = self.publisher.publish_again(queue, body, origin);
        let answer = publish.await?;
        self.idle_at = Instant::now() + IDLE_TIMEOUT;
        self.answers
            .push(async move { (number, answer.await) }.boxed());
        Ok(())
    }

    async fn take_answer<K: MessageKey>(
        &mut self,
        outgoing: &mut Outgoing<K>,
        number: u64,
        answer: Confirmed,
    ) -> Result<(), BrokerError> {
        match answer {
            Confirmed::Stored => {
                self.pauses = Box::new(backoff());
                if let Some(stored) = outgoing.unconfirmed.remove(&number)
                    && outgoing.confirmed.send(stored.confirmed()).await.is_err()
                {
                    let span = stored.message.key.span();
                    span.in_scope(|| tracing::debug!("nobody waits for a confirm"));
                }
            }
            // A binding is missing: the check of the next session binds again.
            Confirmed::Unroutable => {
                return Err(BrokerError::Lost(
                    "a message was returned because no queue is bound for it".into(),
                ));
            }
            Confirmed::Refused if outgoing.refused.is_some() => {
                outgoing.return_refused(number).await;
            }
            Confirmed::Refused => {
                let pause = self.pauses.next().unwrap_or(MAX_PAUSE);
                let refused = outgoing.unconfirmed.get(&number);
                let span = refused.map_or_else(Span::none, |refused| refused.message.key.span());
                let pause_ms = pause.as_millis() as u64;
                span.in_scope(|| tracing::warn!(pause_ms, "message refused, trying again"));
                // The other messages do not wait for it: a full queue refuses many at once.
                self.refused.push(
                    async move {
                        tokio::time::sleep(pause).await;
                        number
                    }
                    .boxed(),
                );
            }
        }
        Ok(())
    }

    /// Takes the confirms that are there already. A message for whose confirm the caller's channel has no room is published
    /// again.
    fn take_ready_confirms<K: Copy>(&mut self, outgoing: &mut Outgoing<K>) {
        while let Some(Some((number, answer))) = self.answers.next().now_or_never() {
            let (Some(number), Ok(Confirmed::Stored)) = (number, answer) else {
                continue;
            };
            if let Some(stored) = outgoing.unconfirmed.get(&number)
                && outgoing.confirmed.try_send(stored.confirmed()).is_ok()
            {
                outgoing.unconfirmed.remove(&number);
            }
        }
    }
}
