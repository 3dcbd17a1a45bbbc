//! Every state of the page, wide and narrow, light and dark: axe-core finds nothing, and nothing is wider than the window.
//! The pictures are in the folder `tmp` of the build folder.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use pingfleet_faults::{ChildProcess, Deployment};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    driver::{Browser, PAGE, writer},
    text::generated,
};

/// 1 January 2100, in microseconds: what was seen then was seen just now.
const NOW: i64 = 4_102_444_800_000_000;

/// A colour scheme, a width, and how its picture is named.
const LOOKS: [(bool, u32, &str); 4] = [
    (false, 1280, "light-wide"),
    (false, 380, "light-narrow"),
    (true, 1280, "dark-wide"),
    (true, 380, "dark-narrow"),
];

/// A worker that was seen just now, or so many seconds ago.
pub(crate) fn insert_worker(
    connection: &Connection,
    number: u8,
    name: &str,
    silent_s: i64,
) -> Result<()> {
    connection.execute(
        "INSERT INTO workers (login, instance, worker, pid, version, worker_group, threads, prefetch, rate, first_seen_us,
            last_seen_us, draining, chunks_done, targets_done, requests_sent, replies, lost_socket_drops, lost_send_path,
            lost_stalled, lost_canary, lost_interrupted, lost_link_down, lost_no_route, lost_no_address,
            lost_gateway_no_arp, lost_local_firewall, lost_rp_filter, heartbeat_us, heartbeat_before_us, requests_before)
         SELECT '', ?1, ?2, 42, '0.1.0', 'default', 2, 20, 5000, 0, seen, 0, 4321, 1080250, 1123460, 864200, ?3 % 3, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, seen, seen - 5000000, 1123460 - 5000 - 37 * ?3
         FROM (SELECT CASE ?4 WHEN 0 THEN ?5 ELSE (unixepoch() - ?4) * 1000000 END AS seen)",
        ([number; 16], name, number, silent_s, NOW),
    )?;
    Ok(())
}

/// Looks at what the page shows in each way, and takes a picture of it.
fn look_at(browser: &mut Browser, state: &str) -> Result<()> {
    for (dark, width, name) in LOOKS {
        browser.open(name, json!({ "dark": dark, "width": width }))?;
        assert_fits(browser, name).with_context(|| format!("{state}, {name}"))?;
        let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures");
        fs::create_dir_all(&pictures)?;
        // All of it, and what a visitor sees first.
        for (whole, suffix) in [(true, ""), (false, "-top")] {
            let path = pictures.join(format!("{state}-{name}{suffix}.png"));
            browser.ask(&json!({ "do": "picture", "tab": name, "path": path, "whole": whole }))?;
        }
        browser.act("close", name)?;
    }
    Ok(())
}

/// What axe-core finds, what is too wide, and what is drawn without room.
fn violations(browser: &mut Browser, tab: &str) -> Result<Vec<String>> {
    let found = browser.act("violations", tab)?;
    let list = |name: &str| found[name].as_array().into_iter().flatten();
    let lines = list("axe").chain(list("wide")).chain(list("unseen"));
    Ok(lines.filter_map(Value::as_str).map(str::to_owned).collect())
}

fn assert_fits(browser: &mut Browser, tab: &str) -> Result<()> {
    let found = violations(browser, tab)?;
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let faults = browser.faults(tab, false)?;
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(())
}

/// A sweep that goes on beside what the database has, and serves the page. With it, what workers do is known.
fn sweep(deployment: &Deployment) -> Result<ChildProcess> {
    let dashboard = format!("--dashboard={PAGE}");
    let arguments = [
        "sweep",
        "10.0.0.0/17",
        "10.128.0.0/26",
        "--rate=40",
        "--chunk-size=10",
        &dashboard,
    ];
    let mut sweep = deployment.start("pingfleet", &arguments)?;
    sweep.wait_for_output("live page: http")?;
    Ok(sweep)
}

#[test]
fn empty_planning_and_done_pages_are_for_everybody() -> Result<()> {
    let empty = Deployment::without_broker()?;
    let first = writer(&empty)?;
    let mut browser = Browser::start(&empty)?;
    look_at(&mut browser, "empty")?;
    drop((browser, first));
    let deployment = Deployment::without_broker()?;
    let targets = [
        "sweep",
        "10.0.0.0/21",
        "10.128.0.0/26",
        "--rate=500",
        "--retries=0",
    ];
    ensure!(deployment.start("pingfleet", &targets)?.wait()?.success());
    let _writer = writer(&deployment)?;
    let mut browser = Browser::start(&deployment)?;
    look_at(&mut browser, "done")?;
    // Its plan takes long; stopped in the middle it stays as it is.
    let planner = deployment.start("pingfleet", &["sweep", "10.0.0.0/10"])?;
    deployment.wait_for_run("a run that is planned", |run| run.run == 2)?;
    planner.signal("STOP")?;
    browser.open("planning", json!({}))?;
    browser.until("the run that is planned", |browser| {
        Ok((browser.text("planning", "#state")? == "planning").then_some(()))
    })?;
    look_at(&mut browser, "planning")?;
    // The control: what axe-core has to find, what is too wide, and what has no room.
    for (script, rule) in [
        (
            "void document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"/assets/icon.svg\">')",
            "image-alt",
        ),
        (
            "{ const pale = document.createElement('p'); pale.textContent = 'pale'; pale.style.color = '#ccc'; \
             pale.style.background = '#fff'; document.querySelector('main').append(pale); }",
            "color-contrast",
        ),
        (
            "void (document.querySelector('#pipeline').style.width = '3000px')",
            "SECTION",
        ),
        (
            "void document.querySelector('main').insertAdjacentHTML('beforeend', '<svg width=\"0\" aria-hidden=\"true\"></svg>')",
            "no room",
        ),
    ] {
        browser.call("planning", script)?;
        let found = violations(&mut browser, "planning")?;
        ensure!(
            found.iter().any(|line| line.contains(rule)),
            "no {rule}: {found:?}"
        );
    }
    Ok(())
}

#[test]
fn a_page_with_lost_workers_dead_chunks_and_quarantine_is_for_everybody() -> Result<()> {
    let deployment = generated(2100, 1)?;
    let connection = Connection::open(deployment.database())?;
    insert_worker(&connection, 1, "berlin-1", 0)?;
    insert_worker(&connection, 2, "berlin-2", 0)?;
    let _sweep = sweep(&deployment)?;
    deployment.wait_for_run("first results", |run| run.run == 2 && run.chunks_done >= 30)?;
    let mut browser = Browser::start(&deployment)?;
    look_at(&mut browser, "running")?;
    insert_worker(&connection, 3, "hamburg-1.a-long-name.example.net", 118)?;
    browser.open("waiting", json!({}))?;
    let words = |selector: &'static str, word: &'static str| {
        move |browser: &mut Browser| {
            let text = browser.text("waiting", selector)?;
            Ok(text.contains(word).then_some(()))
        }
    };
    browser.until("the lost worker", words("#alerts", "hamburg-1"))?;
    look_at(&mut browser, "lost")?;
    connection.execute_batch(
        "INSERT INTO quarantine (received_at_us, queue, reason, length, body)
            SELECT unixepoch() * 1000000, 'results', 'wrong token for chunk ' || chunk || ' of run 1', 5120, x'00'
            FROM chunks WHERE run = 1 AND chunk < 8;
         UPDATE chunks SET state = 2, dead_reason = 'delivery_limit', settled_at_us = unixepoch() * 1000000
            WHERE run = 2 AND chunk BETWEEN 3000 AND 3002;
         UPDATE runs SET chunks_dead = 3 WHERE run = 2;",
    )?;
    browser.until("the dead chunks", words("#dead", "delivery_limit"))?;
    browser.until("the quarantine", words("#quarantine", "wrong token"))?;
    look_at(&mut browser, "dead-and-quarantine")
}

#[test]
fn a_page_with_64_workers_is_for_everybody() -> Result<()> {
    let deployment = generated(2100, 1)?;
    let connection = Connection::open(deployment.database())?;
    for number in 1..=64 {
        let site = ["berlin", "hamburg", "munich"][usize::from(number) % 3];
        insert_worker(&connection, number, &format!("{site}-{number:02}"), 0)?;
    }
    let _sweep = sweep(&deployment)?;
    deployment.wait_for_run("first results", |run| run.run == 2 && run.chunks_done >= 30)?;
    let mut browser = Browser::start(&deployment)?;
    browser.open("waiting", json!({}))?;
    // A worker of the sweep itself is one more.
    browser.until("the workers", |browser| {
        Ok((browser.rows("waiting", "workers")?.len() >= 64).then_some(()))
    })?;
    look_at(&mut browser, "64-workers")
}

#[test]
fn a_page_with_an_alarm_of_the_broker_is_for_everybody() -> Result<()> {
    let deployment = Deployment::new()?;
    let _writer = writer(&deployment)?;
    let mut browser = Browser::start(&deployment)?;
    browser.open("waiting", json!({}))?;
    let alarm = "The broker takes no messages";
    browser.until("the depths of the queues", |browser| {
        let pipeline = browser.text("waiting", "#pipeline")?;
        Ok(pipeline.contains("work queue").then_some(()))
    })?;
    // The control.
    let alerts = browser.text("waiting", "#alerts")?;
    ensure!(!alerts.contains(alarm), "{alerts}");
    let broker = deployment.broker()?;
    broker.ctl(&["set_vm_memory_high_watermark", "0.000001"])?;
    broker.ctl(&["set_disk_free_limit", "900000GB"])?;
    browser.until("both alarms", |browser| {
        let alerts = browser.text("waiting", "#alerts")?;
        let words = [alarm, "memory", "disk", "rabbitmq-diagnostics alarms"];
        let is_said = words.iter().all(|word| alerts.contains(word));
        Ok(is_said.then_some(()))
    })?;
    look_at(&mut browser, "broker-alarm")?;
    broker.ctl(&["set_vm_memory_high_watermark", "0.8"])?;
    broker.ctl(&["set_disk_free_limit", "1MB"])?;
    browser.until("the end of both", |browser| {
        let alerts = browser.text("waiting", "#alerts")?;
        Ok((!alerts.contains(alarm)).then_some(()))
    })
}
