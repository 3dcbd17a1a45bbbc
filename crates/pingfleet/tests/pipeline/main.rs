//! The whole pipeline as users run it, also with killed programs, a stopped broker and purged queues. In every case each
//! target ends with exactly one row.

mod abuse;
mod broker_limits;
mod contradictions;
mod foreign;
mod logging;
mod logins;
mod long_messages;
mod metrics;
mod rejected;
mod shared_workers;
mod writer_permissions;

use std::{path::Path, time::Duration};

use anyhow::ensure;

use pingfleet_faults::Deployment;
use pingfleet_wire::StatusKind;

/// Targets of a run: enough for some seconds.
const TARGETS: u32 = 60_000;

/// Requests per second and worker.
const RATE: &str = "5000";

/// Every target has one row and is up, according to `verify` and to the command `sqlite3`.
fn assert_all_up(deployment: &Deployment, targets: u32) -> anyhow::Result<()> {
    let proof = deployment.verify()?;
    assert!(proof.is_complete(), "{proof:?}");
    assert_eq!(proof.proven_targets, i64::from(targets));
    assert_eq!(
        proof.summary.counts[StatusKind::Up],
        i64::from(targets),
        "{proof:?}"
    );
    let rows = deployment
        .sqlite3("select count(*), count(distinct target), min(status), max(status) from report")?;
    assert_eq!(rows, format!("{targets}|{targets}|up|up"));
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the paths of the test are UTF-8")
}

#[test]
fn two_workers_share_a_run() -> anyhow::Result<()> {
    let deployment = Deployment::new()?;
    let hosts = deployment.hosts(TARGETS)?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    let mut one = deployment.start("ping-worker", &["--name", "one"])?;
    let mut two = deployment.start("ping-worker", &["--name", "two"])?;
    writer.wait_for_output("writer ready")?;
    one.wait_for_output("worker ready")?;
    two.wait_for_output("worker ready")?;
    let producer = deployment.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    assert_eq!(producer.wait()?.code(), Some(0));
    assert_all_up(&deployment, TARGETS)?;
    assert_eq!(
        deployment.sqlite3(
            "select group_concat(w) from (select distinct worker w from report order by 1)"
        )?,
        "one,two"
    );
    // Without a failure nothing is delivered twice, although the workers raise their prefetch.
    assert_eq!(
        deployment.sqlite3("select redelivered, duplicates from run_summary")?,
        "0|0"
    );
    assert_eq!(
        deployment.start("pingfleet", &["verify"])?.wait()?.code(),
        Some(0)
    );
    for program in [one, two, writer] {
        assert_eq!(program.terminate()?.code(), Some(0));
    }
    // The worker exited cleanly, so none is listed as lost.
    assert_eq!(deployment.sqlite3("select count(*) from workers")?, "0");
    Ok(())
}

/// A run in which one worker, the producer and the writer are killed in the middle. No producer supervises its end, so
/// nothing is published again, and anything that a kill loses stays missing.
fn killed_in_the_middle(deployment: &Deployment, worker: &str, targets: u32) -> anyhow::Result<()> {
    let hosts = deployment.hosts(targets)?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let producer = deployment.start("producer", &["--hosts", text(&hosts), "--rate", "2000"])?;
    let mut doomed = deployment.start(worker, &["--name", "doomed"])?;
    doomed.wait_for_output("worker ready")?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    producer.kill()?;
    deployment.wait_for_run("a few chunks more", |run| run.chunks_done >= 20)?;
    doomed.kill()?;
    let _survivor = deployment.start(worker, &["--name", "survivor"])?;
    // A worker that acks first may have taken all chunks: then no more results come.
    deployment.wait_for_chunks_or_empty_queues(40)?;
    writer.kill()?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let resumed = deployment.start("producer", &["--resume", "latest", "--detach"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    deployment.wait_for_empty_queues()?;
    assert_eq!(writer.terminate()?.code(), Some(0));
    Ok(())
}

#[test]
fn kill_9_of_worker_producer_and_writer_loses_nothing() -> anyhow::Result<()> {
    let deployment = Deployment::new()?;
    killed_in_the_middle(&deployment, "ping-worker", TARGETS)?;
    assert_all_up(&deployment, TARGETS)
}

/// The control of the test above: with a worker that acks before it publishes, the same kills lose chunks, and `verify`
/// reports it.
#[test]
fn control_a_worker_that_acks_first_loses_chunks() -> anyhow::Result<()> {
    let deployment = Deployment::new()?;
    killed_in_the_middle(&deployment, "examples/ack_first_worker", 20_000)?;
    let proof = deployment.verify()?;
    assert!(proof.is_consistent(), "{proof:?}");
    assert!(!proof.is_complete(), "{proof:?}");
    assert!(proof.outstanding_chunks > 0, "{proof:?}");
    Ok(())
}

#[test]
fn killed_producer_waits_for_the_rest_after_resume() -> anyhow::Result<()> {
    let deployment = Deployment::new()?;
    let hosts = deployment.hosts(20_000)?;
    let _writer = deployment.start("consumer-writer", &[])?;
    let _worker = deployment.start("ping-worker", &[])?;
    let producer = deployment.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    producer.kill()?;
    let resumed = deployment.start("producer", &["--resume", "latest"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&deployment, 20_000)
}

#[test]
fn ten_seconds_without_the_broker_lose_nothing() -> anyhow::Result<()> {
    let mut deployment = Deployment::new()?;
    let hosts = deployment.hosts(TARGETS)?;
    let _writer = deployment.start("consumer-writer", &[])?;
    let _one = deployment.start("ping-worker", &["--name", "one"])?;
    let _two = deployment.start("ping-worker", &["--name", "two"])?;
    let producer = deployment.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 20)?;
    deployment.broker_mut()?.stop()?;
    // The test is about the time without a broker, so there is no event to await.
    std::thread::sleep(Duration::from_secs(10));
    deployment.broker_mut()?.start_again()?;
    let status = producer.wait()?;
    assert_eq!(status.code(), Some(0));
    assert_all_up(&deployment, TARGETS)
}

#[test]
fn purged_chunks_are_published_again_from_the_database() -> anyhow::Result<()> {
    let mut deployment = Deployment::new()?;
    let hosts = deployment.hosts(TARGETS)?;
    let _writer = deployment.start("consumer-writer", &[])?;
    // A small prefetch leaves chunks on the queue for the purge to take.
    let _one = deployment.start("ping-worker", &["--name", "one", "--prefetch", "8"])?;
    let _two = deployment.start("ping-worker", &["--name", "two", "--prefetch", "8"])?;
    // Slow enough that there is something to purge, however long `rabbitmqctl` takes on a busy machine.
    let producer = deployment.start("producer", &["--hosts", text(&hosts), "--rate", "600"])?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 20)?;
    for queue in ["pingfleet.work", "pingfleet.results"] {
        deployment.broker_mut()?.purge(queue)?;
    }
    assert_eq!(producer.wait()?.code(), Some(0));
    assert_all_up(&deployment, TARGETS)?;
    let again = deployment.sqlite3("select count(*) from chunks where publishes > 1")?;
    ensure!(
        again != "0",
        "the purge came too late: no chunk was published again"
    );
    Ok(())
}

#[test]
fn interrupted_sweep_can_be_resumed() -> anyhow::Result<()> {
    let deployment = Deployment::without_broker()?;
    // The drain finishes only the chunks in hand, which are a sixth of the run.
    let rate = ["--rate", "2000", "--retries", "1"];
    let sweep = deployment.start(
        "pingfleet",
        &[&["sweep", "10.0.0.0/17"][..], &rate].concat(),
    )?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 5)?;
    let log = sweep.output();
    let status = sweep.terminate()?;
    assert_eq!(status.code(), Some(130), "{log}");
    let before = deployment.verify()?;
    assert!(
        before.is_consistent() && !before.is_complete(),
        "{before:?}"
    );
    let resumed = deployment.start("pingfleet", &["resume"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&deployment, 32_766)
}

#[test]
fn killed_sweep_can_be_resumed() -> anyhow::Result<()> {
    let deployment = Deployment::without_broker()?;
    let sweep = deployment.start("pingfleet", &["sweep", "10.0.0.0/18", "--rate", "4000"])?;
    deployment.wait_for_run("first results", |run| run.chunks_done >= 5)?;
    sweep.kill()?;
    let resumed = deployment.start("pingfleet", &["resume"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&deployment, 16_382)
}

#[test]
fn silent_targets_are_down_and_change_the_exit_code_only_with_fail_down() -> anyhow::Result<()> {
    let deployment = Deployment::without_broker()?;
    // 10.128.0.0/9 does not answer.
    let targets = ["10.0.0.1-10.0.0.20", "10.128.0.1-10.128.0.30"];
    let fast = ["--timeout", "200ms", "--retries", "1"];
    let mut arguments = vec!["sweep", "-u"];
    arguments.extend(targets.iter().chain(&fast));
    let quiet = deployment.start("pingfleet", &arguments)?;
    let log = deployment.wait_for_run("the end", |run| run.finished_at.is_some())?;
    assert_eq!(log.counts, [20, 0, 0, 0, 0, 0, 30].into());
    assert_eq!(quiet.wait()?.code(), Some(0));
    arguments.push("--fail-down");
    assert_eq!(
        deployment.start("pingfleet", &arguments)?.wait()?.code(),
        Some(1)
    );
    assert_eq!(
        deployment.sqlite3(
            "select distinct sent, received, loss_pct, rtt_avg_ms is null from report where status = 'down'"
        )?,
        "2|0|100.0|1"
    );
    assert_eq!(
        deployment.sqlite3("select count(*), sum(status = 'down') from latest")?,
        "50|30"
    );
    Ok(())
}
