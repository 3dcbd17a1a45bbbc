//! Publishes messages until the broker has stored each of them, over as many sessions as that takes.
//!
//! Invariant: a message is forgotten only after its confirm. After any other answer, and after a lost session, the same
//! bytes are published again, so a message may be stored more than once.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Broker, BrokerError, Confirmed, Publisher, QueueName, Sessions, backoff, session_lost,
};

/// The longest pause before a refused message is published again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// A message that is published until it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedMessage<K> {
    /// Names the message for the caller.
    pub key: K,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// What a [`ConfirmedPublisher`] publishes, and where.
#[derive(Debug)]
pub struct ConfirmedPublisher {
    broker: Arc<dyn Broker>,
    queue: QueueName,
    /// What the messages are, for the log.
    what: &'static str,
    max_unconfirmed: usize,
    latest: Option<Latest>,
}

/// Messages of which only the newest matters.
#[derive(Debug)]
struct Latest {
    queue: QueueName,
    bodies: watch::Receiver<Option<Vec<u8>>>,
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
            what,
            max_unconfirmed: max_unconfirmed.max(1),
            latest: None,
        }
    }

    /// Publishes `bodies` to `queue` beside the other messages. Only the newest one matters: it is published once in each
    /// session, and none is published again. [`Self::run`] ends after the last one is answered.
    #[must_use]
    pub fn with_latest(
        mut self,
        queue: QueueName,
        bodies: watch::Receiver<Option<Vec<u8>>>,
    ) -> Self {
        self.latest = Some(Latest { queue, bodies });
        self
    }

    /// Publishes `messages` until that channel is closed and all are confirmed. Sends the key of each confirmed message to
    /// `confirmed`; the caller must receive them while it sends messages. `stop` ends it at once. Returns how many
    /// messages are unconfirmed.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub async fn run<K: fmt::Debug + Copy + Send>(
        self,
        messages: mpsc::Receiver<KeyedMessage<K>>,
        confirmed: mpsc::Sender<K>,
        stop: CancellationToken,
    ) -> Result<usize, BrokerError> {
        let mut queues = vec![self.queue];
        queues.extend(self.latest.as_ref().map(|latest| latest.queue));
        let mut outgoing = Outgoing {
            queue: self.queue,
            max_unconfirmed: self.max_unconfirmed,
            messages,
            is_open: true,
            confirmed,
            unconfirmed: BTreeMap::new(),
            next_number: 0,
            latest: self.latest,
        };
        let mut sessions = Sessions::default();
        loop {
            let open = || async {
                self.broker.check(&queues).await?;
                self.broker.publisher().await
            };
            let Some(publisher) = sessions.open(None, &stop, open).await? else {
                return Ok(outgoing.unconfirmed.len());
            };
            let mut session = Session::new(publisher);
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = session.publish_all(&mut outgoing) => ended,
            };
            // Confirms that arrived before the end of the session count.
            session.take_ready_confirms(&mut outgoing);
            match ended {
                Ok(()) => {
                    if !stop.is_cancelled() {
                        session.publisher.close().await;
                    }
                    return Ok(outgoing.unconfirmed.len());
                }
                Err(error) => session_lost(
                    error,
                    outgoing.unconfirmed.len(),
                    format_args!("unconfirmed {} are published again", self.what),
                )?,
            }
        }
    }
}

/// What is to be published, over all sessions.
struct Outgoing<K> {
    queue: QueueName,
    max_unconfirmed: usize,
    messages: mpsc::Receiver<KeyedMessage<K>>,
    /// Whether more messages may come.
    is_open: bool,
    confirmed: mpsc::Sender<K>,
    /// By the order in which they came.
    unconfirmed: BTreeMap<u64, KeyedMessage<K>>,
    next_number: u64,
    latest: Option<Latest>,
}

impl<K> Outgoing<K> {
    fn is_done(&self) -> bool {
        !self.is_open && self.unconfirmed.is_empty() && self.latest.is_none()
    }

    fn has_room(&self) -> bool {
        self.is_open && self.unconfirmed.len() < self.max_unconfirmed
    }

    fn add(&mut self, message: KeyedMessage<K>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.unconfirmed.insert(number, message);
        number
    }
}

/// The next message of which only the newest matters. `None` when there are no more. Cancel-safe.
async fn next_latest(latest: Option<&mut Latest>) -> Option<(QueueName, Vec<u8>)> {
    let Some(latest) = latest else {
        return std::future::pending().await;
    };
    loop {
        latest.bodies.changed().await.ok()?;
        if let Some(body) = latest.bodies.borrow_and_update().clone() {
            return Some((latest.queue, body));
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
}

impl Session {
    fn new(publisher: Box<dyn Publisher>) -> Self {
        Self {
            publisher,
            answers: FuturesUnordered::new(),
            refused: FuturesUnordered::new(),
            pauses: Box::new(backoff()),
        }
    }

    async fn publish_all<K: fmt::Debug + Copy>(
        &mut self,
        outgoing: &mut Outgoing<K>,
    ) -> Result<(), BrokerError> {
        if let Some(latest) = &mut outgoing.latest {
            latest.bodies.mark_changed();
        }
        for (number, message) in &outgoing.unconfirmed {
            self.send(outgoing.queue, Some(*number), &message.body)
                .await?;
        }
        while !outgoing.is_done() || !self.answers.is_empty() {
            tokio::select! {
                biased;
                Some((number, answer)) = self.answers.next() => {
                    if let Some(number) = number {
                        self.take_answer(outgoing, number, answer?).await?;
                    } else {
                        answer?;
                    }
                }
                Some(number) = self.refused.next() => {
                    if let Some(message) = outgoing.unconfirmed.get(&number) {
                        self.send(outgoing.queue, Some(number), &message.body).await?;
                    }
                }
                latest = next_latest(outgoing.latest.as_mut()) => match latest {
                    Some((queue, body)) => self.send(queue, None, &body).await?,
                    None => outgoing.latest = None,
                },
                message = outgoing.messages.recv(), if outgoing.has_room() => match message {
                    Some(message) => {
                        // Added before it is sent: a publish that breaks the session must not lose the message.
                        let number = outgoing.add(message);
                        let body = &outgoing.unconfirmed[&number].body;
                        self.send(outgoing.queue, Some(number), body).await?;
                    }
                    None => outgoing.is_open = false,
                },
            }
        }
        Ok(())
    }

    async fn send(
        &mut self,
        queue: QueueName,
        number: Option<u64>,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let answer = self.publisher.publish(queue, body).await?;
        self.answers
            .push(async move { (number, answer.await) }.boxed());
        Ok(())
    }

    async fn take_answer<K: fmt::Debug + Copy>(
        &mut self,
        outgoing: &mut Outgoing<K>,
        number: u64,
        answer: Confirmed,
    ) -> Result<(), BrokerError> {
        match answer {
            Confirmed::Stored => {
                self.pauses = Box::new(backoff());
                if let Some(message) = outgoing.unconfirmed.remove(&number)
                    && outgoing.confirmed.send(message.key).await.is_err()
                {
                    tracing::debug!(key = ?message.key, "nobody waits for a confirm");
                }
            }
            // A binding is missing: the check of the next session binds again.
            Confirmed::Unroutable => {
                return Err(BrokerError::Lost(
                    "a message was returned because no queue is bound for it".into(),
                ));
            }
            Confirmed::Refused => {
                let pause = self.pauses.next().unwrap_or(MAX_PAUSE);
                let key = outgoing.unconfirmed.get(&number).map(|message| message.key);
                tracing::warn!(?key, ?pause, "message refused, trying again");
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

    /// Takes the confirms that are there already. A key for which the caller's channel has no room is published again.
    fn take_ready_confirms<K: Copy>(&mut self, outgoing: &mut Outgoing<K>) {
        while let Some(Some((number, answer))) = self.answers.next().now_or_never() {
            let (Some(number), Ok(Confirmed::Stored)) = (number, answer) else {
                continue;
            };
            if let Some(message) = outgoing.unconfirmed.get(&number)
                && outgoing.confirmed.try_send(message.key).is_ok()
            {
                outgoing.unconfirmed.remove(&number);
            }
        }
    }
}
