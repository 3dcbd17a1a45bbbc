//! What a probe costs while few or many are in hand: the processor time of one probing thread that always has a given
//! number of targets in hand, either silent or answering at once. Nothing is stored. It runs in a process of its own,
//! inside the namespace.

use std::{fs, net::Ipv4Addr, num::NonZeroUsize, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
    surge::SurgePing,
};
use pingfleet_wire::{ChunkKey, Probing, Status, Target, Token, Version, WorkChunk};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    outstanding::Outstanding,
    program::run,
    rows::{Row, Rows, judge},
    site::Site,
};

/// Targets of a chunk. It is the smallest number of targets in hand, so chunks have the same size in all cases.
const CHUNK: u32 = 64;

/// Probes in all: at least this many, and at least this many times the targets in hand.
const PROBES: u32 = 40_000;
const TURNS: u32 = 4;

/// How often the requests sent are counted during a wait.
const COUNTS_PER_WAIT: u32 = 20;

/// The first of the addresses that are silent, and of those that answer at once.
const SILENT: u32 = Ipv4Addr::new(10, 144, 0, 0).to_bits();
const ANSWERING: u32 = Ipv4Addr::new(10, 16, 0, 0).to_bits();

/// Timeouts of silent targets. With few targets in hand the timeout is short, or the case would take minutes.
const SHORT: Duration = Duration::from_millis(20);
const USUAL: Duration = Duration::from_secs(1);

/// Who probes.
#[derive(Debug, Clone, Copy)]
enum Engine {
    Linux,
    Surge,
}

/// One thing that is measured.
#[derive(Debug)]
struct Holding {
    program: &'static str,
    engine: Engine,
    /// How many targets are in hand all the time.
    held: u32,
    first: u32,
    wait: Duration,
}

/// What is measured, in turns. surge-ping is for comparison; it holds at most 16,384 targets.
const HOLDINGS: [Holding; 9] = [
    silent("64 silent", Engine::Linux, CHUNK, SHORT),
    silent("10,000 silent", Engine::Linux, 10_000, USUAL),
    silent("100,000 silent", Engine::Linux, 100_000, USUAL),
    silent("surge-ping, 64 silent", Engine::Surge, CHUNK, SHORT),
    silent("surge-ping, 10,000 silent", Engine::Surge, 10_000, USUAL),
    answering("64 answering", Engine::Linux, CHUNK),
    answering("10,000 answering", Engine::Linux, 10_000),
    answering("surge-ping, 64 answering", Engine::Surge, CHUNK),
    answering("surge-ping, 10,000 answering", Engine::Surge, 10_000),
];

const fn silent(program: &'static str, engine: Engine, held: u32, wait: Duration) -> Holding {
    Holding {
        program,
        engine,
        held,
        first: SILENT,
        wait,
    }
}

const fn answering(program: &'static str, engine: Engine, held: u32) -> Holding {
    Holding {
        program,
        engine,
        held,
        first: ANSWERING,
        wait: USUAL,
    }
}

/// Runs all of it, in turns.
pub(crate) fn held(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const CASE: &str = "held";
    for round in 1..=rounds {
        for (number, holding) in HOLDINGS.iter().enumerate() {
            let mut command = site.namespace().command(std::env::current_exe()?);
            command.args(["--hold", &number.to_string()]);
            let ran = run(vec![command])?;
            ensure!(ran.success, "{}", ran.stderr);
            let figures: Vec<&str> = ran.stdout.split_whitespace().collect();
            let [requests, cpu_seconds, most_in_flight, up] = figures.as_slice() else {
                anyhow::bail!("{}", ran.stdout);
            };
            rows.note(Row {
                case: CASE,
                round,
                program: holding.program,
                seconds: Some(ran.seconds),
                up: Some(up.parse()?),
                cpu_seconds: Some(cpu_seconds.parse()?),
                requests: Some(requests.parse()?),
                most_in_flight: most_in_flight.parse().ok(),
                peak_rss_kb: Some(ran.peak_kb),
                ..Row::default()
            })?;
        }
    }
    let costs = HOLDINGS.map(|holding| {
        let cost = rows.spread(CASE, holding.program, |row| {
            Some(row.cpu_seconds? * 1e6 / row.requests? as f64)
        });
        println!(
            "  {:<34} {cost} us of processor time a request",
            holding.program
        );
        cost.median
    });
    for (what, many, few) in [
        ("10,000 silent", 1, 0),
        ("100,000 silent", 2, 0),
        ("10,000 answering", 6, 5),
    ] {
        judge(
            &format!("cost of a request, {what}, 64 = 1"),
            costs[many] / costs[few],
            0.0..=1.5,
        );
    }
    println!(
        "  for comparison, surge-ping, 64 = 1: 10,000 silent {:.2}, 10,000 answering {:.2}",
        costs[4] / costs[3],
        costs[8] / costs[7]
    );
    Ok(())
}

/// Holds the targets. Returns the number of requests, seconds of processor time, the most requests that were unanswered
/// at once (`-` where targets answer), and how many targets were up.
#[tokio::main]
pub(crate) async fn hold(number: usize) -> anyhow::Result<String> {
    let Holding {
        engine,
        held,
        first,
        wait,
        ..
    } = *HOLDINGS.get(number).context("no such number")?;
    let threads = Arc::new(ProbeThreads::start(
        NonZeroUsize::MIN,
        &match engine {
            Engine::Linux => Arc::new(LinuxPing::new()) as Arc<dyn OpenProber>,
            Engine::Surge => Arc::new(SurgePing::new()),
        },
        None,
        Resolver::from_system(),
    )?);
    let probing = Probing {
        rate: None,
        retries: 0,
        timeout: wait,
        ..Probing::default()
    };
    let chunks = PROBES.max(held * TURNS).div_ceil(CHUNK);
    let mut waiting = (0..chunks).map(|number| chunk(first, number, &probing));
    let mut in_hand = JoinSet::new();
    let mut in_flight = Outstanding::new(wait);
    let mut up = 0;
    let mut count_interval = tokio::time::interval(wait / COUNTS_PER_WAIT);
    loop {
        while in_hand.len() < held.div_ceil(CHUNK) as usize
            && let Some(chunk) = waiting.next()
        {
            let threads = Arc::clone(&threads);
            in_hand.spawn(async move { threads.probe(chunk).await });
        }
        tokio::select! {
            probed = in_hand.join_next() => {
                let Some(probed) = probed else {
                    break;
                };
                let outcomes = probed??.outcomes;
                up += outcomes.iter().filter(|outcome| outcome.status == Status::Up).count();
            }
            now = count_interval.tick() => in_flight.note(now.into(), threads.requests_sent()),
        }
    }
    let requests = threads.requests_sent();
    let mut most = "-".to_owned();
    if first == SILENT {
        ensure!(up == 0, "{up} silent targets are up");
        ensure!(
            in_flight.most() * 10 >= u64::from(held) * 9,
            "only {} were in flight at once",
            in_flight.most()
        );
        most = in_flight.most().to_string();
    }
    Ok(format!(
        "{requests} {} {most} {up}",
        probe_thread_seconds()?
    ))
}

fn chunk(first: u32, number: u32, probing: &Probing) -> Arc<WorkChunk> {
    let first = first + number * CHUNK;
    Arc::new(WorkChunk {
        version: Version,
        database: Uuid::nil(),
        key: ChunkKey {
            run: Uuid::nil(),
            chunk: number,
        },
        token: Token(Uuid::nil()),
        probing: probing.clone(),
        targets: (first..first + CHUNK)
            .map(|address| Target::Address(Ipv4Addr::from(address).into()))
            .collect(),
    })
}

/// The processor time of the probing thread (`Documentation/scheduler/sched-stats.rst`).
fn probe_thread_seconds() -> anyhow::Result<f64> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "probe-0" {
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds: u64 = stat
                .split_whitespace()
                .next()
                .context("an empty schedstat")?
                .parse()?;
            return Ok(nanoseconds as f64 / 1e9);
        }
    }
    anyhow::bail!("no probing thread")
}
