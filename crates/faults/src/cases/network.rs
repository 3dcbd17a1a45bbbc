//! The network between worker and broker. The worker connects by IPv6, all other roles by IPv4, all on the loopback of a
//! namespace. So a firewall rule for IPv6 affects only the worker.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    actions::{self, SEED},
    child_process::ChildProcess,
    deployment::Deployment,
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

/// A session is reset when it next sends, which is a heartbeat within 7.5 s. Without a reset it would end after 30 s without
/// a heartbeat of the broker.
const MAX_RESET_TIME: u64 = 20;

/// After this many seconds without data both sides have closed the connection: two heartbeats of 15 s, and a margin.
const HEARTBEAT_TIMEOUT: u64 = 40;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "network-cut",
        fault: "the connection between worker and broker cut: in both directions, in either one, by reset, and for longer \
                than the heartbeat timeout",
        holds: "a reset and a long cut end both of the worker's sessions, a short cut ends none; the worker connects again, \
                its chunks are settled once, and the broker keeps no dead connection",
        control: Control {
            defect: "a worker that treats results as confirmed before it sends them",
            expected_violations: &["are lost"],
        },
        run: cut,
    },
    Case {
        name: "worker-killed-while-disconnected",
        fault: "the worker is killed while its connection is cut, so the broker does not notice",
        holds: "after two missed heartbeats its chunks go to another worker",
        control: Control {
            defect: "a worker that acks first",
            expected_violations: &["are lost"],
        },
        run: killed_while_disconnected,
    },
    Case {
        name: "broker-unreachable",
        fault: "a broker that accepts connections and sends nothing; a host name that does not resolve",
        holds: "worker and writer log it and keep trying, and exit at once on SIGTERM; the producer exits with 4",
        control: Control {
            defect: "a worker that ignores SIGTERM, and a writer that does not connect again",
            expected_violations: &["had not exited", "exited and never wrote"],
        },
        run: unreachable,
    },
];

/// Which packets of the worker's connections are dropped.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Both,
    ToBroker,
    FromBroker,
    Reset,
}

/// Runs `nft` in the deployment's namespace.
fn nft(deployment: &Deployment, rule: &str) -> anyhow::Result<()> {
    let output = deployment
        .namespace()?
        .command("nft")
        .args(rule.split_whitespace())
        .output()?;
    ensure!(
        output.status.success(),
        "nft {rule}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn apply_cut(deployment: &Deployment, cut: Cut) -> anyhow::Result<()> {
    let port = deployment.broker()?.port();
    nft(deployment, "add table ip6 cut")?;
    nft(
        deployment,
        "add chain ip6 cut output { type filter hook output priority 0 ; }",
    )?;
    let to = format!("add rule ip6 cut output tcp dport {port}");
    let from = format!("add rule ip6 cut output tcp sport {port}");
    match cut {
        Cut::Both => {
            nft(deployment, &format!("{to} drop"))?;
            nft(deployment, &format!("{from} drop"))
        }
        Cut::ToBroker => nft(deployment, &format!("{to} drop")),
        Cut::FromBroker => nft(deployment, &format!("{from} drop")),
        // Only in this direction: a rule for the other one would drop the resets. The broker's side is reset when it next
        // sends after the cut.
        Cut::Reset => nft(deployment, &format!("{to} reject with tcp reset")),
    }?;
    let store = deployment.store()?;
    let left = store.summary(store.find_run("latest")?)?.outstanding();
    ensure!(left > 20, "the cut came too late: {left} chunks were left");
    Ok(())
}

fn remove_cut(deployment: &Deployment) -> anyhow::Result<()> {
    nft(deployment, "delete table ip6 cut")
}

/// What the worker logs when its consuming and its publishing session end.
const SESSION_LOST: [&str; 2] = [
    "session lost; unsettled chunks",
    "session lost; unconfirmed results",
];

/// How often each of the worker's sessions has ended so far.
fn lost_sessions(worker: &ChildProcess) -> [usize; 2] {
    let output = worker.output();
    SESSION_LOST.map(|words| output.matches(words).count())
}

/// The number of IPv6 connections, which are the worker's, according to the broker.
fn connections(deployment: &Deployment) -> anyhow::Result<usize> {
    let listed = deployment
        .broker()?
        .ctl(&["list_connections", "peer_host"])?;
    Ok(listed.lines().filter(|peer| peer.contains("::")).count())
}

fn cut(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let mut cuts = runner.pick(
        &[
            (Cut::Reset, 1),
            (Cut::Both, 5),
            (Cut::ToBroker, 5),
            (Cut::FromBroker, 5),
            (Cut::Both, 45),
            (Cut::ToBroker, 45),
            (Cut::FromBroker, 45),
        ][..],
        &[(Cut::Reset, 1), (Cut::Both, 3)],
    );
    if variant == Variant::Control {
        // The session must end while results are delayed.
        cuts = &[(Cut::Both, 45)];
    }
    let deployment = Deployment::new()?;
    let writer = actions::start_writer(&deployment)?;
    let url = deployment.broker()?.ipv6_url()?;
    let mut flags = vec!["--broker", &url, "--delay", "300ms", "--prefetch", "4"];
    if variant == Variant::Control {
        flags.extend(["--defect", "confirm-before-send"]);
    }
    let worker = actions::start_worker(&deployment, "worker", &flags)?;
    let mut summary = Vec::new();
    let mut found = Vec::new();
    for (cut, lasting) in cuts {
        // One for consuming, and one for publishing.
        actions::wait_until("exactly the worker's two connections", || {
            Ok(connections(&deployment)? == 2)
        })?;
        actions::publish_run(&deployment, 2000, 20)?;
        deployment.wait_for_run("first results", |run| run.chunks_done >= 10)?;
        let before = lost_sessions(&worker);
        apply_cut(&deployment, *cut)?;
        let began = Instant::now();
        let reset = || {
            Ok(lost_sessions(&worker)
                .iter()
                .zip(before)
                .all(|(now, was)| *now > was))
        };
        if matches!(cut, Cut::Reset) {
            actions::wait_until("both sessions to be reset", reset)?;
        }
        let left = Duration::from_secs(*lasting).saturating_sub(began.elapsed());
        std::thread::sleep(left);
        let cut_for = began.elapsed().as_secs();
        let timed_out = matches!(cut, Cut::Reset) && cut_for >= MAX_RESET_TIME;
        remove_cut(&deployment)?;
        let began = Instant::now();
        deployment.wait_until_idle()?;
        let took = began.elapsed().as_secs();
        let ended: Vec<usize> = lost_sessions(&worker)
            .iter()
            .zip(before)
            .map(|(now, was)| now - was)
            .collect();
        let description =
            format!("{cut:?} for {cut_for} s ended {ended:?} sessions, settled {took} s after");
        let must_end = matches!(cut, Cut::Reset) || *lasting > HEARTBEAT_TIMEOUT;
        let as_expected = if must_end {
            !timed_out && !ended.contains(&0)
        } else {
            ended == [0, 0]
        };
        if !as_expected {
            found.push(description.clone());
        }
        summary.push(description);
    }
    actions::wait_until("the broker to close dead connections", || {
        Ok(connections(&deployment)? == 2)
    })?;
    actions::terminate_cleanly(worker)?;
    actions::terminate_cleanly(writer)?;
    let duplicates = deployment.sqlite3("select sum(duplicates) from run_summary")?;
    found.extend(find_violations(&deployment, &ExpectedState::done(SEED))?);
    Ok(CaseOutcome {
        summary: format!("{}; {duplicates} duplicates", summary.join("; ")),
        violations: found,
    })
}

fn killed_while_disconnected(_: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let deployment = Deployment::new()?;
    let _writer = actions::start_writer(&deployment)?;
    let url = deployment.broker()?.ipv6_url()?;
    let mut flags = vec!["--broker", &url, "--prefetch", "8"];
    match variant {
        Variant::Normal => flags.extend(["--delay", "1s"]),
        // It takes all chunks at once, and is killed before it has probed any.
        Variant::Control => flags.extend(["--delay", "20s", "--defect", "ack-first"]),
    }
    let worker = actions::start_worker(&deployment, "doomed", &flags)?;
    actions::publish_run(&deployment, 2000, 20)?;
    if variant == Variant::Normal {
        deployment.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    } else {
        let work = deployment.queue("work");
        deployment.wait_for_empty_queue(&work)?;
    }
    apply_cut(&deployment, Cut::Both)?;
    worker.kill()?;
    let _other = actions::start_worker(&deployment, "other", &[])?;
    let began = Instant::now();
    deployment.wait_until_idle()?;
    Ok(CaseOutcome {
        summary: format!("settled {} s after", began.elapsed().as_secs()),
        violations: find_violations(&deployment, &ExpectedState::done(SEED))?,
    })
}

fn unreachable(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let silent = format!("amqp://127.0.0.1:{}/%2f", listener.local_addr()?.port());
    runner.with_deployment(|deployment| {
        let mut summary = Vec::new();
        let mut found = Vec::new();
        for url in [silent.as_str(), "amqp://no-such-host.invalid/%2f"] {
            let mut flags = vec!["--broker", url];
            let mut writer = match variant {
                Variant::Normal => deployment.start("consumer-writer", &flags)?,
                Variant::Control => {
                    let no_reconnect = ["writer", "--broker", url, "--defect", "no-reconnect"];
                    flags.extend(["--defect", "ignore-sigterm"]);
                    deployment.start("faulty_role", &no_reconnect)?
                }
            };
            let mut worker = actions::start_worker(deployment, "worker", &flags)?;
            let mut producer = deployment.start("producer", &["--broker", url, "10.0.0.1"])?;
            for program in [&mut worker, &mut writer] {
                actions::expect_output(program, "no session with the broker", &mut found)?;
            }
            let mut took = actions::terminate_within(worker, 15, &mut found)?;
            if writer.try_wait()?.is_none() {
                took = took.max(actions::terminate_within(writer, 15, &mut found)?);
            }
            ensure!(
                producer.wait_for_exit()?.code() == Some(4),
                "{}",
                producer.output()
            );
            summary.push(format!("exited after {took} s"));
        }
        actions::publish_run(deployment, 100, 10)?;
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        let _writer = actions::start_writer(deployment)?;
        deployment.wait_until_idle()?;
        found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);
        Ok(CaseOutcome {
            summary: summary.join("; "),
            violations: found,
        })
    })
}
