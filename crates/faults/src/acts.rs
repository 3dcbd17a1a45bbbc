//! What most cases do: publish a run, start roles, hold on to a transaction.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use pingfleet_broker::{Broker as _, Confirmed, Queue, RabbitBroker, RabbitConfig};

use crate::{fleet::Fleet, oracle, program::Program};

/// The seed of the script that workers follow, unless a case wants another one.
pub const SCRIPT: u64 = 7;

/// The flags of a plan of small chunks.
fn plan(chunk: u32) -> Vec<String> {
    let chunk = chunk.to_string();
    ["--rate", "unlimited", "--chunk-size", &chunk]
        .map(str::to_owned)
        .to_vec()
}

/// Plans a run of the first `targets` addresses and publishes it; nobody waits for it, so nothing is published again.
///
/// # Errors
/// When the producer fails.
pub fn publish(fleet: &Fleet, targets: u32, chunk: u32) -> anyhow::Result<()> {
    let mut producer = start_producer(fleet, targets, chunk, &["--detach"])?;
    let status = producer.ended()?;
    ensure!(
        status.success(),
        "the producer ended with {status}:\n{}",
        producer.said()
    );
    Ok(())
}

/// Starts a producer.
///
/// # Errors
/// When it is not built.
pub fn start_producer(
    fleet: &Fleet,
    targets: u32,
    chunk: u32,
    more: &[&str],
) -> anyhow::Result<Program> {
    let hosts = fleet.hosts(targets)?;
    let plan = plan(chunk);
    let mut arguments = vec!["--hosts", hosts.to_str().unwrap_or_default()];
    arguments.extend(plan.iter().map(String::as_str));
    arguments.extend(more);
    fleet.start("producer", &arguments)
}

/// Starts a producer with faults. It leaves when everything is published.
///
/// # Errors
/// When it is not built.
pub fn faulty_producer(
    fleet: &Fleet,
    targets: u32,
    chunk: u32,
    more: &[&str],
) -> anyhow::Result<Program> {
    let hosts = fleet.hosts(targets)?;
    let plan = plan(chunk);
    let mut arguments = vec!["producer", "--hosts", hosts.to_str().unwrap_or_default()];
    arguments.extend(plan.iter().map(String::as_str));
    arguments.extend(more);
    fleet.start("faulty", &arguments)
}

/// Starts a worker that follows the script.
///
/// # Errors
/// When it is not built.
pub fn worker(fleet: &Fleet, name: &str, more: &[&str]) -> anyhow::Result<Program> {
    let mut arguments = vec!["worker", "--name", name];
    if !more.contains(&"--script") {
        arguments.extend(["--script", "7"]);
    }
    arguments.extend(more);
    fleet.start("faulty", &arguments)
}

/// Starts the writer, and waits until it is ready.
///
/// # Errors
/// When it does not become ready.
pub fn writer(fleet: &Fleet) -> anyhow::Result<Program> {
    let mut writer = fleet.start("consumer-writer", &[])?;
    writer.wait_for("writer ready")?;
    Ok(writer)
}

/// Has a program end by SIGTERM, and fails unless it says that all is well.
///
/// # Errors
/// When it ends otherwise.
pub fn dismiss(mut program: Program) -> anyhow::Result<()> {
    program.signal("TERM")?;
    let status = program.ended()?;
    ensure!(
        status.success(),
        "{status} after SIGTERM:\n{}",
        program.said()
    );
    Ok(())
}

/// Has a program end by SIGTERM, and tells how many seconds it took. One that is still there after `seconds`, which is
/// killed then, and one that ends in disorder, is a violation.
///
/// # Errors
/// When it cannot be signalled or killed.
pub fn leaves(
    mut program: Program,
    seconds: u64,
    violations: &mut Vec<String>,
) -> anyhow::Result<u64> {
    let began = Instant::now();
    program.signal("TERM")?;
    while began.elapsed() <= Duration::from_secs(seconds) {
        if let Some(status) = program.has_ended()? {
            if !status.success() {
                let said = program.said();
                violations.push(format!("{status} after SIGTERM: {said}"));
            }
            return Ok(began.elapsed().as_secs());
        }
        std::thread::sleep(crate::LOOK);
    }
    let name = program.name();
    violations.push(format!("{name} had not left {seconds} s after SIGTERM"));
    program.kill()?;
    Ok(seconds)
}

/// Waits until a program has said something. One that ends before is a violation.
///
/// # Errors
/// When it neither says it nor ends.
pub fn says(program: &mut Program, text: &str, violations: &mut Vec<String>) -> anyhow::Result<()> {
    wait_until(text, || {
        Ok(program.said().contains(text) || program.has_ended()?.is_some())
    })?;
    if !program.said().contains(text) {
        violations.push(format!(
            "{} ended and never said {text:?}: {}",
            program.name(),
            program.said()
        ));
    }
    Ok(())
}

/// Looks again and again until something is so.
///
/// # Errors
/// When it never is.
pub fn wait_until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < crate::PATIENCE {
        if so()? {
            return Ok(());
        }
        std::thread::sleep(crate::LOOK);
    }
    bail!("waited in vain for {what}")
}

/// Waits until `messages` results wait for a writer.
///
/// # Errors
/// When they never do.
pub fn wait_for_results(fleet: &Fleet, messages: i64) -> anyhow::Result<()> {
    let results = fleet.queue("results");
    wait_until(&format!("{messages} results on the queue"), || {
        Ok(fleet.depth(&results, "messages_ready")? >= messages)
    })
}

/// Waits until the writer, which has nothing else to do, has just noted that it is alive: the next time is in 3 s.
///
/// # Errors
/// When it never does.
pub fn wait_for_sign(fleet: &Fleet) -> anyhow::Result<()> {
    let before = fleet.sqlite3("select seen_us from writers")?;
    wait_until("a sign of life", || {
        Ok(fleet.sqlite3("select seen_us from writers")? != before)
    })
}

/// Changes the database behind everybody's back.
///
/// # Errors
/// When `sqlite3` refuses.
pub fn tamper(fleet: &Fleet, sql: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("sqlite3")
        .args(["-cmd", ".timeout 10000"])
        .arg(fleet.database())
        .arg(sql)
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "{sql}");
    Ok(())
}

/// Does something with the fleet's broker as a role does.
fn with_broker<T>(
    fleet: &Fleet,
    body: impl AsyncFnOnce(&RabbitBroker) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let broker = RabbitBroker::new(&RabbitConfig {
        prefix: fleet.prefix().to_owned(),
        ..RabbitConfig::new(fleet.broker()?.url())
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(body(&broker))
}

/// Publishes messages, and awaits that each is stored.
///
/// # Errors
/// When the broker does not store one.
pub fn send(fleet: &Fleet, queue: Queue, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
    with_broker(fleet, async |broker| {
        let mut publisher = broker.publisher().await?;
        for body in bodies {
            let confirmed = publisher.publish(queue, body).await?.await?;
            ensure!(confirmed == Confirmed::Stored, "{confirmed:?}");
        }
        publisher.close().await;
        Ok(())
    })
}

/// Waits until somebody consumes a queue.
///
/// # Errors
/// When nobody does.
pub fn wait_for_consumer(fleet: &Fleet, queue: Queue) -> anyhow::Result<()> {
    with_broker(fleet, async |broker| {
        let began = Instant::now();
        while broker.depth(queue).await?.consumers == 0 {
            ensure!(
                began.elapsed() < crate::PATIENCE,
                "nobody consumes {queue:?}"
            );
            tokio::time::sleep(crate::LOOK).await;
        }
        Ok(())
    })
}

/// Publishes every chunk of a run once more, whatever became of it. The database does not know of it.
///
/// # Errors
/// When the broker does not store them.
pub fn send_again(fleet: &Fleet, run: i64) -> anyhow::Result<()> {
    let connection = oracle::open(&fleet.database())?;
    let mut plan = connection.prepare("SELECT work FROM plan WHERE run = ?1 ORDER BY chunk")?;
    let bodies: Vec<Vec<u8>> = plan
        .query_map([run], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    send(fleet, Queue::Work, &bodies)
}
