//! A worker under test: its broker records what it does, its prober waits for permits. Chunk `n` has the addresses from
//! `n * 256 + 1`, so each event names its chunk.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::{self, FutureExt};
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use ping_worker::{WorkerError, WorkerSettings, WorkerStatus, WorkerSummary};
use pingfleet_broker::{
    Broker, BrokerError, Confirm, Confirmed, Delivery, MemoryBroker, QueueName,
};
use pingfleet_prober::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    resolve::Resolver,
    schedule::pacing::Pace,
    scripted::Scripted,
};
use pingfleet_wire::{
    ChunkKey, Heartbeat, Message as _, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    answers::Answers,
    watched::{Log, Pass, Watch, Watched, lost, within},
};

/// Targets of each chunk, unless a test says otherwise.
pub(crate) const TARGETS: u32 = 250;

/// What the worker did; chunks by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It asked for a session: for the work queue with a prefetch, or for publishing.
    Opened(Option<u16>),
    Taken(u32),
    Probing(u32),
    Published(u32, Body),
    Stored(u32),
    Acked(u32),
    /// `None` is a message that is no chunk.
    Requeued(Option<u32>),
    Prefetch(u16),
    Stopped,
    Heartbeat(Box<Heartbeat>),
}

/// The body of a result, too long to be shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The test's side of the worker's broker.
#[derive(Debug, Default)]
pub(crate) struct Floor {
    pub(crate) log: Log<Event>,
    /// The answers to its publishes of results.
    pub(crate) answers: Answers,
    /// Breaks the session of the work queue.
    pub(crate) cut: Notify,
    /// No session can be opened.
    pub(crate) away: AtomicBool,
    /// Heartbeats are stored and never confirmed.
    pub(crate) heartbeats_unconfirmed: AtomicBool,
}

fn chunk_of(body: &[u8]) -> Option<u32> {
    WorkChunk::decode(body).ok().map(|work| work.key.chunk)
}

#[async_trait]
impl Watch for Arc<Floor> {
    fn opened(&self, consumes: Option<(QueueName, u16)>) -> Result<(), BrokerError> {
        self.log
            .note(Event::Opened(consumes.map(|(_, prefetch)| prefetch)));
        if self.away.load(Ordering::Relaxed) {
            return Err(BrokerError::Unreachable {
                address: "the test".to_owned(),
                source: "it is away".into(),
            });
        }
        Ok(())
    }

    async fn publish(
        &self,
        queue: QueueName,
        body: &[u8],
        pass: Pass<'_, Confirm>,
    ) -> Result<Confirm, BrokerError> {
        if queue == QueueName::HEARTBEATS {
            let heartbeat = Heartbeat::decode(body).expect("the worker sends what it can read");
            self.log.note(Event::Heartbeat(Box::new(heartbeat)));
            let confirm = pass.await?;
            return Ok(if self.heartbeats_unconfirmed.load(Ordering::Relaxed) {
                future::pending().boxed()
            } else {
                confirm
            });
        }
        let result = ResultChunk::decode(body).expect("the worker sends what it can read");
        let chunk = result.key.chunk;
        self.log.note(Event::Published(chunk, Body(body.to_vec())));
        let confirm = self.answers.give(chunk, pass).await?;
        let floor = Self::clone(self);
        Ok(async move {
            let confirmed = confirm.await;
            if matches!(confirmed, Ok(Confirmed::Stored)) {
                floor.log.note(Event::Stored(chunk));
            }
            confirmed
        }
        .boxed())
    }

    async fn next(
        &self,
        _queue: QueueName,
        pass: Pass<'_, Delivery>,
    ) -> Result<Delivery, BrokerError> {
        let delivery = tokio::select! {
            biased;
            () = self.cut.notified() => return Err(lost()),
            delivery = pass => delivery?,
        };
        if let Some(chunk) = chunk_of(&delivery.body) {
            self.log.note(Event::Taken(chunk));
        }
        Ok(delivery)
    }

    async fn ack(
        &self,
        _queue: QueueName,
        bodies: Vec<Vec<u8>>,
        pass: Pass<'_, ()>,
    ) -> Result<(), BrokerError> {
        pass.await?;
        for chunk in bodies.iter().filter_map(|body| chunk_of(body)) {
            self.log.note(Event::Acked(chunk));
        }
        Ok(())
    }

    fn requeued(&self, body: &[u8]) {
        self.log.note(Event::Requeued(chunk_of(body)));
    }

    fn prefetched(&self, prefetch: u16) {
        self.log.note(Event::Prefetch(prefetch));
    }

    fn stopped(&self, _queue: QueueName) {
        self.log.note(Event::Stopped);
    }
}

/// The first `times` probings of a chunk panic.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    pub(crate) chunk: u32,
    pub(crate) times: usize,
}

impl Panics {
    fn next(&mut self, chunk: u32) -> bool {
        let panics = self.times > 0 && self.chunk == chunk;
        self.times -= usize::from(panics);
        panics
    }
}

/// Opens probers that record what they probe, wait for one permit per chunk, and then follow the script.
struct Gated {
    floor: Arc<Floor>,
    permits: Arc<Semaphore>,
    panics: Arc<Mutex<Panics>>,
}

struct GatedProber {
    floor: Arc<Floor>,
    permits: Arc<Semaphore>,
    panics: Arc<Mutex<Panics>>,
    script: Box<dyn Prober>,
}

impl OpenProber for Gated {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(GatedProber {
            floor: Arc::clone(&self.floor),
            permits: Arc::clone(&self.permits),
            panics: Arc::clone(&self.panics),
            script: Scripted::default().open(counters)?,
        }))
    }
}

#[async_trait(?Send)]
impl Prober for GatedProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let chunk = match destinations.first().map(|first| first.address) {
            Some(IpAddr::V4(address)) => u32::from(address) >> 8,
            other => panic!("no chunk begins with {other:?}"),
        };
        self.floor.log.note(Event::Probing(chunk));
        let panics = self
            .panics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next(chunk);
        assert!(!panics, "the test says so");
        self.permits
            .acquire()
            .await
            .expect("the test closes no gate")
            .forget();
        self.script.probe(probing, destinations, pace).await
    }
}

/// A worker with its broker and its prober.
pub(crate) struct Rig {
    pub(crate) floor: Arc<Floor>,
    pub(crate) memory: MemoryBroker,
    /// One permit lets one chunk be probed.
    pub(crate) permits: Arc<Semaphore>,
    /// Which probings panic.
    pub(crate) panics: Arc<Mutex<Panics>>,
    /// How chunks are probed.
    pub(crate) probing: Probing,
    pub(crate) settings: WorkerSettings,
    /// Without a name server, unless a test sets one.
    pub(crate) resolver: Resolver,
    /// The run of all chunks. Its id has no time, unless a test sets one.
    pub(crate) run: Uuid,
}

/// A worker that runs.
pub(crate) struct Worker {
    pub(crate) stop: CancellationToken,
    pub(crate) status: watch::Receiver<WorkerStatus>,
    running: JoinHandle<Result<WorkerSummary, WorkerError>>,
}

impl Rig {
    /// A worker with one thread, no rate and a prefetch of 4.
    pub(crate) fn new() -> Self {
        let nobody = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        Self {
            resolver: Resolver::with_servers(nobody, ResolverOpts::default()),
            floor: Arc::default(),
            memory: MemoryBroker::new(1000),
            permits: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2)),
            panics: Arc::default(),
            probing: Probing {
                rate: None,
                ..Probing::default()
            },
            settings: WorkerSettings {
                name: "rigged".to_owned(),
                threads: NonZeroUsize::MIN,
                rate: None,
                prefetch: NonZeroU16::new(4),
                exclusive: false,
            },
            run: Uuid::from_u128(7),
        }
    }

    /// The same without permits.
    pub(crate) fn gated() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(0)),
            ..Self::new()
        }
    }

    /// Without permits, and with a rate that sets the prefetch: 20,000 requests a second, at most 40 + 60 + 90 ms per
    /// target.
    pub(crate) fn limited() -> Self {
        Self {
            probing: Probing {
                rate: NonZeroU32::new(20_000),
                timeout: Duration::from_millis(40),
                ..Probing::default()
            },
            ..Self::gated()
        }
    }

    pub(crate) fn key(&self, chunk: u32) -> ChunkKey {
        ChunkKey {
            run: self.run,
            chunk,
        }
    }

    /// Puts a chunk on the work queue.
    pub(crate) async fn give(&self, chunk: u32) -> Result<()> {
        self.give_addresses(chunk, TARGETS).await
    }

    /// Puts a chunk of so many addresses on the work queue. With more than 255, the numbers of the chunks must be that much
    /// farther apart.
    pub(crate) async fn give_addresses(&self, chunk: u32, count: u32) -> Result<()> {
        let first = (chunk << 8) + 1;
        let addresses = first..first + count;
        let targets = addresses.map(|address| Target::Address(Ipv4Addr::from(address).into()));
        self.give_targets(chunk, targets.collect()).await
    }

    /// Puts a chunk of these targets on the work queue.
    pub(crate) async fn give_targets(&self, chunk: u32, targets: Vec<Target>) -> Result<()> {
        let work = WorkChunk {
            version: Version,
            database: Uuid::from_u128(1),
            key: self.key(chunk),
            token: Token(Uuid::from_u128(u128::from(chunk))),
            probing: self.probing.clone(),
            targets,
        };
        self.put(&work.encode()).await
    }

    /// Puts anything on the work queue.
    pub(crate) async fn put(&self, body: &[u8]) -> Result<()> {
        let mut publisher = self.memory.publisher().await?;
        publisher.publish(QueueName::WORK, body).await?.await?;
        Ok(())
    }

    pub(crate) async fn ready(&self, queue: QueueName) -> Result<u32> {
        Ok(self.memory.depth(queue).await?.ready)
    }

    pub(crate) fn start(&self) -> Worker {
        let broker = Arc::new(Watched {
            watch: Arc::new(Arc::clone(&self.floor)),
            memory: self.memory.clone(),
        });
        let opener: Arc<dyn OpenProber> = Arc::new(Gated {
            floor: Arc::clone(&self.floor),
            permits: Arc::clone(&self.permits),
            panics: Arc::clone(&self.panics),
        });
        let resolver = self.resolver.clone();
        let settings = self.settings.clone();
        let stop = CancellationToken::new();
        let status = watch::Sender::default();
        let watched = status.subscribe();
        let stopped = stop.clone();
        let probe_threads = ping_worker::start_probe_threads(&opener, resolver, &settings)
            .expect("it always opens");
        let running = tokio::spawn(async move {
            ping_worker::run(broker, probe_threads, &settings, status, stopped).await
        });
        Worker {
            stop,
            status: watched,
            running,
        }
    }

    /// Waits until these chunks were acked, in any order and each once.
    pub(crate) async fn acked(&self, chunks: impl IntoIterator<Item = u32>) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for chunk in chunks {
            let acked = Event::Acked(chunk);
            events = self
                .floor
                .log
                .wait_for_some("an ack", 1, |event| *event == acked)
                .await?;
        }
        Ok(events)
    }
}

impl Worker {
    pub(crate) async fn stop(self) -> Result<WorkerSummary> {
        self.stop.cancel();
        self.ended().await
    }

    pub(crate) async fn ended(self) -> Result<WorkerSummary> {
        Ok(within("the worker's end", self.running).await???)
    }
}

/// Where an event is first.
pub(crate) fn place(events: &[Event], wanted: &Event) -> usize {
    events
        .iter()
        .position(|event| event == wanted)
        .unwrap_or_else(|| panic!("{wanted:?} never happened: {events:?}"))
}

/// How many events are such.
pub(crate) fn count(events: &[Event], such: impl Fn(&Event) -> bool) -> usize {
    events.iter().filter(|event| such(event)).count()
}

/// The bodies that were published for a chunk.
pub(crate) fn published(events: &[Event], chunk: u32) -> Vec<Body> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Published(number, body) if *number == chunk => Some(body.clone()),
            _ => None,
        })
        .collect()
}
