//! What the probing half pays for a probe while few or many are unanswered: the processor time of one probing thread,
//! with so many silent targets in hand all the time. Nothing is stored. It runs in a process of its own, inside the
//! namespace.

use std::{fs, net::Ipv4Addr, num::NonZeroUsize, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use ping_worker::{
    lanes::Lanes, linux::LinuxPing, prober::OpenProber, resolve::Resolver, surge::SurgePing,
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

/// How many are held, and how long each is waited for. The few are not waited for as long, or it would take minutes.
const HELD: [(u32, Duration); 3] = [
    (CHUNK, Duration::from_millis(20)),
    (10_000, Duration::from_secs(1)),
    (100_000, Duration::from_secs(1)),
];

/// Probes in all: that many, or so often what is held.
const PROBES: u32 = 40_000;
const TURNS: u32 = 4;

/// How often what has left is counted during a wait.
const LOOKS: u32 = 20;

/// The first of the silent addresses.
const FIRST: u32 = Ipv4Addr::new(10, 144, 0, 0).to_bits();

/// Who probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Linux,
    Surge,
}

impl Engine {
    fn opener(self) -> Arc<dyn OpenProber> {
        match self {
            Self::Linux => Arc::new(LinuxPing::new()),
            Self::Surge => Arc::new(SurgePing::new()),
        }
    }

    fn program(self, held: u32) -> &'static str {
        match (self, held) {
            (Self::Linux, CHUNK) => "64 in flight",
            (Self::Linux, 10_000) => "10,000 in flight",
            (Self::Linux, _) => "100,000 in flight",
            (Self::Surge, CHUNK) => "surge-ping, 64 in flight",
            (Self::Surge, _) => "surge-ping, 10,000 in flight",
        }
    }
}

/// Runs it for all numbers, in turns. surge-ping holds no more than 16,384, and is there for comparison.
pub(crate) fn held(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const CASE: &str = "held";
    let linux = HELD.map(|(held, _)| (Engine::Linux, held));
    let surge = [HELD[0], HELD[1]].map(|(held, _)| (Engine::Surge, held));
    let all: Vec<_> = linux.into_iter().chain(surge).collect();
    for round in 1..=rounds {
        for (engine, held) in &all {
            let name = engine
                .to_possible_value()
                .context("every engine has a name")?;
            let mut command = site.namespace().command(std::env::current_exe()?);
            command.args(["--hold", name.get_name(), &held.to_string()]);
            let ran = run(vec![command])?;
            ensure!(ran.success, "{}", ran.stderr);
            let figures: Vec<&str> = ran.stdout.split_whitespace().collect();
            let [requests, cpu_seconds, most_in_flight] = figures.as_slice() else {
                anyhow::bail!("{}", ran.stdout);
            };
            rows.note(Row {
                case: CASE,
                round,
                program: engine.program(*held),
                seconds: Some(ran.seconds),
                cpu_seconds: Some(cpu_seconds.parse()?),
                requests: Some(requests.parse()?),
                most_in_flight: Some(most_in_flight.parse()?),
                peak_rss_kb: Some(ran.peak_kb),
                ..Row::default()
            })?;
        }
    }
    let mut costs = Vec::new();
    for (engine, held) in all {
        let program = engine.program(held);
        let cost = rows.spread(CASE, program, |row| {
            Some(row.cpu_seconds? * 1e6 / row.requests? as f64)
        });
        println!("  {program:<34} {cost} us of processor time a probe");
        costs.push(cost.median);
    }
    judge(
        "cost of a probe, 10,000 in flight, 64 = 1",
        costs[1] / costs[0],
        0.0..=1.5,
    );
    judge(
        "cost of a probe, 100,000 in flight, 64 = 1",
        costs[2] / costs[0],
        0.0..=1.5,
    );
    println!(
        "  for comparison, surge-ping, 10,000 in flight, 64 = 1: {:.2}",
        costs[4] / costs[3]
    );
    Ok(())
}

/// Holds `held` silent targets; tells requests, seconds of processor time, and the most in flight at once.
#[tokio::main]
pub(crate) async fn hold(engine: Engine, held: u32) -> anyhow::Result<String> {
    let wait = HELD
        .iter()
        .find(|(number, _)| *number == held)
        .context("no such number")?
        .1;
    let lanes = Arc::new(Lanes::start(
        NonZeroUsize::MIN,
        &engine.opener(),
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
    let mut waiting = (0..chunks).map(|number| chunk(number, &probing));
    let mut in_hand = JoinSet::new();
    let mut in_flight = Outstanding::new(wait);
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
                let up = outcomes.iter().any(|outcome| outcome.status == Status::Up);
                ensure!(!up, "a silent target is up: {outcomes:?}");
            }
            now = look.tick() => in_flight.note(now.into(), lanes.requests_sent()),
        }
    }
    let most_in_flight = in_flight.most();
    ensure!(
        most_in_flight * 10 >= u64::from(held) * 9,
        "only {most_in_flight} were in flight at once"
    );
    Ok(format!(
        "{} {} {most_in_flight}",
        lanes.requests_sent(),
        lane_seconds()?
    ))
}

fn chunk(number: u32, probing: &Probing) -> Arc<WorkChunk> {
    let first = FIRST + number * CHUNK;
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
