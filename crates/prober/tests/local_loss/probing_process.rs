//! A process that probes: this very test program again, so that it has a user, a network and a fate of its own.

use std::{
    env, fs,
    num::NonZeroUsize,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
};
use pingfleet_testbed::simnet::Family;
use pingfleet_wire::{
    ChunkKey, Message, Outcome, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    counters::{Echoes, PATIENCE, Sockets, TABLES},
    variants::{NOBODY, Network, Variant},
};

/// What the inner process is told by its environment: a folder with the chunks, and how to probe them.
const FOLDER: &str = "PINGFLEET_LOCAL_LOSS_FOLDER";
const IS_RAW: &str = "PINGFLEET_LOCAL_LOSS_RAW";
const RECEIVE_BUFFER: &str = "PINGFLEET_LOCAL_LOSS_RECEIVE_BUFFER";
const THREADS: &str = "PINGFLEET_LOCAL_LOSS_THREADS";
const BYSTANDER: &str = "PINGFLEET_LOCAL_LOSS_BYSTANDER";

/// The table of sockets as the inner process leaves it.
const SOCKETS: &str = "sockets";

/// How a process probes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Prober {
    /// Receive buffer in bytes, in the place of a large one.
    pub(crate) receive_buffer: Option<usize>,
    /// Probing threads, in the place of one.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Whether there is one more raw socket in the process, which has no filter and which nobody reads.
    pub(crate) bystander: bool,
}

/// Targets that are probed alike.
pub(crate) struct Asked {
    pub(crate) probing: Probing,
    pub(crate) targets: Vec<Target>,
}

/// What a process found.
#[derive(Debug)]
pub(crate) struct Report {
    /// Of each chunk, in the order of its targets.
    pub(crate) outcomes: Vec<Vec<Outcome>>,
    /// How long each of them took.
    pub(crate) took: Vec<Duration>,
    /// The sockets at the end, the bystander among them.
    pub(crate) sockets: Sockets,
}

/// A process that is probing. It ends with its value.
pub(crate) struct Running {
    child: Option<Child>,
    folder: TempDir,
    chunks: usize,
}

impl Prober {
    /// Probes in a network, and waits for the end of it.
    pub(crate) fn run(
        self,
        net: &impl Network,
        variant: Variant,
        asked: Vec<Asked>,
    ) -> anyhow::Result<Report> {
        self.start(net, variant, asked)?.finish()
    }

    /// Begins to probe in a network, each chunk as one of the same run.
    pub(crate) fn start(
        self,
        net: &impl Network,
        variant: Variant,
        asked: Vec<Asked>,
    ) -> anyhow::Result<Running> {
        let folder = TempDir::new()?;
        let chunks = asked.len();
        for (number, asked) in asked.into_iter().enumerate() {
            let chunk = WorkChunk {
                version: Version,
                database: Uuid::nil(),
                key: ChunkKey {
                    run: Uuid::from_u128(1),
                    chunk: number as u32,
                },
                token: Token(Uuid::nil()),
                probing: asked.probing,
                targets: asked.targets,
            };
            fs::write(work(folder.path(), number), chunk.encode())?;
        }
        let mut binary = env::current_exe()?;
        if !variant.caller.is_root {
            // Nobody may look into the folder in which it was built.
            let copy = folder.path().join("prober");
            // Not by this process: a copy that it has open for writing, and that a child of another thread inherits,
            // cannot be run.
            let mut install = Command::new("install");
            install.args(["-m", "755"]).args([&binary, &copy]);
            ensure!(install.status()?.success(), "cannot copy the prober");
            chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
            binary = copy;
        }
        let binary = binary.to_str().context("a path that is no text")?;
        let mut command = variant.caller.command(net, binary)?;
        command
            .args([
                "--exact",
                "probing_process::inner",
                "--ignored",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if variant.caller.is_raw {
            command.env(IS_RAW, "");
        }
        if let Some(bytes) = self.receive_buffer {
            command.env(RECEIVE_BUFFER, bytes.to_string());
        }
        if let Some(threads) = self.threads {
            command.env(THREADS, threads.to_string());
        }
        if self.bystander {
            command.env(BYSTANDER, variant.family.name());
        }
        Ok(Running {
            child: Some(command.spawn()?),
            folder,
            chunks,
        })
    }
}

impl Running {
    /// Sends the process a signal, such as `-STOP`.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("it has ended")?;
        let status = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status()?;
        ensure!(status.success(), "cannot signal the prober");
        Ok(())
    }

    /// Waits until so many requests have left it.
    pub(crate) fn wait_for(&mut self, family: Family, requests: u64) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("it has ended")?;
        let folder = PathBuf::from(format!("/proc/{}", child.id()));
        let own = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("the prober ended before: {status}");
            }
            // It enters the network as soon as it runs.
            if fs::read_link(folder.join("ns/net"))? != own {
                let [v4, v6] =
                    ["snmp", "snmp6"].map(|file| fs::read_to_string(folder.join("net").join(file)));
                let echoes = Echoes::parse(&(v4? + &v6?), family)?;
                // What came in is the prober's own canary, which takes no link.
                if echoes.requests_out >= requests + echoes.requests_in {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "{requests} requests never leave");
            // The kernel tells nobody that it has counted.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> anyhow::Result<Report> {
        let child = self.child.take().context("it has ended")?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A filter that matches nothing succeeds as well.
        let passed = output.status.success() && text.contains("1 passed");
        ensure!(passed, "the prober failed: {text}");
        let mut outcomes = Vec::with_capacity(self.chunks);
        let mut took = Vec::with_capacity(self.chunks);
        for number in 0..self.chunks {
            let file = result(self.folder.path(), number);
            let result = ResultChunk::decode(&fs::read(&file)?)?;
            outcomes.push(result.outcomes);
            let began = UNIX_EPOCH + Duration::from_micros(result.started_at_us);
            // A file's time is that of the kernel's last tick, which may lie before the prober's own clock.
            let took_so_long = file.metadata()?.modified()?.duration_since(began);
            took.push(took_so_long.unwrap_or_default());
        }
        Ok(Report {
            outcomes,
            took,
            sockets: Sockets::parse(&fs::read_to_string(self.folder.path().join(SOCKETS))?)?,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended; then there is nothing to end or to wait for.
            let ended = (child.kill(), child.wait());
            drop(ended);
        }
    }
}

fn work(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.work"))
}

fn result(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.result"))
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner() -> anyhow::Result<()> {
    let folder = env::var(FOLDER)?;
    let folder = Path::new(&folder);
    let is_raw = env::var_os(IS_RAW).is_some();
    let mut opener = if is_raw {
        LinuxPing::raw()
    } else {
        LinuxPing::new()
    };
    if let Ok(bytes) = env::var(RECEIVE_BUFFER) {
        opener = opener.receive_buffer(bytes.parse()?);
    }
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    // No server: nobody outside of the network is asked for a name.
    let resolver = Resolver::with_servers(ResolverConfig::default(), ResolverOpts::default());
    let threads = env::var(THREADS).map_or(Ok(NonZeroUsize::MIN), |threads| threads.parse())?;
    let threads = ProbeThreads::start(threads, &opener, None, resolver)?;
    let bystander = env::var(BYSTANDER)
        .ok()
        .map(|family| match family.as_str() {
            "v4" => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
            _ => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)),
        })
        .transpose()?;
    let mut chunks = Vec::new();
    while let Ok(bytes) = fs::read(work(folder, chunks.len())) {
        chunks.push(Arc::new(WorkChunk::decode(&bytes)?));
    }
    let probed = chunks.into_iter().enumerate().map(async |(number, chunk)| {
        let probed = threads.probe(Arc::clone(&chunk)).await?;
        let result_chunk = ResultChunk {
            version: Version,
            database: chunk.database,
            key: chunk.key,
            token: chunk.token,
            worker: "test".to_owned(),
            redelivered: false,
            started_at_us: probed.started_at_us,
            outcomes: probed.outcomes,
        };
        fs::write(result(folder, number), result_chunk.encode())?;
        anyhow::Ok(())
    });
    try_join_all(probed).await?;
    let tables = TABLES.map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let tables: Vec<_> = tables.into_iter().collect::<Result<_, _>>()?;
    fs::write(folder.join(SOCKETS), tables.concat())?;
    drop(bystander);
    threads.close();
    Ok(())
}
