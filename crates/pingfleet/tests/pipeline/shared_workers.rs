//! Runs that share the workers: `cancel` reaches all of a run but its publish window, a small run beside a large one ends
//! soon, and lost chunks come back while another run keeps the queues busy. The controls publish everything at once, or
//! look for lost chunks only when the queues are idle.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pingfleet_faults::{ChildProcess, Deployment};
use pingfleet_store::RunState;

use crate::text;

/// The window of these runs: the smallest one, because their workers need a smaller prefetch, and what is settled in 2 s is
/// less.
const WINDOW: i64 = 64;

/// Requests that may follow a cancel: what two workers send in 15 s at [`RATE`]. Counted instead of timed, because a busy
/// machine is slower than the rate and needs longer for the same requests.
const MAX_AFTER_CANCEL: u64 = 15 * 2 * 1000;

/// The run is stopped when no request came for this long.
const QUIET: Duration = Duration::from_secs(5);

/// Targets of a large run. At this rate it takes minutes.
const LARGE: u32 = 600_000;
const RATE: [&str; 4] = ["--rate", "1000", "--retries", "1"];

/// A deployment with a writer and two workers.
struct Fleet {
    deployment: Deployment,
    _programs: Vec<ChildProcess>,
}

impl Fleet {
    fn new() -> Result<Self> {
        let deployment = Deployment::new()?;
        let mut programs = vec![
            deployment.start("consumer-writer", &[])?,
            deployment.start("ping-worker", &["--name", "one"])?,
            deployment.start("ping-worker", &["--name", "two"])?,
        ];
        programs[0].wait_for_output("writer ready")?;
        for worker in &mut programs[1..] {
            worker.wait_for_output("worker ready")?;
        }
        Ok(Self {
            deployment,
            _programs: programs,
        })
    }

    /// Starts a large run, and waits until it is under way.
    fn start_large(&self, targets: u32, more: &[&str]) -> Result<ChildProcess> {
        let hosts = self.deployment.hosts(targets)?;
        let arguments = [&["--hosts", text(&hosts)][..], &RATE, more].concat();
        let producer = self.deployment.start("producer", &arguments)?;
        self.deployment
            .wait_for_run("first results", |run| run.chunks_done >= 20)?;
        Ok(producer)
    }

    /// How many chunks of the first run were settled between the publish and the end of the only chunk of the second one.
    fn settled_meanwhile(&self) -> Result<i64> {
        let count = self.deployment.sqlite3(
            "select count(*) from chunks large, chunks small
             where large.run = 1 and small.run = 2
               and large.settled_at_us between small.published_at_us and small.settled_at_us",
        )?;
        Ok(count.parse()?)
    }

    /// Echo requests that the answering side received.
    fn requests(&self) -> Result<u64> {
        let mut cat = self.deployment.namespace()?.answering_command("cat");
        let output = cat.arg("/proc/net/snmp").output()?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        // A line of names, and a line of numbers.
        let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
        let names = lines.next().context("no ICMP counters")?;
        let numbers = lines.next().context("no ICMP counters")?;
        let (_, number) = names
            .split_whitespace()
            .zip(numbers.split_whitespace())
            .find(|(name, _)| *name == "InEchos")
            .context("no counter of echo requests")?;
        Ok(number.parse()?)
    }

    /// Cancels the first run, and counts the requests that the answering side receives after that, until none comes any
    /// more or there are more than [`MAX_AFTER_CANCEL`].
    fn requests_after_cancel(&self) -> Result<u64> {
        let cancel = self.deployment.start("pingfleet", &["cancel", "1"])?;
        ensure!(cancel.wait()?.success(), "cancel failed");
        let (before, cancelled) = (self.requests()?, Instant::now());
        let (mut received, mut last) = (0, cancelled);
        while received <= MAX_AFTER_CANCEL
            && (last.elapsed() < QUIET || self.deployment.message_count()? > 0)
        {
            thread::sleep(Duration::from_millis(200));
            let now = self.requests()? - before;
            if now != received {
                (received, last) = (now, Instant::now());
            }
        }
        let after = (last - cancelled).as_secs_f64();
        writeln!(
            io::stderr(),
            "{received} requests in {after:.1} s after cancel"
        )?;
        Ok(received)
    }
}

#[test]
fn a_small_run_beside_a_large_one_ends_soon_and_cancel_stops_the_large_one() -> Result<()> {
    let fleet = Fleet::new()?;
    let large = fleet.start_large(LARGE, &[])?;
    let small = fleet.deployment.start("producer", &["10.0.0.1"])?;
    ensure!(small.wait()?.success(), "the small run failed");
    // Before the small chunk there is at most the window of the large run, and while it is probed and stored at most
    // another one is settled.
    let meanwhile = fleet.settled_meanwhile()?;
    ensure!(meanwhile <= 2 * WINDOW, "{meanwhile} chunks");

    let received = fleet.requests_after_cancel()?;
    ensure!(
        received <= MAX_AFTER_CANCEL,
        "{received} requests after cancel"
    );
    // Nothing is left that could be probed later.
    ensure!(fleet.deployment.message_count()? == 0);
    ensure!(!large.wait()?.success(), "a cancelled run is not complete");
    let store = fleet.deployment.store()?;
    let summary = store.summary(1)?;
    ensure!(summary.state == RunState::Cancelled);
    ensure!(summary.settled() < i64::from(LARGE) / 2, "{summary:?}");
    Ok(())
}

/// The control: a run that is published at once holds up the small one until its end, and cancel does not reach it.
#[test]
fn control_a_run_that_is_published_at_once_holds_up_others_and_is_not_stopped() -> Result<()> {
    let fleet = Fleet::new()?;
    let large = fleet.start_large(100_000, &["--detach"])?;
    ensure!(large.wait()?.success(), "publishing failed");
    let small = fleet.deployment.start("producer", &["10.0.0.1"])?;
    let received = fleet.requests_after_cancel()?;
    ensure!(
        received > MAX_AFTER_CANCEL,
        "{received} requests after cancel"
    );
    ensure!(small.wait()?.success(), "the small run failed");
    let meanwhile = fleet.settled_meanwhile()?;
    ensure!(meanwhile > 2 * WINDOW, "{meanwhile} chunks");
    Ok(())
}

/// A run that is still in the queue when it is purged, however long that takes on a busy machine.
const SLOW: [&str; 6] = ["--rate", "100", "--retries", "0", "--chunk-size", "50"];

/// Small chunks pass the queues quickly.
const BUSY: [&str; 6] = ["--rate", "1000", "--retries", "0", "--chunk-size", "50"];

/// Starts a run by `producer`, purges `work`, and starts a run of `other_targets` that keeps the queues busy from then on.
/// (It starts after the purge: its own lost chunks would fill its publish window, and the queues would be idle.) Returns
/// the fleet and the two producers.
fn purged_beside_another_run(
    producer: &str,
    other_targets: u32,
) -> Result<(Fleet, ChildProcess, ChildProcess)> {
    let fleet = Fleet::new()?;
    let deployment = &fleet.deployment;
    let hosts = deployment.hosts(10_000)?;
    let arguments = [&["--hosts", text(&hosts)][..], &SLOW].concat();
    let lost = deployment.start(producer, &arguments)?;
    deployment.wait_for_run("first results", |run| run.run == 1 && run.chunks_done >= 20)?;
    deployment.broker()?.purge("pingfleet.work")?;
    let hosts = deployment.hosts(other_targets)?;
    let arguments = [&["--hosts", text(&hosts)][..], &BUSY].concat();
    let other = deployment.start("producer", &arguments)?;
    deployment.wait_for_run("the other run", |run| run.run == 2 && run.chunks_done >= 20)?;
    Ok((fleet, lost, other))
}

fn published_again(deployment: &Deployment, run: i64) -> Result<i64> {
    let query = format!("select count(*) from chunks where run = {run} and publishes > 1");
    Ok(deployment.sqlite3(&query)?.parse()?)
}

#[test]
fn lost_chunks_come_back_before_the_other_run_ends() -> Result<()> {
    let (fleet, lost, other) = purged_beside_another_run("producer", 300_000)?;
    ensure!(lost.wait()?.success(), "the run with lost chunks failed");
    let other_run = fleet.deployment.store()?.summary(2)?;
    ensure!(other_run.outstanding() > 0, "{other_run:?}");
    let again = published_again(&fleet.deployment, 1)?;
    ensure!(again > 0, "the purge lost nothing");
    // Nothing was published again whose message still existed.
    let duplicates = fleet
        .deployment
        .sqlite3("select sum(duplicates) from run_summary")?;
    ensure!(duplicates == "0", "{duplicates} duplicates");
    other.kill()
}

/// The control: without the search for overtaken chunks they come back only when the other run is over.
#[test]
fn control_without_overtaking_lost_chunks_wait_for_the_end_of_the_other_run() -> Result<()> {
    let (fleet, lost, other) = purged_beside_another_run("examples/idle_only_producer", 160_000)?;
    ensure!(other.wait()?.success(), "the other run failed");
    let run = fleet.deployment.store()?.summary(1)?;
    ensure!(run.outstanding() > 0, "{run:?}");
    ensure!(published_again(&fleet.deployment, 1)? == 0);
    lost.kill()
}
