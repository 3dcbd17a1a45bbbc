//! What the probing half pays for a probe while few or many are in hand: the processor time of one probing thread, with
//! so many targets in hand all the time, silent ones or such as answer at once. Nothing is stored. It runs in a process of
//! its own, inside the namespace.

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

/// Targets of a chunk: the fewest that are held, so that a chunk costs the same however many are.
const CHUNK: u32 = 64;

/// Probes in all: that many, or so often what is held.
const PROBES: u32 = 40_000;
const TURNS: u32 = 4;

/// How often what has left is counted during a wait.
const LOOKS: u32 = 20;

/// The first of the addresses that are silent, and of those that answer at once.
const SILENT: u32 = Ipv4Addr::new(10, 144, 0, 0).to_bits();
const ANSWERING: u32 = Ipv4Addr::new(10, 16, 0, 0).to_bits();

/// A silent target is waited for so long. The few are not waited for as long, or it would take minutes.
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

/// What is measured, in turns. surge-ping holds no more than 16,384, and is there for comparison.
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

/// Holds the targets; tells requests, seconds of processor time, the most that were unanswered at once (`-` where
/// targets answer), and how many were up.
#[tokio::main]
pub(crate) async fn hold(number: usize) -> anyhow::Result<String> {
    let Holding {
        engine,
        held,
        first,
        wait,
        ..
    } = *HOLDINGS.get(number).context("no such number")?;
    let lanes = Arc::new(ProbeThreads::start(
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
    let mut look = tokio::time::interval(wait / LOOKS);
    loop {
        while in_hand.len() < held.div_ceil(CHUNK) as usize
            && let Some(chunk) = waiting.next()
        {
            let lanes = Arc::clone(&lanes);
            in_hand.spawn(async move { lanes.probe(chunk).await });
        }
        tokio::select! {
            probed = in_hand.join_next() => {
                let Some(probed) = probed else {
                    break;
                };
                let outcomes = probed??.outcomes;
                up += outcomes.iter().filter(|outcome| outcome.status == Status::Up).count();
            }
            now = look.tick() => in_flight.note(now.into(), lanes.requests_sent()),
        }
    }
    let requests = lanes.requests_sent();
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
    Ok(format!("{requests} {} {most} {up}", lane_seconds()?))
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
fn lane_seconds() -> anyhow::Result<f64> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "lane-0" {
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
