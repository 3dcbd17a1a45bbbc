//! Runs probing threads inside a simulated network. They run in a process of their own, this test program again: a
//! namespace belongs to a process, and a process can be stopped.

use std::{
    env,
    num::NonZeroUsize,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, ensure};
use pingfleet_prober::{probe_threads::ProbeThreads, resolve::Resolver};
use pingfleet_testbed::simnet::SimNet;
use pingfleet_wire::{Outcome, Probing, Target};
use tempfile::TempDir;

use crate::{
    chunk_files::{probe_all, read_result, read_sockets, write_chunk},
    engines::{ENGINES, Kind},
    scenario::{Stall, Variant},
};

/// Environment variables of the inner process: the folder with the chunks, and the prober.
const FOLDER: &str = "PINGFLEET_SCENARIO_FOLDER";
const ENGINE: &str = "PINGFLEET_SCENARIO_ENGINE";
const KIND: &str = "PINGFLEET_SCENARIO_KIND";
const THREADS: &str = "PINGFLEET_SCENARIO_THREADS";
const RECEIVE_BUFFER: &str = "PINGFLEET_SCENARIO_RECEIVE_BUFFER";

/// Hosts to probe, in chunks of one run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) probing: Probing,
    pub(crate) hosts: Vec<u32>,
    pub(crate) chunks: usize,
    pub(crate) threads: usize,
    pub(crate) stall: Option<Stall>,
    /// Size of the receive buffer in bytes, instead of a large one.
    pub(crate) receive_buffer: Option<usize>,
}

/// What a prober found.
#[derive(Debug)]
pub(crate) struct Found {
    /// In the order of the hosts.
    pub(crate) outcomes: Vec<Outcome>,
    /// Messages for which its sockets had no room.
    pub(crate) drops: u64,
}

impl Plan {
    /// Probes the hosts.
    pub(crate) fn run(&self, net: &SimNet, variant: Variant) -> anyhow::Result<Found> {
        let folder = TempDir::new()?;
        for (number, targets) in self.dealt(variant).into_iter().enumerate() {
            write_chunk(folder.path(), number, self.probing.clone(), targets)?;
        }
        let child = command(net, variant)?
            .env(FOLDER, folder.path())
            .env(ENGINE, variant.engine.name)
            .env(KIND, variant.kind.name())
            .env(THREADS, self.threads.to_string())
            .envs(
                self.receive_buffer
                    .map(|bytes| (RECEIVE_BUFFER, bytes.to_string())),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(stall) = self.stall {
            stop_for_a_while(net, &child, stall)?;
        }
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        // A test filter without a match also succeeds.
        let passed = output.status.success() && text.contains("1 passed");
        ensure!(passed, "the prober failed: {text}{errors}");
        Ok(Found {
            outcomes: self.gathered(folder.path())?,
            drops: drops(&read_sockets(folder.path())?)?,
        })
    }

    /// The targets of each chunk. Hosts with consecutive numbers are in different chunks.
    fn dealt(&self, variant: Variant) -> Vec<Vec<Target>> {
        let mut chunks = vec![Vec::new(); self.chunks];
        for (place, host) in self.hosts.iter().enumerate() {
            let target = Target::Address(variant.family.address(*host));
            chunks[place % self.chunks].push(target);
        }
        chunks
    }

    fn gathered(&self, folder: &Path) -> anyhow::Result<Vec<Outcome>> {
        let mut results = Vec::with_capacity(self.chunks);
        for number in 0..self.chunks {
            results.push(read_result(folder, number)?.outcomes.into_iter());
        }
        (0..self.hosts.len())
            .map(|place| results[place % self.chunks].next())
            .collect::<Option<_>>()
            .context("a chunk has too few outcomes")
    }
}

/// The drops of all sockets in the kernel's tables: the last column (Linux: `proc_pid_net(5)`).
fn drops(tables: &str) -> anyhow::Result<u64> {
    let lines = tables.lines().filter(|line| !line.contains("drops"));
    lines
        .map(|line| {
            let last = line.split_ascii_whitespace().last();
            Ok(last.context("an empty line")?.parse::<u64>()?)
        })
        .sum()
}

/// A command for the inner process that permits only the wanted kind of socket: a prober that falls back to the other kind
/// would prove nothing.
fn command(net: &SimNet, variant: Variant) -> anyhow::Result<Command> {
    let mut command = net.command("nice");
    // Other processes must not make an answer late.
    command.args(["-n", "-10"]);
    match variant.kind {
        // As for a user without privileges.
        Kind::Datagram => {
            let drop = ["--inh-caps=-all", "--bounding-set=-all"];
            command.arg("setpriv").args(drop);
        }
        // An empty range: nobody may open datagram sockets.
        Kind::Raw => net.set("ipv4/ping_group_range", "1 0")?,
    }
    command.arg(env::current_exe()?);
    command.args(["--exact", "probing::inner", "--ignored", "--nocapture"]);
    Ok(command)
}

/// Stops the prober with SIGSTOP, and continues it after a while.
fn stop_for_a_while(net: &SimNet, prober: &Child, stall: Stall) -> anyhow::Result<()> {
    let signal = |name: &str| {
        let status = Command::new("kill")
            .args([name, &prober.id().to_string()])
            .status()?;
        ensure!(status.success(), "cannot signal the prober");
        Ok(())
    };
    net.wait_for(stall.after_requests, std::time::Duration::from_secs(20))?;
    signal("-STOP")?;
    // The stall itself: there is no event to wait for.
    thread::sleep(stall.time);
    signal("-CONT")
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner() -> anyhow::Result<()> {
    let folder = env::var(FOLDER)?;
    let folder = Path::new(&folder);
    let (engine, kind) = (env::var(ENGINE)?, env::var(KIND)?);
    let engine = ENGINES
        .iter()
        .find(|known| known.name == engine)
        .context("no such engine")?;
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .context("no such kind")?;
    let threads: NonZeroUsize = env::var(THREADS)?.parse()?;
    let receive_buffer = env::var(RECEIVE_BUFFER).ok();
    let receive_buffer = receive_buffer.map(|bytes| bytes.parse()).transpose()?;
    let opener = (engine.open)(kind, receive_buffer);
    let threads = ProbeThreads::start(threads, &opener, None, Resolver::from_system())?;
    probe_all(folder, &threads, std::time::Duration::ZERO).await?;
    threads.close();
    Ok(())
}
