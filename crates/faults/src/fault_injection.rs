//! Wraps the broker and the prober of a role, so that the process is killed at a boundary or has a deliberate defect.
//!
//! The roles themselves are unchanged. A boundary is a point at which a role takes something from, or passes something to,
//! its broker or prober. What happens between two boundaries is not visible to other processes.

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
    Broker, BrokerError, Confirm, Confirmed, Consumer, Delivery, DeliveryTag, Origin, Publisher,
    QueueDepth, QueueName,
};
use pingfleet_prober::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    schedule::pacing::Pace,
};
use pingfleet_wire::{Probing, Rtt};
use rustix::process::{Signal, getpid, kill_process};

/// After this time a frame that was just written has left the process.
const SEND_TIME: Duration = Duration::from_millis(50);

/// Messages that [`Defect::ConfirmBeforeSend`] delays: more than a producer records as published at once.
const MAX_DELAYED: usize = 120;

/// Each heartbeat of a worker sends the messages that were delayed for longer. So the run completes, and some messages are
/// delayed at any time.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Precedes the number of deliveries that `--count` prints on standard error at exit.
pub const DELIVERY_COUNT: &str = "deliveries: ";

/// A boundary of a role. Heartbeats do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Boundary {
    /// A delivery was handed to the role.
    Delivered,
    /// The targets of a chunk were probed.
    Probed,
    /// A message was handed to the connection; its confirm has not come.
    Published,
    /// The broker confirmed a message; the role has not seen it yet.
    Confirmed,
    /// The role is about to ack; the writer has committed.
    Acking,
    /// An ack was sent.
    Acked,
}

/// The boundary, and at which of its passings the process kills itself.
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
                .map_err(|_| format!("{passing:?} is not a number"))?,
        })
    }
}

/// A deliberate defect, which the checks of a case must detect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Defect {
    /// Acks each delivery before it is processed.
    AckFirst,
    /// Treats every message that was handed to the connection as confirmed.
    AssumeConfirmed,
    /// Treats messages as confirmed long before they are handed to the connection.
    ConfirmBeforeSend,
    /// Consumes with the largest prefetch from the start.
    NoSlowStart,
    /// Reports every queue as empty.
    ReportEmptyQueues,
    /// Consumes the results with an unlimited prefetch.
    UnlimitedPrefetch,
    /// Ignores SIGTERM.
    IgnoreSigterm,
    /// Exits at the first broker failure instead of connecting again.
    NoReconnect,
    /// Does not take the writer's lock.
    NoLock,
    /// Opens the database without checking it for damage.
    NoCheck,
    /// Measures round trips by the wall clock.
    WallClockRtt,
    /// Publishes every message twice. This is allowed; the other roles must handle it.
    PublishTwice,
}

/// The faults of a process.
#[derive(Debug, Clone, Default, Args)]
pub struct FaultArgs {
    /// Kill the process at the N-th passing of a boundary
    #[arg(long, value_name = "BOUNDARY:N")]
    pub kill_at: Option<KillAt>,
    /// Kill the process when it is asked to probe this address
    #[arg(long, value_name = "ADDRESS")]
    pub poison: Option<IpAddr>,
    /// Add a deliberate defect
    #[arg(long, value_enum)]
    pub defect: Vec<Defect>,
}

impl FaultArgs {
    /// Whether the process has this defect.
    #[must_use]
    pub fn has_defect(&self, defect: Defect) -> bool {
        self.defect.contains(&defect)
    }
}

/// The faults of this process, and how often it has passed the boundary so far.
#[derive(Debug)]
pub struct Faults {
    arguments: FaultArgs,
    passed: AtomicU64,
    deliveries: AtomicU64,
}

impl Faults {
    /// Starts the counts at 0.
    #[must_use]
    pub fn new(arguments: FaultArgs) -> Arc<Self> {
        Arc::new(Self {
            arguments,
            passed: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
        })
    }

    /// How many results and dead letters the consumers passed to the role.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.deliveries.load(Ordering::Relaxed)
    }

    /// Whether the process has this defect.
    #[must_use]
    pub fn has_defect(&self, defect: Defect) -> bool {
        self.arguments.has_defect(defect)
    }

    /// Before the process is killed at this boundary, waits until its last frame is sent: the client library does not report
    /// when.
    async fn wait_until_sent(&self, boundary: Boundary) {
        if self.is_next(boundary) {
            tokio::time::sleep(SEND_TIME).await;
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
            kill_self();
        }
    }
}

/// Sends SIGKILL to this process.
fn kill_self() -> ! {
    let sent = kill_process(getpid(), Signal::KILL);
    // The signal arrives before the call returns.
    unreachable!("alive after SIGKILL: {sent:?}")
}

/// A broker with faults.
#[derive(Debug)]
pub struct FaultyBroker<B> {
    inner: B,
    faults: Arc<Faults>,
}

impl<B: Broker> FaultyBroker<B> {
    /// Wraps a broker.
    pub fn new(inner: B, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<B: Broker> Broker for FaultyBroker<B> {
    async fn ensure(&self, queues: &[QueueName]) -> Result<(), BrokerError> {
        self.inner.ensure(queues).await.map_err(|error| {
            if self.faults.has_defect(Defect::NoReconnect) && error.is_transient() {
                return BrokerError::Url(format!("given up: {error}"));
            }
            error
        })
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        Ok(Box::new(FaultyPublisher {
            inner: self.inner.publisher().await?,
            faults: Arc::clone(&self.faults),
            delayed: VecDeque::new(),
        }))
    }

    async fn consumer(
        &self,
        queue: QueueName,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let prefetch = match queue {
            QueueName::WORK if self.faults.has_defect(Defect::NoSlowStart) => 256,
            QueueName::RESULTS if self.faults.has_defect(Defect::UnlimitedPrefetch) => u16::MAX,
            _ => prefetch,
        };
        Ok(Box::new(FaultyConsumer {
            inner: self.inner.consumer(queue, prefetch).await?,
            faults: Arc::clone(&self.faults),
            has_boundaries: matches!(queue, QueueName::WORK | QueueName::RESULTS),
            counts_deliveries: matches!(queue, QueueName::RESULTS | QueueName::DEAD),
        }))
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BrokerError> {
        let depth = self.inner.depth(queue).await?;
        if self.faults.has_defect(Defect::ReportEmptyQueues) {
            return Ok(QueueDepth { ready: 0, ..depth });
        }
        Ok(depth)
    }
}

struct FaultyPublisher {
    inner: Box<dyn Publisher>,
    faults: Arc<Faults>,
    /// Treated as confirmed, and not yet handed to the connection.
    delayed: VecDeque<Delayed>,
}

struct Delayed {
    since: Instant,
    queue: QueueName,
    body: Vec<u8>,
}

impl FaultyPublisher {
    /// Sends the delayed messages, oldest first, while `due` holds for the oldest one and their number.
    async fn send_delayed(
        &mut self,
        due: impl Fn(&Delayed, usize) -> bool,
    ) -> Result<(), BrokerError> {
        while self
            .delayed
            .front()
            .is_some_and(|oldest| due(oldest, self.delayed.len()))
        {
            if let Some(Delayed { queue, body, .. }) = self.delayed.pop_front() {
                drop(self.inner.publish(queue, &body).await?);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Publisher for FaultyPublisher {
    async fn publish_again(
        &mut self,
        queue: QueueName,
        body: &[u8],
        origin: Origin<'_>,
    ) -> Result<Confirm, BrokerError> {
        if queue == QueueName::HEARTBEATS {
            self.send_delayed(|oldest, _| oldest.since.elapsed() >= MAX_DELAY)
                .await?;
            return self.inner.publish(queue, body).await;
        }
        if self.faults.has_defect(Defect::ConfirmBeforeSend) {
            self.delayed.push_back(Delayed {
                since: Instant::now(),
                queue,
                body: body.to_owned(),
            });
            self.send_delayed(|_, count| count > MAX_DELAYED).await?;
            self.faults.pass(Boundary::Published);
            return Ok(futures_util::future::ready(Ok(Confirmed::Stored)).boxed());
        }
        if self.faults.has_defect(Defect::PublishTwice) {
            // The role awaits the confirm of the second one only. Whether the first one is stored shows by its delivery.
            drop(self.inner.publish(queue, body).await?);
        }
        let publish = self.inner.publish_again(queue, body, origin);
        let confirm = publish.await?;
        self.faults.wait_until_sent(Boundary::Published).await;
        self.faults.pass(Boundary::Published);
        if self.faults.has_defect(Defect::AssumeConfirmed) {
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
        // A regular exit loses nothing. When the session is lost already, sending fails, and that is no new error.
        drop(self.send_delayed(|_, _| true).await);
        self.inner.close().await;
    }
}

struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    faults: Arc<Faults>,
    /// Whether its deliveries and acks pass boundaries.
    has_boundaries: bool,
    /// Whether the database counts its deliveries.
    counts_deliveries: bool,
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.inner.next().await?;
        if self.counts_deliveries {
            self.faults.deliveries.fetch_add(1, Ordering::Relaxed);
        }
        if self.has_boundaries {
            if self.faults.has_defect(Defect::AckFirst) {
                self.inner.ack(&[delivery.tag]).await?;
            }
            self.faults.pass(Boundary::Delivered);
        }
        Ok(delivery)
    }

    async fn ack(&mut self, tags: &[DeliveryTag]) -> Result<(), BrokerError> {
        if !self.has_boundaries || tags.is_empty() {
            return self.inner.ack(tags).await;
        }
        self.faults.pass(Boundary::Acking);
        if !self.faults.has_defect(Defect::AckFirst) {
            self.inner.ack(tags).await?;
        }
        self.faults.wait_until_sent(Boundary::Acked).await;
        self.faults.pass(Boundary::Acked);
        Ok(())
    }

    async fn requeue(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.inner.requeue(tag).await
    }

    async fn raise_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        if self.has_boundaries && self.faults.has_defect(Defect::NoSlowStart) {
            return Ok(());
        }
        self.inner.raise_prefetch(prefetch).await
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.inner.stop().await
    }

    async fn close(self: Box<Self>) {
        self.inner.close().await;
    }
}

/// A prober with faults.
pub struct OpenFaultyProber {
    /// The real or scripted prober.
    pub inner: Arc<dyn OpenProber>,
    /// Its faults.
    pub faults: Arc<Faults>,
}

impl OpenProber for OpenFaultyProber {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(FaultyProber {
            inner: self.inner.open(counters)?,
            faults: Arc::clone(&self.faults),
        }))
    }
}

struct FaultyProber {
    inner: Box<dyn Prober>,
    faults: Arc<Faults>,
}

#[async_trait(?Send)]
impl Prober for FaultyProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let poisoned =
            |destination: &Destination| self.faults.arguments.poison == Some(destination.address);
        if destinations.iter().any(poisoned) {
            kill_self();
        }
        let (began, wall) = (Instant::now(), SystemTime::now());
        let mut findings = self.inner.probe(probing, destinations, pace).await;
        if self.faults.has_defect(Defect::WallClockRtt) {
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
