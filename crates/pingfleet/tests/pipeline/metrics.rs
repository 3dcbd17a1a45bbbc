//! A real Prometheus scrapes the writer and two workers over a whole run, and evaluates the alert rules of deploy/.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_faults::{Deployment, MAX_WAIT, actions};
use pingfleet_wire::StatusKind;
use serde_json::Value;

use crate::text;

/// The deployment has a network of its own, so no other program has these ports.
const WRITER: &str = "127.0.0.1:8787";
const WORKERS: [(&str, &str); 2] = [("one", "127.0.0.1:9787"), ("two", "127.0.0.1:9788")];
const PROMETHEUS: &str = "127.0.0.1:9090";

/// The values of an expression by one of its labels.
type Values = BTreeMap<String, f64>;

/// How long to wait between two queries: each starts a program.
const PAUSE: Duration = Duration::from_millis(200);

/// A running Prometheus. It ends with this value, or with the test.
struct Prometheus<'a> {
    deployment: &'a Deployment,
    child: Child,
}

impl<'a> Prometheus<'a> {
    fn start(deployment: &'a Deployment) -> Result<Self> {
        let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../deploy/prometheus/alerts.yml")
            .canonicalize()?;
        let [(_, one), (_, two)] = WORKERS;
        let rules = text(&rules);
        let settings = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs:\n\
             - {{job_name: pingfleet, static_configs: [{{targets: [{WRITER:?}]}}]}}\n\
             - {{job_name: pingfleet-worker, static_configs: [{{targets: [{one:?}, {two:?}]}}]}}\n"
        );
        let folder = deployment.folder();
        fs::write(folder.join("prometheus.yml"), settings)?;
        let log = fs::File::create(folder.join("prometheus.log"))?;
        let mut command = deployment.namespace()?.command("setpriv");
        let child = command
            .args([
                "--pdeathsig",
                "KILL",
                "prometheus",
                "--config.file=prometheus.yml",
            ])
            .args(["--storage.tsdb.path=prometheus", "--log.level=warn"])
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { deployment, child })
    }

    /// The samples of an expression now. None while Prometheus does not answer.
    fn samples(&self, expression: &str) -> Result<Option<Vec<Value>>> {
        let url = format!("http://{PROMETHEUS}");
        let arguments = ["query", "instant", "-o", "json", &url, expression];
        let mut command = self.deployment.namespace()?.command("promtool");
        let output = command.args(arguments).output()?;
        if !output.status.success() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    /// The values of an expression now, by a label. None while Prometheus does not answer.
    fn query(&self, expression: &str, label: &str) -> Result<Option<Values>> {
        let Some(samples) = self.samples(expression)? else {
            return Ok(None);
        };
        let mut values = Values::new();
        for sample in &samples {
            let name = sample["metric"][label].as_str().unwrap_or_default();
            let text = sample["value"][1].as_str().context("a value")?;
            let other = values.insert(name.to_owned(), text.parse()?);
            ensure!(other.is_none(), "two values of {expression} for {name}");
        }
        Ok(Some(values))
    }

    /// Waits until an expression has these values, by a label.
    fn wait_for_all(&self, expression: &str, label: &str, expected: &Values) -> Result<()> {
        let began = Instant::now();
        let mut found = None;
        while began.elapsed() < MAX_WAIT {
            found = self.query(expression, label)?;
            if found.as_ref() == Some(expected) {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
        let log = fs::read_to_string(self.deployment.folder().join("prometheus.log"))?;
        bail!("{expression} is {found:?} instead of {expected:?}; Prometheus logged: {log}")
    }

    /// Waits until an expression has one value, and it is this one.
    fn wait_for(&self, expression: &str, expected: f64) -> Result<()> {
        let expected = Values::from([(String::new(), expected)]);
        self.wait_for_all(expression, "", &expected)
    }

    /// The one value of an expression now.
    fn value(&self, expression: &str) -> Result<f64> {
        let values = self.query(expression, "")?.context("an answer")?;
        values.get("").copied().context(expression.to_owned())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The number that a query of the database returns.
fn stored(deployment: &Deployment, sql: &str) -> Result<f64> {
    Ok(deployment.sqlite3(sql)?.parse()?)
}

/// What Prometheus has of the results is what the database has.
fn assert_results(prometheus: &Prometheus<'_>, deployment: &Deployment) -> Result<()> {
    let mut statuses = Values::new();
    for status in StatusKind::ALL.map(StatusKind::name) {
        let sql = format!("select count(*) from report where status = '{status}'");
        statuses.insert(status.to_owned(), stored(deployment, &sql)?);
    }
    assert!(
        statuses["up"] > 0.0 && statuses["down"] > 0.0,
        "{statuses:?}"
    );
    for series in ["pingfleet_targets_total", "pingfleet_run_targets_settled"] {
        prometheus.wait_for_all(series, "status", &statuses)?;
    }
    let chunks = stored(deployment, "select chunks_done from run_summary")?;
    prometheus.wait_for("pingfleet_chunks_total{outcome=\"done\"}", chunks)?;
    prometheus.wait_for("pingfleet_run_state{state=\"complete\"}", 1.0)?;
    let measured = "select count(*) from results where rtt_avg_ns is not null";
    let answered = stored(deployment, measured)?;
    prometheus.wait_for("pingfleet_target_rtt_seconds_count", answered)?;
    let sum = stored(deployment, "select sum(rtt_avg_ns) / 1e9 from results")?;
    let found = prometheus.value("pingfleet_target_rtt_seconds_sum")?;
    assert!((found - sum).abs() < 1e-6 * sum, "{found} {sum}");
    let buckets = prometheus.query("pingfleet_target_rtt_seconds_bucket", "le")?;
    let buckets = buckets.context("an answer")?;
    assert_eq!(buckets.len(), 20, "{buckets:?}");
    for (bound, found) in buckets {
        let seconds: f64 = bound.parse()?;
        let expected = if seconds.is_finite() {
            let nanoseconds = (seconds * 1e9).round();
            stored(
                deployment,
                &format!("{measured} and rtt_avg_ns < {nanoseconds}"),
            )?
        } else {
            answered
        };
        assert_eq!(
            found.to_bits(),
            expected.to_bits(),
            "{bound}: {found} {expected}"
        );
    }
    let commits = prometheus.value("pingfleet_writer_commit_duration_seconds_count")?;
    assert!(commits >= 1.0, "{commits}");
    Ok(())
}

/// Each expression of the dashboard for Grafana has data.
fn assert_dashboard(prometheus: &Prometheus<'_>) -> Result<()> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/grafana/pingfleet.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(path)?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    assert!(panels.len() > 10, "{}", panels.len());
    for panel in panels {
        for target in panel["targets"].as_array().context("targets")? {
            let expression = target["expr"].as_str().context("an expression")?;
            // Grafana sets both: an interval, and all writers.
            let expression = expression.replace("$__rate_interval", "1m");
            let expression = expression.replace("$instance", ".*");
            let samples = prometheus.samples(&expression)?;
            let is_empty = samples.is_none_or(|samples| samples.is_empty());
            ensure!(!is_empty, "no data for {}: {expression}", panel["title"]);
        }
    }
    // The control: a series that does not exist has none.
    let none = prometheus.samples("pingfleet_no_such_series")?;
    assert_eq!(none.map(|samples| samples.len()), Some(0));
    Ok(())
}

/// Publishes a run. Without a worker its chunks wait in their queue, and Prometheus has as many as the broker.
fn publish_without_workers(prometheus: &Prometheus<'_>, deployment: &Deployment) -> Result<()> {
    // 10.128.0.0/9 does not answer.
    let targets = ["10.0.0.0/20", "10.128.0.0/24", "--detach"];
    let fast = ["--rate", "5000", "--timeout", "300ms", "--retries", "1"];
    let producer = deployment.start("producer", &[&targets[..], &fast].concat())?;
    assert_eq!(producer.wait()?.code(), Some(0));
    // No worker has taken one, so all chunks of the run are on the queue.
    let chunks: i64 = deployment.sqlite3("select count(*) from chunks")?.parse()?;
    assert!(chunks > 10, "{chunks}");
    let work = deployment.queue("work");
    actions::wait_until("as many messages as chunks", || {
        Ok(deployment.depth(&work, "messages_ready")? == chunks)
    })?;
    let waiting = chunks as f64;
    prometheus.wait_for("pingfleet_queue_messages_ready{queue=\"work\"}", waiting)?;
    let consumers = [
        ("work", 0.0),
        ("results", 1.0),
        ("dead", 1.0),
        ("heartbeats", 1.0),
        ("foreign", 0.0),
    ];
    let consumers = consumers
        .map(|(queue, count)| (queue.to_owned(), count))
        .into();
    prometheus.wait_for_all("pingfleet_queue_consumers", "queue", &consumers)?;
    prometheus.wait_for("pingfleet_run_chunks{state=\"outstanding\"}", waiting)?;
    prometheus.wait_for("pingfleet_broker_alarm", 0.0)?;
    Ok(())
}

/// What each worker counts itself reaches the writer with its next heartbeat.
fn assert_workers(prometheus: &Prometheus<'_>, deployment: &Deployment) -> Result<()> {
    let of_both = |value| Values::from(WORKERS.map(|(name, _)| (name.to_owned(), value)));
    for count in ["requests", "replies", "targets", "chunks"] {
        let own = format!(
            "pingfleet_probing_{count}_total * on (instance) group_left (worker) pingfleet_probing_info"
        );
        let difference = format!("{own} - on (worker) pingfleet_worker_{count}_total");
        prometheus.wait_for_all(&difference, "worker", &of_both(0.0))?;
    }
    prometheus.wait_for_all("pingfleet_worker_up", "worker", &of_both(1.0))?;
    let settled = "sum(pingfleet_worker_targets_total)";
    prometheus.wait_for(settled, stored(deployment, "select count(*) from results")?)?;
    Ok(())
}

#[test]
fn prometheus_has_the_numbers_of_the_database_and_a_killed_worker_is_zero_and_not_absent()
-> Result<()> {
    let deployment = Deployment::new()?;
    deployment.set_env("PINGFLEET_DASHBOARD__LISTEN", WRITER);
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let prometheus = Prometheus::start(&deployment)?;
    publish_without_workers(&prometheus, &deployment)?;
    let [one, two] = WORKERS.map(|(name, metrics)| {
        deployment.start("ping-worker", &["--name", name, "--metrics", metrics])
    });
    let (_one, two) = (one?, two?);
    deployment.wait_for_run("the end", |run| run.finished_at.is_some())?;
    assert_results(&prometheus, &deployment)?;
    prometheus.wait_for("pingfleet_queue_messages_ready{queue=\"work\"}", 0.0)?;
    assert_workers(&prometheus, &deployment)?;
    prometheus.wait_for("sum(up)", 3.0)?;
    assert_dashboard(&prometheus)?;
    // The series of a killed worker stay.
    let before = prometheus.value("pingfleet_worker_requests_total{worker=\"two\"}")?;
    assert!(before > 0.0, "{before}");
    two.kill()?;
    // The control: the other one is up, and no alert is about it.
    let up = [("one", 1.0), ("two", 0.0)].map(|(name, up)| (name.to_owned(), up));
    let up = up.into();
    prometheus.wait_for_all("pingfleet_worker_up", "worker", &up)?;
    prometheus.wait_for("pingfleet_workers{state=\"lost\"}", 1.0)?;
    let lost = [("two".to_owned(), 1.0)].into();
    prometheus.wait_for_all("ALERTS{alertname=\"PingfleetWorkerLost\"}", "worker", &lost)?;
    let after = prometheus.value("pingfleet_worker_requests_total{worker=\"two\"}")?;
    assert_eq!(after.to_bits(), before.to_bits());
    // Another writer knows it from the database.
    assert_eq!(writer.terminate()?.code(), Some(0));
    prometheus.wait_for("absent(pingfleet_worker_up)", 1.0)?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    prometheus.wait_for_all("pingfleet_worker_up", "worker", &up)?;
    // Its counters begin anew, so no work counts twice.
    prometheus.wait_for("pingfleet_worker_requests_total{worker=\"two\"}", 0.0)?;
    Ok(())
}
