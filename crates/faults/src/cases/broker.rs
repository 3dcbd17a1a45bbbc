//! Harm to the broker: killed again and again, its queues purged, deleted, unbound and full, its alarms.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lapin::{Connection, ConnectionProperties, types::FieldTable};

use crate::{
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    fleet::{Fleet, Rest},
    invariants::{Expected, violations},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "broker-frozen-and-killed-while-chunks-are-published",
        group: "broker",
        fault: "SIGSTOP of the broker while the producer publishes, SIGKILL, a new start",
        holds: "what was not confirmed is published again",
        control: Control {
            broken: "a producer that takes what it sent for stored",
            shown_by: &["are lost"],
        },
        run: frozen,
    },
    Case {
        name: "broker-killed-again-and-again",
        group: "broker",
        fault: "SIGKILL and a new start of the broker, five times in a running sweep",
        holds: "every role finds it again; nothing is lost, so nothing is published again",
        control: Control {
            broken: "workers that take for stored what they have not yet sent",
            shown_by: &["chunks were published again"],
        },
        run: killed,
    },
    Case {
        name: "queues-purged",
        group: "broker",
        fault: "`work` and `results` purged in a running sweep",
        holds: "the waiting producer publishes what is overdue from the database",
        control: Control {
            broken: "nobody waits",
            shown_by: &["are lost"],
        },
        run: |bench, promise| lost_queues(bench, promise, "purge_queue"),
    },
    Case {
        name: "queues-deleted",
        group: "broker",
        fault: "`work` and `results` deleted in a running sweep",
        holds: "the roles declare them again; the waiting producer publishes what is overdue",
        control: Control {
            broken: "nobody waits",
            shown_by: &["are lost"],
        },
        run: |bench, promise| lost_queues(bench, promise, "delete_queue"),
    },
    Case {
        name: "results-unbound",
        group: "broker",
        fault: "the binding of `results` removed in a running sweep: its messages are unroutable",
        holds: "a returned result is no stored one; it is published again once the worker has bound again",
        control: Control {
            broken: "a worker that takes what it sent for stored",
            shown_by: &["are lost"],
        },
        run: unbound,
    },
    Case {
        name: "results-refused",
        group: "broker",
        fault: "a policy bounds `results` to five messages while the writer is away: the broker refuses the rest",
        holds: "the worker keeps what is refused, and publishes the same bytes again; nothing is probed again",
        control: Control {
            broken: "a worker that takes what it sent for stored",
            shown_by: &["are lost"],
        },
        run: refused,
    },
    Case {
        name: "alarms-longer-than-a-heartbeat",
        group: "broker",
        fault: "memory alarm and disk alarm for 40 s, in which no chunk is done; SIGTERM of a worker, the writer and a \
                waiting producer, SIGKILL of a worker meanwhile",
        holds: "SIGTERM ends each role within its deadline; the run completes when the alarm is over",
        control: Control {
            broken: "workers that ack first",
            shown_by: &["are lost"],
        },
        run: alarms,
    },
];

fn done(fleet: &Fleet, story: String) -> anyhow::Result<Outcome> {
    Ok(Outcome {
        story,
        violations: violations(fleet, &Expected::done(SCRIPT))?,
    })
}

/// The flags of a worker that takes what it sent for stored, if this is the control.
fn believing(promise: Promise) -> &'static [&'static str] {
    match promise {
        Promise::Kept => &[],
        Promise::Broken => &["--sabotage", "believe"],
    }
}

fn noted(fleet: &Fleet) -> anyhow::Result<i64> {
    let noted = fleet.sqlite3("select count(*) from chunks where publishes > 0")?;
    Ok(noted.parse()?)
}

fn frozen(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    const CHUNKS: u32 = 3000;
    bench.with_fleet(|fleet| {
        // The broker notes on disk where a queue lies some moments after it was made. One that it had made just before
        // its death has no leader ever after.
        acts::publish(fleet, 10, 1)?;
        let writer = acts::writer(fleet)?;
        let worker = acts::worker(fleet, "worker", &[])?;
        fleet.rest()?;
        acts::dismiss(worker)?;
        acts::dismiss(writer)?;
        std::thread::sleep(Duration::from_secs(3));
        let producer = acts::faulty_producer(fleet, CHUNKS, 1, believing(promise))?;
        acts::wait_until("the first chunks to be noted", || Ok(noted(fleet)? >= 310))?;
        fleet.rabbit()?.freeze()?;
        let before = noted(fleet)?;
        if promise == Promise::Broken {
            // It goes on for as long as the connection takes what it sends.
            let began = Instant::now();
            while noted(fleet)? < i64::from(CHUNKS) && began.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(crate::LOOK);
            }
        }
        fleet.rabbit()?.kill();
        fleet.rabbit()?.start_again()?;
        ensure!(producer.wait()?.success(), "the producer gave up");
        let _writer = acts::writer(fleet)?;
        let _worker = acts::worker(fleet, "worker", &["--delay", "0ms"])?;
        fleet.rest()?;
        done(
            fleet,
            format!(
                "frozen when {} of {CHUNKS} chunks were confirmed",
                before - 10
            ),
        )
    })
}

fn killed(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let (kills, sabotage) = match promise {
        Promise::Kept => (bench.pick(5, 2), &[][..]),
        Promise::Broken => (1, &["--sabotage", "note-first"][..]),
    };
    bench.with_fleet(|fleet| {
        let _writer = acts::writer(fleet)?;
        let mut flags = vec!["--delay", "150ms", "--prefetch", "8"];
        flags.extend(sabotage);
        let _one = acts::worker(fleet, "one", &flags)?;
        let _two = acts::worker(fleet, "two", &flags)?;
        // What is lost is overdue soon.
        let fast = ["--timeout", "100ms", "--retries", "0"];
        let producer = acts::start_producer(fleet, 1000 * kills, 1, &fast)?;
        let mut recovered = Vec::new();
        for kill in 1..=kills {
            let share = i64::from(1000 * kill - 800);
            fleet.wait_for_run("a share of the results", |run| run.chunks_done >= share)?;
            fleet.rabbit()?.kill();
            fleet.rabbit()?.start_again()?;
            let began = Instant::now();
            let before = fleet.store()?.summary(1)?.chunks_done;
            fleet.wait_for_run("more results", |run| run.chunks_done > before + 20)?;
            recovered.push(began.elapsed().as_secs());
        }
        ensure!(producer.wait()?.success(), "the producer gave up");
        let mut outcome = done(
            fleet,
            format!("{kills} kills; results again after {recovered:?} s"),
        )?;
        let again = fleet.sqlite3("select count(*) from chunks where publishes <> 1")?;
        if again != "0" {
            let found = format!("{again} chunks were published again");
            outcome.violations.push(found);
        }
        Ok(outcome)
    })
}

fn lost_queues(bench: &mut Bench, promise: Promise, command: &str) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let _writer = acts::writer(fleet)?;
        let _worker = acts::worker(fleet, "worker", &["--delay", "200ms", "--prefetch", "4"])?;
        let detach: &[&str] = match promise {
            Promise::Kept => &[],
            Promise::Broken => &["--detach"],
        };
        let producer = acts::start_producer(fleet, 2000, 10, detach)?;
        fleet.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        for queue in ["work", "results"] {
            let queue = fleet.queue(queue);
            fleet.broker()?.ctl(&[command, &queue])?;
        }
        ensure!(producer.wait()?.success(), "the producer gave up");
        fleet.rest()?;
        let again = fleet.sqlite3("select count(*) from chunks where publishes > 1")?;
        ensure!(
            promise == Promise::Broken || again != "0",
            "it came too late to cost anything"
        );
        done(fleet, format!("{again} of 200 chunks published again"))
    })
}

/// Takes away what brings results to their queue.
fn unbind(fleet: &Fleet) -> anyhow::Result<()> {
    let url = fleet.broker()?.url();
    let queue = fleet.queue("results");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let properties = ConnectionProperties::default();
            let url = url.trim_end_matches('/');
            let connection = Connection::connect(url, properties).await?;
            let channel = connection.create_channel().await?;
            let name = queue.as_str();
            channel
                .queue_unbind(name.into(), name.into(), name.into(), FieldTable::default())
                .await?;
            connection.close(200, "done".into()).await
        })
        .context("cannot unbind the queue")
}

fn unbound(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let _writer = acts::writer(fleet)?;
        let mut flags = vec!["--delay", "100ms", "--prefetch", "4"];
        flags.extend(believing(promise));
        acts::publish(fleet, 2000, 10)?;
        let worker = acts::worker(fleet, "worker", &flags)?;
        fleet.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        unbind(fleet)?;
        fleet.rest()?;
        let bound_again = worker.said().contains("no queue is bound");
        ensure!(
            promise == Promise::Broken || bound_again,
            "nothing was returned: {}",
            worker.said()
        );
        done(fleet, "a result was returned, and stored later".to_owned())
    })
}

fn refused(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        acts::publish(fleet, 400, 10)?;
        let pattern = format!("^{}$", fleet.queue("results"));
        let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
        let name = fleet.queue("bound");
        fleet.broker()?.ctl(&[
            "set_policy",
            "--apply-to",
            "queues",
            &name,
            &pattern,
            policy,
        ])?;
        // It tells of each chunk that it takes only when it is asked for more.
        let mut flags = vec!["-v"];
        flags.extend(believing(promise));
        let mut worker = acts::worker(fleet, "worker", &flags)?;
        if promise == Promise::Kept {
            worker.wait_for("result not stored")?;
        } else {
            // All of the work is acked, whatever became of its results.
            acts::wait_for_results(fleet, 5)?;
            let work = fleet.queue("work");
            acts::wait_until("the work to be acked", || {
                Ok(fleet.depth(&work, "messages")? == 0)
            })?;
        }
        let _writer = acts::writer(fleet)?;
        fleet.rest()?;
        fleet.broker()?.ctl(&["clear_policy", &name])?;
        let said = worker.said();
        let mut outcome = done(
            fleet,
            format!("{} refusals", said.matches("result not stored").count()),
        )?;
        let probed = said.matches("chunk taken").count();
        if probed != 40 {
            outcome
                .violations
                .push(format!("{probed} chunks taken instead of 40"));
        }
        acts::dismiss(worker)?;
        Ok(outcome)
    })
}

fn chunks_done(fleet: &Fleet) -> anyhow::Result<i64> {
    let store = fleet.store()?;
    Ok(store.summary(store.find_run("latest")?)?.chunks_done)
}

/// Waits until no chunk has become done for three probings: what was published before the alarm is stored. Tells how
/// many are done.
fn stands_still(fleet: &Fleet) -> anyhow::Result<i64> {
    let mut seen = (chunks_done(fleet)?, Instant::now());
    acts::wait_until("the alarm to be in force", || {
        let done = chunks_done(fleet)?;
        if done != seen.0 {
            seen = (done, Instant::now());
        }
        Ok(seen.1.elapsed() >= Duration::from_secs(3))
    })?;
    Ok(seen.0)
}

fn alarms(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let lasting = match promise {
        Promise::Kept => bench.pick(40, 4),
        Promise::Broken => 4,
    };
    bench.with_fleet(|fleet| {
        let writer = acts::writer(fleet)?;
        let flags: &[&str] = match promise {
            Promise::Kept => &["--delay", "1s", "--prefetch", "16"],
            // What acks first takes all there is at once: it is still probing when the alarm comes.
            Promise::Broken => &["--delay", "10s", "--sabotage", "ack-first"],
        };
        let mut producer = acts::start_producer(fleet, 4000, 10, &[])?;
        let leaving = acts::worker(fleet, "leaving", flags)?;
        let doomed = acts::worker(fleet, "doomed", flags)?;
        if promise == Promise::Kept {
            fleet.wait_for_run("first results", |run| run.chunks_done >= 20)?;
        } else {
            fleet.wait_for_run("the run", |_| true)?;
            acts::wait_until("all chunks to be published", || {
                Ok(fleet.sqlite3("select count(*) from chunks where state = 1")? == "400")
            })?;
        }
        fleet
            .broker()?
            .ctl(&["set_vm_memory_high_watermark", "0.000001"])?;
        fleet.broker()?.ctl(&["set_disk_free_limit", "900000GB"])?;
        let before = stands_still(fleet)?;
        std::thread::sleep(Duration::from_secs(lasting));
        let mut late = Vec::new();
        let after = chunks_done(fleet)?;
        if after != before || after >= 400 {
            late.push(format!("{before} of 400 chunks were done, and {after} at the end of the alarm"));
        }
        let began = Instant::now();
        producer.signal("TERM")?;
        let status = producer.ended()?;
        let gave_up = began.elapsed();
        // 130: interrupted, with the state saved.
        if status.code() != Some(130) || gave_up > Duration::from_secs(30) {
            let said = producer.said();
            late.push(format!("the producer: {status} {} s after SIGTERM: {said}", gave_up.as_secs()));
        }
        // 30 s of draining, and some seconds for saying farewell to a broker that does not listen.
        let took = acts::leaves(leaving, 45, &mut late)?;
        let wrote = acts::leaves(writer, 30, &mut late)?;
        doomed.kill()?;
        fleet
            .broker()?
            .ctl(&["set_vm_memory_high_watermark", "0.8"])?;
        fleet.broker()?.ctl(&["set_disk_free_limit", "1MB"])?;
        let _writer = acts::writer(fleet)?;
        let _worker = acts::worker(fleet, "worker", &[])?;
        let rest = fleet.rest()?;
        let mut outcome = done(
            fleet,
            format!(
                "alarms for {lasting} s at {before} of 400 chunks; the producer left after {} s, a worker after {took} s, \
                 the writer after {wrote} s",
                gave_up.as_secs()
            ),
        )?;
        outcome.violations.extend(late);
        if rest == Rest::Quiet {
            outcome
                .violations
                .push("it came to rest unsettled".to_owned());
        }
        Ok(outcome)
    })
}
