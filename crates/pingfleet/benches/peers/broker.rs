//! The three roles as processes with a private RabbitMQ, all on this machine and in one namespace. The producer is
//! timed, because a user waits for it; worker and writer run already.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pingfleet_testbed::Rabbit;

use crate::{
    outstanding::Outstanding,
    program::{Service, run},
    rows::{Row, Rows, judge},
    site::{Site, outcome},
    sweep::{fping, run_fping},
    targets::{self, MANY, USUAL},
};

/// Silent targets in the case of a worker's memory. The first chunk of a session is taken alone.
const SILENT: u32 = 120_000;

/// Their timeout: longer than it takes to send to all of them.
const WAIT: Duration = Duration::from_secs(10);

/// At least this many requests must be unanswered at once.
const OUTSTANDING: u64 = 100_000;

/// How often the requests sent are counted.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// A worker and a writer that are ready.
struct Fleet<'a> {
    site: &'a Site,
    rabbit: &'a Rabbit,
    worker: Service,
    writer: Service,
}

impl<'a> Fleet<'a> {
    fn start(site: &'a Site, rabbit: &'a Rabbit, database: &Path) -> anyhow::Result<Self> {
        let mut writer = command(site, rabbit, "consumer-writer");
        writer.arg("--db").arg(database);
        Ok(Self {
            site,
            rabbit,
            writer: Service::start(writer, "consumer-writer", "writer ready")?,
            worker: Service::start(
                command(site, rabbit, "ping-worker"),
                "ping-worker",
                "worker ready",
            )?,
        })
    }

    /// One run of the producer, as rows of all three.
    fn produce(&self, hosts: &Path, database: &Path, more: &[&str]) -> anyhow::Result<[Row; 3]> {
        let before = [self.worker.cpu_seconds()?, self.writer.cpu_seconds()?];
        let mut producer = command(self.site, self.rabbit, "producer");
        producer
            .arg("--hosts")
            .arg(hosts)
            .args(["--rate", "unlimited", "--quiet", "--db"])
            .arg(database)
            .args(more);
        let ran = run(vec![producer])?;
        ensure!(ran.success, "producer: {}", ran.stderr);
        let outcome = outcome(database)?;
        let [worker, writer] =
            [(&self.worker, before[0]), (&self.writer, before[1])].map(|(service, before)| {
                anyhow::Ok(Row {
                    targets: outcome.targets,
                    cpu_seconds: Some(service.cpu_seconds()? - before),
                    peak_rss_kb: Some(service.peak_kb()?),
                    ..Row::default()
                })
            });
        Ok([
            Row {
                program: "producer",
                seconds: Some(ran.seconds),
                cpu_seconds: Some(ran.cpu_seconds),
                peak_rss_kb: Some(ran.peak_kb),
                ..outcome
            },
            Row {
                program: "ping-worker",
                ..worker?
            },
            Row {
                program: "consumer-writer",
                ..writer?
            },
        ])
    }

    fn stop(self) -> anyhow::Result<()> {
        self.worker.stop()?;
        self.writer.stop()
    }
}

fn command(site: &Site, rabbit: &Rabbit, program: &str) -> Command {
    let mut command = site.program(program);
    command.env("PINGFLEET_BROKER__URL", rabbit.url());
    command
}

/// All targets answer.
pub(crate) fn answering(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    const CASE: &str = "broker";
    let hosts = targets::answering(site.folder(), USUAL)?;
    let rabbit = Rabbit::start_in(site.namespace())?;
    for round in 1..=rounds {
        rows.note(run_fping(vec![fping(site, &hosts)], CASE, "fping", round)?)?;
        let database = site.fresh_database()?;
        let fleet = Fleet::start(site, &rabbit, &database)?;
        for row in fleet.produce(&hosts, &database, &[])? {
            rows.note(Row {
                case: CASE,
                round,
                ..row
            })?;
        }
        fleet.stop()?;
    }
    let peer = rows.seconds(CASE, "fping");
    let own = rows.seconds(CASE, "producer");
    rows.cost(CASE, "ping-worker");
    rows.cost(CASE, "consumer-writer");
    judge(
        "speed, fping = 1",
        peer.median / own.median,
        0.8..=f64::INFINITY,
    );
    Ok(())
}

/// Many silent targets at once, and then a million that answer, for the worker's memory.
pub(crate) fn memory(site: &Site, rows: &mut Rows) -> anyhow::Result<()> {
    const CASE: &str = "memory";
    const MILLION: &str = "memory, after a million more";
    let million = targets::answering(site.folder(), MANY)?;
    let hosts = targets::silent(site.folder(), SILENT)?;
    let rabbit = Rabbit::start_in(site.namespace())?;
    let database = site.fresh_database()?;
    let fleet = Fleet::start(site, &rabbit, &database)?;
    let wait = format!("{}s", WAIT.as_secs());
    let ended = AtomicBool::new(false);
    let (produced, outstanding) = thread::scope(|scope| {
        let looking = scope.spawn(|| most_outstanding(fleet.worker.id(), &ended));
        let produced = fleet.produce(
            &hosts,
            &database,
            &["--chunk-size", "500", "--retries", "0", "--timeout", &wait],
        );
        ended.store(true, Ordering::Relaxed);
        (
            produced,
            looking
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked")),
        )
    });
    let outstanding = outstanding??;
    for row in produced? {
        let most_in_flight = (row.program == "ping-worker").then_some(outstanding);
        rows.note(Row {
            case: CASE,
            round: 1,
            most_in_flight,
            ..row
        })?;
    }
    for row in fleet.produce(&million, &database, &[])? {
        rows.note(Row {
            case: MILLION,
            round: 1,
            ..row
        })?;
    }
    fleet.stop()?;
    for case in [CASE, MILLION] {
        println!("  {case}:");
        rows.seconds(case, "producer");
        rows.cost(case, "ping-worker");
        rows.cost(case, "consumer-writer");
    }
    println!("  {outstanding} requests were unanswered at once");
    ensure!(
        outstanding >= OUTSTANDING,
        "only {outstanding} requests were unanswered at once"
    );
    let peak = rows.spread(MILLION, "ping-worker", |row| {
        row.peak_rss_kb.map(|kb| kb as f64 / 1000.0)
    });
    judge("the worker's peak of memory in MB", peak.most, 0.0..=150.0);
    Ok(())
}

/// The most requests of a worker that were unanswered at once, until `ended`. None is repeated.
fn most_outstanding(worker: u32, ended: &AtomicBool) -> anyhow::Result<u64> {
    let mut outstanding = Outstanding::new(WAIT);
    while !ended.load(Ordering::Relaxed) {
        outstanding.note(Instant::now(), packets_sent(worker)?);
        thread::sleep(SAMPLE_INTERVAL);
    }
    Ok(outstanding.most())
}

/// Packets that have left the namespace of a process (`proc_pid_net(5)`); the broker's do not leave it.
fn packets_sent(pid: u32) -> anyhow::Result<u64> {
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let device = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("veth0:"));
    let sent = device.and_then(|counters| counters.split_whitespace().nth(9)?.parse().ok());
    sent.context("no veth0 in the namespace")
}
