//! The log: a line about a run or a chunk names all of it, and each change of state is one line at info.

use anyhow::Context;
use serde_json::{Value, json};

use crate::rig::TestDir;

/// The log of a complete sweep, with this filter of `tracing`.
fn sweep(filter: &str) -> anyhow::Result<Vec<Value>> {
    let dir = TestDir::new()?;
    // -q leaves out what is no log.
    let arguments = [
        "sweep",
        "-q",
        "--log-format",
        "json",
        "--chunk-size",
        "2",
        "127.0.0.0/29",
    ];
    let finished = dir
        .call("pingfleet", &arguments)?
        .env("PINGFLEET_LOG", filter)
        .end()?
        .ends_with(0);
    finished
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Whether a line lacks a field that belongs to another one: a run's number goes with its id, and a chunk with its run.
/// Workers know no number, and their lines about a run are about a chunk of it.
fn lacks_a_field(line: &Value) -> bool {
    let has = |field| line.get(field).is_some();
    match (has("run"), has("run_id"), has("chunk")) {
        (true, is_complete, _) | (false, is_complete, true) => !is_complete,
        (false, is_master, false) => is_master,
    }
}

fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap_or_default()
}

#[test]
fn a_line_about_a_run_has_its_number_and_id_and_one_about_a_chunk_has_both() -> anyhow::Result<()> {
    let lines = sweep("pingfleet=debug,producer=debug,ping_worker=debug,consumer_writer=debug")?;
    for line in &lines {
        assert!(!lacks_a_field(line), "{line}");
    }
    let named = |text| {
        let found = lines.iter().filter(|line| message(line) == text);
        found.collect::<Vec<_>>()
    };
    let [started, closed] = ["run started", "run closed"].map(|text| named(text)[0]);
    assert_eq!(started["run"], json!(1));
    assert!(started["run_id"].as_str().is_some_and(|id| id.len() == 36));
    assert_eq!(
        [&closed["run"], &closed["run_id"]],
        [&started["run"], &started["run_id"]]
    );
    let taken = named("chunk taken");
    let mut chunks: Vec<_> = taken.iter().map(|line| line["chunk"].as_u64()).collect();
    chunks.sort_unstable();
    // Six hosts: the network's own address and its broadcast address are none.
    assert_eq!(chunks, [0, 1, 2].map(Some));
    assert!(taken.iter().all(|line| line["run_id"] == started["run_id"]));
    // The control: lines that lack one.
    for line in [
        json!({"run": 1}),
        json!({"run": 1, "chunk": 2}),
        json!({"run_id": "x"}),
        json!({"chunk": 2}),
    ] {
        assert!(lacks_a_field(&line), "{line}");
    }
    Ok(())
}

/// What each part of a sweep logs at info, in this order. docs/logging.md lists the same lines.
///
/// Before them stands the kind of socket, in one of two texts.
const LIFECYCLE: [&[&str]; 3] = [
    &["planning a run", "run started", "producer stopped"],
    &["worker ready", "draining", "worker stopped"],
    &["writer ready", "run closed", "writer stopped"],
];

#[test]
fn each_change_of_state_of_a_sweep_is_one_line_at_info() -> anyhow::Result<()> {
    let lines = sweep("pingfleet=info,producer=info,ping_worker=info,consumer_writer=info")?;
    let logged: Vec<_> = lines
        .iter()
        .filter(|line| line["level"] == "INFO")
        .map(message)
        .collect();
    let (sockets, logged) = logged.split_first().context("nothing was logged")?;
    assert!(sockets.starts_with("ICMP sockets open"), "{sockets}");
    for part in LIFECYCLE {
        let of_part = logged.iter().filter(|text| part.contains(text));
        assert_eq!(of_part.copied().collect::<Vec<_>>(), part, "{logged:#?}");
    }
    let total: usize = LIFECYCLE.iter().map(|part| part.len()).sum();
    assert_eq!(logged.len(), total, "{logged:#?}");
    Ok(())
}
