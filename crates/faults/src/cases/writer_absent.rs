//! The writer is absent while results pile up.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::{
    actions::{self, SEED},
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "writer-down-while-a-producer-waits",
        fault: "the writer is down for 90 s while all results wait and the producer checks for overdue chunks",
        holds: "no chunk is published again",
        control: Control {
            defect: "a producer that sees empty queues and a live writer",
            expected_violations: &["published again"],
        },
        run: writer_down,
    },
    Case {
        name: "writer-returns-to-a-million-results",
        fault: "the writer starts when the results of a million targets wait",
        holds: "its memory stays far below their size, and every row is stored",
        control: Control {
            defect: "a writer with an unlimited prefetch",
            expected_violations: &["faulty_role had "],
        },
        run: million,
    },
];

/// The memory limit of a program while the results of a million targets wait, which are 80 MB. A writer holds its prefetch
/// of them, the database's cache and a batch.
const WITH_A_MILLION_MIB: u64 = 96;

/// Chunks of a run that are all published while none is settled: the smallest publish window has 64.
const CHUNKS: u32 = 60;

fn writer_down(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let lasting = runner.pick(90, 30);
    let targets = 10 * CHUNKS;
    runner.with_deployment(|deployment| {
        let writer = actions::start_writer(deployment)?;
        let fast = ["--timeout", "100ms", "--retries", "0"];
        let mut producer = match variant {
            Variant::Normal => actions::start_producer(deployment, targets, 10, &fast)?,
            Variant::Control => {
                let mut flags = vec!["--wait", "--defect", "report-empty-queues"];
                flags.extend(fast);
                actions::start_faulty_producer(deployment, targets, 10, &flags)?
            }
        };
        deployment.wait_for_run("the run to be planned", |run| {
            run.chunks == i64::from(CHUNKS)
        })?;
        writer.kill()?;
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        actions::wait_for_results(deployment, i64::from(CHUNKS))?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(lasting) {
            ensure!(producer.try_wait()?.is_none(), "{}", producer.output());
            if variant == Variant::Control {
                actions::edit_database(
                    deployment,
                    "update writers set seen_us = 1000000 * cast(strftime('%s', 'now') as integer)",
                )?;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let _writer = actions::start_writer(deployment)?;
        let status = producer.wait_for_exit()?;
        ensure!(status.success(), "{status}: {}", producer.output());
        let mut found = find_violations(deployment, &ExpectedState::done(SEED))?;
        let again = deployment.sqlite3("select count(*) from chunks where publishes <> 1")?;
        if again != "0" {
            found.push(format!("{again} chunks were published again"));
        }
        Ok(CaseOutcome {
            summary: format!("down for {lasting} s"),
            violations: found,
        })
    })
}

fn million(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    const TARGETS: u32 = 1_000_000;
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, TARGETS, 250)?;
        let worker = actions::start_worker(deployment, "worker", &["--delay", "0ms"])?;
        actions::wait_for_results(deployment, i64::from(TARGETS / 250))?;
        actions::terminate_cleanly(worker)?;
        deployment.limit_memory(WITH_A_MILLION_MIB);
        let began = Instant::now();
        let writer = match variant {
            Variant::Normal => actions::start_writer(deployment)?,
            Variant::Control => deployment.start("faulty_role", &["writer", "--defect", "unlimited-prefetch"])?,
        };
        deployment.wait_until_idle()?;
        let took = began.elapsed().as_secs_f64();
        let (memory, threads) = deployment.peak(writer.name());
        actions::terminate_cleanly(writer)?;
        let wal = deployment.peak_wal_bytes() >> 20;
        Ok(CaseOutcome {
            summary: format!(
                "{TARGETS} rows in {took:.0} s; at most {memory} MiB, {threads} threads, and {wal} MiB of write-ahead log"
            ),
            violations: find_violations(deployment, &ExpectedState::done(SEED))?,
        })
    })
}
