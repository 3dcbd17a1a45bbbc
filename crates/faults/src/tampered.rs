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
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Confirmed, Consumer, Delivery, DeliveryTag, Depth, Publisher,
    Queue,
};
use pingfleet_prober::{
    prober::{Destination, Finding, OpenProber, ProbeError, Prober, RequestsSent},
    schedule::pacing::Pace,
};
use pingfleet_wire::{Probing, Rtt};
use rustix::process::{Signal, getpid, kill_process};

/// What was just sent has left the process after this time.
const ON_THE_WIRE: Duration = Duration::from_millis(50);

/// Messages that [`Sabotage::NoteFirst`] holds back: more than a producer notes at once.
const HELD: usize = 120;

/// A worker's heartbeat takes with it what was held back for longer: so its run ends, and some are held at any moment.
const HELD_FOR: Duration = Duration::from_secs(1);

/// What a writer that counts its deliveries tells them with, on standard error, when it has ended.
pub const HANDED_OVER: &str = "deliveries handed over: ";

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
    /// Takes all results at once, however many there are.
    TakeAll,
    /// Does not hear SIGTERM.
    Deaf,
    /// Takes the first failure of its broker for the last word.
    GiveUp,
    /// Writes without the writer's lock.
    NoLock,
    /// Opens the database without looking for damage.
    NoCheck,
    /// Takes round trips from the wall clock.
    WallClock,
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

impl FaultArgs {
    /// Whether this promise is kept badly.
    #[must_use]
    pub fn sabotages(&self, sabotage: Sabotage) -> bool {
        self.sabotage.contains(&sabotage)
    }
}

/// The faults of this process, with what it has passed so far.
#[derive(Debug)]
pub struct Faults {
    arguments: FaultArgs,
    passed: AtomicU64,
    handed_over: AtomicU64,
}

impl Faults {
    /// Nothing passed yet.
    #[must_use]
    pub fn new(arguments: FaultArgs) -> Arc<Self> {
        Arc::new(Self {
            arguments,
            passed: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
        })
    }

    /// Results and dead letters that consumers handed to the role.
    #[must_use]
    pub fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    fn sabotages(&self, sabotage: Sabotage) -> bool {
        self.arguments.sabotages(sabotage)
    }

    /// Before the process dies behind something that it sends: the client library tells nobody when a frame has left.
    async fn wait_for_the_wire(&self, boundary: Boundary) {
        if self.is_next(boundary) {
            tokio::time::sleep(ON_THE_WIRE).await;
        }
    }

    /// Whether the next passing of this boundary is the last one.
    fn is_next(&self, boundary: Boundary) -> bool {
        self.arguments.kill_at.is_some_and(|at| {
            at.boundary == boundary && self.passed.load(Ordering::Relaxed) + 1 == at.passing
        })
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
        self.inner.check().await.map_err(|error| {
            if self.faults.sabotages(Sabotage::GiveUp) && error.is_transient() {
                return BrokerError::Url(format!("given up: {error}"));
            }
            error
        })
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
            Queue::Results if self.faults.sabotages(Sabotage::TakeAll) => u16::MAX,
            _ => prefetch,
        };
        Ok(Box::new(TamperedConsumer {
            inner: self.inner.consumer(queue, prefetch).await?,
            faults: Arc::clone(&self.faults),
            counts: matches!(queue, Queue::Work | Queue::Results),
            tells: matches!(queue, Queue::Results | Queue::Dead),
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
    held: VecDeque<Held>,
}

struct Held {
    since: Instant,
    queue: Queue,
    body: Vec<u8>,
}

impl TamperedPublisher {
    /// Hands over what is held, from the oldest on, for as long as `due` says so.
    async fn hand_over(&mut self, due: impl Fn(&Held, usize) -> bool) -> Result<(), BrokerError> {
        while self
            .held
            .front()
            .is_some_and(|oldest| due(oldest, self.held.len()))
        {
            if let Some(Held { queue, body, .. }) = self.held.pop_front() {
                drop(self.inner.publish(queue, &body).await?);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Publisher for TamperedPublisher {
    async fn publish(&mut self, queue: Queue, body: &[u8]) -> Result<Confirm, BrokerError> {
        if queue == Queue::Heartbeats {
            self.hand_over(|held, _| held.since.elapsed() >= HELD_FOR)
                .await?;
            return self.inner.publish(queue, body).await;
        }
        if self.faults.sabotages(Sabotage::NoteFirst) {
            self.held.push_back(Held {
                since: Instant::now(),
                queue,
                body: body.to_owned(),
            });
            self.hand_over(|_, held| held > HELD).await?;
            self.faults.pass(Boundary::Published);
            return Ok(futures_util::future::ready(Ok(Confirmed::Stored)).boxed());
        }
        if self.faults.sabotages(Sabotage::Twice) {
            // Whether the first one is stored shows when it is delivered; the role awaits the second one.
            drop(self.inner.publish(queue, body).await?);
        }
        let confirm = self.inner.publish(queue, body).await?;
        self.faults.wait_for_the_wire(Boundary::Published).await;
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

    async fn close(mut self: Box<Self>) {
        // Who leaves in order leaves nothing behind. Who cannot is about to lose the session anyway.
        drop(self.hand_over(|_, _| true).await);
        self.inner.close().await;
    }
}

struct TamperedConsumer {
    inner: Box<dyn Consumer>,
    faults: Arc<Faults>,
    /// Its deliveries and acks pass boundaries.
    counts: bool,
    /// The database counts its deliveries.
    tells: bool,
}

#[async_trait]
impl Consumer for TamperedConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.inner.next().await?;
        if self.tells {
            self.faults.handed_over.fetch_add(1, Ordering::Relaxed);
        }
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
        self.faults.wait_for_the_wire(Boundary::Acked).await;
        self.faults.pass(Boundary::Acked);
        Ok(())
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.inner.requeue(tag).await
    }

    async fn widen(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.counts && self.faults.sabotages(Sabotage::NoSlowStart) {
            return Ok(());
        }
        self.inner.widen(prefetch).await
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.inner.stop().await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

/// A prober with faults.
pub struct TamperedProber {
    /// What finds out.
    pub inner: Arc<dyn OpenProber>,
    /// Its faults.
    pub faults: Arc<Faults>,
}

impl OpenProber for TamperedProber {
    fn open(&self, requests_sent: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(Tampered {
            inner: self.inner.open(requests_sent)?,
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
        let (began, wall) = (Instant::now(), SystemTime::now());
        let mut findings = self.inner.probe(probing, destinations, pace).await;
        if self.faults.sabotages(Sabotage::WallClock) {
            let measured = began.elapsed();
            let by_wall = |rtt: Duration| match wall.elapsed() {
                Ok(elapsed) => (rtt + elapsed).saturating_sub(measured),
                Err(back) => rtt.saturating_sub(back.duration() + measured),
            };
            for finding in &mut findings {
                finding.rtt = finding.rtt.and_then(|rtt| {
                    let samples = [rtt.min_ns, rtt.avg_ns, rtt.max_ns];
                    Rtt::of(&samples.map(|ns| by_wall(Duration::from_nanos(ns))))
                });
            }
        }
        self.faults.pass(Boundary::Probed);
        findings
    }
}
