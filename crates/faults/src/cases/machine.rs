//! The machines: a clock that is set, and what a power loss of the master would leave.

use std::fs;

use anyhow::ensure;

use crate::{
    actions::{self, SEED},
    deployment::Deployment,
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
    strace_log,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "clock-set-forward-and-back",
        fault: "the clock of worker and writer set one hour forward, two back, one forward in a running sweep (libfaketime)",
        holds: "every answering target is up, with a plausible round trip; nothing is published again",
        control: Control {
            defect: "a worker that measures round trips by the wall clock",
            // The writer refuses a round trip of an hour, so the chunk is probed again.
            expected_violations: &["an impossible round-trip time", "were published again"],
        },
        run: clock,
    },
    Case {
        name: "power-loss-of-the-master",
        fault: "none; the writer's system calls are traced (strace)",
        holds: "the write-ahead log is synced before each ack of results",
        control: Control {
            defect: "`store.durability = normal`",
            expected_violations: &["without a sync"],
        },
        run: power,
    },
];

/// The path of the library on Debian and Ubuntu.
fn faketime() -> anyhow::Result<String> {
    let machine = std::env::consts::ARCH;
    let path = format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1");
    ensure!(fs::exists(&path)?, "no {path}: apt-get install libfaketime");
    Ok(path)
}

fn clock(_: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let deployment = Deployment::new()?;
    let offset = deployment.folder().join("offset");
    // Renamed, so that no process ever reads an empty file.
    let set = |step: &str| {
        let next = offset.with_extension("next");
        fs::write(&next, step).and_then(|()| fs::rename(&next, &offset))
    };
    set("+0")?;
    deployment.set_env("LD_PRELOAD", &faketime()?);
    deployment.set_env("FAKETIME_TIMESTAMP_FILE", &offset.to_string_lossy());
    deployment.set_env("FAKETIME_NO_CACHE", "1");
    // Only the wall clock is set, as on a real machine.
    deployment.set_env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let _writer = actions::start_writer(&deployment)?;
    // With few chunks at once some begin at each setting of the clock.
    let few = ["--name", "worker", "--prefetch", "4"];
    let _worker = match variant {
        Variant::Normal => deployment.start("ping-worker", &few)?,
        Variant::Control => {
            let mut by_wall = vec!["worker", "--real-probes", "--defect", "wall-clock-rtt"];
            by_wall.extend(few);
            deployment.start("faulty_role", &by_wall)?
        }
    };
    for name in ["LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"] {
        deployment.set_env(name, "");
    }
    // A first run, so that worker and writer have their sessions.
    actions::publish_run(&deployment, 10, 1)?;
    deployment.wait_until_idle()?;
    let hosts = deployment.hosts(20_000)?;
    let hosts = hosts.to_string_lossy();
    let mut producer = deployment.start("producer", &["--hosts", &hosts, "--rate", "2000"])?;
    for (share, step) in [(8, "+3600"), (24, "-3600"), (40, "+0")] {
        deployment.wait_for_run("a share of the results", |run| {
            run.chunks > 10 && run.chunks_done >= share
        })?;
        set(step)?;
    }
    ensure!(producer.wait_for_exit()?.success(), "{}", producer.output());
    let mut found = Vec::new();
    let proof = deployment.verify()?;
    if !proof.is_complete() {
        found.push(format!("{proof:?}"));
    }
    let seen = deployment.sqlite3(
        "select sum(status <> 'up'), sum(rtt_min_ms <= 0 or rtt_max_ms > 1000), max(rtt_max_ms),
                (julianday(max(probed_at)) - julianday(min(probed_at))) * 24 from report",
    )?;
    let words: Vec<&str> = seen.split('|').collect();
    if words[..2] != ["0", "0"] {
        found.push(format!("not up | implausible | longest | hours: {seen}"));
    }
    let refused = deployment.sqlite3("select distinct reason from quarantine")?;
    if !refused.is_empty() {
        found.push(format!("results in quarantine: {refused}"));
    }
    let again = deployment.sqlite3("select count(*) from chunks where publishes <> 1")?;
    if again != "0" {
        found.push(format!("{again} chunks were published again"));
    }
    let hours: f64 = words[3].parse()?;
    ensure!(hours > 1.9, "the clock was not set: {seen}");
    Ok(CaseOutcome {
        summary: format!("the longest round trip took {} ms", words[2]),
        violations: found,
    })
}

fn power(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        if variant == Variant::Control {
            deployment.set_env("PINGFLEET_STORE__DURABILITY", "normal");
        }
        actions::publish_run(deployment, 4000, 10)?;
        let trace = deployment.folder().join("trace");
        let file = trace.to_string_lossy();
        let mut under = vec!["strace", "-D", "-f", "-y", "-xx", "-s", "4096", "-o", &file];
        under.extend(["-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg"]);
        let mut writer =
            deployment.start_with_wrapper(&under, "consumer-writer", &["--batch-size", "100"])?;
        writer.wait_for_output("writer ready")?;
        let _worker = actions::start_worker(deployment, "worker", &["--delay", "20ms"])?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(writer)?;
        let seen = strace_log::read(&fs::read_to_string(&trace)?);
        ensure!(seen.acks >= 10, "only {} acks were seen", seen.acks);
        let mut found = find_violations(deployment, &ExpectedState::done(SEED))?;
        if seen.unsynced > 0 {
            found.push(format!(
                "{} of {} acks without a sync of the write-ahead log before them",
                seen.unsynced, seen.acks
            ));
        }
        Ok(CaseOutcome {
            summary: format!("{} acks, {} syncs", seen.acks, seen.syncs),
            violations: found,
        })
    })
}
