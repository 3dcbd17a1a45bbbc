//! The pipeline as users run it, and as nobody should: programs killed, the broker stopped, the queues purged. Whatever
//! happens, each target ends with exactly one row.

use std::{path::Path, time::Duration};

use anyhow::ensure;

use pingfleet_faults::Fleet;

/// Targets of a run: enough for it to be under way for some seconds.
const TARGETS: u32 = 60_000;

/// Requests a second and worker.
const RATE: &str = "5000";

/// Every target has one row and is up, and the sqlite3 of the system says so, too.
fn assert_all_up(fleet: &Fleet, targets: u32) -> anyhow::Result<()> {
    let proof = fleet.verify()?;
    assert!(proof.is_complete(), "{proof:?}");
    assert_eq!(proof.proven_targets, i64::from(targets));
    assert_eq!(proof.summary.counts[0], i64::from(targets), "{proof:?}");
    let rows = fleet
        .sqlite3("select count(*), count(distinct target), min(status), max(status) from report")?;
    assert_eq!(rows, format!("{targets}|{targets}|up|up"));
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the test's folders have plain names")
}

#[test]
fn two_workers_share_a_run() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    let hosts = fleet.hosts(TARGETS)?;
    let mut writer = fleet.start("consumer-writer", &[])?;
    let mut one = fleet.start("ping-worker", &["--name", "one"])?;
    let mut two = fleet.start("ping-worker", &["--name", "two"])?;
    writer.wait_for("writer ready")?;
    one.wait_for("worker ready")?;
    two.wait_for("worker ready")?;
    let producer = fleet.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    assert_eq!(producer.wait()?.code(), Some(0));
    assert_all_up(&fleet, TARGETS)?;
    assert_eq!(
        fleet.sqlite3(
            "select group_concat(w) from (select distinct worker w from report order by 1)"
        )?,
        "one,two"
    );
    // Nothing is sent twice where nothing failed, however the workers' windows grew.
    assert_eq!(
        fleet.sqlite3("select redelivered, duplicates from run_summary")?,
        "0|0"
    );
    assert_eq!(
        fleet.start("pingfleet", &["verify"])?.wait()?.code(),
        Some(0)
    );
    for program in [one, two, writer] {
        assert_eq!(program.terminate()?.code(), Some(0));
    }
    // They left in order: nobody is listed as lost.
    assert_eq!(fleet.sqlite3("select count(*) from workers")?, "0");
    Ok(())
}

/// A run in which one worker, the producer and the writer are killed in the middle. Nobody waits for it at the end, so
/// that nothing is published again: what the deaths cost would stay missing.
fn killed_in_the_middle(fleet: &Fleet, worker: &str, targets: u32) -> anyhow::Result<()> {
    let hosts = fleet.hosts(targets)?;
    let mut writer = fleet.start("consumer-writer", &[])?;
    writer.wait_for("writer ready")?;
    let producer = fleet.start("producer", &["--hosts", text(&hosts), "--rate", "2000"])?;
    let mut doomed = fleet.start(worker, &["--name", "doomed"])?;
    doomed.wait_for("worker ready")?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    producer.kill()?;
    fleet.wait_for_run("a few chunks more", |run| run.chunks_done >= 20)?;
    doomed.kill()?;
    let _survivor = fleet.start(worker, &["--name", "survivor"])?;
    // A worker that acks first may have taken all there was: then nothing comes any more.
    fleet.wait_for_chunks_or_quiet(40)?;
    writer.kill()?;
    let mut writer = fleet.start("consumer-writer", &[])?;
    writer.wait_for("writer ready")?;
    let resumed = fleet.start("producer", &["--resume", "latest", "--detach"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    fleet.wait_for_quiet_queues()?;
    assert_eq!(writer.terminate()?.code(), Some(0));
    Ok(())
}

#[test]
fn kill_9_of_worker_producer_and_writer_loses_nothing() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    killed_in_the_middle(&fleet, "ping-worker", TARGETS)?;
    assert_all_up(&fleet, TARGETS)
}

/// The control of the test above: with a worker that acks before it publishes, the same deaths lose chunks, and the
/// same proof sees it.
#[test]
fn control_a_worker_that_acks_first_loses_chunks() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    killed_in_the_middle(&fleet, "examples/ack_first_worker", 20_000)?;
    let proof = fleet.verify()?;
    assert!(proof.is_consistent(), "{proof:?}");
    assert!(!proof.is_complete(), "{proof:?}");
    assert!(proof.outstanding_chunks > 0, "{proof:?}");
    Ok(())
}

#[test]
fn killed_producer_waits_for_the_rest_after_resume() -> anyhow::Result<()> {
    let fleet = Fleet::new()?;
    let hosts = fleet.hosts(20_000)?;
    let _writer = fleet.start("consumer-writer", &[])?;
    let _worker = fleet.start("ping-worker", &[])?;
    let producer = fleet.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    producer.kill()?;
    let resumed = fleet.start("producer", &["--resume", "latest"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&fleet, 20_000)
}

#[test]
fn broker_that_is_away_for_ten_seconds_costs_nothing() -> anyhow::Result<()> {
    let mut fleet = Fleet::new()?;
    let hosts = fleet.hosts(TARGETS)?;
    let _writer = fleet.start("consumer-writer", &[])?;
    let _one = fleet.start("ping-worker", &["--name", "one"])?;
    let _two = fleet.start("ping-worker", &["--name", "two"])?;
    let producer = fleet.start("producer", &["--hosts", text(&hosts), "--rate", RATE])?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 20)?;
    fleet.rabbit()?.stop()?;
    // The absence itself is what is tested, so there is no event to await.
    std::thread::sleep(Duration::from_secs(10));
    fleet.rabbit()?.start_again()?;
    let status = producer.wait()?;
    assert_eq!(status.code(), Some(0));
    assert_all_up(&fleet, TARGETS)
}

#[test]
fn purged_queues_are_filled_again_from_the_database() -> anyhow::Result<()> {
    let mut fleet = Fleet::new()?;
    let hosts = fleet.hosts(TARGETS)?;
    let _writer = fleet.start("consumer-writer", &[])?;
    // A small prefetch leaves chunks on the queue for the purge to take.
    let _one = fleet.start("ping-worker", &["--name", "one", "--prefetch", "8"])?;
    let _two = fleet.start("ping-worker", &["--name", "two", "--prefetch", "8"])?;
    let producer = fleet.start("producer", &["--hosts", text(&hosts), "--rate", "2000"])?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 20)?;
    for queue in ["pingfleet.work", "pingfleet.results"] {
        fleet.rabbit()?.purge(queue)?;
    }
    assert_eq!(producer.wait()?.code(), Some(0));
    assert_all_up(&fleet, TARGETS)?;
    let again = fleet.sqlite3("select count(*) from chunks where publishes > 1")?;
    ensure!(again != "0", "the purge came too late to cost anything");
    Ok(())
}

#[test]
fn interrupted_sweep_goes_on_where_it_was() -> anyhow::Result<()> {
    let fleet = Fleet::without_broker()?;
    // A drain finishes all that is in hand, which is a sixth of this.
    let rate = ["--rate", "2000", "--retries", "1"];
    let sweep = fleet.start(
        "pingfleet",
        &[&["sweep", "10.0.0.0/17"][..], &rate].concat(),
    )?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 5)?;
    let log = sweep.said();
    let status = sweep.terminate()?;
    assert_eq!(status.code(), Some(130), "{log}");
    let before = fleet.verify()?;
    assert!(
        before.is_consistent() && !before.is_complete(),
        "{before:?}"
    );
    let resumed = fleet.start("pingfleet", &["resume"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&fleet, 32_766)
}

#[test]
fn killed_sweep_goes_on_where_it_was() -> anyhow::Result<()> {
    let fleet = Fleet::without_broker()?;
    let sweep = fleet.start("pingfleet", &["sweep", "10.0.0.0/18", "--rate", "4000"])?;
    fleet.wait_for_run("first results", |run| run.chunks_done >= 5)?;
    sweep.kill()?;
    let resumed = fleet.start("pingfleet", &["resume"])?;
    assert_eq!(resumed.wait()?.code(), Some(0));
    assert_all_up(&fleet, 16_382)
}

#[test]
fn silent_targets_are_down_and_the_exit_says_so_only_when_asked() -> anyhow::Result<()> {
    let fleet = Fleet::without_broker()?;
    // 10.128.0.0/9 does not answer.
    let targets = ["10.0.0.1-10.0.0.20", "10.128.0.1-10.128.0.30"];
    let fast = ["--timeout", "200ms", "--retries", "1"];
    let mut arguments = vec!["sweep", "-u"];
    arguments.extend(targets.iter().chain(&fast));
    let quiet = fleet.start("pingfleet", &arguments)?;
    let log = fleet.wait_for_run("the end", |run| run.finished_at.is_some())?;
    assert_eq!(log.counts, [20, 0, 0, 0, 0, 0, 30]);
    assert_eq!(quiet.wait()?.code(), Some(0));
    arguments.push("--fail-down");
    assert_eq!(
        fleet.start("pingfleet", &arguments)?.wait()?.code(),
        Some(1)
    );
    assert_eq!(
        fleet.sqlite3(
            "select distinct sent, received, loss_pct, rtt_avg_ms is null from report where status = 'down'"
        )?,
        "2|0|100.0|1"
    );
    assert_eq!(
        fleet.sqlite3("select count(*), sum(status = 'down') from latest")?,
        "50|30"
    );
    Ok(())
}
