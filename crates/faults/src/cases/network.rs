//! Harm to the way between worker and broker. The worker goes by IPv6, everybody else by IPv4, all on the loopback of a
//! namespace: so a rule for IPv6 concerns the worker alone.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    fleet::Fleet,
    invariants::{Expected, violations},
    program::Program,
};

/// A session is reset when it next sends, which is a heartbeat within 7.5 s. One that only misses the broker's ends after
/// 30 s.
const RESET_WITHIN: u64 = 20;

/// After so many seconds without a word either side has given up the other: two heartbeats of 15 s, and some.
const HEARTBEATS: u64 = 40;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "network-cut",
        group: "network",
        fault: "the way between worker and broker cut: both ways, either way, by reset, and for longer than the heartbeat",
        holds: "a reset and a cut longer than the heartbeat end both of the worker's sessions, a short cut none; it finds \
                the broker again, what was in hand is settled once, and the broker keeps no dead connection",
        control: Control {
            broken: "a worker that takes for stored what it has not yet sent",
            shown_by: &["are lost"],
        },
        run: cut,
    },
    Case {
        name: "worker-killed-behind-a-cut",
        group: "network",
        fault: "the worker is killed while its way is cut: the broker hears nothing of it",
        holds: "after two heartbeats its chunks go to another worker",
        control: Control {
            broken: "a worker that acks first",
            shown_by: &["are lost"],
        },
        run: killed_behind,
    },
    Case {
        name: "no-broker-to-speak-with",
        group: "network",
        fault: "a broker that accepts and says nothing; a name that does not resolve",
        holds: "worker and writer go on trying, say so, and end at once by SIGTERM; the producer ends with 4",
        control: Control {
            broken: "a worker that is deaf to SIGTERM, and a writer that gives up at once",
            shown_by: &["had not left", "ended and never said"],
        },
        run: mute,
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

/// Runs `nft` in the fleet's network.
fn nft(fleet: &Fleet, rule: &str) -> anyhow::Result<()> {
    let output = fleet
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

fn make(fleet: &Fleet, cut: Cut) -> anyhow::Result<()> {
    let port = fleet.broker()?.port();
    nft(fleet, "add table ip6 cut")?;
    nft(
        fleet,
        "add chain ip6 cut way { type filter hook output priority 0 ; }",
    )?;
    let to = format!("add rule ip6 cut way tcp dport {port}");
    let from = format!("add rule ip6 cut way tcp sport {port}");
    match cut {
        Cut::Both => {
            nft(fleet, &format!("{to} drop"))?;
            nft(fleet, &format!("{from} drop"))
        }
        Cut::ToBroker => nft(fleet, &format!("{to} drop")),
        Cut::FromBroker => nft(fleet, &format!("{from} drop")),
        // Only this way: a rule for the other one would drop the resets, which come from there. The broker's side is
        // reset when it next sends, after the cut.
        Cut::Reset => nft(fleet, &format!("{to} reject with tcp reset")),
    }?;
    let store = fleet.store()?;
    let left = store.summary(store.find_run("latest")?)?.outstanding();
    ensure!(left > 20, "the cut came too late: {left} chunks were left");
    Ok(())
}

fn mend(fleet: &Fleet) -> anyhow::Result<()> {
    nft(fleet, "delete table ip6 cut")
}

/// What the worker says when its sessions end: the one that consumes, and the one that publishes.
const LOST: [&str; 2] = [
    "session lost; unsettled chunks",
    "session lost; unconfirmed results",
];

/// How often each of the worker's sessions ended so far.
fn lost(worker: &Program) -> [usize; 2] {
    let said = worker.said();
    LOST.map(|words| said.matches(words).count())
}

/// Connections by IPv6, which are the worker's, as the broker counts them.
fn connections(fleet: &Fleet) -> anyhow::Result<usize> {
    let listed = fleet.broker()?.ctl(&["list_connections", "peer_host"])?;
    Ok(listed.lines().filter(|peer| peer.contains("::")).count())
}

fn cut(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let mut cuts = bench.pick(
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
    if promise == Promise::Broken {
        // Its session has to end while something is held back.
        cuts = &[(Cut::Both, 45)];
    }
    let fleet = Fleet::new()?;
    let writer = acts::writer(&fleet)?;
    let url = fleet.broker()?.ipv6_url()?;
    let mut flags = vec!["--broker", &url, "--delay", "300ms", "--prefetch", "4"];
    if promise == Promise::Broken {
        flags.extend(["--sabotage", "note-first"]);
    }
    let worker = acts::worker(&fleet, "worker", &flags)?;
    let mut story = Vec::new();
    let mut found = Vec::new();
    for (cut, lasting) in cuts {
        // One that consumes, and one that publishes.
        acts::wait_until("the worker's two connections, and no dead one", || {
            Ok(connections(&fleet)? == 2)
        })?;
        acts::publish(&fleet, 2000, 20)?;
        fleet.wait_for_run("first results", |run| run.chunks_done >= 10)?;
        let before = lost(&worker);
        make(&fleet, *cut)?;
        let began = Instant::now();
        let reset = || {
            Ok(lost(&worker)
                .iter()
                .zip(before)
                .all(|(now, was)| *now > was))
        };
        if matches!(cut, Cut::Reset) {
            acts::wait_until("both sessions to be reset", reset)?;
        }
        let left = Duration::from_secs(*lasting).saturating_sub(began.elapsed());
        std::thread::sleep(left);
        let cut_for = began.elapsed().as_secs();
        let timed_out = matches!(cut, Cut::Reset) && cut_for >= RESET_WITHIN;
        mend(&fleet)?;
        let began = Instant::now();
        fleet.rest()?;
        let took = began.elapsed().as_secs();
        let ended: Vec<usize> = lost(&worker)
            .iter()
            .zip(before)
            .map(|(now, was)| now - was)
            .collect();
        let said =
            format!("{cut:?} for {cut_for} s ended {ended:?} sessions, settled {took} s after");
        let has_to_end = matches!(cut, Cut::Reset) || *lasting > HEARTBEATS;
        let as_told = if has_to_end {
            !timed_out && !ended.contains(&0)
        } else {
            ended == [0, 0]
        };
        if !as_told {
            found.push(said.clone());
        }
        story.push(said);
    }
    acts::wait_until("the broker to let go of dead connections", || {
        Ok(connections(&fleet)? == 2)
    })?;
    acts::dismiss(worker)?;
    acts::dismiss(writer)?;
    let duplicates = fleet.sqlite3("select sum(duplicates) from run_summary")?;
    found.extend(violations(&fleet, &Expected::done(SCRIPT))?);
    Ok(Outcome {
        story: format!("{}; {duplicates} duplicates", story.join("; ")),
        violations: found,
    })
}

fn killed_behind(_: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let fleet = Fleet::new()?;
    let _writer = acts::writer(&fleet)?;
    let url = fleet.broker()?.ipv6_url()?;
    let mut flags = vec!["--broker", &url, "--prefetch", "8"];
    match promise {
        Promise::Kept => flags.extend(["--delay", "1s"]),
        // It takes all there is at once, and is killed before it has any of it done.
        Promise::Broken => flags.extend(["--delay", "20s", "--sabotage", "ack-first"]),
    }
    let worker = acts::worker(&fleet, "doomed", &flags)?;
    acts::publish(&fleet, 2000, 20)?;
    if promise == Promise::Kept {
        fleet.wait_for_run("first results", |run| run.chunks_done >= 10)?;
    } else {
        let work = fleet.queue("work");
        acts::wait_until("the work to be acked", || {
            Ok(fleet.depth(&work, "messages")? == 0)
        })?;
    }
    make(&fleet, Cut::Both)?;
    worker.kill()?;
    let _other = acts::worker(&fleet, "other", &[])?;
    let began = Instant::now();
    fleet.rest()?;
    Ok(Outcome {
        story: format!("settled {} s after", began.elapsed().as_secs()),
        violations: violations(&fleet, &Expected::done(SCRIPT))?,
    })
}

fn mute(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mute = format!("amqp://127.0.0.1:{}/%2f", listener.local_addr()?.port());
    bench.with_fleet(|fleet| {
        let mut story = Vec::new();
        let mut found = Vec::new();
        for url in [mute.as_str(), "amqp://no-such-host.invalid/%2f"] {
            let mut flags = vec!["--broker", url];
            let mut writer = match promise {
                Promise::Kept => fleet.start("consumer-writer", &flags)?,
                Promise::Broken => {
                    let gives_up = ["writer", "--broker", url, "--sabotage", "give-up"];
                    flags.extend(["--sabotage", "deaf"]);
                    fleet.start("faulty", &gives_up)?
                }
            };
            let mut worker = acts::worker(fleet, "worker", &flags)?;
            let mut producer = fleet.start("producer", &["--broker", url, "10.0.0.1"])?;
            for program in [&mut worker, &mut writer] {
                acts::says(program, "no session with the broker", &mut found)?;
            }
            let mut took = acts::leaves(worker, 15, &mut found)?;
            if writer.has_ended()?.is_none() {
                took = took.max(acts::leaves(writer, 15, &mut found)?);
            }
            ensure!(producer.ended()?.code() == Some(4), "{}", producer.said());
            story.push(format!("left after {took} s"));
        }
        acts::publish(fleet, 100, 10)?;
        let _worker = acts::worker(fleet, "worker", &[])?;
        let _writer = acts::writer(fleet)?;
        fleet.rest()?;
        found.extend(violations(fleet, &Expected::done(SCRIPT))?);
        Ok(Outcome {
            story: story.join("; "),
            violations: found,
        })
    })
}
