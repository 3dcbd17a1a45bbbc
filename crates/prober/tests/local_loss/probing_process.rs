//! A process that probes: this test program again, with its own user and network, which can be stopped.

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
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
};
use pingfleet_testbed::simnet::IpVersion;
use pingfleet_wire::{Outcome, Probing, Target};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;

use crate::{
    chunk_files::{probe_all, read_result, read_sockets, result_file, write_chunk},
    counters::{Echoes, MAX_WAIT, Sockets},
    variants::{NOBODY, Network, Variant},
};

/// Environment variables of the inner process: the folder with the chunks, and how to probe them.
const FOLDER: &str = "PINGFLEET_LOCAL_LOSS_FOLDER";
const IS_RAW: &str = "PINGFLEET_LOCAL_LOSS_RAW";
const RECEIVE_BUFFER: &str = "PINGFLEET_LOCAL_LOSS_RECEIVE_BUFFER";
const THREADS: &str = "PINGFLEET_LOCAL_LOSS_THREADS";
const BYSTANDER: &str = "PINGFLEET_LOCAL_LOSS_BYSTANDER";

/// How a process probes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Prober {
    /// Size of the receive buffer in bytes, instead of a large one.
    pub(crate) receive_buffer: Option<usize>,
    /// Number of probing threads, instead of one.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Whether the process has one more raw socket, without a filter, that is never read.
    pub(crate) bystander: bool,
}

/// Targets with the same probing settings.
pub(crate) struct Asked {
    pub(crate) probing: Probing,
    pub(crate) targets: Vec<Target>,
}

/// What a process found.
#[derive(Debug)]
pub(crate) struct Report {
    /// The outcomes of each chunk, in the order of its targets.
    pub(crate) outcomes: Vec<Vec<Outcome>>,
    /// How long each chunk took.
    pub(crate) took: Vec<Duration>,
    /// The sockets at the end, including the bystander.
    pub(crate) sockets: Sockets,
}

/// A process that is probing. Dropping this value ends it.
pub(crate) struct Running {
    child: Option<Child>,
    folder: TempDir,
    chunks: usize,
}

impl Prober {
    /// Probes in a network, and waits for the end.
    pub(crate) fn run(
        self,
        net: &impl Network,
        variant: Variant,
        asked: Vec<Asked>,
    ) -> anyhow::Result<Report> {
        self.start(net, variant, asked)?.finish()
    }

    /// Begins to probe in a network. All chunks belong to one run.
    pub(crate) fn start(
        self,
        net: &impl Network,
        variant: Variant,
        asked: Vec<Asked>,
    ) -> anyhow::Result<Running> {
        let folder = TempDir::new()?;
        let chunks = asked.len();
        for (number, asked) in asked.into_iter().enumerate() {
            write_chunk(folder.path(), number, asked.probing, asked.targets)?;
        }
        let mut binary = env::current_exe()?;
        if !variant.caller.is_root {
            // User nobody may not read the build folder.
            let copy = folder.path().join("prober");
            // Another process copies it: a file that a child of another thread has inherited open for writing cannot be
            // executed.
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

    /// Waits until it has sent this many requests.
    pub(crate) fn wait_for(&mut self, family: IpVersion, requests: u64) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("it has ended")?;
        let folder = PathBuf::from(format!("/proc/{}", child.id()));
        let own = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("the prober ended before: {status}");
            }
            // It enters the network as soon as it runs.
            if fs::read_link(folder.join("ns/net"))? != own {
                let [v4, v6] =
                    ["snmp", "snmp6"].map(|file| fs::read_to_string(folder.join("net").join(file)));
                let echoes = Echoes::parse(&(v4? + &v6?), family)?;
                // Requests that came in are canaries.
                if echoes.requests_out >= requests + echoes.requests_in {
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{requests} requests were not sent"
            );
            // The kernel signals no change of its counters.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> anyhow::Result<Report> {
        let child = self.child.take().context("it has ended")?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A test filter without a match also succeeds.
        let passed = output.status.success() && text.contains("1 passed");
        ensure!(passed, "the prober failed: {text}");
        let mut outcomes = Vec::with_capacity(self.chunks);
        let mut took = Vec::with_capacity(self.chunks);
        for number in 0..self.chunks {
            let result = read_result(self.folder.path(), number)?;
            outcomes.push(result.outcomes);
            let file = result_file(self.folder.path(), number);
            let began = UNIX_EPOCH + Duration::from_micros(result.started_at_us);
            // A file's time is that of the kernel's last tick, which may be before the start by the prober's clock.
            let took_so_long = file.metadata()?.modified()?.duration_since(began);
            took.push(took_so_long.unwrap_or_default());
        }
        Ok(Report {
            outcomes,
            took,
            sockets: Sockets::parse(&read_sockets(self.folder.path())?)?,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both calls fail if it has ended already.
            let ended = (child.kill(), child.wait());
            drop(ended);
        }
    }
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
    // Without servers: no name is looked up outside of this network.
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
    probe_all(folder, &threads, Duration::ZERO).await?;
    drop(bystander);
    threads.close();
    Ok(())
}
