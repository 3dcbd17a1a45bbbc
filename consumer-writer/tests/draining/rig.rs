//! A writer in a folder of its own, with a planned run. The broker notes each ack, with what the database had
//! committed at that moment.

use std::{
    future,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use consumer_writer::{WriterError, WriterSettings, WriterSummary};
use futures_util::FutureExt as _;
use pingfleet_broker::{
    Broker as _, BrokerError, Confirm, Confirmed, Delivery, MemoryBroker, QueueName,
};
use pingfleet_store::{
    DatabaseThread, Durability, FileMode, NewChunk, NewRun, OpenOptions, PlannedRun,
    PublishedChunk, Reader, Transport, Verification, Writer, now_us,
};
use pingfleet_wire::{
    ChunkKey, Message as _, Outcome, Probing, ResultChunk, Rtt, Status, Target, Token, Version,
    WorkChunk,
};
use rusqlite::Connection;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::watched::{Log, Pass, Watch, Watched, lost, within};

/// Longer than any test runs: a batch that is committed earlier was full.
pub(crate) const NEVER: Duration = Duration::from_hours(1);

/// Deliveries of a message until it is a dead letter: the first one and 20 redeliveries.
const DELIVERIES: usize = 21;

/// What the writer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Taken(QueueName),
    /// It acked this number of deliveries with one ack.
    Acked(QueueName, usize),
}

/// What the broker does with messages for the queue of foreign ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForeignQueue {
    Stores,
    /// It neither stores nor answers. When that ends, the sessions with open answers are lost.
    IsSilent,
    Refuses,
    IsForbidden,
}

/// The test's view of the writer's broker.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) log: Log<Event>,
    /// Breaks the session of the results.
    pub(crate) cut: Notify,
    /// The next ack of results breaks the session and never arrives.
    pub(crate) ack_is_lost: AtomicBool,
    /// What the broker does with messages for the queue of foreign ones.
    pub(crate) foreign_queue: watch::Sender<ForeignQueue>,
    /// How many were published there.
    pub(crate) foreign_published: AtomicUsize,
    /// Acks that came before their commit.
    pub(crate) early: Mutex<Vec<String>>,
    database: Mutex<Connection>,
    /// Deliveries of results and dead letters that were acked, or whose ack was lost.
    counted: Mutex<i64>,
    ours: Uuid,
    memory: MemoryBroker,
    /// Deliveries for other databases that were acked.
    foreign: Mutex<u32>,
}

impl Desk {
    /// Looks into the database at the moment of an ack: every delivery of results and dead letters that was ever acked
    /// must be in the counters, and the rows of each result must be there.
    fn witness(&self, queue: QueueName, bodies: &[&Vec<u8>]) -> Result<()> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(queue, QueueName::RESULTS | QueueName::DEAD) {
            *counted += bodies.len() as i64;
        }
        let taken: i64 =
            database.query_row("SELECT sum(taken) FROM writers", (), |row| row.get(0))?;
        if *counted > taken {
            early.push(format!("{counted} acked, {taken} committed"));
        }
        for body in bodies.iter().filter(|_| queue == QueueName::RESULTS) {
            let Ok(result) = ResultChunk::decode(body) else {
                continue;
            };
            let stored: i64 = database.query_row(
                "SELECT (SELECT count(*) FROM results r JOIN runs n ON n.run = r.run
                         WHERE n.run_id = ?1 AND r.chunk = ?2) + (SELECT count(*) FROM quarantine WHERE body = ?3)",
                (result.key.run.to_string(), result.key.chunk, body),
                |row| row.get(0),
            )?;
            if stored == 0 {
                early.push(format!("chunk {} has no rows", result.key.chunk));
            }
        }
        Ok(())
    }

    fn is_quarantined(&self, body: &[u8]) -> Result<bool> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(database.query_row(
            "SELECT EXISTS (SELECT 1 FROM quarantine WHERE body = ?1)",
            [body],
            |row| row.get(0),
        )?)
    }

    /// Everything for another database that was ever acked must be in the queue of foreign messages.
    async fn witness_foreign(&self, acked: u32) -> Result<()> {
        let set_aside = self.memory.depth(QueueName::FOREIGN).await?.ready;
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        *foreign += acked;
        if *foreign > set_aside {
            let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
            early.push(format!("{foreign} foreign acked, {set_aside} set aside"));
        }
        Ok(())
    }
}

#[async_trait]
impl Watch for Desk {
    async fn publish(
        &self,
        queue: QueueName,
        _body: &[u8],
        pass: Pass<'_, Confirm>,
    ) -> Result<Confirm, BrokerError> {
        if queue != QueueName::FOREIGN {
            return pass.await;
        }
        self.foreign_published.fetch_add(1, Ordering::Relaxed);
        let mut state = self.foreign_queue.subscribe();
        let now = *state.borrow_and_update();
        match now {
            ForeignQueue::Stores => pass.await,
            ForeignQueue::IsSilent => Ok(async move {
                state.changed().await.ok();
                Err(lost())
            }
            .boxed()),
            ForeignQueue::Refuses => Ok(future::ready(Ok(Confirmed::Refused)).boxed()),
            ForeignQueue::IsForbidden => Err(BrokerError::Forbidden {
                address: "the test".to_owned(),
                reason: "it says so".to_owned(),
            }),
        }
    }

    async fn next(
        &self,
        queue: QueueName,
        pass: Pass<'_, Delivery>,
    ) -> Result<Delivery, BrokerError> {
        let delivery = tokio::select! {
            biased;
            () = self.cut.notified(), if queue == QueueName::RESULTS => return Err(lost()),
            delivery = pass => delivery?,
        };
        self.log.note(Event::Taken(queue));
        Ok(delivery)
    }

    async fn ack(
        &self,
        queue: QueueName,
        bodies: Vec<Vec<u8>>,
        pass: Pass<'_, ()>,
    ) -> Result<(), BrokerError> {
        let (ours, foreign): (Vec<_>, Vec<_>) = bodies.iter().partition(|body| {
            ResultChunk::decode(body).map_or(true, |result| result.database == self.ours)
                || self.is_quarantined(body).unwrap_or(false)
        });
        // One ack is for the one or for the other.
        let seen = if foreign.is_empty() {
            self.witness(queue, &ours)
        } else {
            self.witness_foreign(foreign.len() as u32).await
        };
        seen.expect("database and broker can be read beside the writer");
        if queue == QueueName::RESULTS && self.ack_is_lost.swap(false, Ordering::Relaxed) {
            return Err(lost());
        }
        pass.await?;
        self.log.note(Event::Acked(queue, bodies.len()));
        Ok(())
    }
}

/// The folder with its database, the queues, and the plan of one run.
pub(crate) struct Rig {
    pub(crate) desk: Arc<Desk>,
    pub(crate) memory: MemoryBroker,
    pub(crate) settings: WriterSettings,
    pub(crate) planned: PlannedRun,
    pub(crate) works: Vec<WorkChunk>,
    folder: tempfile::TempDir,
}

/// A writer that runs.
pub(crate) struct RunningWriter {
    pub(crate) stop: CancellationToken,
    /// What it published last.
    pub(crate) summary: watch::Receiver<WriterSummary>,
    running: JoinHandle<(Result<WriterSummary, WriterError>, DatabaseThread)>,
}

impl Rig {
    /// A run of `chunks` chunks with `targets` targets each, all published; batches of one chunk.
    pub(crate) fn new(chunks: u32, targets: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut store = options(&folder).open()?;
        let planned = store.begin_run(&NewRun {
            transport: Transport::Broker,
            source: "test".to_owned(),
            probing: "{}".to_owned(),
            seed: None,
            worst_chunk: Duration::from_secs(5),
            parent_run: None,
        })?;
        let works: Vec<_> = (0..chunks)
            .map(|chunk| WorkChunk {
                version: Version,
                database: store.database(),
                key: ChunkKey {
                    run: planned.run_id,
                    chunk,
                },
                token: Token(Uuid::new_v4()),
                probing: Probing::default(),
                targets: (0..targets)
                    .map(|target| Target::Text(format!("host-{chunk}-{target}")))
                    .collect(),
            })
            .collect();
        let plan: Vec<_> = works
            .iter()
            .map(|work| NewChunk {
                chunk: work.key.chunk,
                token: work.token.0,
                targets,
                work: work.encode(),
                labels: Vec::new(),
            })
            .collect();
        store.add_chunks(planned.run, &plan)?;
        store.start_run(planned.run)?;
        let published: Vec<_> = (0..chunks)
            .map(|chunk| PublishedChunk {
                chunk,
                sent_at_us: now_us(),
                round: 0,
            })
            .collect();
        store.mark_published(planned.run, &published)?;
        let database = store.database();
        store.close()?;
        let memory = MemoryBroker::new(2000);
        let desk = Desk {
            log: Log::default(),
            cut: Notify::new(),
            ack_is_lost: AtomicBool::new(false),
            foreign_queue: watch::Sender::new(ForeignQueue::Stores),
            foreign_published: AtomicUsize::new(0),
            early: Mutex::default(),
            database: Mutex::new(Connection::open(options(&folder).path)?),
            counted: Mutex::new(0),
            ours: database,
            memory: memory.clone(),
            foreign: Mutex::new(0),
        };
        Ok(Self {
            desk: Arc::new(desk),
            memory,
            settings: WriterSettings {
                transport: Transport::Broker,
                login: None,
                batch_size: targets as usize,
                batch_interval: NEVER,
            },
            planned,
            works,
            folder,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        options(&self.folder).path
    }

    /// Another connection to the database, as another program has it.
    pub(crate) fn connection(&self) -> Result<Connection> {
        Ok(Connection::open(self.path())?)
    }

    pub(crate) fn reader(&self) -> Result<Reader> {
        Ok(Reader::open(&self.path())?)
    }

    pub(crate) fn store(&self) -> Result<Writer> {
        Ok(options(&self.folder).open()?)
    }

    /// One value of a query.
    pub(crate) fn value<T: rusqlite::types::FromSql>(&self, query: &str) -> Result<T> {
        Ok(self.connection()?.query_row(query, (), |row| row.get(0))?)
    }

    pub(crate) fn verify(&self) -> Result<Verification> {
        Ok(self.reader()?.verify(self.planned.run)?)
    }

    /// The result of a chunk, with every target up.
    pub(crate) fn result(&self, chunk: u32) -> ResultChunk {
        let work = &self.works[chunk as usize];
        ResultChunk {
            version: Version,
            database: work.database,
            key: work.key,
            token: work.token,
            worker: "tester".to_owned(),
            redelivered: false,
            started_at_us: now_us().unsigned_abs(),
            outcomes: vec![
                Outcome {
                    status: Status::Up,
                    address: Some([10, 0, 0, 1].into()),
                    sent: 1,
                    received: 1,
                    rtt: Rtt::of(&[Duration::from_millis(1)]),
                    attempts: 1,
                    probed_after_us: 0,
                };
                work.targets.len()
            ],
        }
    }

    /// Puts a message on a queue.
    pub(crate) async fn put(&self, queue: QueueName, body: &[u8]) -> Result<()> {
        let mut publisher = self.memory.publisher().await?;
        publisher.publish(queue, body).await?.await?;
        Ok(())
    }

    /// Puts the results of chunks on their queue.
    pub(crate) async fn put_results(&self, chunks: impl IntoIterator<Item = u32>) -> Result<()> {
        for chunk in chunks {
            self.put(QueueName::RESULTS, &self.result(chunk).encode())
                .await?;
        }
        Ok(())
    }

    /// Makes a message a dead letter, by returning it to the work queue again and again.
    pub(crate) async fn kill(&self, body: &[u8]) -> Result<()> {
        self.put(QueueName::WORK, body).await?;
        let mut consumer = self.memory.consumer(QueueName::WORK, 1).await?;
        for _ in 0..DELIVERIES {
            let delivery = consumer.next().await?;
            consumer.requeue(delivery.tag).await?;
        }
        Ok(())
    }

    pub(crate) async fn ready(&self, queue: QueueName) -> Result<u32> {
        Ok(self.memory.depth(queue).await?.ready)
    }

    pub(crate) async fn start(&self) -> Result<RunningWriter> {
        let db = DatabaseThread::open(options(&self.folder)).await?;
        let broker = Arc::new(Watched {
            watch: Arc::clone(&self.desk),
            memory: self.memory.clone(),
        });
        let settings = self.settings.clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (published, summary) = watch::channel(WriterSummary::default());
        let running = tokio::spawn(async move {
            let ended = consumer_writer::run(broker, &db, &settings, published, stopped).await;
            (ended, db)
        });
        Ok(RunningWriter {
            stop,
            summary,
            running,
        })
    }

    /// Waits until so many deliveries of a queue were acked in all.
    pub(crate) async fn acked(&self, queue: QueueName, deliveries: usize) -> Result<()> {
        self.desk
            .log
            .wait_for("acks", |events| {
                acked(events, queue).iter().sum::<usize>() >= deliveries
            })
            .await?;
        Ok(())
    }

    /// Waits until so many deliveries of a queue were taken in all.
    pub(crate) async fn taken(&self, queue: QueueName, deliveries: usize) -> Result<()> {
        let taken = Event::Taken(queue);
        self.desk
            .log
            .wait_for_some("deliveries", deliveries, |event| *event == taken)
            .await?;
        Ok(())
    }

    /// Nothing was ever acked before it was committed.
    pub(crate) fn assert_no_early_ack(&self) {
        let early = self
            .desk
            .early
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert!(early.is_empty(), "{early:?}");
    }

    /// Every target has its row, and the writer's counters add up.
    pub(crate) fn assert_complete(&self) -> Result<()> {
        let proof = self.verify()?;
        assert!(proof.is_complete(), "{proof:?}");
        self.assert_sums()
    }

    /// Every delivery that was taken is in exactly one of the counters.
    pub(crate) fn assert_sums(&self) -> Result<()> {
        let sign = self
            .store()?
            .writer_liveness(Transport::Broker)?
            .context("no writer")?;
        assert_eq!(
            sign.taken,
            sign.applied + sign.duplicates + sign.quarantined,
            "{sign:?}"
        );
        Ok(())
    }
}

impl RunningWriter {
    pub(crate) async fn stop(self) -> Result<WriterSummary> {
        self.stop.cancel();
        Ok(self.ended().await??)
    }

    /// How it ended. Its database is closed.
    pub(crate) async fn ended(self) -> Result<Result<WriterSummary, WriterError>> {
        let (ended, db) = self.left().await?;
        db.close().await?;
        Ok(ended)
    }

    /// How it ended, with its database.
    pub(crate) async fn left(self) -> Result<(Result<WriterSummary, WriterError>, DatabaseThread)> {
        Ok(within("the writer's end", self.running).await??)
    }
}

/// The sizes of the acks of a queue, in their order.
pub(crate) fn acked(events: &[Event], queue: QueueName) -> Vec<usize> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Acked(acked, deliveries) if *acked == queue => Some(*deliveries),
            _ => None,
        })
        .collect()
}

fn options(folder: &tempfile::TempDir) -> OpenOptions {
    OpenOptions {
        path: folder.path().join("pingfleet.db"),
        // These tests do not cover a power loss.
        durability: Durability::Off,
        create: true,
        mode: FileMode::User,
        check: false,
    }
}
