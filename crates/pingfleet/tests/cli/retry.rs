//! `retry --only`: a new run of the targets that have some statuses in an earlier one.

use anyhow::Context;
use pingfleet_testbed::Rabbit;
use serde_json::{Value, json};

use crate::{
    rig::{Call, TestDir},
    screens::{matches_its_snapshot, matches_its_snapshot_on_copies},
};

/// Two targets of run 1 become down, as if nobody had answered.
const TWO_DOWN: &str = "
UPDATE results SET status = 6, received = 0, rtt_avg_ns = NULL, rtt_min_ns = NULL, rtt_max_ns = NULL, rtt_stddev_ns = NULL
WHERE run = 1 AND position IN (1, 4);
UPDATE runs SET up = up - 2, down = down + 2 WHERE run = 1;
";

/// A database with a run of addresses, names and labels, of which two targets are down and one has no address.
fn swept() -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    let hosts = "target,site\n127.0.0.9,berlin\n127.0.0.3,\"a, b\"\nlocalhost,\n127.0.0.4,munich\n127.0.0.1,\n\
                 no-such-host.invalid,berlin\n::1,\n";
    dir.write("hosts.csv", hosts)?;
    let sweep = ["sweep", "--no-shuffle", "--hosts", "hosts.csv", "-c", "2"];
    dir.pingfleet(&[&sweep[..], &["-p", "20ms", "-t", "700ms", "--ttl", "9"]].concat())?
        .ends_with(0);
    dir.sqlite3("pingfleet.db", TWO_DOWN)?;
    Ok(dir)
}

/// The exported fields of a run's rows, in the order of its plan.
fn rows(dir: &TestDir, run: &str, fields: &[&str]) -> anyhow::Result<Vec<Vec<Value>>> {
    let rows = dir.pingfleet(&["export", run])?.ends_with(0).json()?;
    let picked = rows
        .iter()
        .map(|row| fields.iter().map(|field| row[field].clone()).collect());
    Ok(picked.collect())
}

#[test]
fn a_retry_has_the_targets_of_these_statuses_with_order_labels_and_settings() -> anyhow::Result<()>
{
    let dir = swept()?;
    // Settings of probing are those of the run, and not those of the environment.
    let retried = dir
        .call(
            "pingfleet",
            &["retry", "1", "--only", "down,dns_failed", "-r", "1"],
        )?
        .env("PINGFLEET_PROBING__COUNT", "5")
        .end()?
        .ends_with(0);
    assert!(retried.stdout.contains("3  targets"), "{retried:#?}");
    assert_eq!(
        rows(&dir, "2", &["target", "status", "labels", "sent"])?,
        [
            [
                json!("127.0.0.3"),
                json!("up"),
                json!({"site": "a, b"}),
                json!(2)
            ],
            [json!("127.0.0.1"), json!("up"), Value::Null, json!(2)],
            [
                json!("no-such-host.invalid"),
                json!("dns_failed"),
                json!({"site": "berlin"}),
                json!(0)
            ],
        ]
    );
    dir.pingfleet(&["verify", "2"])?.ends_with(0);
    let settings = "SELECT probing ->> 'timeout_us', probing ->> 'ttl', probing ->> 'retries', parent_run FROM runs
                    WHERE run = 2";
    assert_eq!(dir.sqlite3("pingfleet.db", settings)?, "700000|9|1|1");
    // The run that it belongs to is named where the run is shown, and is as it was.
    let report = dir.pingfleet(&["report"])?.ends_with(0);
    assert!(report.stdout.contains("retry of run 1"), "{report:#?}");
    assert!(
        report.stdout.contains("dns_failed, down of run 1"),
        "{report:#?}"
    );
    for (run, is_retry) in [("1", false), ("2", true)] {
        let page = dir.pingfleet(&["report", run, "--html", "-"])?.ends_with(0);
        assert_eq!(page.stdout.contains("retry of run 1"), is_retry, "{run}");
    }
    let report = dir.pingfleet(&["report", "--json"])?.ends_with(0).json()?;
    assert_eq!(report[0]["parent_run"], json!(1));
    let runs = dir.pingfleet(&["runs", "--json"])?.ends_with(0).json()?;
    assert_eq!(
        (&runs[0]["parent_run"], &runs[1]["parent_run"]),
        (&Value::Null, &json!(1))
    );
    dir.pingfleet(&["verify", "1"])?;
    assert_eq!(rows(&dir, "1", &["target"])?.len(), 7);
    // A retry can be retried.
    let again = dir
        .pingfleet(&["retry", "--only", "dns_failed"])?
        .ends_with(0);
    assert!(again.stdout.contains("1  targets"), "{again:#?}");
    Ok(())
}

#[test]
fn without_a_target_of_these_statuses_no_run_is_made() -> anyhow::Result<()> {
    let dir = swept()?;
    let before = dir.files()?;
    let nothing = dir
        .pingfleet(&["retry", "--only", "late,unknown"])?
        .ends_with(0);
    assert_eq!(
        nothing.stdout,
        "no target of run 1 is late or unknown: there is nothing to retry\n"
    );
    let quiet = dir
        .pingfleet(&["retry", "--only", "late", "-q"])?
        .ends_with(0);
    assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""));
    assert_eq!(dir.files()?, before);
    Ok(())
}

/// The screen with other words for what is different in each run: its UUID, how long it took, and its rate.
fn without_times(screen: &str) -> String {
    let line = |line: &str| {
        let parts = match line.split_once(" complete (") {
            Some((before, _)) => (before, " complete (UUID)"),
            None => match line.split_once(" in ") {
                Some((before, after)) if after.ends_with("targets/s)") => {
                    (before, " in N s (N targets/s)")
                }
                _ => (line, ""),
            },
        };
        format!("{}{}\n", parts.0, parts.1)
    };
    screen.lines().map(line).collect()
}

#[test]
fn a_retry_and_what_it_does_not_retry_fit_each_width() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let hosts = [
        "127.0.0.1",
        "127.0.0.3",
        "127.0.0.4",
        "127.0.0.5",
        "127.0.0.9",
    ];
    let sweep = [&["sweep", "--no-shuffle"], hosts.as_slice()].concat();
    dir.pingfleet(&sweep)?.ends_with(0);
    // One of them has no result.
    dir.sqlite3(
        "pingfleet.db",
        &format!("{TWO_DOWN} DELETE FROM results WHERE position = 0; UPDATE runs SET up = up - 1"),
    )?;
    let retry = "retry --only down,unknown";
    matches_its_snapshot_on_copies(&dir, "retry", retry, without_times)?;
    matches_its_snapshot(
        &dir,
        "retry-nothing",
        "retry --only late,unreachable,unknown",
    )
}

#[test]
fn what_cannot_be_retried_is_refused_with_one_message() -> anyhow::Result<()> {
    let dir = swept()?;
    for (arguments, parts) in [
        (
            ["9", "--only", "down"].as_slice(),
            ["no run \"9\""].as_slice(),
        ),
        (&["--only", "sideways"], &["--only", "dns_failed"]),
        (&["-t", "5s"], &["need --only"]),
        (&["-4"], &["need --only"]),
        (&["--only", "down", "-t", "0s"], &["--timeout"]),
    ] {
        let arguments = [["retry"].as_slice(), arguments].concat();
        dir.pingfleet(&arguments)?.fails(3, parts);
    }
    dir.sqlite3(
        "pingfleet.db",
        "INSERT INTO pruned_runs VALUES (1, 0, NULL)",
    )?;
    for arguments in [
        ["retry"].as_slice(),
        &["retry", "--only", "down"],
        &["resume"],
    ] {
        dir.pingfleet(arguments)?
            .fails(3, &["run 1 were pruned at 1970-01-01"]);
    }
    dir.sqlite3("pingfleet.db", "DELETE FROM runs")?;
    dir.pingfleet(&["retry", "--only", "down"])?
        .fails(3, &["no run \"latest\""]);
    assert_eq!(
        dir.sqlite3("pingfleet.db", "SELECT count(*) FROM runs")?,
        "0"
    );
    Ok(())
}

/// A sweep that takes some seconds and prints its first targets within one.
fn slow(dir: &TestDir, arguments: &[&str]) -> anyhow::Result<Call> {
    let flags = ["-a", "-r0", "-t200ms", "--rate", "10", "--chunk-size", "5"];
    dir.call("pingfleet", &[arguments, &flags].concat())
}

#[test]
fn an_interrupted_retry_is_resumed_and_one_of_an_interrupted_run_says_what_it_lacks()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.pingfleet(&["sweep", "127.0.0.0/26"])?.ends_with(0);
    let interrupted = slow(&dir, &["retry", "1", "--only", "up"])?
        .interrupted()?
        .ends_with(130);
    let (_, command) = interrupted
        .stderr
        .split_once("Continue with: ")
        .context("no command")?;
    assert_eq!(command.trim_end(), "pingfleet resume 2");
    let half = dir.pingfleet(&["retry", "2", "--only", "up"])?.ends_with(0);
    let note = "of 62 targets of run 2 have no result and are not retried";
    assert!(half.stderr.contains(note), "{half:#?}");
    dir.shell(command)?.ends_with(0);
    dir.pingfleet(&["verify", "2"])?.ends_with(0);
    let parents = "SELECT group_concat(coalesce(parent_run, '-')) FROM run_summary";
    assert_eq!(dir.sqlite3("pingfleet.db", parents)?, "-,1,2");
    Ok(())
}

#[test]
fn a_run_in_progress_is_not_retried() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // It takes 25 s unless it is killed.
    let sweep = ["sweep", "127.0.0.0/24", "--rate", "10", "--chunk-size", "5"];
    let running = dir.start("pingfleet", &sweep, &[])?;
    let is_running = "pingfleet runs --json | grep -q '\"state\":\"running\"'";
    while dir.shell(is_running)?.code != Some(0) {}
    dir.pingfleet(&["retry", "--only", "up"])?
        .fails(3, &["run 1 is in progress", "pingfleet cancel 1"]);
    // The control: when its producer is gone, it is not refused.
    drop(running);
    let nothing = dir.pingfleet(&["retry", "--only", "down"])?.ends_with(0);
    assert!(nothing.stderr.contains("have no result"), "{nothing:#?}");
    Ok(())
}

#[test]
fn a_run_over_the_broker_is_retried_over_the_broker() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let rabbit = Rabbit::start()?;
    let url = rabbit.url();
    let environment = [("PINGFLEET_BROKER__URL", url.as_str())];
    // The writer makes the database.
    let _writer = dir.start("consumer-writer", &[], &environment)?;
    let _worker = dir.start("ping-worker", &["--name", "far"], &environment)?;
    let broker = ["--broker", &url];
    let produced = [&["127.0.0.0/29"], broker.as_slice()].concat();
    dir.call("producer", &produced)?.end()?.ends_with(0);
    let retried = [&["retry", "--only", "up"], broker.as_slice()].concat();
    dir.pingfleet(&retried)?.ends_with(0);
    let runs = "SELECT group_concat(transport || up || coalesce(parent_run, '-'), ' ') FROM runs";
    assert_eq!(dir.sqlite3("pingfleet.db", runs)?, "broker6- broker61");
    let worker = "SELECT DISTINCT worker FROM report WHERE run = 2";
    assert_eq!(dir.sqlite3("pingfleet.db", worker)?, "far");
    // Without the broker nothing is planned.
    dir.pingfleet(&["retry", "1", "--only", "up"])?
        .fails(4, &["broker"]);
    assert_eq!(
        dir.sqlite3("pingfleet.db", "SELECT count(*) FROM runs")?,
        "2"
    );
    Ok(())
}
