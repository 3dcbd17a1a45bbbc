//! SIGKILL of each role: at each of its boundaries, inside its transactions, and at random times.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use pingfleet_broker::QueueName;
use pingfleet_store::RunSummary;

use crate::{
    actions::{self, SEED},
    child_process::ChildProcess,
    deployment::{Deployment, Idle},
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "worker-killed-at-each-boundary",
        fault: "SIGKILL of the worker when a chunk is delivered, probed, published, confirmed, acked",
        holds: "the next worker probes the rest; nothing is published again",
        control: Control {
            defect: "a worker that acks first",
            expected_violations: &["are lost"],
        },
        run: worker,
    },
    Case {
        name: "writer-killed-at-each-boundary",
        fault: "SIGKILL of the writer when a result is delivered, after COMMIT and before the ack, after the ack",
        holds: "the next writer stores the rest; what was committed and not acked is a duplicate",
        control: Control {
            defect: "a writer that acks first",
            expected_violations: &["are lost"],
        },
        run: writer,
    },
    Case {
        name: "writer-killed-in-its-transaction",
        fault: "SIGKILL of the writer when it writes a page of rows into the log, and when it syncs the log (strace inject): \
                these stand for `row inserted` and `before COMMIT`, which the store's own tests do statement by statement",
        holds: "a chunk has all of its rows or none, although the log ends in the middle of a transaction",
        control: Control {
            defect: "a writer that acks first, and a deleted row of a stored chunk",
            expected_violations: &["are lost", "its 19 rows are not those of one probing"],
        },
        run: transaction,
    },
    Case {
        name: "producer-killed-at-each-boundary",
        fault: "SIGKILL of the producer while it plans, when a chunk is published, when it is confirmed",
        holds: "`--resume` publishes the rest; an incomplete plan is removed",
        control: Control {
            defect: "a producer that records a chunk as published before it sends it",
            expected_violations: &["are lost"],
        },
        run: producer,
    },
    Case {
        name: "random-kills",
        fault: "200 times SIGKILL of the writer, of one of two workers with a session, or of the producer, at random times \
                of a running sweep",
        holds: "nothing is lost, nothing is dead",
        control: Control {
            defect: "workers that ack first",
            expected_violations: &["are lost"],
        },
        run: random,
    },
    Case {
        name: "poison-chunk-among-fifty",
        fault: "a chunk that kills every worker that takes it; the worker is restarted each time, with a large prefetch",
        holds: "only this chunk is dead, with its reason, after 21 kills; `verify` exits 5, and `retry` completes the run",
        control: Control {
            defect: "a worker without slow start",
            expected_violations: &["chunks are dead instead of 1"],
        },
        run: poison,
    },
];

fn worker(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let passings: &[u32] = runner.pick(&[1, 2, 25], &[7]);
    runner.with_deployment(|deployment| {
        let _writer = actions::start_writer(deployment)?;
        let mut kills = 0;
        'all: for boundary in ["delivered", "probed", "published", "confirmed", "acked"] {
            for passing in passings {
                kills += 1;
                actions::publish_run(deployment, 400, 10)?;
                let at = format!("{boundary}:{passing}");
                let mut faults = vec!["--kill-at", &at];
                if variant == Variant::Control {
                    faults.extend(["--defect", "ack-first"]);
                }
                actions::start_worker(deployment, "doomed", &faults)?.expect_sigkill()?;
                let survivor = actions::start_worker(deployment, "survivor", &[])?;
                let idle = deployment.wait_until_idle()?;
                actions::terminate_cleanly(survivor)?;
                if idle == Idle::QueuesEmpty {
                    break 'all;
                }
            }
        }
        let redelivered = deployment.sqlite3("select sum(redelivered) from run_summary")?;
        Ok(CaseOutcome {
            summary: format!("{kills} kills, {redelivered} results of redelivered chunks"),
            violations: find_violations(deployment, &ExpectedState::done(SEED))?,
        })
    })
}

fn writer(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let passings: &[u32] = runner.pick(&[1, 2, 3], &[2]);
    runner.with_deployment(|deployment| {
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        let mut kills = 0;
        for boundary in ["delivered", "acking", "acked"] {
            for passing in passings {
                kills += 1;
                actions::publish_run(deployment, 400, 10)?;
                actions::wait_for_results(deployment, 20)?;
                let at = format!("{boundary}:{passing}");
                let mut arguments = vec!["writer", "--batch-size", "50", "--kill-at", &at];
                if variant == Variant::Control {
                    arguments.extend(["--defect", "ack-first"]);
                }
                deployment
                    .start("faulty_role", &arguments)?
                    .expect_sigkill()?;
            }
        }
        finish_writing(deployment, &format!("{kills} kills"))
    })
}

/// Has a writer without faults store the rest, then checks the invariants.
fn finish_writing(deployment: &Deployment, summary: &str) -> anyhow::Result<CaseOutcome> {
    finish(deployment)?;
    judge(deployment, summary)
}

fn finish(deployment: &Deployment) -> anyhow::Result<()> {
    let writer = actions::start_writer(deployment)?;
    deployment.wait_until_idle()?;
    actions::terminate_cleanly(writer)
}

fn judge(deployment: &Deployment, summary: &str) -> anyhow::Result<CaseOutcome> {
    let found = find_violations(deployment, &ExpectedState::done(SEED))?;
    let duplicates = deployment.sqlite3("select sum(duplicates) from run_summary")?;
    Ok(CaseOutcome {
        summary: format!("{summary}, {duplicates} duplicates"),
        violations: found,
    })
}

fn transaction(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let kill_points: &[(&str, u32)] = runner.pick(
        &[
            ("pwrite64", 12),
            ("pwrite64", 13),
            ("pwrite64", 20),
            ("pwrite64", 45),
            ("pwrite64", 90),
            ("fsync", 4),
            ("fsync", 5),
            ("fsync", 6),
            ("fsync", 8),
        ],
        &[("pwrite64", 45), ("pwrite64", 51), ("fsync", 6)],
    );
    runner.with_deployment(|deployment| {
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        let (mut kills, mut inside) = (0, 0);
        // How many pages a transaction writes changes with its rows: if all kills were between two, others follow.
        let more = (48..90).step_by(5).map(|number| ("pwrite64", number));
        for (call, number) in kill_points.iter().copied().chain(more) {
            if kills >= kill_points.len() && inside > 0 {
                break;
            }
            kills += 1;
            actions::publish_run(deployment, 1000, 20)?;
            actions::wait_for_results(deployment, 40)?;
            let inject = format!("inject={call}:signal=SIGKILL:when={number}");
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let small = ["--batch-size", "500"];
            let doomed = match variant {
                Variant::Normal => deployment.start_with_wrapper(&under, "consumer-writer", &small),
                Variant::Control => {
                    let mut arguments = vec!["writer", "--defect", "ack-first"];
                    arguments.extend(small);
                    deployment.start_with_wrapper(&under, "faulty_role", &arguments)
                }
            };
            doomed?.expect_sigkill()?;
            let pages = uncommitted_pages(&deployment.database())?;
            inside += u32::from(pages > MAX_LIVENESS_PAGES);
        }
        ensure!(inside > 0, "no kill left a part of a batch in the log");
        finish(deployment)?;
        if variant == Variant::Control {
            actions::edit_database(
                deployment,
                "delete from results where (run, chunk, position) = (select run, chunk, position from results limit 1)",
            )?;
        }
        judge(
            deployment,
            &format!("{kills} kills, {inside} with a part of a batch in the log"),
        )
    })
}

/// A transaction that only records liveness changes one page of `writers` and one of `workers`. A transaction with rows
/// changes more.
const MAX_LIVENESS_PAGES: usize = 3;

/// Counts the pages at the end of the write-ahead log that no COMMIT follows: they belong to the transaction in which the
/// writer was killed. Pages of an earlier use of the log have another salt
/// (<https://www.sqlite.org/fileformat2.html#walformat>).
fn uncommitted_pages(database: &Path) -> anyhow::Result<usize> {
    const HEADER: usize = 32;
    const FRAME_HEADER: usize = 24;
    let log = std::fs::read(database.with_extension("db-wal"))?;
    ensure!(log.len() > HEADER, "a log without pages");
    let number = |at: usize| {
        log[at..at + 4]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let frame = FRAME_HEADER + number(8);
    let salt = &log[16..24];
    let mut pages = 0;
    let mut at = HEADER;
    while at + frame <= log.len() && log[at + 8..at + 16] == *salt {
        let ends = number(at + 4) != 0;
        pages = if ends { 0 } else { pages + 1 };
        at += frame;
    }
    Ok(pages)
}

fn producer(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let passings: &[u32] = runner.pick(&[1, 100, 101, 390], &[250]);
    let writes: &[u32] = runner.pick(&[10, 25, 40], &[25]);
    runner.with_deployment(|deployment| {
        let _writer = actions::start_writer(deployment)?;
        let _worker = actions::start_worker(deployment, "worker", &[])?;
        let mut kills = 0;
        for write in writes.iter().filter(|_| variant == Variant::Normal) {
            kills += 1;
            let inject = format!("inject=pwrite64:signal=SIGKILL:when={write}");
            let hosts = deployment.hosts(8000)?;
            let hosts = hosts.to_string_lossy();
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let arguments = ["--detach", "--hosts", &hosts, "--chunk-size", "20"];
            deployment
                .start_with_wrapper(&under, "producer", &arguments)?
                .expect_sigkill()?;
            ensure!(
                deployment.sqlite3("select count(*) from runs where state = 'planning'")? == "1",
                "the producer was not killed while it planned"
            );
            // The next producer removes the incomplete plan, and makes its own.
            actions::publish_run(deployment, 400, 20)?;
        }
        for boundary in ["published", "confirmed"] {
            for passing in passings {
                kills += 1;
                let at = format!("{boundary}:{passing}");
                let mut faults = vec!["--kill-at", &at];
                if variant == Variant::Control {
                    faults = vec![
                        "--kill-at",
                        "published:250",
                        "--defect",
                        "confirm-before-send",
                    ];
                }
                actions::start_faulty_producer(deployment, 4000, 10, &faults)?.expect_sigkill()?;
                let resumed = deployment.start("producer", &["--resume", "latest", "--detach"])?;
                ensure!(resumed.wait()?.success(), "it cannot be resumed");
                if deployment.wait_until_idle()? == Idle::QueuesEmpty {
                    break;
                }
            }
        }
        Ok(CaseOutcome {
            summary: format!("{kills} kills"),
            violations: find_violations(deployment, &ExpectedState::done(SEED))?,
        })
    })
}

/// The processes of a sweep. Any of them may be killed.
struct Sweep<'a> {
    deployment: &'a Deployment,
    flags: &'a [&'a str],
    /// The writer, and two workers.
    programs: [Option<ChildProcess>; 3],
    runs: u32,
    /// How many writers, workers and producers were running when they were killed.
    kills: [u32; 3],
}

impl<'a> Sweep<'a> {
    fn start(deployment: &'a Deployment, flags: &'a [&'a str]) -> anyhow::Result<Self> {
        let program = |which| Self::program(deployment, flags, which);
        Ok(Self {
            deployment,
            flags,
            programs: [Some(program(0)?), Some(program(1)?), Some(program(2)?)],
            runs: 0,
            kills: [0; 3],
        })
    }

    /// Starts a program, and waits until it has its session: killed before that, it has nothing to lose.
    fn program(
        deployment: &Deployment,
        flags: &[&str],
        which: usize,
    ) -> anyhow::Result<ChildProcess> {
        if which == 0 {
            let writer = actions::start_writer(deployment)?;
            actions::wait_for_consumer(deployment, QueueName::RESULTS)?;
            return Ok(writer);
        }
        let mut worker = actions::start_worker(deployment, "worker", flags)?;
        worker.wait_for_output("worker ready")?;
        Ok(worker)
    }

    /// Publishes one more run. The producer may be killed at a random time.
    fn publish(&mut self, dice: &mut fastrand::Rng) -> anyhow::Result<()> {
        self.runs += 1;
        let mut producer = actions::start_producer(self.deployment, 2000, 5, &["--detach"])?;
        if dice.bool() {
            std::thread::sleep(Duration::from_millis(dice.u64(20..400)));
            if producer.kill_if_running()? {
                self.kills[2] += 1;
            }
            let resumed = self
                .deployment
                .start("producer", &["--resume", "latest", "--detach"])?;
            // Any exit code is right: a producer that was killed before its plan was complete leaves nothing to resume.
            resumed.wait()?;
            return Ok(());
        }
        ensure!(producer.wait_for_exit()?.success(), "{}", producer.output());
        Ok(())
    }

    fn kill(&mut self, which: usize) -> anyhow::Result<()> {
        if let Some(program) = self.programs[which].take() {
            // It is still running: none of them exits by itself.
            program.kill()?;
            self.kills[usize::from(which > 0)] += 1;
        }
        self.programs[which] = Some(Self::program(self.deployment, self.flags, which)?);
        Ok(())
    }
}

fn random(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let wanted = match variant {
        Variant::Normal => runner.pick(200, 12),
        Variant::Control => 12,
    };
    let seed = fastrand::u64(..);
    let mut dice = fastrand::Rng::with_seed(seed);
    runner.with_deployment(|deployment| {
        let mut flags = vec!["--prefetch", "8", "--delay", "40ms"];
        if variant == Variant::Control {
            flags.extend(["--defect", "ack-first"]);
        }
        let mut sweep = Sweep::start(deployment, &flags)?;
        while sweep.kills.iter().sum::<u32>() < wanted {
            let outstanding = match deployment.store().and_then(|store| Ok(store.summaries()?)) {
                Ok(runs) => runs.iter().map(RunSummary::outstanding).sum::<i64>(),
                Err(_) => 0,
            };
            if outstanding < 200 {
                sweep.publish(&mut dice)?;
                continue;
            }
            // Long enough for a worker to settle its prefetch: a chunk may be redelivered at most twenty times.
            std::thread::sleep(Duration::from_millis(dice.u64(100..700)));
            sweep.kill(dice.usize(0..3))?;
        }
        deployment.wait_until_idle()?;
        let found = find_violations(deployment, &ExpectedState::done(SEED))?;
        let counts = deployment.sqlite3("select sum(redelivered), sum(duplicates) from run_summary")?;
        let [writer, workers, producers] = sweep.kills;
        Ok(CaseOutcome {
            summary: format!(
                "{} kills in {} runs: {writer} of the writer, {workers} of workers, {producers} of producers (seed \
                 {seed}); redelivered | duplicates: {counts}",
                writer + workers + producers,
                sweep.runs
            ),
            violations: found,
        })
    })
}

/// How many workers a chunk kills before it is dead: each kill is one return, and the broker dead-letters it at the 21st.
const KILLS_OF_A_CHUNK: u32 = 21;

fn poison(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let writer = actions::start_writer(deployment)?;
        actions::publish_run(deployment, 510, 10)?;
        let mut faults = vec![
            "--poison",
            "10.0.0.200",
            "--prefetch",
            "60",
            "--delay",
            "100ms",
        ];
        if variant == Variant::Control {
            faults.extend(["--defect", "no-slow-start"]);
        }
        let began = Instant::now();
        let mut kills = 0;
        // The worker is restarted each time, as a service manager does.
        while kills < 40 && !deployment.is_settled_after_pause()? {
            let mut worker = actions::start_worker(deployment, "doomed", &faults)?;
            loop {
                if worker.try_wait()?.is_some() {
                    worker.expect_sigkill()?;
                    kills += 1;
                    break;
                }
                if deployment.is_settled_after_pause()? {
                    // The last kill may have settled the run since the look at the worker.
                    kills += u32::from(worker.try_wait()?.is_some());
                    break;
                }
                ensure!(began.elapsed() < crate::MAX_WAIT, "{}", worker.output());
            }
        }
        let expected = ExpectedState {
            dead: 1,
            ..ExpectedState::done(SEED)
        };
        let mut found = find_violations(deployment, &expected)?;
        if variant == Variant::Normal && kills != KILLS_OF_A_CHUNK {
            found.push(format!("dead after it killed {kills} workers"));
        }
        let reason =
            deployment.sqlite3("select distinct dead_reason from chunks where state = 2")?;
        if variant == Variant::Normal {
            ensure!(reason == "delivery_limit", "dead letter reason {reason:?}");
            let mut verify = deployment.start("pingfleet", &["verify"])?;
            ensure!(
                verify.wait_for_exit()?.code() == Some(5)
                    && verify.output().contains("delivery_limit"),
                "{}",
                verify.output()
            );
            let _clean = actions::start_worker(deployment, "clean", &[])?;
            let mut retry = deployment.start("pingfleet", &["retry"])?;
            ensure!(
                retry.wait_for_exit()?.code() == Some(0),
                "{}",
                retry.output()
            );
            found.extend(find_violations(deployment, &ExpectedState::done(SEED))?);
        }
        actions::terminate_cleanly(writer)?;
        Ok(CaseOutcome {
            summary: format!("it killed {kills} workers, dead letter reason {reason}"),
            violations: found,
        })
    })
}
