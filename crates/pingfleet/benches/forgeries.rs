//! What a stolen login of a worker can do by forging results: a run of 100,000 targets beside 1,000,000 forged results, and
//! the same run without them, in turns, over a private RabbitMQ.
//!
//! `cargo build --release --bins`, then `cargo bench -p pingfleet --bench forgeries --features parquet`. It prints each
//! figure beside what is promised, and fails when a forged result is applied, not when a figure misses its promise. The
//! thief has the permissions of a worker and the work messages of all chunks, so also their tokens. Nothing leaves this
//! machine: the targets are loopback addresses.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    fs,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lapin::{BasicProperties, Connection, ConnectionProperties, options::BasicPublishOptions};
use pingfleet_faults::{ChildProcess, Deployment, actions};
use pingfleet_store::now_us;
use pingfleet_testbed::Rabbit;
use pingfleet_wire::{Message as _, Outcome, ResultChunk, Rtt, Status, Token, Version, WorkChunk};
use uuid::Uuid;

/// The targets of a run: loopback addresses.
const TARGETS: &str = "127.1.0.0-127.2.134.159";
const COUNT: u64 = 100_000;

/// The login of the thief.
const THIEF: &str = "pingfleet-worker-thief";

/// Measures a run beside forged results
#[derive(Debug, Parser)]
struct Arguments {
    /// Forged results
    #[arg(long, default_value_t = 1_000_000)]
    forgeries: usize,
    /// Pairs of runs, with and without them
    #[arg(long, default_value_t = 3)]
    pairs: u32,
    /// Targets per second
    #[arg(long, default_value = "2000")]
    rate: String,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut rabbit = Rabbit::start()?;
    let mut ratios = Vec::new();
    for pair in 0..arguments.pairs {
        let mut times = [0.0; 2];
        for with in [pair % 2 == 0, pair % 2 != 0] {
            let name = format!("pair{pair}{}", if with { "with" } else { "without" });
            let deployment = Deployment::with_shared_broker(rabbit, &name)?;
            times[usize::from(with)] = run(&deployment, &arguments, with)?;
            rabbit = deployment.into_broker().context("the broker")?;
        }
        let [without, with] = times;
        let ratio = with / without;
        println!("pair {pair}: {with:.1} s with forgeries, {without:.1} s without: {ratio:.3}");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
        let median = ratios[ratios.len() / 2];
        println!("time with / without: {median:.3} ({least:.3} to {most:.3}), at most 1.2");
    }
    Ok(())
}

/// One run, with forged results or without. Returns how long it took, in seconds.
fn run(deployment: &Deployment, arguments: &Arguments, with: bool) -> Result<f64> {
    let mut init = deployment.start("pingfleet", &["broker", "init"])?;
    ensure!(init.wait_for_exit()?.success(), "{}", init.output());
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let mut worker = deployment.start("ping-worker", &[])?;
    worker.wait_for_output("worker ready")?;
    let began = Instant::now();
    let plan = ["--rate", &arguments.rate, TARGETS];
    let mut producer = deployment.start("producer", &plan)?;
    let thief = with
        .then(|| Thief::start(deployment, arguments.forgeries))
        .transpose()?;
    // Its own limit is for tests.
    let status = loop {
        if let Some(status) = producer.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "{status}: {}", producer.output());
    if let Some(thief) = thief {
        let took = thief.end()?;
        let refused = wait_for_quarantine(deployment, arguments.forgeries)?;
        println!("  forged in {took:.1} s, all refused {refused:.1} s after the end of the run");
    }
    let memory = peak_memory(&writer)?;
    let rows =
        deployment.sqlite3("select count(*), sum(status), max(rtt_avg_ns) < 1e9 from results")?;
    ensure!(rows == format!("{COUNT}|0|1"), "{rows}");
    let counts = "select (select count(*) from quarantine), (select coalesce(sum(length(body)), 0) from quarantine), duplicates, \
                  contradictions from runs";
    let counts = deployment.sqlite3(counts)?;
    println!(
        "  {seconds:.1} s; writer {memory} MiB; quarantine rows|bytes, duplicates|contradictions: {counts}"
    );
    for program in [&mut worker, &mut writer] {
        program.signal("TERM")?;
        ensure!(program.wait_for_exit()?.success(), "{}", program.output());
    }
    let mut verify = deployment.start("pingfleet", &["verify"])?;
    ensure!(verify.wait_for_exit()?.success(), "{}", verify.output());
    Ok(seconds)
}

/// The most memory that a program has had, in MiB.
fn peak_memory(program: &ChildProcess) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("VmHWM")?.parse::<u64>()? / 1024)
}

/// Waits until so many messages were refused, and returns how long that took, in seconds.
fn wait_for_quarantine(deployment: &Deployment, forgeries: usize) -> Result<f64> {
    let began = Instant::now();
    let refused = "select quarantined from writers where transport = 'broker'";
    loop {
        let count: usize = deployment.sqlite3(refused)?.parse()?;
        ensure!(count <= forgeries, "{count} were refused");
        if count == forgeries {
            return Ok(began.elapsed().as_secs_f64());
        }
        ensure!(
            began.elapsed() < Duration::from_mins(10),
            "{count} of {forgeries} were refused"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Who publishes forged results, with the login of a worker.
struct Thief {
    running: JoinHandle<Result<f64>>,
}

impl Thief {
    fn start(deployment: &Deployment, forgeries: usize) -> Result<Self> {
        let rabbit = deployment.broker()?;
        let prefix = deployment.prefix();
        // Of an earlier pair.
        rabbit.ctl(&["delete_user", THIEF]).ok();
        rabbit.ctl(&["add_user", THIEF, "pass"])?;
        let write = format!(r"^{prefix}[.]x[.](results|heartbeats)$");
        let read = format!(r"^{prefix}[.]work$");
        rabbit.ctl(&["set_permissions", "-p", "/", THIEF, "^$", &write, &read])?;
        actions::wait_until("the plan", || {
            Ok(deployment
                .sqlite3("select count(*) from runs where state = 'running'")
                .is_ok_and(|running| running == "1"))
        })?;
        let messages = forged(deployment)?;
        let login = format!("{THIEF}:pass@");
        let url = format!("{}%2f", rabbit.url().replace("guest:guest@", &login));
        let exchange = format!("{prefix}.x.results");
        let queue = deployment.queue("results");
        let running = thread::spawn(move || {
            let began = Instant::now();
            let publishing = publish(&url, &exchange, &queue, &messages, forgeries);
            tokio::runtime::Runtime::new()?.block_on(publishing)?;
            Ok(began.elapsed().as_secs_f64())
        });
        Ok(Self { running })
    }

    /// How long it published, in seconds.
    fn end(self) -> Result<f64> {
        self.running.join().ok().context("the thief")?
    }
}

/// Publishes the messages again and again, so many in all, without waiting for confirms.
async fn publish(
    url: &str,
    exchange: &str,
    queue: &str,
    messages: &[Vec<u8>],
    count: usize,
) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_user_id(THIEF.into());
    for body in messages.iter().cycle().take(count) {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(
                exchange.into(),
                queue.into(),
                options,
                body,
                properties.clone(),
            )
            .await?;
    }
    channel.close(200, "OK".into()).await?;
    connection.close(200, "OK".into()).await?;
    Ok(())
}

/// Results that no worker can have, for every chunk of the plan: with an invented token, and with its token but a time that is
/// over the limit, too many requests, too few outcomes, or for another run.
fn forged(deployment: &Deployment) -> Result<Vec<Vec<u8>>> {
    let connection = rusqlite::Connection::open(deployment.database())?;
    let mut plan = connection.prepare("SELECT work FROM plan ORDER BY chunk")?;
    let works: Vec<Vec<u8>> = plan
        .query_map((), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut messages = Vec::new();
    for work in &works {
        let work = WorkChunk::decode(work).context("a work message")?;
        let true_one = || ResultChunk {
            version: Version,
            database: work.database,
            key: work.key,
            token: Token(work.token.0),
            worker: "thief".to_owned(),
            redelivered: false,
            started_at_us: now_us().unsigned_abs(),
            outcomes: vec![outcome(); work.targets.len()],
        };
        let mut of_invented_token = true_one();
        of_invented_token.token = Token(Uuid::new_v4());
        let mut too_slow = true_one();
        for outcome in &mut too_slow.outcomes {
            outcome.rtt = Some(rtt(3_600_000_000_000));
        }
        let mut too_many = true_one();
        for outcome in &mut too_many.outcomes {
            outcome.sent = u16::MAX;
        }
        let mut too_few = true_one();
        too_few.outcomes.pop();
        let mut of_another_run = true_one();
        of_another_run.key.run = Uuid::now_v7();
        let all = [
            of_invented_token,
            too_slow,
            too_many,
            too_few,
            of_another_run,
        ];
        messages.extend(all.iter().map(ResultChunk::encode));
        messages.push(b"not a message".to_vec());
    }
    Ok(messages)
}

fn rtt(ns: u64) -> Rtt {
    Rtt {
        min_ns: ns,
        avg_ns: ns,
        max_ns: ns,
        stddev_ns: 0,
    }
}

fn outcome() -> Outcome {
    Outcome {
        status: Status::Up,
        address: None,
        sent: 1,
        received: 1,
        rtt: Some(rtt(1_000_000)),
        attempts: 1,
        probed_after_us: 0,
    }
}
