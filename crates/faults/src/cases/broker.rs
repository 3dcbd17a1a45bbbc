//! The broker: killed, blocked by its alarms, and a cluster without its leader.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pingfleet_testbed::Rabbit;

use crate::{
    actions::{self, SEED},
    deployment::{Deployment, Idle},
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "broker-frozen-and-killed-while-chunks-are-published",
        fault: "SIGSTOP of the broker while the producer publishes, then SIGKILL and restart",
        holds: "unconfirmed chunks are published again",
        control: Control {
            defect: "a producer that treats every sent chunk as confirmed",
            expected_violations: &["are lost"],
        },
        run: frozen,
    },
    Case {
        name: "broker-killed-repeatedly",
        fault: "SIGKILL and restart of the broker, five times in a running sweep",
        holds: "every role connects again; nothing is lost, so nothing is published again",
        control: Control {
            defect: "workers that treat results as confirmed before they send them",
            expected_violations: &["chunks were published again"],
        },
        run: killed,
    },
    Case {
        name: "alarms-longer-than-a-heartbeat",
        fault: "memory and disk alarm for 40 s, in which no chunk completes; meanwhile SIGTERM of a worker, the writer and \
                a waiting producer, and SIGKILL of a worker",
        holds: "SIGTERM ends each role within its deadline; the run completes after the alarm",
        control: Control {
            defect: "workers that ack first",
            expected_violations: &["are lost"],
        },
        run: alarms,
    },
    Case {
        name: "cluster-loses-its-leader",
        fault: "three nodes; the leader of the queues is killed in a running sweep",
        holds: "the other two keep working; chunks of the worker at the dead node go to the others; nothing is lost",
        control: Control {
            defect: "the leader and one of the other two are killed",
            expected_violations: &["no more results"],
        },
        run: cluster,
    },
];

pub(super) fn done(deployment: &Deployment, summary: String) -> anyhow::Result<CaseOutcome> {
    Ok(CaseOutcome {
        summary,
        violations: find_violations(deployment, &ExpectedState::done(SEED))?,
    })
}

/// The flags of a role that treats every sent message as confirmed, in the control; none otherwise.
pub(super) fn believing(variant: Variant) -> &'static [&'static str] {
    match variant {
        Variant::Normal => &[],
        Variant::Control => &["--defect", "assume-confirmed"],
    }
}

fn noted(deployment: &Deployment) -> anyhow::Result<i64> {
    let noted = deployment.sqlite3("select count(*) from chunks where publishes > 0")?;
    Ok(noted.parse()?)
}

fn frozen(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    const CHUNKS: u32 = 3000;
    runner.with_deployment(|deployment| {
        // The broker records on disk which node hosts a queue some time after it created the queue. A queue that was created
        // just before the kill has no leader after the restart.
        actions::publish_run(deployment, 10, 1)?;
        let writer = actions::start_writer(deployment)?;
        let worker = actions::start_worker(deployment, "worker", &[])?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(worker)?;
        actions::terminate_cleanly(writer)?;
        std::thread::sleep(Duration::from_secs(3));
        let producer = actions::start_faulty_producer(deployment, CHUNKS, 1, believing(variant))?;
        actions::wait_until("the first chunks to be noted", || {
            Ok(noted(deployment)? >= 310)
        })?;
        deployment.broker_mut()?.freeze()?;
        let before = noted(deployment)?;
        if variant == Variant::Control {
            // The producer continues until the connection accepts no more data.
            let began = Instant::now();
            while noted(deployment)? < i64::from(CHUNKS) && began.elapsed() < Duration::from_secs(5)
            {
                std::thread::sleep(crate::POLL_INTERVAL);
            }
        }
        deployment.broker_mut()?.kill();
        deployment.broker_mut()?.start_again()?;
        ensure!(producer.wait()?.success(), "the producer failed");
        let _writer = actions::start_writer(deployment)?;
        let _worker = actions::start_worker(deployment, "worker", &["--delay", "0ms"])?;
        deployment.wait_until_idle()?;
        done(
            deployment,
            format!(
                "frozen when {} of {CHUNKS} chunks were confirmed",
                before - 10
            ),
        )
    })
}

fn killed(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let (kills, defect) = match variant {
        Variant::Normal => (runner.pick(5, 2), &[][..]),
        Variant::Control => (1, &["--defect", "confirm-before-send"][..]),
    };
    runner.with_deployment(|deployment| {
        let _writer = actions::start_writer(deployment)?;
        let mut flags = vec!["--delay", "150ms", "--prefetch", "8"];
        flags.extend(defect);
        let _one = actions::start_worker(deployment, "one", &flags)?;
        let _two = actions::start_worker(deployment, "two", &flags)?;
        // Lost chunks are overdue soon.
        let fast = ["--timeout", "100ms", "--retries", "0"];
        let producer = actions::start_producer(deployment, 1000 * kills, 1, &fast)?;
        let mut recovered = Vec::new();
        for kill in 1..=kills {
            let share = i64::from(1000 * kill - 800);
            deployment.wait_for_run("a share of the results", |run| run.chunks_done >= share)?;
            deployment.broker_mut()?.kill();
            deployment.broker_mut()?.start_again()?;
            let began = Instant::now();
            let before = deployment.store()?.summary(1)?.chunks_done;
            deployment.wait_for_run("more results", |run| run.chunks_done > before + 20)?;
            recovered.push(began.elapsed().as_secs());
        }
        ensure!(producer.wait()?.success(), "the producer failed");
        let mut outcome = done(
            deployment,
            format!("{kills} kills; results again after {recovered:?} s"),
        )?;
        let again = deployment.sqlite3("select count(*) from chunks where publishes <> 1")?;
        if again != "0" {
            let found = format!("{again} chunks were published again");
            outcome.violations.push(found);
        }
        Ok(outcome)
    })
}

fn chunks_done(deployment: &Deployment) -> anyhow::Result<i64> {
    let store = deployment.store()?;
    Ok(store.summary(store.find_run("latest")?)?.chunks_done)
}

/// Waits until no chunk has become done for 3 s: all results that were published before the alarm are stored. Returns how
/// many chunks are done.
fn stands_still(deployment: &Deployment) -> anyhow::Result<i64> {
    let mut seen = (chunks_done(deployment)?, Instant::now());
    actions::wait_until("the alarm to be in force", || {
        let done = chunks_done(deployment)?;
        if done != seen.0 {
            seen = (done, Instant::now());
        }
        Ok(seen.1.elapsed() >= Duration::from_secs(3))
    })?;
    Ok(seen.0)
}

fn alarms(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let lasting = match variant {
        Variant::Normal => runner.pick(40, 4),
        Variant::Control => 4,
    };
    runner.with_deployment(|deployment| {
        let writer = actions::start_writer(deployment)?;
        let flags: &[&str] = match variant {
            Variant::Normal => &["--delay", "1s", "--prefetch", "16"],
            // A worker that acks first takes all chunks at once, and still probes when the alarm begins.
            Variant::Control => &["--delay", "10s", "--defect", "ack-first"],
        };
        let mut producer = actions::start_producer(deployment, 4000, 10, &[])?;
        let leaving = actions::start_worker(deployment, "leaving", flags)?;
        let doomed = actions::start_worker(deployment, "doomed", flags)?;
        if variant == Variant::Normal {
            deployment.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        } else {
            deployment.wait_for_run("the run", |_| true)?;
            actions::wait_until("all chunks to be published", || {
                Ok(deployment.sqlite3("select count(*) from chunks where state = 1")? == "400")
            })?;
        }
        deployment
            .broker()?
            .ctl(&["set_vm_memory_high_watermark", "0.000001"])?;
        deployment.broker()?.ctl(&["set_disk_free_limit", "900000GB"])?;
        let before = stands_still(deployment)?;
        std::thread::sleep(Duration::from_secs(lasting));
        let mut late = Vec::new();
        let after = chunks_done(deployment)?;
        if after != before || after >= 400 {
            late.push(format!("{before} of 400 chunks were done, and {after} at the end of the alarm"));
        }
        let began = Instant::now();
        producer.signal("TERM")?;
        let status = producer.wait_for_exit()?;
        let gave_up = began.elapsed();
        // 130: interrupted, with the state saved.
        if status.code() != Some(130) || gave_up > Duration::from_secs(30) {
            let output = producer.output();
            late.push(format!("the producer: {status} {} s after SIGTERM: {output}", gave_up.as_secs()));
        }
        // 30 s for draining, and some seconds for closing the sessions with a broker that does not read.
        let took = actions::terminate_within(leaving, 45, &mut late)?;
        let writer_took = actions::terminate_within(writer, 30, &mut late)?;
        doomed.kill()?;
        deployment
            .broker()?
            .ctl(&["set_vm_memory_high_watermark", "0.8"])?;
        deployment.broker()?.ctl(&["set_disk_free_limit", "1MB"])?;
        let _writer = actions::start_writer(deployment)?;
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        let idle = deployment.wait_until_idle()?;
        let mut outcome = done(
            deployment,
            format!(
                "alarms for {lasting} s at {before} of 400 chunks; the producer exited after {} s, a worker after {took} s, \
                 the writer after {writer_took} s",
                gave_up.as_secs()
            ),
        )?;
        outcome.violations.extend(late);
        if idle == Idle::QueuesEmpty {
            outcome
                .violations
                .push("idle, but not settled".to_owned());
        }
        Ok(outcome)
    })
}

/// Two nodes of three elect a leader within seconds. After this time there is none.
const MAX_ELECTION_TIME: Duration = Duration::from_mins(1);

fn cluster(_: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    // A cluster that has lost a node cannot be reused for other cases.
    let deployment = &Deployment::with_shared_broker(Rabbit::start()?, "deployment")?;
    let mut leader = deployment.broker()?.start_member()?;
    let mut third = deployment.broker()?.start_member()?;
    // The node at which a queue is declared becomes its leader.
    let init = ["broker", "init", "--broker", &leader.url()];
    ensure!(
        deployment.start("pingfleet", &init)?.wait()?.success(),
        "no topology"
    );
    let listed = deployment
        .broker()?
        .ctl(&["list_queues", "name", "leader"])?;
    for queue in ["work", "results"] {
        let queue = deployment.queue(queue);
        let line = listed.lines().find(|line| line.starts_with(&queue));
        ensure!(
            line.is_some_and(|line| line.contains(&leader.node_name())),
            "{queue} is led by another node:\n{listed}"
        );
    }
    let _writer = actions::start_writer(deployment)?;
    let worker = |name: &str, node: &Rabbit| {
        let url = node.url();
        let flags = ["--broker", &url, "--delay", "100ms", "--prefetch", "4"];
        actions::start_worker(deployment, name, &flags)
    };
    let _one = worker("one", deployment.broker()?)?;
    let _two = worker("two", &third)?;
    // Its connections end with the leader, and it knows no other node, so its chunks go to the other workers.
    let stranded = worker("stranded", &leader)?;
    let producer = actions::start_producer(deployment, 4000, 10, &[])?;
    let by_stranded = || {
        deployment.sqlite3("select count(*) from chunks where state = 3 and worker = 'stranded'")
    };
    actions::wait_until(
        "first results, and some of the worker at the leader",
        || {
            Ok(deployment.database().exists()
                && deployment
                    .store()?
                    .summary(1)
                    .is_ok_and(|run| run.chunks_done >= 40)
                && by_stranded()? != "0")
        },
    )?;
    leader.kill();
    if variant == Variant::Control {
        third.kill();
    }
    let began = Instant::now();
    let before = deployment.store()?.summary(1)?.chunks_done;
    while deployment.store()?.summary(1)?.chunks_done <= before + 20 {
        if began.elapsed() > MAX_ELECTION_TIME {
            let seconds = MAX_ELECTION_TIME.as_secs();
            return Ok(CaseOutcome {
                summary: "without a leader".to_owned(),
                violations: vec![format!("no more results for {seconds} s")],
            });
        }
        std::thread::sleep(crate::POLL_INTERVAL);
    }
    let took = began.elapsed().as_secs_f64();
    ensure!(producer.wait()?.success(), "the producer failed");
    let output = stranded.output();
    let lost = output
        .lines()
        .find(|line| line.contains("session lost; unsettled chunks"));
    let in_hand = lost
        .and_then(|line| line.split_once("unsettled="))
        .map_or("", |(_, rest)| rest.trim_end());
    ensure!(
        !in_hand.is_empty() && in_hand != "0",
        "the worker at the leader had no chunk in hand: {output}"
    );
    let found = find_violations(deployment, &ExpectedState::done(SEED))?;
    let again = deployment.sqlite3("select count(*) from chunks where publishes <> 1")?;
    Ok(CaseOutcome {
        summary: format!(
            "results again after {took:.1} s; {in_hand} chunks of the leader's worker went to others, {again} were \
             published again"
        ),
        violations: found,
    })
}
