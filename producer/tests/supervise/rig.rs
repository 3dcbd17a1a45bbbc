//! A producer with a database in a temporary folder. The broker records each publish and compares it with the plan in the
//! database at that moment. A test answers chunks where it needs a worker and a writer.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Parser;
use pingfleet_broker::{Broker as _, BrokerError, Confirm, MemoryBroker, QueueDepth, QueueName};
use pingfleet_settings::ProbingSettings;
use pingfleet_store::{
    DatabaseThread, DecodedDelivery, Durability, FileMode, OpenOptions, RawMessage, Reader,
    Transport, Writer,
};
use pingfleet_targets::{TargetArgs, read};
use pingfleet_wire::{
    Family, Message as _, Outcome, Probing, ResultChunk, Rtt, Status, Target, Version, WorkChunk,
};
use producer::{ProducerError, ProducerSettings, RunOutcome, RunProgress, RunRequest};
use rusqlite::Connection;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answers::Answers,
    watched::{Log, Pass, Watch, Watched, within},
};

/// What the producer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It has a session for publishing.
    Opened,
    /// It sent a chunk.
    Published(u32),
    /// It asked how full a queue is.
    Depth(QueueName),
}

/// The producer's broker, as the test sees it.
#[derive(Debug)]
pub(crate) struct BrokerWatch {
    pub(crate) log: Log<Event>,
    /// How its publishes are answered.
    pub(crate) answers: Answers,
    /// Publishing this chunk releases these confirms.
    pub(crate) confirms_at: Mutex<Option<(u32, Arc<Semaphore>)>>,
    /// Whether no session can be opened, by a final error.
    pub(crate) refuses_sessions: AtomicBool,
    /// Ready messages that are reported in addition to the real ones: of `work`, of `results`.
    pub(crate) extra_ready: [AtomicU32; 2],
    /// Cancelled by the first look at the topology, which comes before the plan.
    pub(crate) cancelled_by_check: Mutex<Option<CancellationToken>>,
    /// Publishes that contradict the plan.
    wrong: Mutex<Vec<String>>,
    database: Mutex<Connection>,
}

impl BrokerWatch {
    /// Reads the database at the moment of a publish: the whole plan must be there, with these bytes.
    fn check_against_plan(&self, body: &[u8]) -> Result<u32> {
        let work = WorkChunk::decode(body)?;
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, planned, chunks): (String, i64, i64) = database.query_row(
            "SELECT state, chunks, (SELECT count(*) FROM plan p WHERE p.run = n.run) FROM runs n
             WHERE run_id = ?1",
            [work.key.run.to_string()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let same: bool = database.query_row(
            "SELECT count(*) = 1 FROM plan p JOIN runs n ON n.run = p.run
             WHERE n.run_id = ?1 AND p.chunk = ?2 AND p.work = ?3 AND p.token = ?4",
            (work.key.run.to_string(), work.key.chunk, body, work.token.0),
            |row| row.get(0),
        )?;
        if state != "running" || planned != chunks || !same {
            self.wrong
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("chunk {} of a {state} run", work.key.chunk));
        }
        Ok(work.key.chunk)
    }
}

#[async_trait]
impl Watch for BrokerWatch {
    async fn check(&self) -> Result<(), BrokerError> {
        let cancelled = self
            .cancelled_by_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(token) = cancelled {
            token.cancel();
        }
        Ok(())
    }

    fn opened(&self, _consumes: Option<(QueueName, u16)>) -> Result<(), BrokerError> {
        if self.refuses_sessions.load(Ordering::Relaxed) {
            return Err(BrokerError::Url("the test refuses sessions".to_owned()));
        }
        self.log.note(Event::Opened);
        Ok(())
    }

    async fn depth(
        &self,
        queue: QueueName,
        pass: Pass<'_, QueueDepth>,
    ) -> Result<QueueDepth, BrokerError> {
        let mut depth = pass.await?;
        depth.ready +=
            self.extra_ready[usize::from(queue == QueueName::RESULTS)].load(Ordering::Relaxed);
        self.log.note(Event::Depth(queue));
        Ok(depth)
    }

    async fn publish(
        &self,
        _queue: QueueName,
        body: &[u8],
        pass: Pass<'_, Confirm>,
    ) -> Result<Confirm, BrokerError> {
        let chunk = self
            .check_against_plan(body)
            .expect("the database can be read beside the producer");
        self.log.note(Event::Published(chunk));
        let confirms = self
            .confirms_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|(at, _)| *at == chunk);
        if let Some((_, permits)) = confirms {
            permits.add_permits(Semaphore::MAX_PERMITS / 2);
        }
        self.answers.give(chunk, pass).await
    }
}

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    targets: TargetArgs,
}

/// The folder with its database, and the queues.
pub(crate) struct Rig {
    pub(crate) watch: Arc<BrokerWatch>,
    pub(crate) memory: MemoryBroker,
    pub(crate) settings: ProducerSettings,
    pub(crate) folder: tempfile::TempDir,
}

/// A running producer.
pub(crate) struct RunningProducer {
    pub(crate) stop: CancellationToken,
    progress: watch::Receiver<RunProgress>,
    running: JoinHandle<(Result<RunOutcome, ProducerError>, DatabaseThread)>,
}

/// Where a producer prints to.
#[derive(Clone, Default)]
pub(crate) struct Output {
    pub(crate) written: Arc<Mutex<Vec<u8>>>,
    /// What every write fails with.
    pub(crate) fails: Option<io::ErrorKind>,
}

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Some(kind) = self.fails {
            return Err(kind.into());
        }
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Its lines, sorted.
    pub(crate) fn lines(&self) -> Result<Vec<String>> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<_> = String::from_utf8(written.clone())?
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        Ok(lines)
    }
}

impl Rig {
    /// Chunks of `chunk_size`, in the given order.
    pub(crate) fn new(chunk_size: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = options(&folder).open()?;
        store.close()?;
        let watch = BrokerWatch {
            log: Log::default(),
            answers: Answers::default(),
            confirms_at: Mutex::default(),
            refuses_sessions: AtomicBool::new(false),
            extra_ready: Default::default(),
            cancelled_by_check: Mutex::default(),
            wrong: Mutex::default(),
            database: Mutex::new(Connection::open(options(&folder).path)?),
        };
        Ok(Self {
            watch: Arc::new(watch),
            memory: MemoryBroker::new(10_000),
            settings: ProducerSettings {
                transport: Transport::Broker,
                probing: ProbingSettings {
                    probing: Probing::default(),
                    chunk_size,
                },
                seed: None,
                detach: false,
                print: None,
                progress_bar: false,
                finds_overtaken: true,
            },
            folder,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        options(&self.folder).path
    }

    pub(crate) fn reader(&self) -> Result<Reader> {
        Ok(Reader::open(&options(&self.folder).path)?)
    }

    pub(crate) fn store(&self) -> Result<Writer> {
        Ok(options(&self.folder).open()?)
    }

    /// The database on a thread of its own.
    pub(crate) async fn db(&self) -> Result<DatabaseThread> {
        Ok(DatabaseThread::open(options(&self.folder)).await?)
    }

    /// Another connection to the database.
    pub(crate) fn connection(&self) -> Result<Connection> {
        Ok(Connection::open(self.path())?)
    }

    /// One number of a query.
    pub(crate) fn number(&self, query: &str) -> Result<i64> {
        Ok(self.connection()?.query_row(query, (), |row| row.get(0))?)
    }

    /// A new run with the targets of this command line.
    pub(crate) fn plan(words: &[&str]) -> Result<RunRequest> {
        let line = CommandLine::try_parse_from(["test"].iter().chain(words))?;
        let targets = read(&line.targets, Family::Any, io::empty())?;
        Ok(RunRequest::Plan(Box::new(targets)))
    }

    pub(crate) async fn start(&self, request: RunRequest) -> Result<RunningProducer> {
        self.start_on(request, Output::default()).await
    }

    /// Starts a producer that prints to `output`.
    pub(crate) async fn start_on(
        &self,
        request: RunRequest,
        mut output: Output,
    ) -> Result<RunningProducer> {
        let db = DatabaseThread::open(options(&self.folder)).await?;
        let broker = Arc::new(Watched {
            watch: Arc::clone(&self.watch),
            memory: self.memory.clone(),
        });
        let settings = self.settings.clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (published, progress) = watch::channel(RunProgress::default());
        let running = tokio::spawn(async move {
            let ended = producer::run(
                broker,
                &db,
                request,
                &settings,
                &mut output,
                &published,
                stopped,
            )
            .await;
            (ended, db)
        });
        Ok(RunningProducer {
            stop,
            progress,
            running,
        })
    }

    /// Plans a run and publishes it, without supervising it.
    pub(crate) async fn detached(&mut self, words: &[&str]) -> Result<RunOutcome> {
        self.settings.detach = true;
        let outcome = self.start(Self::plan(words)?).await?.ended().await?;
        self.settings.detach = false;
        Ok(outcome?)
    }

    /// Resumes a run, and waits until the producer supervises it.
    pub(crate) async fn resume(&self, run: i64) -> Result<RunningProducer> {
        let mut resumed = self.start(RunRequest::Resume(run)).await?;
        let is_supervised = |progress: &RunProgress| progress.run == Some(run);
        let supervised = resumed.progress.wait_for(is_supervised);
        within("the progress of the resumed run", supervised).await??;
        Ok(resumed)
    }

    /// Waits until this many publishes happened in all.
    pub(crate) async fn published(&self, publishes: usize) -> Result<Vec<Event>> {
        self.watch
            .log
            .wait_for_some("publishes", publishes, |event| {
                matches!(event, Event::Published(_))
            })
            .await
    }

    /// Everything that was published was in the plan before, with the same bytes.
    pub(crate) fn assert_published_as_planned(&self) {
        let wrong = self
            .watch
            .wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Settles this many chunks from the work queue: an address with an even last byte is up.
    pub(crate) async fn answer(&self, chunks: usize) -> Result<()> {
        let mut store = self.store()?;
        let mut consumer = self.memory.consumer(QueueName::WORK, 1).await?;
        for _ in 0..chunks {
            let delivery = within("a chunk to answer", consumer.next()).await??;
            let work = WorkChunk::decode(&delivery.body)?;
            store.apply(Transport::Broker, &[outcomes(&work)])?;
            consumer.ack(&[delivery.tag]).await?;
        }
        Ok(())
    }

    /// Takes one chunk from the work queue and makes it dead.
    pub(crate) async fn kill(&self) -> Result<()> {
        let mut consumer = self.memory.consumer(QueueName::WORK, 1).await?;
        let delivery = within("a chunk to kill", consumer.next()).await??;
        let dead = DecodedDelivery::Dead {
            message: Box::new(WorkChunk::decode(&delivery.body)?),
            raw: RawMessage::new(QueueName::DEAD.kind.name(), delivery.body),
            reason: "delivery_limit".to_owned(),
        };
        self.store()?.apply(Transport::Broker, &[dead])?;
        Ok(consumer.ack(&[delivery.tag]).await?)
    }
}

impl RunningProducer {
    pub(crate) async fn stop(self) -> Result<RunOutcome> {
        self.stop.cancel();
        Ok(self.ended().await??)
    }

    /// How it ended. Its database is closed.
    pub(crate) async fn ended(self) -> Result<Result<RunOutcome, ProducerError>> {
        let (ended, db) = within("the producer's end", self.running).await??;
        producer::close(db, &ended).await?;
        Ok(ended)
    }
}

/// Whether a target is up in these tests.
fn is_up(target: &Target) -> bool {
    target.to_string().ends_with(['0', '2', '4', '6', '8'])
}

fn outcomes(work: &WorkChunk) -> DecodedDelivery {
    let outcome = |target: &Target| {
        let up = is_up(target);
        Outcome {
            status: if up { Status::Up } else { Status::DOWN },
            address: None,
            sent: 1,
            received: u16::from(up),
            rtt: Rtt::of(&[std::time::Duration::from_millis(1)]).filter(|_| up),
            attempts: 1,
            probed_after_us: 0,
        }
    };
    DecodedDelivery::Result {
        message: Box::new(ResultChunk {
            version: Version,
            database: work.database,
            key: work.key,
            token: work.token,
            worker: "tester".to_owned(),
            redelivered: false,
            started_at_us: 1_700_000_000_000_000,
            outcomes: work.targets.iter().map(outcome).collect(),
        }),
        raw: RawMessage::new(QueueName::RESULTS.kind.name(), Vec::new()),
        redelivered: false,
    }
}

/// How often each chunk was published.
pub(crate) fn publishes(events: &[Event]) -> BTreeMap<u32, usize> {
    let mut publishes = BTreeMap::new();
    for event in events {
        if let Event::Published(chunk) = event {
            *publishes.entry(*chunk).or_default() += 1;
        }
    }
    publishes
}

/// The run's number.
pub(crate) fn run_of(outcome: &RunOutcome) -> Result<i64> {
    Ok(outcome.summary.as_ref().context("no run")?.run)
}

fn options(folder: &tempfile::TempDir) -> OpenOptions {
    OpenOptions {
        path: folder.path().join("pingfleet.db"),
        // These tests do not cover power loss.
        durability: Durability::Off,
        create: true,
        mode: FileMode::User,
        check: false,
    }
}
