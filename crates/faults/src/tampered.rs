//! The broker and the prober of a role with faults put between: it dies at a boundary, or keeps a promise badly.
//!
//! The roles themselves are the real ones. A boundary is where a role hands something over: what it does between two
//! of them, another process cannot see.

use std::{
    collections::VecDeque,
    net::IpAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use ping_worker::{
    pacing::Pace,
    prober::{Destination, Finding, OpenProber, ProbeError, Prober, RequestsSent},
    scripted::Scripted,
};
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Confirmed, Consumer, Delivery, DeliveryTag, Depth, Publisher,
    Queue,
};
use pingfleet_wire::Probing;
use rustix::process::{Signal, getpid, kill_process};

/// What was just sent has left the process after this time.
const ON_THE_WIRE: Duration = Duration::from_millis(50);

/// Messages that [`Sabotage::NoteFirst`] holds back: more than a producer notes at once.
const HELD: usize = 120;

/// A boundary of a role. Heartbeats pass none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Boundary {
    /// A delivery was handed to the role.
    Delivered,
    /// The targets of a chunk were probed.
    Probed,
    /// A message was handed to the connection; its confirm is open.
    Published,
    /// The broker confirmed a message; the role does not know it yet.
    Confirmed,
    /// The role is about to ack: the writer has committed.
    Acking,
    /// An ack has left.
    Acked,
}

/// At which passing of which boundary the process kills itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillAt {
    boundary: Boundary,
    passing: u64,
}

impl FromStr for KillAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (boundary, passing) = text
            .split_once(':')
            .ok_or("expected BOUNDARY:N, such as probed:3")?;
        Ok(Self {
            boundary: Boundary::from_str(boundary, false)?,
            passing: passing
                .parse()
                .map_err(|_| format!("{passing:?} is no number"))?,
        })
    }
}

/// A promise that is kept badly: what the cases must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// Acks each delivery as it comes.
    AckFirst,
    /// Takes every message that was handed to the connection for stored.
    Believe,
    /// Takes messages for stored long before they are handed to the connection.
    NoteFirst,
    /// Takes the whole window from the start.
    NoSlowStart,
    /// Takes every queue for empty.
    EmptyLook,
    /// Publishes every message twice. No broken promise: the others must bear it.
    Twice,
}

/// The faults of a process.
#[derive(Debug, Clone, Default, Args)]
pub struct FaultArgs {
    /// Dies at the N-th passing of a boundary
    #[arg(long, value_name = "BOUNDARY:N")]
    pub kill_at: Option<KillAt>,
    /// Dies when it is to probe this address
    #[arg(long, value_name = "ADDRESS")]
    pub poison: Option<IpAddr>,
    /// Keeps a promise badly
    #[arg(long, value_enum)]
    pub sabotage: Vec<Sabotage>,
}

/// The faults of this process, with what it has passed so far.
#[derive(Debug)]
pub struct Faults {
    arguments: FaultArgs,
    passed: AtomicU64,
}

impl Faults {
    /// Nothing passed yet.
    #[must_use]
    pub fn new(arguments: FaultArgs) -> Arc<Self> {
        Arc::new(Self {
            arguments,
            passed: AtomicU64::new(0),
        })
    }

    fn sabotages(&self, sabotage: Sabotage) -> bool {
        self.arguments.sabotage.contains(&sabotage)
    }

    fn pass(&self, boundary: Boundary) {
        let Some(at) = self.arguments.kill_at else {
            return;
        };
        if at.boundary == boundary && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == at.passing
        {
            die();
        }
    }
}

/// SIGKILL: nothing of this process runs after it.
fn die() -> ! {
    let sent = kill_process(getpid(), Signal::KILL);
    // The signal is there before the call returns.
    unreachable!("alive after SIGKILL: {sent:?}")
}

/// A broker with faults.
#[derive(Debug)]
pub struct TamperedBroker<B> {
    inner: B,
    faults: Arc<Faults>,
}

impl<B: Broker> TamperedBroker<B> {
    /// Puts the faults between a role and its broker.
    pub fn new(inner: B, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<B: Broker> Broker for TamperedBroker<B> {
    async fn check(&self) -> Result<(), BrokerError> {
        self.inner.check().await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        Ok(Box::new(TamperedPublisher {
            inner: self.inner.publisher().await?,
            faults: Arc::clone(&self.faults),
            held: VecDeque::new(),
        }))
    }

    async fn consumer(
        &self,
        queue: Queue,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let prefetch = match queue {
            Queue::Work if self.faults.sabotages(Sabotage::NoSlowStart) => 256,
            _ => prefetch,
        };
        Ok(Box::new(TamperedConsumer {
            inner: self.inner.consumer(queue, prefetch).await?,
            faults: Arc::clone(&self.faults),
            counts: matches!(queue, Queue::Work | Queue::Results),
        }))
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError> {
        let depth = self.inner.depth(queue).await?;
        if self.faults.sabotages(Sabotage::EmptyLook) {
            return Ok(Depth { ready: 0, ..depth });
        }
        Ok(depth)
    }
}

struct TamperedPublisher {
    inner: Box<dyn Publisher>,
    faults: Arc<Faults>,
    /// Taken for stored, and not yet handed to the connection.
    held: VecDeque<Vec<u8>>,
}

#[async_trait]
impl Publisher for TamperedPublisher {
    async fn publish(&mut self, queue: Queue, body: &[u8]) -> Result<Confirm, BrokerError> {
        if queue == Queue::Heartbeats {
            return self.inner.publish(queue, body).await;
        }
        if self.faults.sabotages(Sabotage::NoteFirst) {
            self.held.push_back(body.to_owned());
            if self.held.len() > HELD
                && let Some(body) = self.held.pop_front()
            {
                drop(self.inner.publish(queue, &body).await?);
            }
            self.faults.pass(Boundary::Published);
            return Ok(futures_util::future::ready(Ok(Confirmed::Stored)).boxed());
        }
        if self.faults.sabotages(Sabotage::Twice) {
            // Whether the first one is stored shows when it is delivered; the role awaits the second one.
            drop(self.inner.publish(queue, body).await?);
        }
        let confirm = self.inner.publish(queue, body).await?;
        self.faults.pass(Boundary::Published);
        if self.faults.sabotages(Sabotage::Believe) {
            return Ok(futures_util::future::ready(Ok(Confirmed::Stored)).boxed());
        }
        let faults = Arc::clone(&self.faults);
        Ok(async move {
            let confirmed = confirm.await;
            if matches!(confirmed, Ok(Confirmed::Stored)) {
                faults.pass(Boundary::Confirmed);
            }
            confirmed
        }
        .boxed())
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

struct TamperedConsumer {
    inner: Box<dyn Consumer>,
    faults: Arc<Faults>,
    counts: bool,
}

#[async_trait]
impl Consumer for TamperedConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.inner.next().await?;
        if self.counts {
            if self.faults.sabotages(Sabotage::AckFirst) {
                self.inner.ack(delivery.tag, false).await?;
            }
            self.faults.pass(Boundary::Delivered);
        }
        Ok(delivery)
    }

    async fn ack(&mut self, tag: DeliveryTag, multiple: bool) -> Result<(), BrokerError> {
        if !self.counts {
            return self.inner.ack(tag, multiple).await;
        }
        self.faults.pass(Boundary::Acking);
        if !self.faults.sabotages(Sabotage::AckFirst) {
            self.inner.ack(tag, multiple).await?;
        }
        if self
            .faults
            .arguments
            .kill_at
            .is_some_and(|at| at.boundary == Boundary::Acked)
        {
            // The client library tells nobody when the frame has left.
            tokio::time::sleep(ON_THE_WIRE).await;
        }
        self.faults.pass(Boundary::Acked);
        Ok(())
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.inner.requeue(tag).await
    }

    async fn set_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.counts && self.faults.sabotages(Sabotage::NoSlowStart) {
            return Ok(());
        }
        self.inner.set_prefetch(prefetch).await
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.inner.stop().await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

/// The scripted prober with faults.
pub struct TamperedProber {
    /// What it finds out.
    pub script: Scripted,
    /// Its faults.
    pub faults: Arc<Faults>,
}

impl OpenProber for TamperedProber {
    fn open(&self, requests_sent: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(Tampered {
            inner: self.script.open(requests_sent)?,
            faults: Arc::clone(&self.faults),
        }))
    }
}

struct Tampered {
    inner: Box<dyn Prober>,
    faults: Arc<Faults>,
}

#[async_trait(?Send)]
impl Prober for Tampered {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let poisoned =
            |destination: &Destination| self.faults.arguments.poison == Some(destination.address);
        if destinations.iter().any(poisoned) {
            die();
        }
        let findings = self.inner.probe(probing, destinations, pace).await;
        self.faults.pass(Boundary::Probed);
        findings
    }
}
