//! What most cases do: publish a run, start and stop roles, wait for a state, edit the database.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use pingfleet_broker::{Broker as _, Confirmed, Origin, QueueName, RabbitBroker, RabbitConfig};

use crate::{child_process::ChildProcess, deployment::Deployment, expected_rows};

/// The seed of the scripted prober, unless a case passes another one.
pub const SEED: u64 = 7;

/// Plans a run of the first `targets` addresses and publishes it. No producer supervises it, so nothing is published
/// twice.
///
/// # Errors
/// When the producer fails.
pub fn publish_run(deployment: &Deployment, targets: u32, chunk: u32) -> anyhow::Result<()> {
    let mut producer = start_producer(deployment, targets, chunk, &["--detach"])?;
    let status = producer.wait_for_exit()?;
    ensure!(
        status.success(),
        "the producer ended with {status}:\n{}",
        producer.output()
    );
    Ok(())
}

/// Starts a producer.
///
/// # Errors
/// When it is not built.
pub fn start_producer(
    deployment: &Deployment,
    targets: u32,
    chunk: u32,
    more: &[&str],
) -> anyhow::Result<ChildProcess> {
    start_planning(deployment, ("producer", &[]), targets, chunk, more)
}

/// Starts a producer with faults. It exits when everything is published.
///
/// # Errors
/// When it is not built.
pub fn start_faulty_producer(
    deployment: &Deployment,
    targets: u32,
    chunk: u32,
    more: &[&str],
) -> anyhow::Result<ChildProcess> {
    let program = ("faulty_role", &["producer"][..]);
    start_planning(deployment, program, targets, chunk, more)
}

/// Starts a program, given with its first arguments, that plans a run.
fn start_planning(
    deployment: &Deployment,
    (program, first): (&str, &[&str]),
    targets: u32,
    chunk: u32,
    more: &[&str],
) -> anyhow::Result<ChildProcess> {
    let hosts = deployment.hosts(targets)?;
    let hosts = hosts.to_string_lossy();
    let chunk = chunk.to_string();
    let plan = [
        "--hosts",
        &hosts,
        "--rate",
        "unlimited",
        "--chunk-size",
        &chunk,
    ];
    deployment.start(program, &[first, &plan, more].concat())
}

/// Starts a worker with the scripted prober.
///
/// # Errors
/// When it is not built.
pub fn start_worker(
    deployment: &Deployment,
    name: &str,
    more: &[&str],
) -> anyhow::Result<ChildProcess> {
    let seed = SEED.to_string();
    let mut arguments = vec!["worker", "--name", name];
    if !more.contains(&"--seed") {
        arguments.extend(["--seed", &seed]);
    }
    arguments.extend(more);
    deployment.start("faulty_role", &arguments)
}

/// Starts the writer, and waits until it is ready.
///
/// # Errors
/// When it does not become ready.
pub fn start_writer(deployment: &Deployment) -> anyhow::Result<ChildProcess> {
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    Ok(writer)
}

/// Sends SIGTERM to a process, and fails unless it exits with 0.
///
/// # Errors
/// When it exits with another code, or not at all.
pub fn terminate_cleanly(mut process: ChildProcess) -> anyhow::Result<()> {
    process.signal("TERM")?;
    let status = process.wait_for_exit()?;
    ensure!(
        status.success(),
        "{status} after SIGTERM:\n{}",
        process.output()
    );
    Ok(())
}

/// Sends SIGTERM to a process, and returns how many seconds it took to exit. It is a violation when it still runs after
/// `seconds`, in which case it is killed, and when it exits with another code than 0.
///
/// # Errors
/// When it cannot be signalled or killed.
pub fn terminate_within(
    mut process: ChildProcess,
    seconds: u64,
    violations: &mut Vec<String>,
) -> anyhow::Result<u64> {
    let began = Instant::now();
    process.signal("TERM")?;
    while began.elapsed() <= Duration::from_secs(seconds) {
        if let Some(status) = process.try_wait()? {
            if !status.success() {
                let output = process.output();
                violations.push(format!("{status} after SIGTERM: {output}"));
            }
            return Ok(began.elapsed().as_secs());
        }
        std::thread::sleep(crate::POLL_INTERVAL);
    }
    let name = process.name();
    violations.push(format!("{name} had not exited {seconds} s after SIGTERM"));
    process.kill()?;
    Ok(seconds)
}

/// Waits until a process has written a text. It is a violation when it exits first.
///
/// # Errors
/// When it neither writes it nor exits.
pub fn expect_output(
    process: &mut ChildProcess,
    text: &str,
    violations: &mut Vec<String>,
) -> anyhow::Result<()> {
    wait_until(text, || {
        Ok(process.output().contains(text) || process.try_wait()?.is_some())
    })?;
    if !process.output().contains(text) {
        violations.push(format!(
            "{} exited and never wrote {text:?}: {}",
            process.name(),
            process.output()
        ));
    }
    Ok(())
}

/// Polls until a condition holds.
///
/// # Errors
/// When it never does.
pub fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < crate::MAX_WAIT {
        if condition()? {
            return Ok(());
        }
        std::thread::sleep(crate::POLL_INTERVAL);
    }
    bail!("timed out waiting for {what}")
}

/// Waits until `messages` results are ready on their queue.
///
/// # Errors
/// When they never do.
pub fn wait_for_results(deployment: &Deployment, messages: i64) -> anyhow::Result<()> {
    let results = deployment.queue("results");
    wait_until(&format!("{messages} results on the queue"), || {
        Ok(deployment.depth(&results, "messages_ready")? >= messages)
    })
}

/// Waits until the idle writer has just recorded that it is alive. It does so every 3 s.
///
/// # Errors
/// When it never does.
pub fn wait_for_writer_liveness(deployment: &Deployment) -> anyhow::Result<()> {
    let before = deployment.sqlite3("select seen_us from writers")?;
    wait_until("the writer to record that it is alive", || {
        Ok(deployment.sqlite3("select seen_us from writers")? != before)
    })
}

/// Changes the database by `sqlite3`, without the roles.
///
/// # Errors
/// When `sqlite3` fails.
pub fn edit_database(deployment: &Deployment, sql: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("sqlite3")
        .args(["-cmd", ".timeout 10000"])
        .arg(deployment.database())
        .arg(sql)
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "{sql}");
    Ok(())
}

/// Connects to the broker as a role does, and runs `body`.
fn with_broker<T>(
    deployment: &Deployment,
    body: impl AsyncFnOnce(&RabbitBroker) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let broker = RabbitBroker::new(&RabbitConfig {
        prefix: deployment.prefix().to_owned(),
        ..RabbitConfig::new(deployment.broker()?.url())
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(body(&broker))
}

/// Publishes messages, and waits for the confirm of each.
///
/// # Errors
/// When the broker does not store one.
pub fn publish_messages(
    deployment: &Deployment,
    queue: QueueName,
    bodies: &[Vec<u8>],
) -> anyhow::Result<()> {
    with_broker(deployment, async |broker| {
        let mut publisher = broker.publisher().await?;
        for body in bodies {
            let confirmed = publisher.publish(queue, body).await?.await?;
            ensure!(confirmed == Confirmed::Stored, "{confirmed:?}");
        }
        publisher.close().await;
        Ok(())
    })
}

/// Publishes a dead letter again, with its reason, and waits for the confirm.
///
/// # Errors
/// When the broker does not store it.
pub fn publish_dead_letter(
    deployment: &Deployment,
    body: &[u8],
    reason: &str,
) -> anyhow::Result<()> {
    with_broker(deployment, async |broker| {
        let mut publisher = broker.publisher().await?;
        let origin = Origin {
            dead_letter_reason: Some(reason),
            login: None,
        };
        let confirm = publisher.publish_again(QueueName::DEAD, body, origin);
        let confirmed = confirm.await?.await?;
        ensure!(confirmed == Confirmed::Stored, "{confirmed:?}");
        publisher.close().await;
        Ok(())
    })
}

/// Waits until a queue has a consumer.
///
/// # Errors
/// When it never has one.
pub fn wait_for_consumer(deployment: &Deployment, queue: QueueName) -> anyhow::Result<()> {
    with_broker(deployment, async |broker| {
        let began = Instant::now();
        while broker.depth(queue).await?.consumers == 0 {
            ensure!(
                began.elapsed() < crate::MAX_WAIT,
                "{queue:?} has no consumer"
            );
            tokio::time::sleep(crate::POLL_INTERVAL).await;
        }
        Ok(())
    })
}

/// Publishes every chunk of a run once more, in any state. The database does not record it.
///
/// # Errors
/// When the broker does not store them.
pub fn republish_chunks(deployment: &Deployment, run: i64) -> anyhow::Result<()> {
    let connection = expected_rows::open(&deployment.database())?;
    let mut plan = connection.prepare("SELECT work FROM plan WHERE run = ?1 ORDER BY chunk")?;
    let bodies: Vec<Vec<u8>> = plan
        .query_map([run], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    publish_messages(deployment, QueueName::WORK, &bodies)
}
