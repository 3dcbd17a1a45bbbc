//! Runs the probing half of a worker, its threads with a prober, inside a simulated network. That is a process of its
//! own, this very test program again: a namespace belongs to a process, and a process can be stopped.

use std::{
    env, fs,
    num::NonZeroUsize,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use pingfleet_prober::{probe_threads::ProbeThreads, resolve::Resolver};
use pingfleet_testbed::simnet::SimNet;
use pingfleet_wire::{
    ChunkKey, Message, Outcome, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    engines::{ENGINES, Kind},
    scenario::{Stall, Variant},
};

/// What the inner process is told by its environment: a folder with the chunks, and who probes them.
const FOLDER: &str = "PINGFLEET_SCENARIO_FOLDER";
const ENGINE: &str = "PINGFLEET_SCENARIO_ENGINE";
const KIND: &str = "PINGFLEET_SCENARIO_KIND";
const THREADS: &str = "PINGFLEET_SCENARIO_THREADS";
const RECEIVE_BUFFER: &str = "PINGFLEET_SCENARIO_RECEIVE_BUFFER";

/// The kernel's tables of ICMP sockets, as the inner process leaves them in the folder.
const SOCKETS: &str = "sockets";

/// Hosts to be probed, dealt out to chunks of one run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) probing: Probing,
    pub(crate) hosts: Vec<u32>,
    pub(crate) chunks: usize,
    pub(crate) threads: usize,
    pub(crate) stall: Option<Stall>,
    /// Bytes of the receive buffer, where it is not to be large.
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
            let chunk = WorkChunk {
                version: Version,
                database: Uuid::nil(),
                key: ChunkKey {
                    run: Uuid::from_u128(1),
                    chunk: number as u32,
                },
                token: Token(Uuid::nil()),
                probing: self.probing.clone(),
                targets,
            };
            fs::write(folder.path().join(format!("{number}.work")), chunk.encode())?;
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
        // A filter that matches nothing succeeds as well.
        let passed = output.status.success() && text.contains("1 passed");
        ensure!(passed, "the prober failed: {text}{errors}");
        Ok(Found {
            outcomes: self.gathered(folder.path())?,
            drops: drops(&fs::read_to_string(folder.path().join(SOCKETS))?)?,
        })
    }

    /// The targets of each chunk. Neighbours are in different chunks.
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
            let bytes = fs::read(folder.join(format!("{number}.result")))?;
            results.push(ResultChunk::decode(&bytes)?.outcomes.into_iter());
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

/// A command that runs the inner process so that only the wanted kind of socket can be had. A prober that falls back
/// to the other kind would prove nothing.
fn command(net: &SimNet, variant: Variant) -> anyhow::Result<Command> {
    let mut command = net.command("nice");
    // What else runs on this box must not make an answer late.
    command.args(["-n", "-10"]);
    match variant.kind {
        // As any user without privileges has it.
        Kind::Datagram => {
            let drop = ["--inh-caps=-all", "--bounding-set=-all"];
            command.arg("setpriv").args(drop);
        }
        // A range that is empty: nobody may open ping sockets.
        Kind::Raw => net.set("ipv4/ping_group_range", "1 0")?,
    }
    command.arg(env::current_exe()?);
    command.args(["--exact", "probing::inner", "--ignored", "--nocapture"]);
    Ok(command)
}

/// Stops the prober with SIGSTOP and lets it go on.
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
    // Nothing to wait for: standing still for this long is what happens.
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
    let mut chunks = Vec::new();
    while let Ok(bytes) = fs::read(folder.join(format!("{}.work", chunks.len()))) {
        chunks.push(Arc::new(WorkChunk::decode(&bytes)?));
    }
    let probed = try_join_all(chunks.iter().map(|chunk| threads.probe(Arc::clone(chunk)))).await?;
    for (chunk, probed) in chunks.iter().zip(probed) {
        let result = ResultChunk {
            version: Version,
            database: chunk.database,
            key: chunk.key,
            token: chunk.token,
            worker: "scenario".to_owned(),
            redelivered: false,
            started_at_us: probed.started_at_us,
            outcomes: probed.outcomes,
        };
        let path = folder.join(format!("{}.result", chunk.key.chunk));
        fs::write(path, result.encode())?;
    }
    let tables = ["icmp", "icmp6", "raw", "raw6"]
        .map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let tables: Vec<_> = tables.into_iter().collect::<Result<_, _>>()?;
    fs::write(folder.join(SOCKETS), tables.concat())?;
    threads.close();
    Ok(())
}
