//! A writer that is away for long, a cluster that loses its leader, a clock that is set, and what a power loss would
//! leave.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::ensure;
use pingfleet_testbed::Rabbit;

use crate::{
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    fleet::Fleet,
    invariants::{Expected, violations},
    trace,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "writer-down-while-a-producer-waits",
        group: "absence",
        fault: "the writer is away for 90 s while all results wait and the producer looks for what is overdue",
        holds: "no chunk is published again",
        control: Control {
            broken: "a producer to which the queues look empty and the writer alive",
            shown_by: &["published again"],
        },
        run: writer_down,
    },
    Case {
        name: "a-million-results-wait",
        group: "absence",
        fault: "the writer comes back to the results of a million targets",
        holds: "its memory stays far below what waits, and every row is stored",
        control: Control {
            broken: "a writer that takes all that waits at once",
            shown_by: &["faulty had "],
        },
        run: million,
    },
    Case {
        name: "cluster-loses-its-leader",
        group: "broker",
        fault: "three nodes; the one that leads the queues is killed in a running sweep",
        holds: "the other two go on; what the worker at the dead node had in hand goes to the others; nothing is lost",
        control: Control {
            broken: "the leader and one of the other two are killed",
            shown_by: &["no more results"],
        },
        run: cluster,
    },
    Case {
        name: "clock-set-back-and-forth",
        group: "clock",
        fault: "the clock of worker and writer set an hour forth, two back, one forth in a running sweep (libfaketime)",
        holds: "every answering target is up, with a sane round trip; nothing is published again",
        control: Control {
            broken: "a worker that takes round trips from the wall clock",
            shown_by: &["not sane"],
        },
        run: clock,
    },
    Case {
        name: "power-loss-of-the-master",
        group: "power",
        fault: "the writer's system calls are watched (strace)",
        holds: "between two acks of results the database's log was synced",
        control: Control {
            broken: "`store.durability = normal`",
            shown_by: &["no sync of the log"],
        },
        run: power,
    },
];

/// What a program may have while the results of a million targets wait, which are 80 MB. A writer keeps its window of
/// them, the database's cache and a batch.
const WITH_A_MILLION_MIB: u64 = 96;

/// Two nodes of three elect a leader within seconds. Without one there is nothing to wait for.
const ELECTED: Duration = Duration::from_mins(1);

fn writer_down(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let lasting = bench.pick(90, 30);
    bench.with_fleet(|fleet| {
        let writer = acts::writer(fleet)?;
        let fast = ["--timeout", "100ms", "--retries", "0"];
        let mut producer = match promise {
            Promise::Kept => acts::start_producer(fleet, 1000, 10, &fast)?,
            Promise::Broken => {
                let mut flags = vec!["--wait", "--sabotage", "empty-look"];
                flags.extend(fast);
                acts::faulty_producer(fleet, 1000, 10, &flags)?
            }
        };
        fleet.wait_for_run("the run to be published", |run| run.chunks == 100)?;
        writer.kill()?;
        let _worker = acts::worker(fleet, "worker", &[])?;
        acts::wait_for_results(fleet, 90)?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(lasting) {
            ensure!(producer.has_ended()?.is_none(), "{}", producer.said());
            if promise == Promise::Broken {
                acts::tamper(
                    fleet,
                    "update writers set seen_us = 1000000 * cast(strftime('%s', 'now') as integer)",
                )?;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let _writer = acts::writer(fleet)?;
        let status = producer.ended()?;
        ensure!(status.success(), "{status}: {}", producer.said());
        let mut found = violations(fleet, &Expected::done(SCRIPT))?;
        let again = fleet.sqlite3("select count(*) from chunks where publishes <> 1")?;
        if again != "0" {
            found.push(format!("{again} chunks were published again"));
        }
        Ok(Outcome {
            story: format!("away for {lasting} s"),
            violations: found,
        })
    })
}

fn million(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    const TARGETS: u32 = 1_000_000;
    bench.with_fleet(|fleet| {
        acts::publish(fleet, TARGETS, 250)?;
        let worker = acts::worker(fleet, "worker", &["--delay", "0ms"])?;
        acts::wait_for_results(fleet, i64::from(TARGETS / 250))?;
        acts::dismiss(worker)?;
        fleet.bound_memory(WITH_A_MILLION_MIB);
        let began = Instant::now();
        let writer = match promise {
            Promise::Kept => acts::writer(fleet)?,
            Promise::Broken => fleet.start("faulty", &["writer", "--sabotage", "take-all"])?,
        };
        fleet.rest()?;
        let took = began.elapsed().as_secs_f64();
        let (memory, threads) = fleet.largest(writer.name());
        acts::dismiss(writer)?;
        let log = fleet.longest_log() >> 20;
        Ok(Outcome {
            story: format!(
                "{TARGETS} rows in {took:.0} s; at most {memory} MiB, {threads} threads, and {log} MiB of log"
            ),
            violations: violations(fleet, &Expected::done(SCRIPT))?,
        })
    })
}

fn cluster(_: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    // A cluster that lost a node is no broker for others.
    let fleet = &Fleet::on(Rabbit::start()?, "fleet")?;
    let mut leader = fleet.broker()?.start_member()?;
    let mut third = fleet.broker()?.start_member()?;
    // Who declares a queue leads it.
    let init = ["broker", "init", "--broker", &leader.url()];
    ensure!(
        fleet.start("pingfleet", &init)?.wait()?.success(),
        "no topology"
    );
    let listed = fleet.broker()?.ctl(&["list_queues", "name", "leader"])?;
    for queue in ["work", "results"] {
        let queue = fleet.queue(queue);
        let line = listed.lines().find(|line| line.starts_with(&queue));
        ensure!(
            line.is_some_and(|line| line.contains(&leader.node_name())),
            "{queue} is led by another node:\n{listed}"
        );
    }
    let _writer = acts::writer(fleet)?;
    let worker = |name: &str, node: &Rabbit| {
        let url = node.url();
        let flags = ["--broker", &url, "--delay", "100ms", "--prefetch", "4"];
        acts::worker(fleet, name, &flags)
    };
    let _one = worker("one", fleet.broker()?)?;
    let _two = worker("two", &third)?;
    // Its connections end with the leader, and it knows no other node: what it has in hand goes to the others.
    let stranded = worker("stranded", &leader)?;
    let producer = acts::start_producer(fleet, 4000, 10, &[])?;
    let by_stranded =
        || fleet.sqlite3("select count(*) from chunks where state = 3 and worker = 'stranded'");
    acts::wait_until(
        "first results, and some of the worker at the leader",
        || {
            Ok(fleet.database().exists()
                && fleet
                    .store()?
                    .summary(1)
                    .is_ok_and(|run| run.chunks_done >= 40)
                && by_stranded()? != "0")
        },
    )?;
    leader.kill();
    if promise == Promise::Broken {
        third.kill();
    }
    let began = Instant::now();
    let before = fleet.store()?.summary(1)?.chunks_done;
    while fleet.store()?.summary(1)?.chunks_done <= before + 20 {
        if began.elapsed() > ELECTED {
            let seconds = ELECTED.as_secs();
            return Ok(Outcome {
                story: "without a leader".to_owned(),
                violations: vec![format!("no more results for {seconds} s")],
            });
        }
        std::thread::sleep(crate::LOOK);
    }
    let took = began.elapsed().as_secs_f64();
    ensure!(producer.wait()?.success(), "the producer gave up");
    let said = stranded.said();
    let lost = said
        .lines()
        .find(|line| line.contains("session lost; unsettled chunks"));
    let in_hand = lost
        .and_then(|line| line.split_once("in_hand="))
        .map_or("", |(_, rest)| rest.trim_end());
    ensure!(
        !in_hand.is_empty() && in_hand != "0",
        "the worker at the leader had nothing to lose: {said}"
    );
    let found = violations(fleet, &Expected::done(SCRIPT))?;
    let again = fleet.sqlite3("select count(*) from chunks where publishes <> 1")?;
    Ok(Outcome {
        story: format!(
            "results again after {took:.1} s; {in_hand} chunks of the leader's worker went to others, {again} were \
             published again"
        ),
        violations: found,
    })
}

/// Where Debian and Ubuntu have the library.
fn faketime() -> anyhow::Result<String> {
    let machine = std::env::consts::ARCH;
    let path = format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1");
    ensure!(fs::exists(&path)?, "no {path}: apt-get install libfaketime");
    Ok(path)
}

fn clock(_: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let fleet = Fleet::new()?;
    let offset = fleet.folder().join("offset");
    // At no moment there is an empty file.
    let set = |step: &str| {
        let next = offset.with_extension("next");
        fs::write(&next, step).and_then(|()| fs::rename(&next, &offset))
    };
    set("+0")?;
    fleet.set("LD_PRELOAD", &faketime()?);
    fleet.set("FAKETIME_TIMESTAMP_FILE", &offset.to_string_lossy());
    fleet.set("FAKETIME_NO_CACHE", "1");
    // What measures is not what is set.
    fleet.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let _writer = acts::writer(&fleet)?;
    // Few chunks at once: they begin one after the other, so that some begin at each setting.
    let few = ["--name", "worker", "--prefetch", "4"];
    let _worker = match promise {
        Promise::Kept => fleet.start("ping-worker", &few)?,
        Promise::Broken => {
            let mut by_wall = vec!["worker", "--earnest", "--sabotage", "wall-clock"];
            by_wall.extend(few);
            fleet.start("faulty", &by_wall)?
        }
    };
    for name in ["LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"] {
        fleet.set(name, "");
    }
    // Everybody has a session before it begins.
    acts::publish(&fleet, 10, 1)?;
    fleet.rest()?;
    let hosts = fleet.hosts(20_000)?;
    let hosts = hosts.to_string_lossy();
    let mut producer = fleet.start("producer", &["--hosts", &hosts, "--rate", "2000"])?;
    for (share, step) in [(8, "+3600"), (24, "-3600"), (40, "+0")] {
        fleet.wait_for_run("a share of the results", |run| {
            run.chunks > 10 && run.chunks_done >= share
        })?;
        set(step)?;
    }
    ensure!(producer.ended()?.success(), "{}", producer.said());
    let mut found = Vec::new();
    let proof = fleet.verify()?;
    if !proof.is_complete() {
        found.push(format!("{proof:?}"));
    }
    let seen = fleet.sqlite3(
        "select sum(status <> 'up'), sum(rtt_min_ms <= 0 or rtt_max_ms > 1000), max(rtt_max_ms),
                (julianday(max(probed_at)) - julianday(min(probed_at))) * 24 from report",
    )?;
    let words: Vec<&str> = seen.split('|').collect();
    if words[..2] != ["0", "0"] {
        found.push(format!("not up | not sane | longest | hours: {seen}"));
    }
    let again = fleet.sqlite3("select count(*) from chunks where publishes <> 1")?;
    if again != "0" {
        found.push(format!("{again} chunks were published again"));
    }
    let hours: f64 = words[3].parse()?;
    ensure!(hours > 1.9, "the clock was not set: {seen}");
    Ok(Outcome {
        story: format!("the longest round trip took {} ms", words[2]),
        violations: found,
    })
}

fn power(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        if promise == Promise::Broken {
            fleet.set("PINGFLEET_STORE__DURABILITY", "normal");
        }
        acts::publish(fleet, 4000, 10)?;
        let trace = fleet.folder().join("trace");
        let file = trace.to_string_lossy();
        let mut under = vec!["strace", "-D", "-f", "-y", "-xx", "-s", "4096", "-o", &file];
        under.extend(["-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg"]);
        let mut writer = fleet.start_under(&under, "consumer-writer", &["--batch-size", "100"])?;
        writer.wait_for("writer ready")?;
        let _worker = acts::worker(fleet, "worker", &["--delay", "20ms"])?;
        fleet.rest()?;
        acts::dismiss(writer)?;
        let seen = trace::read(&fs::read_to_string(&trace)?);
        ensure!(seen.acks >= 10, "only {} acks were seen", seen.acks);
        let mut found = violations(fleet, &Expected::done(SCRIPT))?;
        if seen.unsynced > 0 {
            found.push(format!(
                "{} of {} acks had no sync of the log before them",
                seen.unsynced, seen.acks
            ));
        }
        Ok(Outcome {
            story: format!("{} acks, {} syncs", seen.acks, seen.syncs),
            violations: found,
        })
    })
}
