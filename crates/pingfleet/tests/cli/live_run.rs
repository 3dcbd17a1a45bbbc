//! One run on the live page: the last event of a sweep's page, and `/api/v1/runs/N`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};
use pingfleet_testbed::SmallDisk;
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    live::{DEADLINE, Live, until},
    rig::TestDir,
    screens::generated,
};

/// An event stream that has begun.
fn stream(address: &str) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut stream = BufReader::new(stream);
    let mut status = String::new();
    stream.read_line(&mut status)?;
    ensure!(status.starts_with("HTTP/1.1 200"), "{status}");
    Ok(stream)
}

/// All texts of each section that a stream sends until it ends.
fn sections(stream: BufReader<TcpStream>) -> Result<BTreeMap<String, Vec<String>>> {
    let mut sections = BTreeMap::<String, Vec<String>>::new();
    let mut is_end = false;
    for line in stream.lines() {
        let Some(data) = line?.strip_prefix("data: ").map(str::to_owned) else {
            continue;
        };
        let event: Value = serde_json::from_str(&data)?;
        ensure!(!is_end, "an event behind the last one");
        is_end = event["end"] == true;
        for (name, html) in event["parts"].as_object().context("sections")? {
            let html = html.as_str().context("text")?.to_owned();
            sections.entry(name.clone()).or_default().push(html);
        }
    }
    ensure!(is_end, "the last event does not say that it is the end");
    Ok(sections)
}

#[test]
fn the_last_event_of_a_sweep_has_its_end() -> Result<()> {
    let dir = TestDir::new()?;
    // It takes 12 s, so that the stream is open long before the end.
    let sweep = [
        "sweep",
        "127.0.0.0/25",
        "--rate=10",
        "--dashboard=127.0.0.1:0",
    ];
    let page = Live::start(&dir, "pingfleet", &sweep, "log")?;
    let sections = sections(stream(&page.address)?)?;
    let last = |name: &str| {
        let texts = sections.get(name).and_then(|texts| texts.last());
        texts.map(String::as_str).context("a section")
    };
    let run = last("run")?;
    assert!(run.contains("id=\"state\">complete"), "{run}");
    assert!(run.contains("count-up\">126"), "{run}");
    let runs = last("runs")?;
    assert!(
        runs.contains("complete") && !runs.contains("running"),
        "{runs}"
    );
    let alerts = last("alerts")?;
    assert!(!alerts.contains("card alert"), "{alerts}");
    // The control: it was not so from the beginning.
    let is_running = |run: &String| run.contains("id=\"state\">running");
    assert!(sections["run"].iter().any(is_running), "{sections:?}");
    Ok(())
}

#[test]
fn the_last_event_of_a_sweep_with_a_full_disk_says_why_and_what_to_do() -> Result<()> {
    let dir = TestDir::new()?;
    let disk = SmallDisk::new(4096)?;
    let database = disk.path().join("sweep.db");
    let database = database.to_str().context("a plain path")?;
    let sweep = [
        "sweep",
        "127.0.0.0/16",
        "--db",
        database,
        "--rate=500",
        "--chunk-size=50",
        "--dashboard=127.0.0.1:0",
    ];
    let page = Live::start(&dir, "pingfleet", &sweep, "log")?;
    let stream = stream(&page.address)?;
    until("results", || {
        let answer = page.get("/api/v1/runs/1")?;
        // There is none before it was planned.
        if !answer.starts_with("HTTP/1.1 200") {
            return Ok(None);
        }
        let run = object(&page, "/api/v1/runs/1")?;
        Ok((run["settled"].as_i64() >= Some(100)).then_some(()))
    })?;
    disk.fill(0)?;
    let sections = sections(stream)?;
    let alerts = sections.get("alerts").context("alerts")?;
    let last = alerts.last().context("an event")?;
    assert!(last.contains("The sweep has ended"), "{last}");
    assert!(
        last.contains("database or disk is full: free space on"),
        "{last}"
    );
    let command = format!("pingfleet resume --db {database} 1");
    assert!(last.contains(&command), "{last}");
    Ok(())
}

/// An object that a path answers.
fn object(page: &Live<'_>, path: &str) -> Result<Value> {
    let answer = page.get(path)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
    Ok(serde_json::from_str(body)?)
}

#[test]
fn the_api_has_of_a_run_what_the_page_shows() -> Result<()> {
    let dir = TestDir::new()?;
    let sweep = ["sweep", "127.0.0.0/24", "name.invalid", "--rate=unlimited"];
    let swept = dir.pingfleet(&sweep)?;
    ensure!(swept.code == Some(0), "{swept:?}");
    let page = Live::writer(&dir, "log")?;
    let run = object(&page, "/api/v1/runs/1")?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let count = |sql: &str| -> Result<i64> { Ok(connection.query_row(sql, (), |row| row.get(0))?) };
    let sum = |list: &str, field: &str| -> Result<i64> {
        let list = run[list].as_array().context("a list")?;
        Ok(list.iter().filter_map(|one| one[field].as_i64()).sum())
    };
    let up = count("SELECT count(*) FROM report WHERE status = 'up'")?;
    let all = count("SELECT count(*) FROM report")?;
    ensure!(up > 200 && all == up + 1, "{up} of {all}");
    assert_eq!(run["statuses"]["up"], up);
    assert_eq!(run["statuses"]["dns_failed"], 1);
    assert_eq!(run["settled"], all);
    assert_eq!(sum("rtt_histogram", "targets")?, up);
    assert_eq!(sum("timeline", "answered")?, up);
    assert_eq!(sum("timeline", "not_up")?, 1);
    assert_eq!(sum("subnets", "targets")?, up);
    assert_eq!(run["subnets_count"], 1);
    assert_eq!(run["last_not_up"][0]["target"], "name.invalid");
    assert_eq!(run["last_not_up"].as_array().map(Vec::len), Some(1));
    assert!(
        run["elapsed_s"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
    assert!(run["rtt_at_most"]["p99_ms"].as_f64() >= run["rtt_at_most"]["p50_ms"].as_f64());
    // Nothing is left of a run that has ended.
    for field in ["settled_per_s", "left_s", "publish_window"] {
        assert_eq!(run[field], Value::Null, "{field}");
    }
    // The fields of the list are the same there.
    let listed = &object(&page, "/api/v1/runs")?[0];
    for (name, value) in listed.as_object().context("an object")? {
        assert_eq!(run[name], *value, "{name}");
    }
    // Every field is described.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/live-page.md");
    let described = std::fs::read_to_string(path)?;
    for name in run.as_object().context("an object")?.keys() {
        let is_listed = listed.get(name).is_some();
        assert!(
            is_listed || described.contains(&format!("`{name}`")),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn the_api_has_no_progress_of_a_run_of_an_older_version() -> Result<()> {
    // Generated runs have none of the counters that a writer keeps.
    let dir = generated(300, 2)?;
    let page = Live::writer(&dir, "log")?;
    let run = object(&page, "/api/v1/runs/2")?;
    assert_eq!(run["settled"], 300);
    for field in [
        "rtt_histogram",
        "timeline",
        "subnets",
        "last_not_up",
        "rtt_at_most",
    ] {
        assert_eq!(run[field], Value::Null, "{field}");
    }
    assert!(page.get("/api/v1/runs/x")?.contains("There is no run x."));
    Ok(())
}

#[test]
fn an_older_run_that_is_incomplete_is_named_and_stays_in_view_once_it_is_continued() -> Result<()> {
    let dir = TestDir::new()?;
    let slow = [
        "sweep",
        "-a",
        "127.0.0.0/21",
        "--rate=200",
        "--chunk-size=5",
    ];
    dir.call("pingfleet", &slow)?.interrupted()?.ends_with(130);
    let swept = dir.pingfleet(&["sweep", "127.0.0.1", "127.0.0.2"])?;
    ensure!(swept.code == Some(0), "{swept:?}");
    let alert = "Run 1 is incomplete";
    {
        let page = Live::writer(&dir, "first")?.get("/")?;
        assert!(page.contains("<h2>Run 2 "), "{page}");
        assert!(page.contains(alert) && page.contains(" 1</code>"), "{page}");
    }
    let resumed = dir.pingfleet(&["resume", "1"])?;
    ensure!(resumed.code == Some(0), "{resumed:?}");
    let page = Live::writer(&dir, "second")?.get("/")?;
    assert!(
        page.contains("<h2>Run 1 ") && !page.contains(alert),
        "{page}"
    );
    Ok(())
}
