//! Messages that come twice, results that contradict each other, and writers that are not the one.

use std::time::Instant;

use anyhow::{Context, ensure};
use pingfleet_broker::Queue;

use crate::{
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    invariants::{Expected, violations},
    tampered::HANDED_OVER,
};

/// The script of a worker that finds something else.
const OTHER_SCRIPT: u64 = 8;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "every-message-twice",
        group: "messages",
        fault: "the producer publishes every chunk twice, and the worker every result; a result that cannot be read",
        holds: "one row a target; each result more is a duplicate, and counted; the database counts as many deliveries as \
                the writer's consumers handed over",
        control: Control {
            broken: "a row of the results changed by hand, and a delivery that is not counted",
            shown_by: &["are not those of one probing", "deliveries handed over"],
        },
        run: twice,
    },
    Case {
        name: "duplicates-with-other-outcomes",
        group: "messages",
        fault: "every chunk is probed twice, by two workers that find other outcomes: one after the other, and at once",
        holds: "the first result of a chunk wins, whole; the second one is counted",
        control: Control {
            broken: "the rows of a chunk taken from the second result, whole, as if the last one won",
            shown_by: &["run 1 chunk 3: its 10 rows are not those of one probing"],
        },
        run: other_outcomes,
    },
    Case {
        name: "writer-in-the-wrong-folder",
        group: "messages",
        fault: "a writer with another database reads the results",
        holds: "it ends with 4, names both databases, and acks nothing",
        control: Control {
            broken: "a writer that acks first",
            shown_by: &["results are left on the queue"],
        },
        run: wrong_folder,
    },
    Case {
        name: "two-databases-on-one-broker",
        group: "messages",
        fault: "two databases publish runs to the same queues; the results of both come mixed, first to the writer of one",
        holds: "each writer stores its own; the first one leaves the others' on the queue, and says so",
        control: Control {
            broken: "a first writer that acks first",
            shown_by: &["results are left on the queue", "20 are lost"],
        },
        run: two_databases,
    },
    Case {
        name: "second-writer",
        group: "messages",
        fault: "a second writer on the same database by another queue, and one on the same queue with another database",
        holds: "each ends with 4 and says who the first one is; the first one goes on",
        control: Control {
            broken: "a writer that takes no lock",
            shown_by: &["a second writer is ready"],
        },
        run: second_writer,
    },
];

fn twice(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let mut writer = fleet.start("faulty", &["writer", "--count"])?;
        writer.wait_for("writer ready")?;
        let twice = ["--sabotage", "twice"];
        let producer = acts::faulty_producer(fleet, 1000, 10, &twice)?;
        let worker = acts::worker(fleet, "worker", &twice)?;
        acts::send(fleet, Queue::Results, &[b"no result".to_vec()])?;
        ensure!(producer.wait()?.success(), "the producer gave up");
        fleet.rest()?;
        fleet.wait_for_quiet_queues()?;
        acts::dismiss(worker)?;
        writer.signal("TERM")?;
        ensure!(writer.ended()?.success(), "{}", writer.said());
        let handed_over = handed_over(&writer.said())?;
        if promise == Promise::Broken {
            acts::tamper(
                fleet,
                "update results set sent = sent + 1 where chunk = 3 and position = 3;
                 update writers set taken = taken - 1, duplicates = duplicates - 1;
                 update runs set duplicates = duplicates - 1",
            )?;
        }
        let duplicates: i64 = fleet
            .sqlite3("select sum(duplicates) from run_summary")?
            .parse()?;
        let counted = fleet.sqlite3("select taken from writers")?;
        let expected = Expected {
            quarantined: 1,
            ..Expected::done(SCRIPT)
        };
        let mut found = violations(fleet, &expected)?;
        if counted != handed_over {
            found.push(format!(
                "{handed_over} deliveries handed over, and {counted} counted"
            ));
        }
        // A chunk that comes again while it is in hand is probed once; its result is published twice all the same.
        if !(100..=300).contains(&duplicates) {
            found.push(format!("{duplicates} duplicates of 100 chunks"));
        }
        Ok(Outcome {
            story: format!(
                "100 chunks, {duplicates} duplicates, 1 in quarantine: {handed_over} deliveries"
            ),
            violations: found,
        })
    })
}

/// What a writer that counts has told of its deliveries at its end.
fn handed_over(said: &str) -> anyhow::Result<String> {
    let told = said.lines().find_map(|line| line.strip_prefix(HANDED_OVER));
    Ok(told.context("it did not tell its deliveries")?.to_owned())
}

fn other_outcomes(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    const CHUNKS: i64 = 200;
    bench.with_fleet(|fleet| {
        let writer = acts::writer(fleet)?;
        let other = OTHER_SCRIPT.to_string();
        let flags = ["--script", &other, "--delay", "50ms", "--prefetch", "5"];
        let both = [SCRIPT, OTHER_SCRIPT].to_vec();

        // One after the other: who is the first is known.
        let one = acts::worker(fleet, "one", &[])?;
        acts::publish(fleet, 2000, 10)?;
        fleet.rest()?;
        acts::dismiss(one)?;
        let _two = acts::worker(fleet, "two", &flags)?;
        acts::send_again(fleet, 1)?;
        fleet.wait_for_quiet_queues()?;
        let duplicates = || -> anyhow::Result<i64> {
            let counted = fleet.sqlite3("select sum(duplicates) from run_summary")?;
            Ok(counted.parse()?)
        };
        let counted = duplicates()?;
        if promise == Promise::Broken {
            // The second worker's findings, stored by another run.
            acts::publish(fleet, 2000, 10)?;
            fleet.rest()?;
            acts::tamper(
                fleet,
                "update results as r set (status, reason, sent, received, rtt_min_ns, rtt_avg_ns, rtt_max_ns, attempts) =
                 (select status, reason, sent, received, rtt_min_ns, rtt_avg_ns, rtt_max_ns, attempts from results o
                  where o.run = 2 and o.address = r.address) where run = 1 and chunk = 3",
            )?;
        }
        let mut found = violations(fleet, &Expected::done(SCRIPT))?;
        if counted != CHUNKS {
            found.push(format!("{counted} duplicates of {CHUNKS} chunks probed again"));
        }
        if promise == Promise::Broken {
            return Ok(Outcome {
                story: "a chunk with the second result".to_owned(),
                violations: found,
            });
        }

        // Both at once: whoever is the first has all rows of a chunk.
        let _one = acts::worker(fleet, "one", &["--delay", "50ms", "--prefetch", "5"])?;
        let producer = acts::faulty_producer(fleet, 2000, 10, &["--sabotage", "twice"])?;
        ensure!(producer.wait()?.success(), "the producer gave up");
        fleet.rest()?;
        fleet.wait_for_quiet_queues()?;
        acts::dismiss(writer)?;
        let won = fleet.sqlite3(
            "select group_concat(n) from (select count(*) n from chunks where run = 2 group by worker)",
        )?;
        ensure!(won.contains(','), "one worker did it all");
        let more = duplicates()? - counted;
        let expected = Expected {
            scripts: both,
            ..Expected::default()
        };
        found.extend(violations(fleet, &expected)?);
        Ok(Outcome {
            story: format!(
                "{CHUNKS} chunks with the first result, {counted} duplicates; then {won} chunks by two workers at \
                 once, {more} duplicates"
            ),
            violations: found,
        })
    })
}

fn wrong_folder(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        acts::publish(fleet, 400, 10)?;
        let worker = acts::worker(fleet, "worker", &[])?;
        acts::wait_for_results(fleet, 40)?;
        let ours = fleet.sqlite3("select hex(uuid) from database")?;
        let mut wrong = match promise {
            Promise::Kept => fleet.start("consumer-writer", &["--db", "wrong.db"])?,
            Promise::Broken => fleet.start(
                "faulty",
                &["writer", "--db", "wrong.db", "--sabotage", "ack-first"],
            )?,
        };
        let status = wrong.ended()?;
        let said = wrong.said().to_uppercase().replace('-', "");
        ensure!(status.code() == Some(4), "{status}: {}", wrong.said());
        ensure!(
            said.contains(&ours) && said.contains("WRONG.DB"),
            "it does not name both: {}",
            wrong.said()
        );
        let mut found = Vec::new();
        let kept = fleet.messages()?;
        if kept < 40 {
            found.push(format!("{kept} of 40 results are left on the queue"));
        }
        if promise == Promise::Kept {
            let _writer = acts::writer(fleet)?;
            fleet.rest()?;
            acts::dismiss(worker)?;
            found.extend(violations(fleet, &Expected::done(SCRIPT))?);
        }
        Ok(Outcome {
            story: "40 results left alone, and stored by the right writer".to_owned(),
            violations: found,
        })
    })
}

fn two_databases(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let ours = fleet.folder().to_owned();
        let theirs = ours.join("theirs");
        std::fs::create_dir(&theirs)?;
        for folder in [&ours, &theirs, &ours] {
            fleet.move_database(folder);
            acts::publish(fleet, 200, 10)?;
        }
        let worker = acts::worker(fleet, "worker", &[])?;
        acts::wait_for_results(fleet, 60)?;
        acts::dismiss(worker)?;

        let mut first = match promise {
            Promise::Kept => fleet.start("consumer-writer", &[])?,
            Promise::Broken => fleet.start("faulty", &["writer", "--sabotage", "ack-first"])?,
        };
        first.wait_for("it is left alone")?;
        fleet.rest()?;
        acts::dismiss(first)?;
        let mut found = violations(fleet, &Expected::done(SCRIPT))?;
        let kept = fleet.messages()?;
        if kept != 20 {
            found.push(format!("{kept} of 20 results are left on the queue"));
        }

        fleet.move_database(&theirs);
        let second = acts::writer(fleet)?;
        fleet.rest()?;
        acts::dismiss(second)?;
        found.extend(violations(fleet, &Expected::done(SCRIPT))?);
        Ok(Outcome {
            story: "40 results of one and 20 of the other, each in its own database".to_owned(),
            violations: found,
        })
    })
}

fn second_writer(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let both = bench.thorough && promise == Promise::Kept;
    bench.with_fleet(|fleet| {
        let first = acts::writer(fleet)?;
        let holder = format!("pid {}", first.pid());
        let began = Instant::now();
        // Nobody consumes the other queue: nothing but the lock stands between the two.
        fleet.set("PINGFLEET_BROKER__PREFIX", &fleet.queue("other"));
        let mut second = match promise {
            Promise::Kept => fleet.start("consumer-writer", &[])?,
            Promise::Broken => fleet.start("faulty", &["writer", "--sabotage", "no-lock"])?,
        };
        fleet.set("PINGFLEET_BROKER__PREFIX", "");
        acts::wait_until("the second writer", || {
            Ok(second.has_ended()?.is_some() || second.said().contains("writer ready"))
        })?;
        let mut found = Vec::new();
        if let Some(status) = second.has_ended()? {
            ensure!(status.code() == Some(4), "{status}: {}", second.said());
            ensure!(second.said().contains(&holder), "{}", second.said());
        } else {
            found.push("a second writer is ready on the same database".to_owned());
            second.kill()?;
        }
        let mut story = format!("refused after {} ms", began.elapsed().as_millis());
        if both {
            let mut other = fleet.start("consumer-writer", &["--db", "other.db"])?;
            ensure!(other.ended()?.code() == Some(4), "{}", other.said());
            ensure!(
                other.said().contains("already has a consumer"),
                "{}",
                other.said()
            );
            story.push_str("; the one on the same queue waited 30 s for the first");
        }
        acts::publish(fleet, 400, 10)?;
        let _worker = acts::worker(fleet, "worker", &[])?;
        fleet.rest()?;
        acts::dismiss(first)?;
        found.extend(violations(fleet, &Expected::done(SCRIPT))?);
        Ok(Outcome {
            story,
            violations: found,
        })
    })
}
