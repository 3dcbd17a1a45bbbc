//! SIGKILL of each role: at each of its boundaries, inside its transactions, and at random moments.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use pingfleet_broker::Queue;
use pingfleet_store::RunSummary;

use crate::{
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    fleet::{Fleet, Rest},
    invariants::{Expected, violations},
    program::Program,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "worker-killed-at-each-boundary",
        group: "processes",
        fault: "SIGKILL of the worker when a chunk is delivered, probed, published, confirmed, acked",
        holds: "the next worker does the rest; nothing is published again",
        control: Control {
            broken: "a worker that acks first",
            shown_by: &["are lost"],
        },
        run: worker,
    },
    Case {
        name: "writer-killed-at-each-boundary",
        group: "processes",
        fault: "SIGKILL of the writer when a result is delivered, after COMMIT and before the ack, after the ack",
        holds: "the next writer stores the rest; what was committed and not acked is a duplicate",
        control: Control {
            broken: "a writer that acks first",
            shown_by: &["are lost"],
        },
        run: writer,
    },
    Case {
        name: "writer-killed-in-its-transaction",
        group: "processes",
        fault: "SIGKILL of the writer when it writes a page of rows into the log, and when it syncs the log (strace inject): \
                these stand for `row inserted` and `before COMMIT`, which the store's own tests do statement by statement",
        holds: "a chunk has all of its rows or none, although the log was left with a transaction that does not end",
        control: Control {
            broken: "a writer that acks first, and a row of a stored chunk taken away",
            shown_by: &["are lost", "its 19 rows are not those of one probing"],
        },
        run: transaction,
    },
    Case {
        name: "producer-killed-at-each-boundary",
        group: "processes",
        fault: "SIGKILL of the producer while it plans, when a chunk is published, when it is confirmed",
        holds: "`--resume` publishes the rest; a plan that does not stand is removed",
        control: Control {
            broken: "a producer that notes a chunk before it publishes it",
            shown_by: &["are lost"],
        },
        run: producer,
    },
    Case {
        name: "random-kills",
        group: "processes",
        fault: "SIGKILL of writer or one of two workers with a session, or producer, at random moments of a running \
                sweep: 200 of processes that ran",
        holds: "nothing is lost, nothing is dead",
        control: Control {
            broken: "workers that ack first",
            shown_by: &["are lost"],
        },
        run: random,
    },
    Case {
        name: "poison-chunk-among-fifty",
        group: "processes",
        fault: "a chunk that kills whatever worker takes it, which is started again and again, with a full prefetch",
        holds: "it alone is dead, with its reason, after 21 kills; `verify` exits 5, and `retry` completes the run",
        control: Control {
            broken: "a worker without slow start",
            shown_by: &["chunks are dead instead of 1"],
        },
        run: poison,
    },
];

fn worker(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let passings: &[u32] = bench.pick(&[1, 2, 25], &[7]);
    bench.with_fleet(|fleet| {
        let _writer = acts::writer(fleet)?;
        let mut kills = 0;
        'all: for boundary in ["delivered", "probed", "published", "confirmed", "acked"] {
            for passing in passings {
                kills += 1;
                acts::publish(fleet, 400, 10)?;
                let at = format!("{boundary}:{passing}");
                let mut faults = vec!["--kill-at", &at];
                if promise == Promise::Broken {
                    faults.extend(["--sabotage", "ack-first"]);
                }
                acts::worker(fleet, "doomed", &faults)?.killed()?;
                let survivor = acts::worker(fleet, "survivor", &[])?;
                let rest = fleet.rest()?;
                acts::dismiss(survivor)?;
                if rest == Rest::Quiet {
                    break 'all;
                }
            }
        }
        let redelivered = fleet.sqlite3("select sum(redelivered) from run_summary")?;
        Ok(Outcome {
            story: format!("{kills} kills, {redelivered} results of redelivered chunks"),
            violations: violations(fleet, &Expected::done(SCRIPT))?,
        })
    })
}

fn writer(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let passings: &[u32] = bench.pick(&[1, 2, 3], &[2]);
    bench.with_fleet(|fleet| {
        let _worker = acts::worker(fleet, "worker", &[])?;
        let mut kills = 0;
        for boundary in ["delivered", "acking", "acked"] {
            for passing in passings {
                kills += 1;
                acts::publish(fleet, 400, 10)?;
                acts::wait_for_results(fleet, 20)?;
                let at = format!("{boundary}:{passing}");
                let mut arguments = vec!["writer", "--batch-size", "50", "--kill-at", &at];
                if promise == Promise::Broken {
                    arguments.extend(["--sabotage", "ack-first"]);
                }
                fleet.start("faulty", &arguments)?.killed()?;
            }
        }
        finish_writing(fleet, &format!("{kills} kills"))
    })
}

/// A writer without faults does the rest.
fn finish_writing(fleet: &Fleet, story: &str) -> anyhow::Result<Outcome> {
    finish(fleet)?;
    judge(fleet, story)
}

fn finish(fleet: &Fleet) -> anyhow::Result<()> {
    let writer = acts::writer(fleet)?;
    fleet.rest()?;
    acts::dismiss(writer)
}

fn judge(fleet: &Fleet, story: &str) -> anyhow::Result<Outcome> {
    let found = violations(fleet, &Expected::done(SCRIPT))?;
    let duplicates = fleet.sqlite3("select sum(duplicates) from run_summary")?;
    Ok(Outcome {
        story: format!("{story}, {duplicates} duplicates"),
        violations: found,
    })
}

fn transaction(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let moments: &[(&str, u32)] = bench.pick(
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
        &[("pwrite64", 45), ("fsync", 6)],
    );
    bench.with_fleet(|fleet| {
        let _worker = acts::worker(fleet, "worker", &[])?;
        let mut inside = 0;
        for (call, number) in moments {
            acts::publish(fleet, 1000, 20)?;
            acts::wait_for_results(fleet, 40)?;
            let inject = format!("inject={call}:signal=SIGKILL:when={number}");
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let small = ["--batch-size", "100"];
            let doomed = match promise {
                Promise::Kept => fleet.start_under(&under, "consumer-writer", &small),
                Promise::Broken => {
                    let mut arguments = vec!["writer", "--sabotage", "ack-first"];
                    arguments.extend(small);
                    fleet.start_under(&under, "faulty", &arguments)
                }
            };
            doomed?.killed()?;
            let pages = unfinished(&fleet.database())?;
            inside += u32::from(pages > PAGES_OF_SIGNS);
        }
        ensure!(inside > 0, "no kill left a part of a batch in the log");
        finish(fleet)?;
        if promise == Promise::Broken {
            acts::tamper(
                fleet,
                "delete from results where (run, chunk, position) = (select run, chunk, position from results limit 1)",
            )?;
        }
        judge(
            fleet,
            &format!("{} kills, {inside} with a part of a batch in the log", moments.len()),
        )
    })
}

/// A transaction that only notes signs of life changes a page of the writers' and one of the workers'. One of rows
/// changes more.
const PAGES_OF_SIGNS: usize = 3;

/// Pages at the end of the database's log that no COMMIT has ended: of the transaction in which its writer died. What
/// is there of an earlier use of the log has another salt (<https://www.sqlite.org/fileformat2.html#walformat>).
fn unfinished(database: &Path) -> anyhow::Result<usize> {
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

fn producer(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let passings: &[u32] = bench.pick(&[1, 100, 101, 390], &[250]);
    let writes: &[u32] = bench.pick(&[10, 25, 40], &[25]);
    bench.with_fleet(|fleet| {
        let _writer = acts::writer(fleet)?;
        let _worker = acts::worker(fleet, "worker", &[])?;
        let mut kills = 0;
        for write in writes.iter().filter(|_| promise == Promise::Kept) {
            kills += 1;
            let inject = format!("inject=pwrite64:signal=SIGKILL:when={write}");
            let hosts = fleet.hosts(8000)?;
            let hosts = hosts.to_string_lossy();
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let arguments = ["--detach", "--hosts", &hosts, "--chunk-size", "20"];
            fleet
                .start_under(&under, "producer", &arguments)?
                .killed()?;
            ensure!(
                fleet.sqlite3("select count(*) from runs where state = 'planning'")? == "1",
                "it was to die while it plans"
            );
            // The next one takes the plan away, and makes its own.
            acts::publish(fleet, 400, 20)?;
        }
        for boundary in ["published", "confirmed"] {
            for passing in passings {
                kills += 1;
                let at = format!("{boundary}:{passing}");
                let mut faults = vec!["--kill-at", &at];
                if promise == Promise::Broken {
                    faults = vec!["--kill-at", "published:250", "--sabotage", "note-first"];
                }
                acts::faulty_producer(fleet, 4000, 10, &faults)?.killed()?;
                let resumed = fleet.start("producer", &["--resume", "latest", "--detach"])?;
                ensure!(resumed.wait()?.success(), "it cannot be resumed");
                if fleet.rest()? == Rest::Quiet {
                    break;
                }
            }
        }
        Ok(Outcome {
            story: format!("{kills} kills"),
            violations: violations(fleet, &Expected::done(SCRIPT))?,
        })
    })
}

/// The processes of a sweep, any of which may be killed.
struct Sweep<'a> {
    fleet: &'a Fleet,
    sabotage: &'a [&'a str],
    /// The writer, and two workers.
    programs: [Option<Program>; 3],
    runs: u32,
    /// Processes that ran until they were killed: the writer, the workers, producers.
    kills: [u32; 3],
}

impl<'a> Sweep<'a> {
    fn start(fleet: &'a Fleet, sabotage: &'a [&'a str]) -> anyhow::Result<Self> {
        let program = |which| Self::program(fleet, sabotage, which);
        Ok(Self {
            fleet,
            sabotage,
            programs: [Some(program(0)?), Some(program(1)?), Some(program(2)?)],
            runs: 0,
            kills: [0; 3],
        })
    }

    /// Starts a program, and waits until it has its session: one that is killed before has nothing to lose.
    fn program(fleet: &Fleet, sabotage: &[&str], which: usize) -> anyhow::Result<Program> {
        if which == 0 {
            let writer = acts::writer(fleet)?;
            acts::wait_for_consumer(fleet, Queue::Results)?;
            return Ok(writer);
        }
        let mut worker = acts::worker(fleet, "worker", sabotage)?;
        worker.wait_for("worker ready")?;
        Ok(worker)
    }

    /// Publishes one more run, in which the producer may be killed at a random moment.
    fn publish(&mut self, dice: &mut fastrand::Rng) -> anyhow::Result<()> {
        self.runs += 1;
        let mut producer = acts::start_producer(self.fleet, 2000, 5, &["--detach"])?;
        if dice.bool() {
            std::thread::sleep(Duration::from_millis(dice.u64(20..400)));
            if producer.kill_if_it_runs()? {
                self.kills[2] += 1;
            }
            let resumed = self
                .fleet
                .start("producer", &["--resume", "latest", "--detach"])?;
            // There may be nothing to resume: it died before its plan stood, and the next one removes that.
            resumed.wait()?;
            return Ok(());
        }
        ensure!(producer.ended()?.success(), "{}", producer.said());
        Ok(())
    }

    fn kill(&mut self, which: usize) -> anyhow::Result<()> {
        if let Some(program) = self.programs[which].take() {
            // All of them run until somebody ends them.
            program.kill()?;
            self.kills[usize::from(which > 0)] += 1;
        }
        self.programs[which] = Some(Self::program(self.fleet, self.sabotage, which)?);
        Ok(())
    }
}

fn random(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let wanted = match promise {
        Promise::Kept => bench.pick(200, 12),
        Promise::Broken => 12,
    };
    let seed = fastrand::u64(..);
    let mut dice = fastrand::Rng::with_seed(seed);
    bench.with_fleet(|fleet| {
        let mut sabotage = vec!["--prefetch", "8", "--delay", "40ms"];
        if promise == Promise::Broken {
            sabotage.extend(["--sabotage", "ack-first"]);
        }
        let mut sweep = Sweep::start(fleet, &sabotage)?;
        while sweep.kills.iter().sum::<u32>() < wanted {
            let outstanding = match fleet.store().and_then(|store| Ok(store.summaries()?)) {
                Ok(runs) => runs.iter().map(RunSummary::outstanding).sum::<i64>(),
                Err(_) => 0,
            };
            if outstanding < 200 {
                sweep.publish(&mut dice)?;
                continue;
            }
            // Long enough for a worker to settle what its window holds: a chunk may come back twenty times only.
            std::thread::sleep(Duration::from_millis(dice.u64(100..700)));
            sweep.kill(dice.usize(0..3))?;
        }
        fleet.rest()?;
        let found = violations(fleet, &Expected::done(SCRIPT))?;
        let counts = fleet.sqlite3("select sum(redelivered), sum(duplicates) from run_summary")?;
        let [writer, workers, producers] = sweep.kills;
        Ok(Outcome {
            story: format!(
                "{} kills in {} runs: {writer} of the writer, {workers} of workers, {producers} of producers (seed \
                 {seed}); redelivered | duplicates: {counts}",
                writer + workers + producers,
                sweep.runs
            ),
            violations: found,
        })
    })
}

/// How many workers a chunk kills before it is dead: the broker drops it at its 21st return, and each kill is one.
const KILLS_OF_A_CHUNK: u32 = 21;

fn poison(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let writer = acts::writer(fleet)?;
        acts::publish(fleet, 510, 10)?;
        let mut faults = vec![
            "--poison",
            "10.0.0.200",
            "--prefetch",
            "60",
            "--delay",
            "100ms",
        ];
        if promise == Promise::Broken {
            faults.extend(["--sabotage", "no-slow-start"]);
        }
        let began = Instant::now();
        let mut kills = 0;
        // Whatever starts it again does not know why it ended.
        while kills < 40 && fleet.wait_a_moment_for_rest()?.is_none() {
            let mut worker = acts::worker(fleet, "doomed", &faults)?;
            loop {
                if worker.has_ended()?.is_some() {
                    worker.killed()?;
                    kills += 1;
                    break;
                }
                if fleet.wait_a_moment_for_rest()?.is_some() {
                    break;
                }
                ensure!(began.elapsed() < crate::PATIENCE, "{}", worker.said());
            }
        }
        let expected = Expected {
            dead: 1,
            ..Expected::done(SCRIPT)
        };
        let mut found = violations(fleet, &expected)?;
        if promise == Promise::Kept && kills != KILLS_OF_A_CHUNK {
            found.push(format!("dead after it killed {kills} workers"));
        }
        let reason = fleet.sqlite3("select distinct dead_reason from chunks where state = 2")?;
        if promise == Promise::Kept {
            ensure!(reason == "delivery_limit", "dead by {reason:?}");
            let mut verify = fleet.start("pingfleet", &["verify"])?;
            ensure!(
                verify.ended()?.code() == Some(5) && verify.said().contains("delivery_limit"),
                "{}",
                verify.said()
            );
            let _clean = acts::worker(fleet, "clean", &[])?;
            let mut retry = fleet.start("pingfleet", &["retry"])?;
            ensure!(retry.ended()?.code() == Some(0), "{}", retry.said());
            found.extend(violations(fleet, &Expected::done(SCRIPT))?);
        }
        acts::dismiss(writer)?;
        Ok(Outcome {
            story: format!("it killed {kills} workers, dead by {reason}"),
            violations: found,
        })
    })
}
