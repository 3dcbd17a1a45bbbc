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
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "network-cut",
        group: "network",
        fault: "the way between worker and broker cut: both ways, either way, by reset, and for longer than the heartbeat",
        holds: "the worker finds the broker again; what was in hand is settled once; nobody publishes it again",
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
        Cut::Reset => {
            nft(fleet, &format!("{to} reject with tcp reset"))?;
            nft(fleet, &format!("{from} reject with tcp reset"))
        }
    }?;
    let store = fleet.store()?;
    let left = store.summary(store.find_run("latest")?)?.outstanding();
    ensure!(left > 20, "the cut came too late: {left} chunks were left");
    Ok(())
}

fn mend(fleet: &Fleet) -> anyhow::Result<()> {
    nft(fleet, "delete table ip6 cut")
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
    let mut recovered = Vec::new();
    for (cut, lasting) in cuts {
        acts::publish(&fleet, 2000, 20)?;
        fleet.wait_for_run("first results", |run| run.chunks_done >= 10)?;
        make(&fleet, *cut)?;
        std::thread::sleep(Duration::from_secs(*lasting));
        mend(&fleet)?;
        let began = Instant::now();
        fleet.rest()?;
        recovered.push(began.elapsed().as_secs());
    }
    acts::dismiss(worker)?;
    acts::dismiss(writer)?;
    let duplicates = fleet.sqlite3("select sum(duplicates) from run_summary")?;
    Ok(Outcome {
        story: format!(
            "{} cuts; settled {recovered:?} s after; {duplicates} duplicates",
            cuts.len()
        ),
        violations: violations(&fleet, &Expected::done(SCRIPT))?,
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
