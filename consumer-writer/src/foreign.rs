//! Results and dead letters for other databases. They are published to a queue of their own, from which
//! `pingfleet broker foreign` lists and returns them, and acked after the confirm.
//!
//! Invariant: a delivery is acked after the broker has it in that queue, or in the quarantine after the broker refused it
//! or lets this user publish no more. Until then it stays unsettled: a session that ends returns it. What is in hand is
//! bounded by the prefetch.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, ConfirmedMessage, ConfirmedPublisher, DeliveryTag, KeyedMessage,
    MessageKey, QueueName,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use uuid::Uuid;

/// How many may wait for their confirm at a time.
const MAX_UNCONFIRMED: usize = 64;

/// How many bytes may wait for their confirm.
const MAX_UNCONFIRMED_BYTES: usize = 16 << 20;

/// When nothing was confirmed for this long although more waits, somebody may have to act.
const STALLED_AFTER: Duration = Duration::from_mins(1);

/// A message on its way to the queue of foreign ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ForeignKey(u64);

impl MessageKey for ForeignKey {
    fn span(self) -> Span {
        tracing::error_span!("foreign", message = self.0)
    }
}

/// A delivery for another database.
#[derive(Debug)]
pub(crate) struct ForeignDelivery {
    pub(crate) queue: QueueName,
    pub(crate) tag: DeliveryTag,
    pub(crate) database: Uuid,
    pub(crate) body: Vec<u8>,
    /// The login of its worker. None for a dead letter.
    pub(crate) login: Option<String>,
    /// Why it is a dead letter, if it is one.
    pub(crate) dead_letter_reason: Option<String>,
}

/// A message that waits for its confirm.
struct Unconfirmed {
    bytes: usize,
    database: Uuid,
    /// Where it came from. None when that session has ended: the broker delivers it again.
    delivery: Option<(QueueName, DeliveryTag)>,
}

/// What became of deliveries.
#[derive(Debug, Default)]
pub(crate) struct ForeignAnswers {
    /// The queue of foreign messages has these.
    pub(crate) stored: BTreeMap<QueueName, Vec<DeliveryTag>>,
    /// The queue does not take these.
    pub(crate) refused: Vec<ForeignDelivery>,
    /// It is unknown whether the queue has these, and nobody will say.
    pub(crate) unknown: Vec<(QueueName, DeliveryTag)>,
}

/// The messages that are set aside, over all sessions of the writer.
pub(crate) struct ForeignMessages {
    messages: mpsc::Sender<KeyedMessage<ForeignKey>>,
    confirmed: mpsc::Receiver<ConfirmedMessage<ForeignKey>>,
    refused: mpsc::Receiver<KeyedMessage<ForeignKey>>,
    /// Those for which there was no room yet, the oldest first.
    waiting: VecDeque<ForeignDelivery>,
    unconfirmed: HashMap<ForeignKey, Unconfirmed>,
    bytes: usize,
    next_key: u64,
    /// The last answer, the beginning of the session, or when the first of the unconfirmed ones was sent.
    progress: Instant,
    /// The publisher may publish no more.
    has_ended: bool,
}

impl ForeignMessages {
    /// The messages, and what publishes them until `stop`. The caller polls both.
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (messages, outgoing) = mpsc::channel(MAX_UNCONFIRMED);
        let (confirming, confirmed) = mpsc::channel(MAX_UNCONFIRMED);
        let (refusing, refused) = mpsc::channel(MAX_UNCONFIRMED);
        let publisher = ConfirmedPublisher::new(
            broker,
            QueueName::FOREIGN,
            "results for other databases",
            MAX_UNCONFIRMED,
        );
        let publishing = async move {
            let published = publisher.run_without_repeats(outgoing, confirming, refusing, stop);
            if let Err(error) = published.await {
                let advice = error.advice();
                tracing::warn!(%error, advice, "results for other databases cannot be set aside, and go to the quarantine");
            }
        };
        let foreign = Self {
            messages,
            confirmed,
            refused,
            waiting: VecDeque::new(),
            unconfirmed: HashMap::new(),
            bytes: 0,
            next_key: 0,
            progress: Instant::now(),
            has_ended: false,
        };
        (foreign, publishing)
    }

    /// Deliveries of an earlier session can no longer be acked: the broker delivers them again.
    pub(crate) fn begin_session(&mut self) {
        for waiting in self.unconfirmed.values_mut() {
            waiting.delivery = None;
        }
        self.waiting.clear();
        self.progress = Instant::now();
    }

    /// How many deliveries of a queue are unsettled.
    pub(crate) fn in_hand(&self, queue: QueueName) -> usize {
        let unconfirmed = self.unconfirmed.values();
        let sent = unconfirmed.filter(|sent| sent.delivery.is_some_and(|(of, _)| of == queue));
        let waiting = self.waiting.iter().filter(|waiting| waiting.queue == queue);
        sent.count() + waiting.count()
    }

    /// Whether a delivery is unsettled.
    pub(crate) fn has_in_hand(&self) -> bool {
        let mut unconfirmed = self.unconfirmed.values();
        !self.waiting.is_empty() || unconfirmed.any(|sent| sent.delivery.is_some())
    }

    /// How many wait for room although nothing was answered for a minute; 0 when nothing is wrong.
    pub(crate) fn stalled(&self) -> usize {
        if self.progress.elapsed() < STALLED_AFTER {
            return 0;
        }
        self.waiting.len()
    }

    /// Sets a delivery aside, now or when there is room.
    pub(crate) fn set_aside(&mut self, delivery: ForeignDelivery) {
        self.waiting.push_back(delivery);
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while self.unconfirmed.len() < MAX_UNCONFIRMED
            && self.bytes < MAX_UNCONFIRMED_BYTES
            && let Ok(place) = self.messages.try_reserve()
            && let Some(delivery) = self.waiting.pop_front()
        {
            if self.unconfirmed.is_empty() {
                self.progress = Instant::now();
            }
            let key = ForeignKey(self.next_key);
            self.next_key += 1;
            let sent = Unconfirmed {
                bytes: delivery.body.len(),
                database: delivery.database,
                delivery: Some((delivery.queue, delivery.tag)),
            };
            self.bytes += sent.bytes;
            self.unconfirmed.insert(key, sent);
            place.send(KeyedMessage {
                key,
                body: delivery.body,
                dead_letter_reason: delivery.dead_letter_reason,
                original_login: delivery.login,
            });
        }
    }

    /// Waits for answers, and returns what became of deliveries. Waits forever when there are none to come. Cancel-safe.
    pub(crate) async fn answers(&mut self) -> ForeignAnswers {
        let mut answers = ForeignAnswers::default();
        if self.has_ended && self.waiting.is_empty() {
            return std::future::pending().await;
        }
        // A publisher that has ended closes both channels. What it answered before counts.
        tokio::select! {
            biased;
            Some(refused) = self.refused.recv() => self.take_refused(refused, &mut answers),
            confirmed = self.confirmed.recv() => match confirmed {
                Some(confirmed) => self.take_confirmed(confirmed.key, &mut answers),
                None => self.end(&mut answers),
            },
        }
        while let Some(Some(refused)) = self.refused.recv().now_or_never() {
            self.take_refused(refused, &mut answers);
        }
        while let Some(Some(confirmed)) = self.confirmed.recv().now_or_never() {
            self.take_confirmed(confirmed.key, &mut answers);
        }
        self.progress = Instant::now();
        self.send_waiting();
        answers
    }

    fn take_confirmed(&mut self, key: ForeignKey, answers: &mut ForeignAnswers) {
        if let Some((queue, tag)) = self.answered(key).and_then(|sent| sent.delivery) {
            answers.stored.entry(queue).or_default().push(tag);
        }
    }

    fn take_refused(&mut self, refused: KeyedMessage<ForeignKey>, answers: &mut ForeignAnswers) {
        if let Some(sent) = self.answered(refused.key)
            && let Some((queue, tag)) = sent.delivery
        {
            answers.refused.push(ForeignDelivery {
                queue,
                tag,
                database: sent.database,
                body: refused.body,
                login: refused.original_login,
                dead_letter_reason: refused.dead_letter_reason,
            });
        }
    }

    fn answered(&mut self, key: ForeignKey) -> Option<Unconfirmed> {
        let sent = self.unconfirmed.remove(&key)?;
        self.bytes -= sent.bytes;
        Some(sent)
    }

    /// The publisher has ended: what waits is refused, and of what was sent nothing more is known.
    fn end(&mut self, answers: &mut ForeignAnswers) {
        self.has_ended = true;
        self.bytes = 0;
        let sent = self.unconfirmed.drain();
        answers
            .unknown
            .extend(sent.filter_map(|(_, sent)| sent.delivery));
        answers.refused.extend(self.waiting.drain(..));
    }
}

/// Checks that the user may set messages aside, before the writer takes any.
pub(crate) async fn may_set_aside(broker: &dyn Broker) -> Result<(), BrokerError> {
    // An alarm delays publishing, and forbids nothing.
    broker.alarm(QueueName::FOREIGN).await.map(drop)
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::MemoryBroker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_a_minute_without_an_answer_in_one_session() {
        let broker = Arc::new(MemoryBroker::new(1));
        // Nothing is published, because nobody polls the publisher.
        let (mut foreign, _publishing) = ForeignMessages::new(broker, CancellationToken::new());
        let set_aside = |foreign: &mut ForeignMessages| {
            for tag in 0..=MAX_UNCONFIRMED as u64 {
                foreign.set_aside(ForeignDelivery {
                    queue: QueueName::RESULTS,
                    tag: DeliveryTag(tag),
                    database: Uuid::nil(),
                    body: Vec::new(),
                    login: None,
                    dead_letter_reason: None,
                });
            }
        };
        set_aside(&mut foreign);
        let results = foreign.in_hand(QueueName::RESULTS);
        assert_eq!((results, foreign.in_hand(QueueName::DEAD)), (65, 0));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(foreign.stalled(), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(foreign.stalled(), 1);
        foreign.begin_session();
        assert_eq!(foreign.in_hand(QueueName::RESULTS), 0);
        set_aside(&mut foreign);
        assert_eq!(foreign.stalled(), 0);
        tokio::time::advance(STALLED_AFTER).await;
        // Those of the session before still have the room.
        assert_eq!(foreign.stalled(), 65);
    }
}
