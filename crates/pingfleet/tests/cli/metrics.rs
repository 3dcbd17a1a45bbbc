//! The metrics of both roles without a broker: their format, docs/metrics.md, who may read them, and the files in deploy/
//! for Prometheus and Grafana. The pipeline tests have them scraped by a real Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use pingfleet_wire::StatusKind;
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    live::{Live, until},
    rig::TestDir,
    screens::generated,
};

/// What Prometheus accepts.
const OPEN_METRICS: &str =
    "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// Families by name: the type, and the labels of their samples.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

fn document(name: &str) -> Result<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(name)).with_context(|| name.to_owned())
}

/// The metrics that a program serves.
fn served(live: &Live<'_>) -> Result<String> {
    let answer = live.get("/metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("a body")?;
    ensure!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    Ok(body.to_owned())
}

/// The families of an answer in the text format 0.0.4.
fn families(body: &str) -> Result<Families> {
    let mut families = Families::new();
    let mut current = String::new();
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').context("a type")?;
            name.clone_into(&mut current);
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            ensure!(line.starts_with(&current), "{line} is not of {current}");
            let (_, labels) = families.get_mut(&current).context("described")?;
            if let Some((_, rest)) = line.split_once('{') {
                let names = rest
                    .split("=\"")
                    .filter_map(|part| part.rsplit(['"', ',', '{']).next());
                let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase());
                labels.extend(
                    names
                        .filter(is_name)
                        .filter(|name| !name.is_empty())
                        .map(str::to_owned),
                );
            }
        }
    }
    Ok(families)
}

/// The families that a section of docs/metrics.md lists.
fn documented(section: &str) -> Result<Families> {
    let text = document("docs/metrics.md")?;
    let (_, rest) = text
        .split_once(&format!("## {section}\n"))
        .context("a section")?;
    let rows = rest.split("\n## ").next().unwrap_or_default().lines();
    let rows = rows.filter_map(|line| line.strip_prefix("| `pingfleet_"));
    let rows = rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [name, kind, labels, meaning, ""] = cells[..] else {
            anyhow::bail!("{row}");
        };
        ensure!(meaning.len() > 5, "no meaning: {row}");
        let labels = labels
            .split(", ")
            .map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let name = format!("pingfleet_{}", name.trim_end_matches('`'));
        Ok((name, (kind.to_owned(), labels)))
    });
    rows.collect()
}

/// Runs `promtool` with an input, and returns whether it finds nothing, with what it prints.
fn promtool(arguments: &[&str], input: &str) -> Result<(bool, String)> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("no promtool: apt-get install prometheus")?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(printed)?))
}

/// A worker without a broker that serves its metrics.
fn worker<'a>(dir: &'a TestDir, log: &str) -> Result<Live<'a>> {
    let arguments = ["--name", "a\"b\\c", "--metrics", "127.0.0.1:0"];
    Live::start(dir, "ping-worker", &arguments, log)
}

/// Adds workers that were seen now, with these names.
fn add_workers(dir: &TestDir, names: impl Iterator<Item = String>) -> Result<()> {
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    for name in names {
        connection.execute(
            "INSERT INTO workers (login, instance, worker, pid, version, worker_group, threads, prefetch, first_seen_us,
                 last_seen_us, draining, chunks_done, targets_done, requests_sent, replies, lost_socket_drops,
                 lost_send_path, lost_stalled, lost_canary, lost_interrupted, lost_link_down, lost_no_route,
                 lost_no_address, lost_gateway_no_arp, lost_local_firewall, lost_rp_filter)
             VALUES ('', randomblob(16), ?1, 7, ?1, ?1, 1, 1, 0, unixepoch() * 1000000,
                 0, 3, 30, 31, 29, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
            [name],
        )?;
    }
    Ok(())
}

#[test]
fn both_roles_pass_promtool_and_serve_exactly_the_documented_series() -> Result<()> {
    let dir = generated(300, 1)?;
    add_workers(&dir, ["one".to_owned()].into_iter())?;
    let writer = Live::writer(&dir, "writer-log")?;
    let worker = worker(&dir, "worker-log")?;
    for (live, section) in [(&writer, "The writer and its fleet"), (&worker, "A worker")] {
        let body = served(live)?;
        let (is_clean, printed) = promtool(&["check", "metrics"], &body)?;
        assert!(is_clean && printed.is_empty(), "{printed}\n{body}");
        let (documented, served) = (documented(section)?, families(&body)?);
        let names = |families: &Families| families.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&served), names(&documented), "{section}");
        for (name, (kind, labels)) in &served {
            let (documented_kind, documented_labels) = &documented[name];
            assert_eq!(kind, documented_kind, "{name}");
            // What is not known has no sample: nobody answers for the queues here.
            let is_sampled = body.lines().any(|line| {
                let rest = line.strip_prefix(name.as_str());
                rest.is_some_and(|rest| {
                    ["{", " ", "_bucket{"]
                        .iter()
                        .any(|next| rest.starts_with(next))
                })
            });
            if is_sampled {
                assert_eq!(labels, documented_labels, "{name}");
            } else {
                let is_of_broker =
                    name.starts_with("pingfleet_queue_") || name.starts_with("pingfleet_broker_");
                assert!(is_of_broker, "no sample of {name}");
            }
        }
        // The controls: a metric without its help, and one that nobody documented.
        let without = body.replacen("# HELP", "# ", 1);
        assert!(!promtool(&["check", "metrics"], &without)?.0);
        let more = format!("{body}# TYPE pingfleet_more gauge\npingfleet_more 1\n");
        assert_ne!(names(&families(&more)?), names(&documented));
        // Prometheus gets the other format.
        let answer = live.ask("/metrics", &format!("Host: localhost\r\n{OPEN_METRICS}"))?;
        assert!(
            answer.contains("application/openmetrics-text; version=1.0.0"),
            "{answer}"
        );
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }
    Ok(())
}

#[test]
fn the_series_of_a_run_have_the_numbers_of_the_database() -> Result<()> {
    let dir = generated(2100, 2)?;
    let writer = Live::writer(&dir, "log")?;
    let body = served(&writer)?;
    let line = |line: &str| assert!(body.lines().any(|found| found == line), "{line}\n{body}");
    line("pingfleet_run_number 2");
    line("pingfleet_run_state{state=\"complete\"} 1");
    line("pingfleet_run_state{state=\"running\"} 0");
    line("pingfleet_database_up 1");
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let count = |sql: &str| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
    for status in StatusKind::ALL.map(StatusKind::name) {
        let sql = format!("SELECT count(*) FROM report WHERE run = 2 AND status = '{status}'");
        line(&format!(
            "pingfleet_run_targets_settled{{status=\"{status}\"}} {}",
            count(&sql)?
        ));
        // This writer stored nothing.
        line(&format!("pingfleet_targets_total{{status=\"{status}\"}} 0"));
    }
    let done = count("SELECT count(*) FROM chunks WHERE run = 2")?;
    line(&format!("pingfleet_run_chunks{{state=\"done\"}} {done}"));
    Ok(())
}

/// The value of a series without labels, or with these ones.
fn value(body: &str, series: &str) -> Result<u64> {
    let line = body.lines().find_map(|line| line.strip_prefix(series));
    let text = line.with_context(|| format!("no {series} in {body}"))?;
    Ok(text.trim().parse()?)
}

#[test]
fn a_sweep_with_a_page_has_metrics_that_grow() -> Result<()> {
    let dir = TestDir::new()?;
    // It would take more than an hour, so it runs until this test has seen enough.
    let sweep = [
        "sweep",
        "127.0.0.0/20",
        "--rate=1",
        "--chunk-size=1",
        "--dashboard=127.0.0.1:0",
    ];
    let sweep = Live::start(&dir, "pingfleet", &sweep, "log")?;
    let mut last = 0;
    let body = until("two targets in the metrics", || {
        let body = served(&sweep)?;
        let found = value(&body, "pingfleet_targets_total{status=\"up\"} ")?;
        ensure!(found >= last, "{found} after {last}");
        last = found;
        Ok((found >= 2).then_some(body))
    })?;
    assert!(
        body.contains("\npingfleet_build_info{program=\"pingfleet\","),
        "{body}"
    );
    assert!(
        body.contains("\npingfleet_run_state{state=\"running\"} 1\n"),
        "{body}"
    );
    assert_eq!(
        value(&body, "pingfleet_chunks_total{outcome=\"done\"} ")?,
        last
    );
    assert_eq!(value(&body, "pingfleet_target_rtt_seconds_count ")?, last);
    drop(sweep);
    let stored = dir.sqlite3(
        "pingfleet.db",
        "SELECT count(*) FROM report WHERE status = 'up'",
    )?;
    assert!(stored.parse::<u64>()? >= last, "{stored} {last}");
    Ok(())
}

#[test]
fn names_of_workers_are_escaped_and_bounded() -> Result<()> {
    let dir = generated(40, 1)?;
    // Names are listed in their order while there is room, so this one is listed.
    let hostile = "a\"} 1\\n";
    let flood = (0..600).map(|number| format!("flood-{number}"));
    add_workers(&dir, [hostile.to_owned()].into_iter().chain(flood))?;
    let writer = Live::writer(&dir, "log")?;
    let body = served(&writer)?;
    let (is_clean, printed) = promtool(&["check", "metrics"], &body)?;
    assert!(is_clean, "{printed}\n{body}");
    let series = |name: &str| body.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(series("pingfleet_worker_up{"), 500);
    let line = "pingfleet_worker_up{worker=\"a\\\"} 1\\\\n\"} 1";
    assert!(body.lines().any(|found| found == line), "{body}");
    assert_eq!(series("pingfleet_worker_local_losses_total{"), 500 * 11);
    assert!(
        body.contains("\npingfleet_worker_names_not_listed 101\n"),
        "{body}"
    );
    assert!(
        body.contains("\npingfleet_workers{state=\"live\"} 601\n"),
        "{body}"
    );
    // The worker's own name, and the control: what is not escaped is no line of the format.
    let dir = TestDir::new()?;
    let worker = worker(&dir, "log")?;
    let body = served(&worker)?;
    let escaped = "pingfleet_probing_info{worker=\"a\\\"b\\\\c\"} 1";
    assert!(body.lines().any(|line| line == escaped), "{body}");
    let open = body.replace("a\\\"b", "a\"b");
    assert!(!promtool(&["check", "metrics"], &open)?.0);
    Ok(())
}

#[test]
fn a_foreign_host_and_a_visitor_without_the_token_get_no_metrics() -> Result<()> {
    let dir = TestDir::new()?;
    let writer = Live::writer(&dir, "writer-log")?;
    let worker = worker(&dir, "worker-log")?;
    for live in [&writer, &worker] {
        for (host, code) in [
            ("evil.example", "421"),
            ("localhost.evil.example", "421"),
            ("127.0.0.1", "200"),
            ("localhost", "200"),
        ] {
            let answer = live.ask("/metrics", &format!("Host: {host}"))?;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code}")),
                "{host}: {answer}"
            );
            assert_eq!(
                answer.contains("pingfleet_build_info"),
                code == "200",
                "{answer}"
            );
        }
    }
    let answer = worker.ask("/metrics", "Host: evil.example")?;
    assert!(
        answer.contains("the name that metrics.name sets"),
        "{answer}"
    );
    assert!(worker.get("/")?.contains("The metrics are at /metrics"));
    // An address that others reach needs a token, and Prometheus sends it.
    let other = TestDir::new()?;
    let open = ["--metrics", "0.0.0.0:0"];
    let finished = other.call("ping-worker", &open)?.end()?;
    finished.fails(3, &["visitors need a token", "metrics.token_file"]);
    let taken = ["--metrics", worker.address.as_str()];
    let finished = other.call("ping-worker", &taken)?.end()?;
    finished.fails(4, &["another program uses it", "--metrics off"]);
    let token = other.write("token", "0123456789abcdef-token\n")?;
    let settings = format!("[metrics]\nlisten = \"127.0.0.1:0\"\ntoken_file = {token:?}\n");
    other.write("pingfleet.toml", settings)?;
    let worker = Live::start(&other, "ping-worker", &[], "log")?;
    for (header, code) in [
        ("X: y", "401"),
        ("Authorization: Bearer 0123456789abcdef-other", "401"),
        ("Authorization: Bearer 0123456789abcdef-token", "200"),
    ] {
        let answer = worker.ask("/metrics", &format!("Host: 127.0.0.1\r\n{header}"))?;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code}")),
            "{header}: {answer}"
        );
        assert_eq!(
            answer.contains("pingfleet_build_info"),
            code == "200",
            "{answer}"
        );
    }
    Ok(())
}

#[test]
fn the_alert_rules_pass_their_tests() -> Result<()> {
    for arguments in [
        ["check", "rules", "deploy/prometheus/alerts.yml"],
        ["check", "config", "deploy/prometheus/prometheus.yml"],
        ["test", "rules", "deploy/prometheus/alerts.test.yml"],
    ] {
        let (is_clean, printed) = promtool(&arguments, "")?;
        assert!(is_clean, "{arguments:?}: {printed}");
    }
    // The control: without any one of the alerts the tests fail.
    let rules = document("deploy/prometheus/alerts.yml")?;
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let dir = TestDir::new()?;
    let tests = dir.write(
        "alerts.test.yml",
        document("deploy/prometheus/alerts.test.yml")?,
    )?;
    let rule = |alert: &&str| rules.find(&format!("      - alert: {alert}\n"));
    let starts: Vec<_> = alerts.iter().filter_map(rule).collect();
    let ends = starts.iter().skip(1).copied().chain([rules.len()]);
    for ((alert, start), end) in alerts.iter().zip(&starts).zip(ends) {
        dir.write(
            "alerts.yml",
            format!("{}{}", &rules[..*start], &rules[end..]),
        )?;
        let (is_clean, printed) = promtool(&["test", "rules", &tests], "")?;
        let is_missed = printed.contains("FAILED:") && printed.contains("count(ALERTS");
        assert!(!is_clean && is_missed, "{alert}: {printed}");
    }
    // Each is in the docs, with what to do.
    let docs = document("docs/metrics.md")?;
    for alert in alerts {
        assert!(docs.contains(&format!("\n| `{alert}` | ")), "{alert}");
    }
    Ok(())
}

/// The names of series in a text.
fn series(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("pingfleet_"));
    let family = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        let part = parts.iter().find_map(|part| name.strip_suffix(part));
        part.unwrap_or(name).to_owned()
    };
    names.map(family).collect()
}

#[test]
fn alerts_and_dashboard_use_documented_series_only() -> Result<()> {
    let known: BTreeSet<_> = documented("The writer and its fleet")?
        .into_keys()
        .collect();
    let dashboard = document("deploy/grafana/pingfleet.json")?;
    for text in [&document("deploy/prometheus/alerts.yml")?, &dashboard] {
        let used = series(text);
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(used.len() > 8 && unknown.is_empty(), "{unknown:?}");
    }
    assert_eq!(series("rate(pingfleet_no_bucket[5m])").len(), 1);
    // Grafana asks for the data source, and each panel uses that one.
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    assert_eq!(dashboard["__inputs"][0]["name"], "DS_PROMETHEUS");
    let panels = dashboard["panels"].as_array().context("panels")?;
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().context("a title")?;
        assert!(ids.insert(panel["id"].as_i64()), "{title}");
        let targets = panel["targets"].as_array().context("targets")?;
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${DS_PROMETHEUS}", "{title}");
            // `promtool` reads the expression as that of a rule. Grafana sets the interval.
            let expression = target["expr"].as_str().context("an expression")?;
            let expression = expression.replace("$__rate_interval", "1m");
            let rule =
                format!("groups: [{{name: g, rules: [{{record: r, expr: {expression:?}}}]}}]");
            let dir = TestDir::new()?;
            let path = dir.write("rule.yml", rule)?;
            let (is_clean, printed) = promtool(&["check", "rules", &path], "")?;
            assert!(is_clean, "{title}: {printed}");
        }
    }
    Ok(())
}
