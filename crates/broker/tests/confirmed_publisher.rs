//! The promises of the [`ConfirmedPublisher`], over RabbitMQ and in process.

#[expect(dead_code, reason = "the rig serves the contract tests, too")]
mod rig;
#[macro_use]
#[path = "rig/over_both_brokers.rs"]
mod over_both_brokers;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Confirmed, ConfirmedMessage, ConfirmedPublisher, Consumer,
    KeyedMessage, Origin, Publisher, QueueDepth, QueueName,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, TIMEOUT, next};

const MESSAGES: u32 = 60;

const MAX_UNCONFIRMED: usize = 7;

over_both_brokers!(
    every_message_is_stored_once_when_nothing_fails,
    every_message_is_stored_and_confirmed_once_when_sessions_break,
    a_confirm_has_the_number_of_sendings_and_the_time_of_the_last_one,
    a_session_checks_the_queues_that_it_is_asked_to,
    a_stop_ends_it_at_once_with_the_number_of_unconfirmed_messages,
    a_refused_message_is_given_back_if_the_caller_wants_that,
    the_newest_of_the_other_messages_is_published_beside_the_rest,
);

/// What fails. Publishes are counted over all sessions, from 1.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The 5th publish breaks its session before the message is sent, the 14th is refused, and the 23rd is stored and loses
    /// its confirm with its session.
    Several,
    /// This publish breaks its session before the message is sent.
    Breaks(usize),
    /// No confirm ever comes.
    NoConfirms,
}

/// A broker with faults, which counts sessions and unconfirmed messages.
struct FaultyBroker {
    inner: Arc<dyn Broker>,
    fault: Fault,
    published: AtomicUsize,
    unconfirmed: Arc<AtomicUsize>,
    most_unconfirmed: AtomicUsize,
    /// Each publish, with its time.
    sendings: Mutex<Vec<(Vec<u8>, SystemTime)>>,
    checked: Mutex<Vec<QueueName>>,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl FaultyBroker {
    fn new(rig: &Rig, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(&rig.broker),
            fault,
            published: AtomicUsize::new(0),
            unconfirmed: Arc::default(),
            most_unconfirmed: AtomicUsize::new(0),
            sendings: Mutex::default(),
            checked: Mutex::default(),
            opened: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        })
    }

    /// How many sessions were opened, and how many of them were closed.
    fn sessions(&self) -> (usize, usize) {
        let count = |sessions: &AtomicUsize| sessions.load(Ordering::Relaxed);
        (count(&self.opened), count(&self.closed))
    }
}

impl fmt::Debug for FaultyBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

/// Shares its broker's faults.
#[derive(Debug)]
struct Shared(Arc<FaultyBroker>);

#[async_trait]
impl Broker for Shared {
    async fn ensure(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        locked(&self.0.checked).extend(queues);
        self.0.inner.ensure(queues).await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        self.0.unconfirmed.store(0, Ordering::Relaxed);
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(FaultyPublisher {
            broker: Arc::clone(&self.0),
            inner: self.0.inner.publisher().await?,
        }))
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        self.0.inner.consumer(queue, prefetch).await
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        self.0.inner.depth(queue).await
    }
}

struct FaultyPublisher {
    broker: Arc<FaultyBroker>,
    inner: Box<dyn Publisher>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> BrokerError {
    BrokerError::Lost("the test breaks the session".into())
}

#[async_trait]
impl Publisher for FaultyPublisher {
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError> {
        let sending = (body.to_vec(), SystemTime::now());
        locked(&self.broker.sendings).push(sending);
        let number = self.broker.published.fetch_add(1, Ordering::Relaxed) + 1;
        let unconfirmed = self.broker.unconfirmed.fetch_add(1, Ordering::Relaxed) + 1;
        self.broker
            .most_unconfirmed
            .fetch_max(unconfirmed, Ordering::Relaxed);
        let count = Arc::clone(&self.broker.unconfirmed);
        let several = matches!(self.broker.fault, Fault::Several);
        let breaks = matches!(self.broker.fault, Fault::Breaks(at) if at == number);
        if several && number == 5 || breaks {
            return Err(lost());
        }
        if several && number == 14 {
            // A refused message stays unconfirmed.
            count.fetch_sub(1, Ordering::Relaxed);
            return Ok(async { Ok(Confirmed::Refused) }.boxed());
        }
        let publish = self.inner.publish_again(queue, body, origin);
        let confirm = publish.await?;
        if matches!(self.broker.fault, Fault::NoConfirms) {
            return Ok(std::future::pending().boxed());
        }
        Ok(async move {
            let confirmed = confirm.await;
            count.fetch_sub(1, Ordering::Relaxed);
            if several && number == 23 {
                return Err(lost());
            }
            confirmed
        }
        .boxed())
    }

    async fn close(self: Box<Self>) {
        self.broker.closed.fetch_add(1, Ordering::Relaxed);
        self.inner.close().await;
    }
}

fn body(key: u32) -> Vec<u8> {
    format!("message {key}").into_bytes()
}

/// A publisher that runs.
struct Run {
    confirmed: mpsc::Receiver<ConfirmedMessage<u32>>,
    stop: CancellationToken,
    publishing: JoinHandle<Result<usize, BrokerError>>,
}

fn message(key: u32) -> KeyedMessage<u32> {
    KeyedMessage::new(key, body(key))
}

/// Starts a publisher of [`MESSAGES`] messages.
fn start(publisher: ConfirmedPublisher) -> Run {
    let (messages, run) = start_without_messages(publisher);
    for key in 0..MESSAGES {
        messages.try_send(message(key)).expect("there is room");
    }
    run
}

fn start_without_messages(publisher: ConfirmedPublisher) -> (mpsc::Sender<KeyedMessage<u32>>, Run) {
    let (messages, outgoing) = mpsc::channel(MESSAGES as usize);
    let (confirm, confirmed) = mpsc::channel(MESSAGES as usize);
    let stop = CancellationToken::new();
    let run = Run {
        confirmed,
        publishing: tokio::spawn(publisher.run(outgoing, confirm, stop.clone())),
        stop,
    };
    (messages, run)
}

impl Run {
    /// Waits for the end. Returns the confirmed keys and the number of unconfirmed messages.
    async fn ended(self) -> Result<(Vec<u32>, usize)> {
        let (confirmed, unconfirmed) = self.confirmed().await?;
        let keys = confirmed.iter().map(|confirmed| confirmed.key);
        Ok((keys.collect(), unconfirmed))
    }

    /// Waits for the end. Returns the confirmed messages by their keys, and the number of unconfirmed ones.
    async fn confirmed(mut self) -> Result<(Vec<ConfirmedMessage<u32>>, usize)> {
        let unconfirmed = within("the publisher's end", self.publishing).await???;
        let mut all = Vec::new();
        while let Some(confirmed) = self.confirmed.recv().await {
            all.push(confirmed);
        }
        all.sort_unstable_by_key(|confirmed| confirmed.key);
        Ok((all, unconfirmed))
    }
}

/// Awaits something with a timeout.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, future)
        .await
        .with_context(|| format!("waited in vain for {what}"))
}

/// Takes and acks all messages of a queue.
async fn drain(rig: &Rig, queue: QueueName) -> Result<Vec<Vec<u8>>> {
    let ready = rig.broker.depth(queue).await?.ready;
    let mut consumer = rig.broker.consumer(queue, 1000).await?;
    let mut bodies = Vec::new();
    for _ in 0..ready {
        let delivery = next(&mut consumer).await?;
        consumer.ack(&[delivery.tag]).await?;
        bodies.push(delivery.body);
    }
    consumer.close().await;
    Ok(bodies)
}

fn publisher(broker: &Arc<FaultyBroker>) -> ConfirmedPublisher {
    let shared = Arc::new(Shared(Arc::clone(broker)));
    ConfirmedPublisher::new(shared, QueueName::RESULTS, "messages", MAX_UNCONFIRMED)
}

async fn every_message_is_stored_once_when_nothing_fails(rig: &Rig) -> Result<()> {
    let broker = FaultyBroker::new(rig, Fault::None);
    let (keys, unconfirmed) = start(publisher(&broker)).ended().await?;
    assert_eq!(keys, (0..MESSAGES).collect::<Vec<_>>());
    assert_eq!(unconfirmed, 0);
    let bodies = drain(rig, QueueName::RESULTS).await?;
    assert_eq!(bodies, (0..MESSAGES).map(body).collect::<Vec<_>>());
    let most = broker.most_unconfirmed.load(Ordering::Relaxed);
    assert!(most <= MAX_UNCONFIRMED, "{most} unconfirmed");
    Ok(())
}

async fn every_message_is_stored_and_confirmed_once_when_sessions_break(rig: &Rig) -> Result<()> {
    let broker = FaultyBroker::new(rig, Fault::Several);
    let (keys, unconfirmed) = start(publisher(&broker)).ended().await?;
    assert_eq!(keys, (0..MESSAGES).collect::<Vec<_>>());
    assert_eq!(unconfirmed, 0);
    let bodies = drain(rig, QueueName::RESULTS).await?;
    let distinct: BTreeSet<_> = bodies.iter().cloned().collect();
    assert_eq!(distinct, (0..MESSAGES).map(body).collect());
    // Messages whose confirm was lost are stored twice.
    ensure!(bodies.len() > distinct.len(), "no confirm was lost");
    let most = broker.most_unconfirmed.load(Ordering::Relaxed);
    assert!(most <= MAX_UNCONFIRMED, "{most} unconfirmed");
    Ok(())
}

async fn a_stop_ends_it_at_once_with_the_number_of_unconfirmed_messages(rig: &Rig) -> Result<()> {
    let broker = FaultyBroker::new(rig, Fault::NoConfirms);
    let run = start(publisher(&broker));
    within("a full window", async {
        while broker.published.load(Ordering::Relaxed) < MAX_UNCONFIRMED {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    run.stop.cancel();
    let (keys, unconfirmed) = run.ended().await?;
    assert!(keys.is_empty());
    assert_eq!(unconfirmed, MAX_UNCONFIRMED);
    assert_eq!(broker.published.load(Ordering::Relaxed), MAX_UNCONFIRMED);
    Ok(())
}

async fn a_refused_message_is_given_back_if_the_caller_wants_that(rig: &Rig) -> Result<()> {
    let broker = FaultyBroker::new(rig, Fault::Several);
    let (messages, outgoing) = mpsc::channel(MESSAGES as usize);
    let (confirm, mut confirmed) = mpsc::channel(MESSAGES as usize);
    let (refuse, mut refused) = mpsc::channel(MESSAGES as usize);
    for key in 0..MESSAGES {
        messages.try_send(message(key)).expect("there is room");
    }
    drop(messages);
    let stop = CancellationToken::new();
    let publishing = publisher(&broker).run_without_repeats(outgoing, confirm, refuse, stop);
    assert_eq!(within("the publisher's end", publishing).await??, 0);
    let given_back = refused.recv().await.context("none is given back")?;
    assert_eq!(given_back, message(given_back.key));
    assert!(refused.recv().await.is_none());
    let mut keys = BTreeSet::from([given_back.key]);
    while let Some(confirmed) = confirmed.recv().await {
        assert!(keys.insert(confirmed.key), "{confirmed:?}");
    }
    assert_eq!(keys, (0..MESSAGES).collect());
    // It was not published again. The others were, when their session broke.
    let bodies = drain(rig, QueueName::RESULTS).await?;
    assert!(!bodies.contains(&body(given_back.key)));
    Ok(())
}

async fn the_newest_of_the_other_messages_is_published_beside_the_rest(rig: &Rig) -> Result<()> {
    let broker = FaultyBroker::new(rig, Fault::None);
    let (bodies, newest) = watch::channel(None);
    bodies.send_replace(Some(b"old".to_vec()));
    bodies.send_replace(Some(b"new".to_vec()));
    let run = start(publisher(&broker).with_latest(QueueName::HEARTBEATS, newest));
    let mut consumer = rig.broker.consumer(QueueName::HEARTBEATS, 10).await?;
    assert_eq!(next(&mut consumer).await?.body, b"new");
    bodies.send_replace(Some(b"last".to_vec()));
    drop(bodies);
    let (keys, unconfirmed) = run.ended().await?;
    assert_eq!((keys.len(), unconfirmed), (MESSAGES as usize, 0));
    assert_eq!(next(&mut consumer).await?.body, b"last");
    assert_eq!(
        drain(rig, QueueName::RESULTS).await?.len(),
        MESSAGES as usize
    );
    Ok(())
}

/// How often each message was sent. Each confirm has that number, and a time between its last two sendings.
async fn sendings(rig: &Rig, fault: Fault) -> Result<Vec<usize>> {
    let broker = FaultyBroker::new(rig, fault);
    let (confirmed, _) = start(publisher(&broker)).confirmed().await?;
    drain(rig, QueueName::RESULTS).await?;
    let sendings = locked(&broker.sendings);
    let mut numbers = Vec::new();
    for confirmed in confirmed {
        let body = body(confirmed.key);
        let mut times: Vec<_> = sendings
            .iter()
            .filter_map(|(sent, at)| (*sent == body).then_some(*at))
            .collect();
        numbers.push(times.len());
        assert_eq!(confirmed.sendings as usize, times.len(), "{confirmed:?}");
        // The broker notes the time of a sending after the publisher does.
        assert!(Some(confirmed.last_sent) <= times.pop(), "{confirmed:?}");
        assert!(Some(confirmed.last_sent) >= times.pop(), "{confirmed:?}");
    }
    Ok(numbers)
}

async fn a_confirm_has_the_number_of_sendings_and_the_time_of_the_last_one(
    rig: &Rig,
) -> Result<()> {
    let numbers = sendings(rig, Fault::Several).await?;
    ensure!(numbers.iter().any(|number| *number > 1), "{numbers:?}");
    // The control: when nothing fails, each is sent once.
    let numbers = sendings(rig, Fault::None).await?;
    assert_eq!(numbers, [1; MESSAGES as usize]);
    Ok(())
}

async fn a_session_checks_the_queues_that_it_is_asked_to(rig: &Rig) -> Result<()> {
    for (others, wanted) in [
        // The control: only the queue of the messages.
        (&[][..], &[QueueName::RESULTS][..]),
        (&[QueueName::DEAD], &[QueueName::RESULTS, QueueName::DEAD]),
    ] {
        let broker = FaultyBroker::new(rig, Fault::None);
        start(publisher(&broker).with_checked(others))
            .ended()
            .await?;
        drain(rig, QueueName::RESULTS).await?;
        let checked = locked(&broker.checked);
        assert_eq!(*checked, wanted);
    }
    Ok(())
}

/// Publishes four messages with a pause after each confirm, by a paused clock: the pauses are what is tested. Returns how many sessions were opened, and how many closed.
async fn sessions_with_pauses(pause: Duration) -> Result<(usize, usize)> {
    let broker = FaultyBroker::new(&rig::memory(), Fault::None);
    let (messages, mut run) = start_without_messages(publisher(&broker));
    tokio::time::sleep(pause).await;
    assert_eq!(broker.sessions(), (0, 0), "nothing is to be published");
    for key in 0..4 {
        messages.send(message(key)).await?;
        run.confirmed.recv().await.context("no confirm")?;
        tokio::time::sleep(pause).await;
    }
    drop(messages);
    run.ended().await?;
    Ok(broker.sessions())
}

#[tokio::test(start_paused = true)]
async fn a_session_is_opened_for_a_message_and_closed_when_nothing_follows() -> Result<()> {
    assert_eq!(sessions_with_pauses(Duration::from_secs(15)).await?, (4, 4));
    // The control: messages that follow soon share a session.
    assert_eq!(sessions_with_pauses(Duration::from_secs(5)).await?, (1, 1));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn without_messages_no_session_is_opened_until_the_end() -> Result<()> {
    for (messages, sessions) in [(0, 0), (1, 1)] {
        let broker = FaultyBroker::new(&rig::memory(), Fault::None);
        let (sender, run) = start_without_messages(publisher(&broker));
        for key in 0..messages {
            sender.send(message(key)).await?;
        }
        drop(sender);
        assert_eq!(run.ended().await?.1, 0);
        assert_eq!(broker.sessions(), (sessions, sessions));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_the_other_messages_waits_for_nothing_and_keeps_its_session() -> Result<()> {
    let rig = rig::memory();
    let broker = FaultyBroker::new(&rig, Fault::None);
    let (bodies, newest) = watch::channel(None);
    let publisher = publisher(&broker).with_latest(QueueName::HEARTBEATS, newest);
    let (messages, run) = start_without_messages(publisher);
    let mut consumer = rig.broker.consumer(QueueName::HEARTBEATS, 100).await?;
    for number in 0..12 {
        let sent = Instant::now();
        bodies.send_replace(Some(body(number)));
        assert_eq!(next(&mut consumer).await?.body, body(number));
        // The clock is paused, so any wait for a timer shows.
        assert_eq!(sent.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(broker.sessions(), (1, 0));
    // The control: without them the session is closed.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(broker.sessions(), (1, 1));
    drop((bodies, messages));
    run.ended().await?;
    Ok(())
}

/// How often the newest of the other messages is published, while the message after it has this fault.
async fn sendings_of_the_newest(fault: Fault) -> Result<usize> {
    let rig = rig::memory();
    let broker = FaultyBroker::new(&rig, fault);
    let (bodies, newest) = watch::channel(Some(b"newest".to_vec()));
    let publisher = publisher(&broker).with_latest(QueueName::HEARTBEATS, newest);
    let (messages, mut run) = start_without_messages(publisher);
    let mut consumer = rig.broker.consumer(QueueName::HEARTBEATS, 100).await?;
    next(&mut consumer).await?;
    messages.send(message(0)).await?;
    run.confirmed.recv().await.context("no confirm")?;
    // Longer than a session without messages is kept: closing that one sends nothing again.
    tokio::time::sleep(Duration::from_secs(15)).await;
    messages.send(message(1)).await?;
    drop((bodies, messages));
    run.ended().await?;
    Ok(1 + drain(&rig, QueueName::HEARTBEATS).await?.len())
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_the_other_messages_is_published_again_only_after_a_lost_session()
-> Result<()> {
    assert_eq!(sendings_of_the_newest(Fault::Breaks(2)).await?, 2);
    assert_eq!(sendings_of_the_newest(Fault::None).await?, 1);
    Ok(())
}
