//! Workers that are killed or busy, over a real broker, also while the writer is started again.

use anyhow::{Context, Result, ensure};
use pingfleet_faults::{ChildProcess, Deployment};
use pingfleet_wire::timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT};
use serde_json::json;

use crate::driver::{Browser, Row, writer};

/// The worker that is killed, and the one that probes a chunk for minutes.
const DOOMED: &str = "doomed";
const BUSY: &str = "busy";

/// A worker as the page or the API shows it at one moment.
#[derive(Debug, Clone)]
struct Seen {
    worker: String,
    /// The word of the page or of the API.
    state: String,
    age_s: f64,
    in_hand: f64,
    oldest_s: f64,
}

impl Seen {
    fn of_row(row: &Row) -> Result<Self> {
        let cell = |name: &str| row.get(name).with_context(|| format!("no column {name}"));
        let number = |name: &str| -> Result<f64> {
            let cell = cell(name)?;
            // Without a value it is a dash.
            Ok(cell.value.as_deref().unwrap_or("0").parse().unwrap_or(0.0))
        };
        Ok(Self {
            worker: cell("worker")?.text.trim().to_owned(),
            state: cell("state")?.text.trim().to_owned(),
            age_s: number("last heartbeat")?,
            in_hand: number("chunks in hand")?,
            oldest_s: number("oldest")?,
        })
    }

    fn is_lost(&self) -> bool {
        self.state.ends_with("LOST") || self.state == "lost"
    }

    fn is_live(&self) -> bool {
        self.state.ends_with("live")
    }
}

/// What was seen so far, in one tab.
struct Watch {
    browser: Browser,
    /// Whether the killed worker was lost.
    was_lost: bool,
    looks: u32,
}

impl Watch {
    /// Checks one picture of the workers. Ages are those of the picture, so a slow machine changes nothing.
    fn check(&mut self, workers: &[Seen]) -> Result<()> {
        let timeout = WORKER_TIMEOUT.as_secs_f64();
        for seen in workers {
            if seen.is_lost() {
                ensure!(
                    seen.worker == DOOMED,
                    "{} turned LOST: {seen:?}",
                    seen.worker
                );
                ensure!(seen.age_s >= timeout, "lost too soon: {seen:?}");
                self.was_lost = true;
            } else if seen.is_live() {
                let latest = timeout + HEARTBEAT_INTERVAL.as_secs_f64();
                ensure!(seen.age_s <= latest, "lost, and shown as live: {seen:?}");
            }
            let stays = seen.worker != DOOMED || !self.was_lost || seen.is_lost();
            ensure!(stays, "it did not stay LOST: {seen:?}");
        }
        let is_there = workers.iter().any(|seen| seen.worker == DOOMED);
        ensure!(!self.was_lost || is_there, "it did not stay: {workers:?}");
        self.looks += 1;
        Ok(())
    }

    /// What the tab shows, and, if the writer is there, what the API answers.
    fn look(&mut self, has_writer: bool) -> Result<Vec<Seen>> {
        let rows = self.browser.rows("first", "workers")?;
        let shown: Vec<_> = rows.iter().map(Seen::of_row).collect::<Result<_>>()?;
        self.check(&shown)?;
        if has_writer {
            let command = json!({ "do": "api", "tab": "first", "path": "/api/v1/workers" });
            let answered = self.browser.ask(&command)?;
            let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
            let workers = answered
                .as_array()
                .context("a list")?
                .iter()
                .map(|worker| Seen {
                    worker: worker["worker"].as_str().unwrap_or_default().to_owned(),
                    state: worker["state"].as_str().unwrap_or_default().to_owned(),
                    age_s: worker["heartbeat_age_s"].as_f64().unwrap_or(f64::NAN),
                    in_hand: number(&worker["in_hand"]),
                    oldest_s: number(&worker["oldest_in_hand_s"]),
                });
            let workers: Vec<_> = workers.collect();
            self.check(&workers)?;
        }
        Ok(shown)
    }

    /// Looks until both workers are as wanted, and returns how they were shown.
    fn until(
        &mut self,
        awaited: &str,
        wanted: impl Fn(&Seen, &Seen) -> bool,
    ) -> Result<(Seen, Seen)> {
        let began = std::time::Instant::now();
        loop {
            let shown = self.look(true)?;
            let find = |name: &str| shown.iter().find(|seen| seen.worker == name).cloned();
            if let (Some(doomed), Some(busy)) = (find(DOOMED), find(BUSY))
                && wanted(&doomed, &busy)
            {
                return Ok((doomed, busy));
            }
            let is_late = began.elapsed() > pingfleet_faults::MAX_WAIT;
            ensure!(!is_late, "waited in vain for {awaited}: {shown:?}");
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }
}

#[test]
fn a_killed_worker_turns_lost_and_stays_and_a_busy_one_never_does_also_across_a_restart_of_the_writer()
-> Result<()> {
    let deployment = Deployment::new()?;
    let before = writer(&deployment)?;
    let mut workers = Vec::new();
    for name in [DOOMED, BUSY] {
        let mut worker = deployment.start("ping-worker", &["--name", name])?;
        worker.wait_for_output("worker ready")?;
        workers.push(worker);
    }
    let [doomed, busy] = workers.try_into().ok().context("two workers")?;
    // Each chunk takes minutes.
    let hosts = deployment.hosts(2000)?;
    let hosts = hosts.to_str().context("a plain path")?;
    let slow = ["--rate", "2", "--retries", "0", "--chunk-size", "250"];
    let arguments = [&["--hosts", hosts][..], &slow].concat();
    let _producer = deployment.start("producer", &arguments)?;
    let mut watch = Watch {
        browser: Browser::start(&deployment)?,
        was_lost: false,
        looks: 0,
    };
    watch.browser.open("first", json!({}))?;
    watch.until("two live workers with a chunk each", |doomed, busy| {
        [doomed, busy]
            .iter()
            .all(|seen| seen.is_live() && seen.in_hand > 0.0)
    })?;

    doomed.kill()?;
    watch.until("the killed worker to be lost", |doomed, busy| {
        doomed.is_lost() && busy.is_live()
    })?;
    let title = format!("Worker {DOOMED} is lost");
    let alerts = watch.browser.text("first", "#alerts")?;
    ensure!(alerts.contains(&title), "{alerts}");

    before.kill()?;
    watch
        .browser
        .until("the loss of the connection", |browser| {
            let text = browser.text("first", "#connection")?;
            Ok((!text.is_empty()).then_some(()))
        })?;
    watch.look(false)?;
    let _after = writer(&deployment)?;
    let long = 1.5 * WORKER_TIMEOUT.as_secs_f64();
    watch.until(
        "a chunk that takes longer than a silence may",
        |doomed, busy| doomed.age_s > long && busy.is_live() && busy.oldest_s > long,
    )?;
    watch.browser.act("reload", "first")?;
    watch.look(true)?;
    let faults = watch.browser.faults("first", true)?;
    ensure!(faults.is_empty(), "{faults:?}");

    notices_a_silent_worker(&mut watch, &busy)
}

/// The control: a busy worker that is silent does turn LOST, and the same checks notice it.
fn notices_a_silent_worker(watch: &mut Watch, busy: &ChildProcess) -> Result<()> {
    busy.signal("STOP")?;
    let noticed = watch.until("the silent worker to be lost", |_, _| false);
    let error = noticed.expect_err("it waits for nothing else").to_string();
    ensure!(error.contains("busy turned LOST"), "{error}");
    busy.signal("CONT")?;
    Ok(())
}
