//! A complete private deployment: a broker, the programs as users start them, a database in a temporary folder, and
//! optionally a network namespace in which a prefix of addresses answers.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pingfleet_store::{Reader, RunState, RunSummary, Verification};
use pingfleet_testbed::{Namespace, QUEUE_TICK, Rabbit};

use crate::{
    MAX_WAIT, POLL_INTERVAL,
    child_process::{ChildProcess, program_path},
    resource_usage::ResourceUsage,
};

/// When nothing was settled for this long, the queues are checked. That costs a second of CPU time, so not sooner.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// The writer closes a large run in several transactions, long after it acked the last message.
const MAX_CLOSE_TIME: Duration = Duration::from_mins(1);

/// A broker, a database and an environment in which programs are started.
#[derive(Debug)]
pub struct Deployment {
    rabbit: Option<Rabbit>,
    namespace: Option<Namespace>,
    /// The queue prefix, which separates deployments on one broker.
    prefix: String,
    folder: tempfile::TempDir,
    database: PathBuf,
    started: Cell<u32>,
    environment: RefCell<Vec<(String, String)>>,
    usage: Rc<ResourceUsage>,
}

/// Why nothing changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Every chunk is done or dead, and every run is closed.
    Settled,
    /// Chunks are outstanding, or a run is open, but the queues have no message.
    QueuesEmpty,
}

impl Deployment {
    fn build(
        rabbit: Option<Rabbit>,
        namespace: Option<Namespace>,
        prefix: &str,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pingfleet-deployment-")
            .tempdir()?;
        Ok(Self {
            rabbit,
            namespace,
            prefix: prefix.to_owned(),
            usage: Rc::new(ResourceUsage::new(&folder.path().join("pingfleet.db"))),
            database: folder.path().join("pingfleet.db"),
            folder,
            started: Cell::new(0),
            environment: RefCell::default(),
        })
    }

    /// A namespace in which 10.0.0.0/9 answers, and everything else is silent.
    ///
    /// # Errors
    /// When it cannot be made, mostly because the caller is not root.
    pub fn without_broker() -> anyhow::Result<Self> {
        Self::build(None, Some(Namespace::answering("10.0.0.0/9")?), "pingfleet")
    }

    /// The same with a broker in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let mut deployment = Self::without_broker()?;
        deployment.rabbit = deployment
            .namespace
            .as_ref()
            .map(Rabbit::start_in)
            .transpose()?;
        Ok(deployment)
    }

    /// A deployment on this machine's loopback. Deployments with other prefixes may use the same broker.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn with_shared_broker(rabbit: Rabbit, prefix: &str) -> anyhow::Result<Self> {
        Self::build(Some(rabbit), None, prefix)
    }

    /// Returns the broker, for the next deployment.
    #[must_use]
    pub fn into_broker(mut self) -> Option<Rabbit> {
        self.rabbit.take()
    }

    /// The broker.
    ///
    /// # Errors
    /// When there is none.
    pub fn broker_mut(&mut self) -> anyhow::Result<&mut Rabbit> {
        self.rabbit
            .as_mut()
            .context("a deployment without a broker")
    }

    /// The broker, for queries.
    ///
    /// # Errors
    /// When there is none.
    pub fn broker(&self) -> anyhow::Result<&Rabbit> {
        self.rabbit
            .as_ref()
            .context("a deployment without a broker")
    }

    /// The network namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn namespace(&self) -> anyhow::Result<&Namespace> {
        self.namespace
            .as_ref()
            .context("a deployment without a network of its own")
    }

    /// The working folder of the programs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of the database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.database.clone()
    }

    /// Sets another folder for the database of the programs that are started from now on.
    pub fn move_database(&mut self, folder: &Path) {
        self.database = folder.join("pingfleet.db");
        self.usage.move_database(&self.database);
        let path = self.database.to_string_lossy().into_owned();
        self.set_env("PINGFLEET_STORE__PATH", &path);
    }

    /// The prefix of this deployment's queue names.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of one of this deployment's queues.
    #[must_use]
    pub fn queue(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    /// Sets an environment variable of the programs that are started from now on. An empty value removes it.
    pub fn set_env(&self, name: &str, value: &str) {
        let mut environment = self.environment.borrow_mut();
        environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Sets the most memory, in MiB, that a program may use.
    pub fn limit_memory(&self, mib: u64) {
        self.usage.limit_memory(mib);
    }

    /// The largest size of the write-ahead log that was observed.
    #[must_use]
    pub fn peak_wal_bytes(&self) -> u64 {
        self.usage.peak_wal_bytes()
    }

    /// The peak memory, in MiB, and the peak number of threads of the programs with this name.
    #[must_use]
    pub fn peak(&self, program: &str) -> (u64, u64) {
        self.usage.sample_all();
        self.usage.peak(program)
    }

    /// Every limit that a program, running or not, or the write-ahead log exceeded.
    #[must_use]
    pub fn exceeded_limits(&self) -> Vec<String> {
        self.usage.sample_all();
        self.usage.exceeded_limits()
    }

    /// A file of the first `count` addresses of 10.0.0.0/9, one a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hosts(&self, count: u32) -> anyhow::Result<PathBuf> {
        self.hosts_from(0, count)
    }

    /// The same, after the first `skipped`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hosts_from(&self, skipped: u32, count: u32) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join("hosts.txt");
        let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 1)) + skipped;
        let lines: Vec<String> = (first..first + count)
            .map(|address| std::net::Ipv4Addr::from(address).to_string())
            .collect();
        std::fs::write(&path, lines.join("\n"))?;
        Ok(path)
    }

    /// Starts a program of the workspace with this deployment's broker and database.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start(&self, program: &str, arguments: &[&str]) -> anyhow::Result<ChildProcess> {
        self.start_with_wrapper(&[], program, arguments)
    }

    /// The same through a command that starts the program, such as `strace -f`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start_with_wrapper(
        &self,
        under: &[&str],
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<ChildProcess> {
        let path = program_path(program)?;
        // The program dies with the test: otherwise it would try to reach a missing broker for ever.
        let mut words: Vec<std::ffi::OsString> = ["setpriv", "--pdeathsig", "KILL"]
            .iter()
            .chain(under)
            .map(Into::into)
            .collect();
        words.push(path.into());
        words.extend(arguments.iter().map(Into::into));
        let mut command = match &self.namespace {
            Some(namespace) => namespace.command(&words[0]),
            None => Command::new(&words[0]),
        };
        command.args(&words[1..]).current_dir(self.folder.path());
        if let Some(rabbit) = &self.rabbit {
            command.env("PINGFLEET_BROKER__URL", rabbit.url());
        }
        command.env("PINGFLEET_BROKER__PREFIX", &self.prefix);
        // Deployments run side by side, and all would take the same port.
        command.env("PINGFLEET_DASHBOARD__LISTEN", "off");
        for (name, value) in &*self.environment.borrow() {
            command.env(name, value);
        }
        let number = self.started.get();
        self.started.set(number + 1);
        let log = self.folder.path().join(format!("{number}.log"));
        ChildProcess::start(program, command, log, &self.usage)
    }

    /// Waits until the latest run satisfies `condition`.
    ///
    /// # Errors
    /// When it never does.
    pub fn wait_for_run(
        &self,
        what: &str,
        mut condition: impl FnMut(&RunSummary) -> bool,
    ) -> anyhow::Result<RunSummary> {
        let began = Instant::now();
        let mut seen = None;
        while began.elapsed() < MAX_WAIT {
            if self.database().exists()
                && let Ok(store) = self.store()
                && let Ok(run) = store.find_run("latest")
            {
                let summary = store.summary(run)?;
                if condition(&summary) {
                    return Ok(summary);
                }
                seen = Some(summary);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("timed out waiting for {what}; the run is {seen:?}")
    }

    /// Waits until the queues had no message, ready or unacked, twice in a row.
    ///
    /// # Errors
    /// When that never happens.
    pub fn wait_for_empty_queues(&self) -> anyhow::Result<()> {
        self.wait_for_chunks_or_empty_queues(i64::MAX)
    }

    /// Waits until the run has this many chunks done, or the queues had no message twice in a row.
    ///
    /// # Errors
    /// When neither happens.
    pub fn wait_for_chunks_or_empty_queues(&self, chunks: i64) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut empty = 0;
        while began.elapsed() < MAX_WAIT {
            let store = self.store()?;
            if store.summary(store.find_run("latest")?)?.chunks_done >= chunks {
                return Ok(());
            }
            empty = if self.message_count()? > 0 {
                0
            } else {
                empty + 1
            };
            if empty == 2 {
                return Ok(());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("the queues did not become empty")
    }

    /// Waits until every run is settled, or nothing can settle the outstanding chunks because the queues are empty.
    ///
    /// # Errors
    /// When neither happens: something hangs.
    pub fn wait_until_idle(&self) -> anyhow::Result<Idle> {
        let began = Instant::now();
        let mut last_change = (Instant::now(), -1);
        let mut empty = 0;
        while began.elapsed() < MAX_WAIT {
            let summaries = self.store()?.summaries()?;
            let outstanding: i64 = summaries
                .iter()
                .filter(|run| run.state != RunState::Planning)
                .map(RunSummary::outstanding)
                .sum();
            self.usage.sample_all();
            let closed = summaries
                .iter()
                .all(|run| run.state == RunState::Planning || run.finished_at.is_some());
            if outstanding == 0 && closed && !summaries.is_empty() {
                return Ok(Idle::Settled);
            }
            let stalled_after = if outstanding == 0 {
                MAX_CLOSE_TIME
            } else {
                STALLED_AFTER
            };
            if last_change.1 != outstanding {
                last_change = (Instant::now(), outstanding);
                empty = 0;
            } else if last_change.0.elapsed() >= stalled_after {
                empty = if self.message_count()? > 0 {
                    0
                } else {
                    empty + 1
                };
                if empty == 2 {
                    return Ok(Idle::QueuesEmpty);
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!(
            "neither settled nor idle: {:?}; messages: {:?}",
            self.store()?.summaries()?,
            self.message_count()
        )
    }

    /// Pauses for a poll interval, then returns whether every run is settled.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_settled_after_pause(&self) -> anyhow::Result<bool> {
        std::thread::sleep(POLL_INTERVAL);
        let summaries = self.store()?.summaries()?;
        let open = summaries.iter().any(|run| run.outstanding() > 0);
        Ok(!open && !summaries.is_empty())
    }

    /// How many messages are on `work` and `results`, ready or unacked.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn message_count(&self) -> anyhow::Result<i64> {
        let ours = [self.queue("work"), self.queue("results")];
        self.sum_of_column(&ours, "messages")
    }

    /// A column of `rabbitmqctl list_queues` for a queue; 0 when there is no such queue.
    ///
    /// A quorum queue reports its messages at each tick (`rabbit_quorum_queue:handle_tick/3`), each [`QUEUE_TICK`]: one
    /// number alone may be older than what has just happened. [`Self::wait_for_empty_queue`] looks twice.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn depth(&self, queue: &str, column: &str) -> anyhow::Result<i64> {
        self.sum_of_column(&[queue.to_owned()], column)
    }

    /// Waits until a queue had no message, ready or unacked, twice in a row with ticks between.
    ///
    /// # Errors
    /// When that never happens.
    pub fn wait_for_empty_queue(&self, queue: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut empty = 0;
        while empty < 2 {
            ensure!(began.elapsed() < MAX_WAIT, "{queue} did not become empty");
            let is_empty = self.depth(queue, "messages")? == 0;
            empty = if is_empty { empty + 1 } else { 0 };
            std::thread::sleep(2 * QUEUE_TICK);
        }
        Ok(())
    }

    /// The sum of a column of `rabbitmqctl list_queues` over some queues.
    fn sum_of_column(&self, queues: &[String], column: &str) -> anyhow::Result<i64> {
        let listing = self.broker()?.ctl(&["list_queues", "name", column])?;
        Ok(listing
            .lines()
            .filter_map(|line| {
                let (name, number) = line.split_once(char::is_whitespace)?;
                queues.iter().any(|queue| queue == name).then_some(number)
            })
            .filter_map(|number| number.trim().parse::<i64>().ok())
            .sum())
    }

    /// Opens the database without creating or checking it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn store(&self) -> anyhow::Result<Reader> {
        Ok(Reader::open(&self.database())?)
    }

    /// Verifies the latest run.
    ///
    /// # Errors
    /// When there is none.
    pub fn verify(&self) -> anyhow::Result<Verification> {
        let store = self.store()?;
        let run = store.find_run("latest")?;
        Ok(store.verify(run)?)
    }

    /// The output of the command `sqlite3` for a query.
    ///
    /// # Errors
    /// When it fails.
    pub fn sqlite3(&self, query: &str) -> anyhow::Result<String> {
        let uri = format!("file:{}?mode=ro", self.database().display());
        let output = Command::new("sqlite3").arg(uri).arg(query).output()?;
        ensure!(
            output.status.success(),
            "sqlite3: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}
