//! A run whose results 64 simulated workers publish.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pingfleet_broker::{Broker, Confirmed, Publisher, QueueName, RabbitBroker, RabbitConfig};
use pingfleet_store::{
    Durability, FileMode, NewChunk, NewRun, OpenOptions, PlannedProbing, PlannedRun,
    PublishedChunk, Reader, RunState, Transport, WindowUse, Writer, now_us,
};
use pingfleet_wire::{
    ChunkInHand, ChunkKey, Heartbeat, Message as _, Outcome, Probing, ResultChunk, Rtt, Status,
    Target, Token, Version, WorkChunk, timing::HEARTBEAT_INTERVAL,
};
use tokio::{runtime::Runtime, task::JoinSet};
use uuid::Uuid;

use crate::writer_process::WriterProcess;

const WORKERS: u32 = 64;
const CHUNK: u32 = 250;

/// Chunks of one transaction of the plan.
const PLANNED_AT_ONCE: usize = 100;

/// A prime number, to spread neighbours over the plan.
const SPREAD: u64 = 2_147_483_647;

/// Longer than a run on a very slow machine.
const MAX_WAIT: Duration = Duration::from_mins(20);

/// How often the database is asked for the end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The connections of the workers.
pub(crate) struct Fleet {
    url: String,
    runtime: Runtime,
    broker: Arc<RabbitBroker>,
}

impl Fleet {
    pub(crate) fn start(url: &str) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let broker = RabbitBroker::new(&RabbitConfig::new(url))?;
        runtime.block_on(broker.ensure(&QueueName::ALL))?;
        Ok(Self {
            url: url.to_owned(),
            runtime,
            broker: Arc::new(broker),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// What the workers know of a run.
struct Plan {
    database: Uuid,
    run_id: Uuid,
    /// Of each chunk.
    tokens: Vec<(Uuid, u32)>,
    next: AtomicU32,
    /// Targets per second of all workers together.
    rate: Option<u32>,
    began: Instant,
}

/// A run that was planned.
pub(crate) struct Run {
    store: Writer,
    reader: Reader,
    planned: PlannedRun,
    database: Uuid,
    tokens: Vec<(Uuid, u32)>,
    publishers: Vec<Box<dyn Publisher>>,
    working: JoinSet<anyhow::Result<()>>,
    renewed: Instant,
}

impl Run {
    /// Plans a run of addresses, all of which are published, and connects the workers.
    pub(crate) fn plan(
        fleet: &Fleet,
        writer: &WriterProcess,
        targets: u32,
    ) -> anyhow::Result<Self> {
        let mut publishers = Vec::new();
        for _ in 0..WORKERS {
            publishers.push(fleet.runtime.block_on(fleet.broker.publisher())?);
        }
        let options = OpenOptions {
            path: writer.database().to_owned(),
            durability: Durability::Off,
            create: false,
            mode: FileMode::User,
            check: false,
        };
        let mut store = options.open()?;
        let probing = PlannedProbing {
            probing: Probing::default(),
            chunk_size: CHUNK as usize,
        };
        let planned = store.begin_run(&NewRun {
            transport: Transport::Broker,
            source: "10.0.0.0/8".to_owned(),
            probing: probing.to_json(),
            seed: None,
            worst_chunk: Duration::from_secs(5),
            parent_run: None,
        })?;
        let database = store.database();
        let mut tokens = Vec::new();
        let chunks = (0..targets.div_ceil(CHUNK)).collect::<Vec<_>>();
        for some in chunks.chunks(PLANNED_AT_ONCE) {
            let planned_chunks = some.iter().map(|chunk| {
                let count = CHUNK.min(targets - chunk * CHUNK);
                let token = Uuid::new_v4();
                tokens.push((token, count));
                new_chunk(database, &planned, *chunk, token, targets, count)
            });
            store.add_chunks(planned.run, &planned_chunks.collect::<Vec<_>>())?;
        }
        store.start_run(planned.run)?;
        let published = |chunk: &u32| PublishedChunk {
            chunk: *chunk,
            sent_at_us: now_us(),
            round: 0,
        };
        store.mark_published(
            planned.run,
            &chunks.iter().map(published).collect::<Vec<_>>(),
        )?;
        Ok(Self {
            reader: Reader::open(writer.database())?,
            store,
            planned,
            database,
            tokens,
            publishers,
            working: JoinSet::new(),
            renewed: Instant::now(),
        })
    }

    /// Lets the workers publish its results, at most at this rate in targets per second.
    pub(crate) fn begin(&mut self, fleet: &Fleet, rate: Option<u32>) {
        let plan = Arc::new(Plan {
            database: self.database,
            run_id: self.planned.run_id,
            tokens: std::mem::take(&mut self.tokens),
            next: AtomicU32::new(0),
            rate,
            began: Instant::now(),
        });
        for (number, publisher) in (0..).zip(self.publishers.drain(..)) {
            let working = work(number, publisher, Arc::clone(&plan));
            self.working.spawn_on(working, fleet.runtime.handle());
        }
    }

    /// Whether the run is complete. Renews the lease of its producer.
    pub(crate) fn is_done(&mut self) -> anyhow::Result<bool> {
        while let Some(ended) = self.working.try_join_next() {
            ended??;
        }
        let summary = self.reader.summary(self.planned.run)?;
        if self.renewed.elapsed() >= Duration::from_secs(3) {
            self.renewed = Instant::now();
            let window = WindowUse {
                size: summary.chunks,
                in_use: summary.outstanding(),
            };
            self.store.renew_lease(self.planned.run, Some(window))?;
        }
        Ok(summary.state == RunState::Complete)
    }

    /// Waits until the run is complete.
    pub(crate) fn wait(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.is_done()? {
            ensure!(began.elapsed() < MAX_WAIT, "the run hangs");
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

fn new_chunk(
    database: Uuid,
    planned: &PlannedRun,
    chunk: u32,
    token: Uuid,
    targets: u32,
    count: u32,
) -> NewChunk {
    let address = |at: u32| {
        let spread = u64::from(at) * (SPREAD % u64::from(targets)) % u64::from(targets);
        Target::Address(Ipv4Addr::from_bits(0x0a00_0000 + spread as u32).into())
    };
    let first = chunk * CHUNK;
    let work = WorkChunk {
        version: Version,
        database,
        key: ChunkKey {
            run: planned.run_id,
            chunk,
        },
        token: Token(token),
        probing: Probing::default(),
        targets: (first..first + count).map(address).collect(),
    };
    NewChunk {
        chunk,
        token,
        targets: count,
        work: work.encode(),
        labels: Vec::new(),
    }
}

/// Publishes results until none is left, and heartbeats.
async fn work(
    number: u32,
    mut publisher: Box<dyn Publisher>,
    plan: Arc<Plan>,
) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(number.into());
    // The same worker in all runs.
    let instance = Uuid::from_u128(u128::from(number) + 1);
    let mut heartbeat = Heartbeat::new(format!("site-{number:02}"), instance);
    let mut due = tokio::time::Instant::now();
    loop {
        let chunk = plan.next.fetch_add(1, Ordering::Relaxed);
        let token = plan.tokens.get(chunk as usize).copied();
        let key = ChunkKey {
            run: plan.run_id,
            chunk,
        };
        heartbeat.in_hand = token
            .map(|_| ChunkInHand::just_taken(key))
            .into_iter()
            .collect();
        let at = plan.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(f64::from(chunk * CHUNK) / f64::from(rate))
        });
        let publish_at = tokio::time::Instant::from_std(plan.began + at);
        // A heartbeat between two results, and while the next one is waited for.
        while (token.is_some() && publish_at > due) || due <= tokio::time::Instant::now() {
            tokio::time::sleep_until(due).await;
            publish(&mut *publisher, QueueName::HEARTBEATS, &heartbeat.encode()).await?;
            due += HEARTBEAT_INTERVAL;
        }
        let Some((token, count)) = token else {
            break;
        };
        tokio::time::sleep_until(publish_at).await;
        let result = ResultChunk {
            version: Version,
            database: plan.database,
            key,
            token: Token(token),
            worker: heartbeat.worker.clone(),
            redelivered: false,
            started_at_us: now_us() as u64,
            outcomes: (0..count).map(|_| outcome(&mut random)).collect(),
        };
        publish(&mut *publisher, QueueName::RESULTS, &result.encode()).await?;
        heartbeat.counts.chunks_done += 1;
        heartbeat.counts.targets_done += u64::from(count);
        heartbeat.counts.requests_sent += u64::from(count);
        heartbeat.counts.replies += u64::from(count) * 3 / 4;
    }
    publisher.close().await;
    Ok(())
}

async fn publish(
    publisher: &mut dyn Publisher,
    queue: QueueName,
    body: &[u8],
) -> anyhow::Result<()> {
    let confirm = publisher.publish(queue, body).await?;
    let confirmed = confirm.await.context("a confirm")?;
    ensure!(confirmed == Confirmed::Stored, "{confirmed:?}");
    Ok(())
}

/// Three targets of four answer, after 0.2 to 20 ms.
fn outcome(random: &mut fastrand::Rng) -> Outcome {
    let is_up = random.u8(..4) < 3;
    let time = Duration::from_micros(200 * 10_u64.pow(random.u32(0..3)) + random.u64(..200));
    Outcome {
        status: if is_up { Status::Up } else { Status::DOWN },
        address: None,
        sent: 1,
        received: u16::from(is_up),
        rtt: is_up.then(|| Rtt::of(&[time])).flatten(),
        attempts: 1,
        probed_after_us: 0,
    }
}
