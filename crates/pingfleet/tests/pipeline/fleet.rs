//! A whole fleet in a namespace of its own: a private broker, the programs as users start them, and a prefix of
//! addresses that all answer.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pingfleet_store::{Durability, OpenOptions, RunSummary, Store, Verification};
use pingfleet_testbed::{Namespace, Rabbit};

/// Nothing in these tests takes longer than this, unless it hangs.
const PATIENCE: Duration = Duration::from_mins(3);

/// The pause between two looks at a database or a process: neither can be awaited from outside.
const LOOK: Duration = Duration::from_millis(20);

/// The fleet's machine room.
pub(crate) struct Fleet {
    rabbit: Option<Rabbit>,
    namespace: Namespace,
    folder: tempfile::TempDir,
}

/// A program of the fleet. It is killed when it is dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Fleet {
    /// A namespace in which 10.0.0.0/9 answers, and everything else is silent.
    pub(crate) fn without_broker() -> anyhow::Result<Self> {
        Ok(Self {
            rabbit: None,
            namespace: Namespace::answering("10.0.0.0/9")?,
            folder: tempfile::tempdir()?,
        })
    }

    /// The same with a broker in it.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut fleet = Self::without_broker()?;
        fleet.rabbit = Some(Rabbit::start_in(&fleet.namespace)?);
        Ok(fleet)
    }

    pub(crate) fn rabbit(&mut self) -> anyhow::Result<&mut Rabbit> {
        self.rabbit.as_mut().context("a fleet without a broker")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("pingfleet.db")
    }

    /// A file of the first `count` addresses of 10.0.0.0/9, one a line.
    pub(crate) fn hosts(&self, count: u32) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join("hosts.txt");
        let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 1));
        let lines: Vec<String> = (first..first + count)
            .map(|address| std::net::Ipv4Addr::from(address).to_string())
            .collect();
        std::fs::write(&path, lines.join("\n"))?;
        Ok(path)
    }

    /// Starts a program of the workspace, by its name, with the fleet's broker and database.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Program> {
        let path = built(program)?;
        let number = std::fs::read_dir(self.folder.path())?.count();
        let log = self.folder.path().join(format!("{number}.log"));
        let mut command = self.namespace.command(path);
        if let Some(rabbit) = &self.rabbit {
            command.env("PINGFLEET_BROKER__URL", rabbit.url());
        }
        let child = command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()?;
        Ok(Program {
            name: program.to_owned(),
            child,
            log,
        })
    }

    /// Waits until the database has a run of which `wanted` is true.
    pub(crate) fn wait_for_run(
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
    pub(crate) fn wait_for_quiet_queues(&self) -> anyhow::Result<()> {
        self.wait_for_chunks_or_quiet(i64::MAX)
    }

    /// Waits until the run has some chunks done, or no message is left on the queues.
    pub(crate) fn wait_for_chunks_or_quiet(&self, chunks: i64) -> anyhow::Result<()> {
        let rabbit = self.rabbit.as_ref().context("a fleet without a broker")?;
        let began = Instant::now();
        let mut quiet = 0;
        while began.elapsed() < PATIENCE {
            let store = self.store()?;
            if store.summary(store.find_run("latest")?)?.chunks_done >= chunks {
                return Ok(());
            }
            let listed = rabbit.ctl(&["list_queues", "name", "messages"])?;
            let busy = listed.lines().any(|line| {
                let mut words = line.split_whitespace();
                let name = words.next().unwrap_or_default();
                let messages = words.next().unwrap_or("0");
                ["pingfleet.work", "pingfleet.results"].contains(&name) && messages != "0"
            });
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet == 2 {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        bail!("the queues did not become quiet")
    }

    pub(crate) fn store(&self) -> anyhow::Result<Store> {
        let options = OpenOptions {
            path: self.database(),
            durability: Durability::Full,
            create: false,
            check: false,
        };
        Ok(options.open()?)
    }

    /// The proof of the latest run.
    pub(crate) fn verify(&self) -> anyhow::Result<Verification> {
        let mut store = self.store()?;
        let run = store.find_run("latest")?;
        Ok(store.verify(run)?)
    }

    /// What `sqlite3` answers to a query, as users ask it.
    pub(crate) fn sqlite3(&self, query: &str) -> anyhow::Result<String> {
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

impl Program {
    /// SIGKILL, now.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "{} ended before it could be killed:\n{}",
            self.name,
            self.said()
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn terminate(self) -> anyhow::Result<ExitStatus> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status()?;
        ensure!(status.success(), "kill -TERM {pid}");
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} does not end:\n{}", self.name, self.said())
    }

    /// Waits until it has said something.
    pub(crate) fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.said().contains(text) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.said());
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} never said {text:?}:\n{}", self.name, self.said())
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already when it was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program of the workspace, as it was built beside this test's own.
fn built(program: &str) -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_BIN_EXE_pingfleet"));
    let path = own
        .parent()
        .context("a program lies in a folder")?
        .join(program);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins --examples`, or scripts/test",
        path.display()
    );
    Ok(path)
}
