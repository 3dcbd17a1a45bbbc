//! The promises of the [`ConfirmedPublisher`], over RabbitMQ and in process.

#[expect(dead_code, reason = "the rig serves the contract tests, too")]
mod rig;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Confirmed, ConfirmedPublisher, Consumer, KeyedMessage, Publisher,
    QueueDepth, QueueName,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, TIMEOUT, next};

const MESSAGES: u32 = 60;

const MAX_UNCONFIRMED: usize = 7;

macro_rules! over_both_brokers {
    ($($promise:ident),* $(,)?) => {
        mod over_rabbitmq {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(&crate::rig::rabbit(stringify!($promise)).await?).await
            })*
        }

        mod in_process {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(&crate::rig::memory()).await
            })*
        }
    };
}

over_both_brokers!(
    every_message_is_stored_once_when_nothing_fails,
    every_message_is_stored_and_confirmed_once_when_sessions_break,
    a_stop_ends_it_at_once_with_the_number_of_unconfirmed_messages,
    the_newest_of_the_other_messages_is_published_beside_the_rest,
);

/// What fails. Publishes are counted over all sessions, from 1.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The 5th publish breaks its session before the message is sent, the 14th is refused, and the 23rd is stored and loses
    /// its confirm with its session.
    Several,
    /// No confirm ever comes.
    NoConfirms,
}

/// A broker with faults, which counts the unconfirmed messages.
struct FaultyBroker {
    inner: Arc<dyn Broker>,
    fault: Fault,
    published: AtomicUsize,
    unconfirmed: Arc<AtomicUsize>,
    most_unconfirmed: AtomicUsize,
}

impl FaultyBroker {
    fn new(rig: &Rig, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(&rig.broker),
            fault,
            published: AtomicUsize::new(0),
            unconfirmed: Arc::default(),
            most_unconfirmed: AtomicUsize::new(0),
        })
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
    async fn check(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.0.inner.check(queues).await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        self.0.unconfirmed.store(0, Ordering::Relaxed);
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

fn lost() -> BrokerError {
    BrokerError::Lost("the test breaks the session".into())
}

#[async_trait]
impl Publisher for FaultyPublisher {
    async fn publish(&mut self, queue: QueueName, body: &[u8]) -> Result<Confirm, BrokerError> {
        let number = self.broker.published.fetch_add(1, Ordering::Relaxed) + 1;
        let unconfirmed = self.broker.unconfirmed.fetch_add(1, Ordering::Relaxed) + 1;
        self.broker
            .most_unconfirmed
            .fetch_max(unconfirmed, Ordering::Relaxed);
        let count = Arc::clone(&self.broker.unconfirmed);
        let several = matches!(self.broker.fault, Fault::Several);
        if several && number == 5 {
            return Err(lost());
        }
        if several && number == 14 {
            // A refused message stays unconfirmed.
            count.fetch_sub(1, Ordering::Relaxed);
            return Ok(async { Ok(Confirmed::Refused) }.boxed());
        }
        let confirm = self.inner.publish(queue, body).await?;
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
        self.inner.close().await;
    }
}

fn body(key: u32) -> Vec<u8> {
    format!("message {key}").into_bytes()
}

/// A publisher of [`MESSAGES`] messages that runs.
struct Run {
    confirmed: mpsc::Receiver<u32>,
    stop: CancellationToken,
    publishing: JoinHandle<Result<usize, BrokerError>>,
}

fn start(publisher: ConfirmedPublisher) -> Run {
    let (messages, outgoing) = mpsc::channel(MESSAGES as usize);
    for key in 0..MESSAGES {
        let message = KeyedMessage {
            key,
            body: body(key),
        };
        messages.try_send(message).expect("there is room");
    }
    let (confirm, confirmed) = mpsc::channel(MESSAGES as usize);
    let stop = CancellationToken::new();
    Run {
        confirmed,
        publishing: tokio::spawn(publisher.run(outgoing, confirm, stop.clone())),
        stop,
    }
}

impl Run {
    /// Waits for the end. Returns the confirmed keys and the number of unconfirmed messages.
    async fn ended(mut self) -> Result<(Vec<u32>, usize)> {
        let unconfirmed = within("the publisher's end", self.publishing).await???;
        let mut keys = Vec::new();
        while let Some(key) = self.confirmed.recv().await {
            keys.push(key);
        }
        keys.sort_unstable();
        Ok((keys, unconfirmed))
    }
}

/// Awaits something with a timeout.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, future)
        .await
        .with_context(|| format!("waited in vain for {what}"))
}

/// Takes all messages of a queue.
async fn drain(rig: &Rig, queue: QueueName) -> Result<Vec<Vec<u8>>> {
    let ready = rig.broker.depth(queue).await?.ready;
    let mut consumer = rig.broker.consumer(queue, 1000).await?;
    let mut bodies = Vec::new();
    for _ in 0..ready {
        bodies.push(next(&mut consumer).await?.body);
    }
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
