//! Duplicate messages, contradictory results, and more than one writer or database.

use std::time::Instant;

use anyhow::{Context, ensure};
use pingfleet_broker::QueueName;

use crate::{
    actions::{self, SEED},
    deployment::Deployment,
    fault_injection::DELIVERY_COUNT,
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

/// The seed of a scripted prober with other outcomes.
const OTHER_SEED: u64 = 8;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "every-message-twice",
        fault: "the producer publishes every chunk twice, and the worker every result; one undecodable result",
        holds: "one row a target; each further result is counted as a duplicate; the database counts as many deliveries as \
                the writer's consumers received",
        control: Control {
            defect: "a row of the results changed by hand, and a delivery that is not counted",
            expected_violations: &["are not those of one probing", "deliveries received"],
        },
        run: twice,
    },
    Case {
        name: "duplicates-with-other-outcomes",
        fault: "every chunk is probed twice, by two workers with different outcomes: one after the other, and at once",
        holds: "the first result of a chunk wins, whole; the second one is counted as a duplicate, and as a contradiction if \
                a status differs",
        control: Control {
            defect: "the rows of a chunk replaced by those of the second result, as if the last result won",
            expected_violations: &["run 1 chunk 3: its 10 rows are not those of one probing"],
        },
        run: other_outcomes,
    },
    Case {
        name: "writer-in-the-wrong-folder",
        fault: "a writer with another database consumes the results",
        holds: "it names both databases, sets the results aside and keeps running; `pingfleet broker foreign` returns them",
        control: Control {
            defect: "what is set aside is purged",
            expected_violations: &["0 of 40 results are set aside", "40 are lost"],
        },
        run: wrong_folder,
    },
    Case {
        name: "two-databases-on-one-broker",
        fault: "two databases publish runs to the same queues; the first writer receives the results of both",
        holds: "each writer stores its own results; the first one sets the others aside, and logs it",
        control: Control {
            defect: "what is set aside is purged",
            expected_violations: &["0 of 20 results are set aside", "20 are lost"],
        },
        run: two_databases,
    },
    Case {
        name: "second-writer",
        fault: "a second writer on the same database with another queue, and one on the same queue with another database",
        holds: "each exits with 4 and names the first one; the first one keeps running",
        control: Control {
            defect: "a writer that takes no lock",
            expected_violations: &["a second writer is ready"],
        },
        run: second_writer,
    },
];

fn twice(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let mut writer = deployment.start("faulty_role", &["writer", "--count"])?;
        writer.wait_for_output("writer ready")?;
        let twice = ["--defect", "publish-twice"];
        let producer = actions::start_faulty_producer(deployment, 1000, 10, &twice)?;
        let worker = actions::start_worker(deployment, "worker", &twice)?;
        actions::publish_messages(deployment, QueueName::RESULTS, &[b"no result".to_vec()])?;
        ensure!(producer.wait()?.success(), "the producer gave up");
        deployment.wait_until_idle()?;
        deployment.wait_for_empty_queues()?;
        actions::terminate_cleanly(worker)?;
        writer.signal("TERM")?;
        ensure!(writer.wait_for_exit()?.success(), "{}", writer.output());
        let received = delivery_count(&writer.output())?;
        if variant == Variant::Control {
            actions::edit_database(
                deployment,
                "update results set sent = sent + 1 where chunk = 3 and position = 3;
                 update writers set taken = taken - 1, duplicates = duplicates - 1;
                 update runs set duplicates = duplicates - 1",
            )?;
        }
        let duplicates: i64 = deployment
            .sqlite3("select sum(duplicates) from run_summary")?
            .parse()?;
        let counted = deployment.sqlite3("select taken from writers")?;
        let expected = ExpectedState {
            quarantined: 1,
            ..ExpectedState::done(SEED)
        };
        let mut found = find_violations(deployment, &expected)?;
        if counted != received {
            found.push(format!(
                "{received} deliveries received, and {counted} counted"
            ));
        }
        // A chunk that is delivered again while it is in hand is probed once, but its result is still published twice.
        if !(100..=300).contains(&duplicates) {
            found.push(format!("{duplicates} duplicates of 100 chunks"));
        }
        Ok(CaseOutcome {
            summary: format!(
                "100 chunks, {duplicates} duplicates, 1 in quarantine: {received} deliveries"
            ),
            violations: found,
        })
    })
}

/// The number of deliveries that a writer with `--count` printed at its exit.
fn delivery_count(output: &str) -> anyhow::Result<String> {
    let count = output
        .lines()
        .find_map(|line| line.strip_prefix(DELIVERY_COUNT));
    Ok(count.context("it printed no delivery count")?.to_owned())
}

fn other_outcomes(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    const CHUNKS: i64 = 200;
    runner.with_deployment(|deployment| {
        let writer = actions::start_writer(deployment)?;
        let other = OTHER_SEED.to_string();
        let flags = ["--seed", &other, "--delay", "50ms", "--prefetch", "5"];
        let both = [SEED, OTHER_SEED].to_vec();

        // One after the other: the first result is the first worker's.
        let one = actions::start_worker(deployment, "one", &[])?;
        actions::publish_run(deployment, 2000, 10)?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(one)?;
        let _two = actions::start_worker(deployment, "two", &flags)?;
        actions::republish_chunks(deployment, 1)?;
        deployment.wait_for_empty_queues()?;
        let duplicates = || -> anyhow::Result<i64> {
            let counted = deployment.sqlite3("select sum(duplicates) from run_summary")?;
            Ok(counted.parse()?)
        };
        let counted = duplicates()?;
        let differing = deployment.sqlite3("select sum(contradictions) from runs")?;
        let differing: i64 = differing.parse()?;
        if variant == Variant::Control {
            // Copy the second worker's rows from another run.
            actions::publish_run(deployment, 2000, 10)?;
            deployment.wait_until_idle()?;
            actions::edit_database(
                deployment,
                "update results as r set (status, reason, sent, received, rtt_min_ns, rtt_avg_ns, rtt_max_ns, attempts) =
                 (select status, reason, sent, received, rtt_min_ns, rtt_avg_ns, rtt_max_ns, attempts from results o
                  where o.run = 2 and o.address = r.address) where run = 1 and chunk = 3",
            )?;
        }
        let mut found = find_violations(deployment, &ExpectedState::done(SEED))?;
        if counted != CHUNKS {
            found.push(format!("{counted} duplicates of {CHUNKS} chunks probed again"));
        }
        if !(1..=counted).contains(&differing) {
            found.push(format!("{differing} of {counted} duplicates are contradictions"));
        }
        if variant == Variant::Control {
            return Ok(CaseOutcome {
                summary: "a chunk with the second result".to_owned(),
                violations: found,
            });
        }

        // Both at once: all rows of a chunk come from one of them.
        let _one = actions::start_worker(deployment, "one", &["--delay", "50ms", "--prefetch", "5"])?;
        let producer = actions::start_faulty_producer(deployment, 2000, 10, &["--defect", "publish-twice"])?;
        ensure!(producer.wait()?.success(), "the producer gave up");
        deployment.wait_until_idle()?;
        deployment.wait_for_empty_queues()?;
        actions::terminate_cleanly(writer)?;
        let won = deployment.sqlite3(
            "select group_concat(n) from (select count(*) n from chunks where run = 2 group by worker)",
        )?;
        ensure!(won.contains(','), "one worker did it all");
        let more = duplicates()? - counted;
        let expected = ExpectedState {
            seeds: both,
            ..ExpectedState::default()
        };
        found.extend(find_violations(deployment, &expected)?);
        Ok(CaseOutcome {
            summary: format!(
                "{CHUNKS} chunks with the first result, {counted} duplicates with {differing} contradictions; then {won} chunks by two workers at \
                 once, {more} duplicates"
            ),
            violations: found,
        })
    })
}

/// Waits until results are set aside. In the control they are purged. Returns a violation if not all are there.
fn wait_for_set_aside(
    deployment: &Deployment,
    variant: Variant,
    results: i64,
) -> anyhow::Result<Option<String>> {
    let queue = deployment.queue("foreign");
    let count = || deployment.depth(&queue, "messages");
    actions::wait_until("results that are set aside", || Ok(count()? == results))?;
    if variant == Variant::Control {
        deployment.broker()?.purge(&queue)?;
        actions::wait_until("the purge", || Ok(count()? == 0))?;
    }
    let kept = count()?;
    Ok((kept != results).then(|| format!("{kept} of {results} results are set aside")))
}

/// Returns what is set aside for the database of this folder. In the control nothing is.
fn return_foreign(deployment: &Deployment, variant: Variant) -> anyhow::Result<()> {
    if variant == Variant::Control {
        return Ok(());
    }
    let database = deployment.sqlite3("select lower(hex(uuid)) from database")?;
    let arguments = ["broker", "foreign", "--return", &database[..8]];
    let mut command = deployment.start("pingfleet", &arguments)?;
    ensure!(command.wait_for_exit()?.success(), "{}", command.output());
    Ok(())
}

fn wrong_folder(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, 400, 10)?;
        let worker = actions::start_worker(deployment, "worker", &[])?;
        actions::wait_for_results(deployment, 40)?;
        let ours = deployment.sqlite3("select hex(uuid) from database")?;
        let mut wrong = deployment.start("consumer-writer", &["--db", "wrong.db"])?;
        wrong.wait_for_output("are set aside")?;
        let mut found = Vec::new();
        found.extend(wait_for_set_aside(deployment, variant, 40)?);
        ensure!(wrong.try_wait()?.is_none(), "{}", wrong.output());
        let output = wrong.output().to_uppercase().replace('-', "");
        ensure!(
            output.contains(&ours) && output.contains("WRONG.DB"),
            "it does not name both databases: {}",
            wrong.output()
        );
        actions::terminate_cleanly(wrong)?;
        return_foreign(deployment, variant)?;
        let writer = actions::start_writer(deployment)?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(writer)?;
        actions::terminate_cleanly(worker)?;
        found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);
        Ok(CaseOutcome {
            summary: "40 results set aside, returned, and stored by the right writer".to_owned(),
            violations: found,
        })
    })
}

fn two_databases(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let ours = deployment.folder().to_owned();
        let theirs = ours.join("theirs");
        std::fs::create_dir(&theirs)?;
        for folder in [&ours, &theirs, &ours] {
            deployment.move_database(folder);
            actions::publish_run(deployment, 200, 10)?;
        }
        let worker = actions::start_worker(deployment, "worker", &[])?;
        actions::wait_for_results(deployment, 60)?;
        actions::terminate_cleanly(worker)?;

        let mut first = deployment.start("consumer-writer", &[])?;
        first.wait_for_output("are set aside")?;
        deployment.wait_until_idle()?;
        let mut found = Vec::new();
        found.extend(wait_for_set_aside(deployment, variant, 20)?);
        actions::terminate_cleanly(first)?;
        found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);

        deployment.move_database(&theirs);
        return_foreign(deployment, variant)?;
        let second = actions::start_writer(deployment)?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(second)?;
        found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);
        Ok(CaseOutcome {
            summary: "40 results of one and 20 of the other, each in its own database".to_owned(),
            violations: found,
        })
    })
}

fn second_writer(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let both = runner.full && variant == Variant::Normal;
    runner.with_deployment(|deployment| {
        let first = actions::start_writer(deployment)?;
        let holder = format!("pid {}", first.pid());
        let began = Instant::now();
        // The other queue has no consumer, so only the lock can stop the second writer.
        deployment.set_env("PINGFLEET_BROKER__PREFIX", &deployment.queue("other"));
        let mut second = match variant {
            Variant::Normal => deployment.start("consumer-writer", &[])?,
            Variant::Control => {
                deployment.start("faulty_role", &["writer", "--defect", "no-lock"])?
            }
        };
        deployment.set_env("PINGFLEET_BROKER__PREFIX", "");
        actions::wait_until("the second writer", || {
            Ok(second.try_wait()?.is_some() || second.output().contains("writer ready"))
        })?;
        let mut found = Vec::new();
        if let Some(status) = second.try_wait()? {
            ensure!(status.code() == Some(4), "{status}: {}", second.output());
            ensure!(second.output().contains(&holder), "{}", second.output());
        } else {
            found.push("a second writer is ready on the same database".to_owned());
            second.kill()?;
        }
        let mut summary = format!("rejected after {} ms", began.elapsed().as_millis());
        if both {
            let mut other = deployment.start("consumer-writer", &["--db", "other.db"])?;
            ensure!(
                other.wait_for_exit()?.code() == Some(4),
                "{}",
                other.output()
            );
            ensure!(
                other.output().contains("already has a consumer"),
                "{}",
                other.output()
            );
            summary.push_str("; the one on the same queue waited 30 s for the first");
        }
        actions::publish_run(deployment, 400, 10)?;
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(first)?;
        found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);
        Ok(CaseOutcome {
            summary,
            violations: found,
        })
    })
}
