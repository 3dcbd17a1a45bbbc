//! A whole fleet on a ground of its own: a private broker, the programs as users start them, a database in a temporary
//! folder, and where it is wanted a network in which a prefix of addresses answers.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pingfleet_store::{Durability, OpenOptions, RunState, RunSummary, Verification, Writer};
use pingfleet_testbed::{Namespace, Rabbit};

use crate::{
    LOOK, PATIENCE,
    bounds::Bounds,
    program::{Program, built},
};

/// A run in which nothing was settled for this long may be stuck: then the queues are looked at, which takes a second
/// of computing each time.
const STUCK: Duration = Duration::from_secs(3);

/// The end of a run takes the writer several transactions when it is large, long after the last message was acked.
const CLOSED_WITHIN: Duration = Duration::from_mins(1);

/// The fleet's machine room.
#[derive(Debug)]
pub struct Fleet {
    rabbit: Option<Rabbit>,
    namespace: Option<Namespace>,
    /// Queues of a fleet that shares its broker are told apart by it.
    prefix: String,
    folder: tempfile::TempDir,
    database: PathBuf,
    started: Cell<u32>,
    environment: RefCell<Vec<(String, String)>>,
    bounds: Rc<Bounds>,
}

/// How a run stands when nothing moves any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Every chunk is done or dead, and every run is closed.
    Settled,
    /// Chunks are outstanding, or a run is open, and no message is left anywhere.
    Quiet,
}

impl Fleet {
    fn build(
        rabbit: Option<Rabbit>,
        namespace: Option<Namespace>,
        prefix: &str,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pingfleet-fleet-")
            .tempdir()?;
        Ok(Self {
            rabbit,
            namespace,
            prefix: prefix.to_owned(),
            bounds: Rc::new(Bounds::new(&folder.path().join("pingfleet.db"))),
            database: folder.path().join("pingfleet.db"),
            folder,
            started: Cell::new(0),
            environment: RefCell::default(),
        })
    }

    /// A namespace in which 10.0.0.0/9 answers, and everything else is silent.
    ///
    /// # Errors
    /// When there can be none, mostly because this is not root.
    pub fn without_broker() -> anyhow::Result<Self> {
        Self::build(None, Some(Namespace::answering("10.0.0.0/9")?), "pingfleet")
    }

    /// The same with a broker in it.
    ///
    /// # Errors
    /// When there can be none.
    pub fn new() -> anyhow::Result<Self> {
        let mut fleet = Self::without_broker()?;
        fleet.rabbit = fleet.namespace.as_ref().map(Rabbit::start_in).transpose()?;
        Ok(fleet)
    }

    /// A fleet on this machine's loopback, with a broker that is shared with fleets of other prefixes.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn on(rabbit: Rabbit, prefix: &str) -> anyhow::Result<Self> {
        Self::build(Some(rabbit), None, prefix)
    }

    /// Gives the broker back.
    #[must_use]
    pub fn into_rabbit(mut self) -> Option<Rabbit> {
        self.rabbit.take()
    }

    /// The broker.
    ///
    /// # Errors
    /// When there is none.
    pub fn rabbit(&mut self) -> anyhow::Result<&mut Rabbit> {
        self.rabbit.as_mut().context("a fleet without a broker")
    }

    /// The broker, for looking.
    ///
    /// # Errors
    /// When there is none.
    pub fn broker(&self) -> anyhow::Result<&Rabbit> {
        self.rabbit.as_ref().context("a fleet without a broker")
    }

    /// The network.
    ///
    /// # Errors
    /// When there is none.
    pub fn namespace(&self) -> anyhow::Result<&Namespace> {
        self.namespace
            .as_ref()
            .context("a fleet without a network of its own")
    }

    /// The folder that programs work in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.database.clone()
    }

    /// From now on the database is in another folder.
    pub fn move_database(&mut self, folder: &Path) {
        self.database = folder.join("pingfleet.db");
        self.bounds.move_database(&self.database);
        let path = self.database.to_string_lossy().into_owned();
        self.set("PINGFLEET_STORE__PATH", &path);
    }

    /// What the names of this fleet's queues begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of one of this fleet's queues.
    #[must_use]
    pub fn queue(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    /// Gives a variable to programs that are started from now on. An empty value takes it away.
    pub fn set(&self, name: &str, value: &str) {
        let mut environment = self.environment.borrow_mut();
        environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// From now on a program may have this many MiB of memory at most.
    pub fn bound_memory(&self, mib: u64) {
        self.bounds.bound_memory(mib);
    }

    /// The most bytes that the database's log was seen with.
    #[must_use]
    pub fn longest_log(&self) -> u64 {
        self.bounds.longest_log()
    }

    /// The most memory, in MiB, and the most threads that programs of this name had.
    #[must_use]
    pub fn largest(&self, program: &str) -> (u64, u64) {
        self.bounds.look_at_all();
        self.bounds.largest(program)
    }

    /// What of all programs, ended or not, and of the database's log was larger than it may be.
    #[must_use]
    pub fn oversized(&self) -> Vec<String> {
        self.bounds.look_at_all();
        self.bounds.exceeded()
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

    /// Starts a program of the workspace, by its name, with the fleet's broker and database.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        self.start_under(&[], program, arguments)
    }

    /// The same under a command that starts it, such as `strace -f`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start_under(
        &self,
        under: &[&str],
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Program> {
        let path = built(program)?;
        // A killed test leaves nothing behind that looks for its broker for ever.
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
        for (name, value) in &*self.environment.borrow() {
            command.env(name, value);
        }
        let number = self.started.get();
        self.started.set(number + 1);
        let log = self.folder.path().join(format!("{number}.log"));
        Program::start(program, command, log, &self.bounds)
    }

    /// Waits until the database has a run of which `wanted` is true.
    ///
    /// # Errors
    /// When it never has.
    pub fn wait_for_run(
        &self,
        what: &str,
        mut wanted: impl FnMut(&RunSummary) -> bool,
    ) -> anyhow::Result<RunSummary> {
        let began = Instant::now();
        let mut seen = None;
        while began.elapsed() < PATIENCE {
            if self.database().exists()
                && let Ok(store) = self.store()
                && let Ok(run) = store.find_run("latest")
            {
                let summary = store.summary(run)?;
                if wanted(&summary) {
                    return Ok(summary);
                }
                seen = Some(summary);
            }
            std::thread::sleep(LOOK);
        }
        bail!("waited in vain for {what}; the run is {seen:?}")
    }

    /// Waits until no message is left on the queues, delivered or not, twice in a row.
    ///
    /// # Errors
    /// When that never comes.
    pub fn wait_for_quiet_queues(&self) -> anyhow::Result<()> {
        self.wait_for_chunks_or_quiet(i64::MAX)
    }

    /// Waits until the run has some chunks done, or no message is left on the queues.
    ///
    /// # Errors
    /// When neither comes.
    pub fn wait_for_chunks_or_quiet(&self, chunks: i64) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut quiet = 0;
        while began.elapsed() < PATIENCE {
            let store = self.store()?;
            if store.summary(store.find_run("latest")?)?.chunks_done >= chunks {
                return Ok(());
            }
            quiet = if self.messages()? > 0 { 0 } else { quiet + 1 };
            if quiet == 2 {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        bail!("the queues did not become quiet")
    }

    /// Waits until every run is settled, or nothing can settle what is outstanding any more: no message is left.
    ///
    /// # Errors
    /// When neither comes: something hangs.
    pub fn rest(&self) -> anyhow::Result<Rest> {
        let began = Instant::now();
        let mut moved = (Instant::now(), -1);
        let mut quiet = 0;
        while began.elapsed() < PATIENCE {
            let summaries = self.store()?.summaries()?;
            let outstanding: i64 = summaries
                .iter()
                .filter(|run| run.state != RunState::Planning)
                .map(RunSummary::outstanding)
                .sum();
            self.bounds.look_at_all();
            let closed = summaries
                .iter()
                .all(|run| run.state == RunState::Planning || run.finished_at.is_some());
            if outstanding == 0 && closed && !summaries.is_empty() {
                return Ok(Rest::Settled);
            }
            let stuck = if outstanding == 0 {
                CLOSED_WITHIN
            } else {
                STUCK
            };
            if moved.1 != outstanding {
                moved = (Instant::now(), outstanding);
                quiet = 0;
            } else if moved.0.elapsed() >= stuck {
                quiet = if self.messages()? > 0 { 0 } else { quiet + 1 };
                if quiet == 2 {
                    return Ok(Rest::Quiet);
                }
            }
            std::thread::sleep(LOOK);
        }
        bail!(
            "it does not come to rest: {:?}; messages: {:?}",
            self.store()?.summaries()?,
            self.messages()
        )
    }

    /// Waits for a moment, and tells whether every run is settled by then.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn wait_a_moment_for_rest(&self) -> anyhow::Result<Option<Rest>> {
        std::thread::sleep(LOOK);
        let summaries = self.store()?.summaries()?;
        let open = summaries.iter().any(|run| run.outstanding() > 0);
        Ok((!open && !summaries.is_empty()).then_some(Rest::Settled))
    }

    /// Messages of work and of results, delivered or not.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn messages(&self) -> anyhow::Result<i64> {
        let ours = [self.queue("work"), self.queue("results")];
        self.listed(&ours, "messages")
    }

    /// A number that the broker lists for a queue; 0 when there is no such queue.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn depth(&self, queue: &str, column: &str) -> anyhow::Result<i64> {
        self.listed(&[queue.to_owned()], column)
    }

    fn listed(&self, queues: &[String], column: &str) -> anyhow::Result<i64> {
        let listed = self.broker()?.ctl(&["list_queues", "name", column])?;
        Ok(listed
            .lines()
            .filter_map(|line| {
                let (name, number) = line.split_once(char::is_whitespace)?;
                queues.iter().any(|queue| queue == name).then_some(number)
            })
            .filter_map(|number| number.trim().parse::<i64>().ok())
            .sum())
    }

    /// Opens the database, as a program does that only reads.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn store(&self) -> anyhow::Result<Writer> {
        let options = OpenOptions {
            path: self.database(),
            durability: Durability::Full,
            create: false,
            check: false,
        };
        Ok(options.open()?)
    }

    /// The proof of the latest run.
    ///
    /// # Errors
    /// When there is none.
    pub fn verify(&self) -> anyhow::Result<Verification> {
        let mut store = self.store()?;
        let run = store.find_run("latest")?;
        Ok(store.verify(run)?)
    }

    /// What `sqlite3` answers to a query, as users ask it.
    ///
    /// # Errors
    /// When it refuses.
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
