//! The database's file and disk, while results wait for the writer.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::ensure;
use pingfleet_testbed::SmallDisk;
use rusqlite::Connection;

use crate::{
    actions::{self, SEED},
    child_process::ChildProcess,
    deployment::Deployment,
    invariants::{ExpectedState, find_violations},
    runner::{Case, CaseOutcome, CaseRunner, Control, Variant},
};

/// The control of the faults of a running writer: one that acks first loses what it cannot commit. (A writer that fails at
/// its start consumes nothing, so this defect would not show.)
const ACKS_FIRST: Control = Control {
    defect: "a writer that acks first",
    expected_violations: &["are lost"],
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "disk-full",
        fault: "the database's disk (a tmpfs of some MiB) is full",
        holds: "the writer exits with 4 and reports it; with free space again, the run completes",
        control: ACKS_FIRST,
        run: disk_full,
    },
    Case {
        name: "io-errors",
        fault: "EIO from write and from fsync in the middle of a batch (strace inject)",
        holds: "the writer exits with 4 and reports it; restarted, it completes the run",
        control: ACKS_FIRST,
        run: io_errors,
    },
    Case {
        name: "locked",
        fault: "another program holds the database's lock for a minute; the writer is killed meanwhile",
        holds: "nothing is acked under the lock; the next writer waits for it, and completes the run",
        control: ACKS_FIRST,
        run: locked,
    },
    Case {
        name: "read-only",
        fault: "the database's disk becomes read-only: before the writer starts, and while it runs (EROFS, strace inject)",
        holds: "the writer exits with 4 and reports it; with the disk writable again, the run completes",
        control: ACKS_FIRST,
        run: read_only,
    },
    Case {
        name: "corrupt-page",
        fault: "pages of an older run in the database overwritten",
        holds: "the writer exits with 4, reports it, and acks nothing; with the file restored, the run completes",
        control: Control {
            defect: "a writer that opens the database without the check",
            expected_violations: &["keeps working with a damaged database", "are lost"],
        },
        run: corrupt,
    },
    Case {
        name: "file-deleted",
        fault: "the database's files deleted under the running writer",
        holds: "the writer exits with 4, reports it, and acks nothing more; with the files restored, the run completes",
        control: ACKS_FIRST,
        run: deleted,
    },
    Case {
        name: "long-reader",
        fault: "a reader holds a snapshot while a sweep is written",
        holds: "the run completes, and the write-ahead log is gone when reader and writer have exited",
        control: Control {
            defect: "a reader that never exits",
            expected_violations: &["of the write-ahead log are left"],
        },
        run: long_reader,
    },
];

/// Starts the writer; in the control, one that acks first.
fn start_writer(
    deployment: &Deployment,
    variant: Variant,
    under: &[&str],
    more: &[&str],
) -> anyhow::Result<ChildProcess> {
    match variant {
        Variant::Normal => deployment.start_with_wrapper(under, "consumer-writer", more),
        Variant::Control => {
            let mut arguments = vec!["writer", "--defect", "ack-first"];
            arguments.extend(more);
            deployment.start_with_wrapper(under, "faulty_role", &arguments)
        }
    }
}

/// Fails unless the process exits with 4, and its output contains the reason.
fn expect_exit_4(mut process: ChildProcess, reason: &str) -> anyhow::Result<()> {
    let status = process.wait_for_exit()?;
    let output = process.output();
    ensure!(
        status.code() == Some(4) && output.contains(reason),
        "it exited with {status} and never wrote {reason:?}:\n{output}"
    );
    Ok(())
}

/// Publishes a run and has it probed, so that all of its results wait on the queue.
fn queue_results(deployment: &Deployment, targets: u32, chunk: u32) -> anyhow::Result<()> {
    actions::publish_run(deployment, targets, chunk)?;
    let worker = actions::start_worker(deployment, "worker", &["--delay", "0ms"])?;
    actions::wait_for_results(deployment, i64::from(targets / chunk))?;
    actions::terminate_cleanly(worker)
}

/// Has a writer without faults store all waiting results.
fn store_results(deployment: &Deployment) -> anyhow::Result<()> {
    let writer = actions::start_writer(deployment)?;
    deployment.wait_until_idle()?;
    actions::terminate_cleanly(writer)
}

/// Has the waiting results stored, then checks the invariants.
fn store_and_check(deployment: &Deployment, summary: String) -> anyhow::Result<CaseOutcome> {
    store_results(deployment)?;
    Ok(CaseOutcome {
        summary,
        violations: find_violations(deployment, &ExpectedState::done(SEED))?,
    })
}

fn disk_full(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let disk = SmallDisk::new(16 << 10)?;
        deployment.move_database(disk.path());
        queue_results(deployment, 20_000, 100)?;
        disk.fill(600 << 10)?;
        let small = ["--batch-size", "500"];
        let writer = start_writer(deployment, variant, &[], &small)?;
        expect_exit_4(writer, "full")?;
        let before = deployment.message_count()?;
        disk.empty()?;
        store_and_check(
            deployment,
            format!("full with {before} of 200 results left"),
        )
    })
}

fn io_errors(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let faults: &[(&str, u32)] = runner.pick(
        &[
            ("fsync", 5),
            ("fsync", 6),
            ("fsync", 9),
            ("pwrite64", 20),
            ("pwrite64", 45),
        ],
        &[("fsync", 6), ("pwrite64", 45)],
    );
    runner.with_deployment(|deployment| {
        for (call, number) in faults {
            queue_results(deployment, 2000, 20)?;
            // Every later call fails too, as on a disk that is gone.
            let inject = format!("inject={call}:error=EIO:when={number}+");
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let writer = start_writer(deployment, variant, &under, &["--batch-size", "100"])?;
            expect_exit_4(writer, "disk I/O error")?;
        }
        store_and_check(deployment, format!("{} faults", faults.len()))
    })
}

fn locked(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let lasting = match variant {
        Variant::Normal => runner.pick(60, 14),
        Variant::Control => 3,
    };
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, 400, 10)?;
        let mut first = start_writer(deployment, variant, &[], &[])?;
        first.wait_for_output("writer ready")?;
        let mut worker = actions::start_worker(deployment, "worker", &["--delay", "500ms"])?;
        worker.wait_for_output("worker ready")?;
        worker.signal("STOP")?;
        // Right after the writer has recorded that it is alive: results must arrive before it tries that again, and then
        // finds the lock.
        actions::wait_for_writer_liveness(deployment)?;
        actions::wait_for_writer_liveness(deployment)?;
        let other = Connection::open(deployment.database())?;
        other.busy_timeout(Duration::from_secs(30))?;
        other.execute_batch("BEGIN IMMEDIATE")?;
        worker.signal("CONT")?;
        if variant == Variant::Normal {
            first.wait_for_output("locked by another program")?;
        }
        std::thread::sleep(Duration::from_secs(lasting));
        first.kill()?;
        // The next writer waits for the lock, too.
        let next = deployment.start("consumer-writer", &[])?;
        std::thread::sleep(Duration::from_secs(1));
        other.execute_batch("ROLLBACK")?;
        deployment.wait_until_idle()?;
        actions::terminate_cleanly(next)?;
        actions::terminate_cleanly(worker)?;
        Ok(CaseOutcome {
            summary: format!("locked for at least {lasting} s"),
            violations: find_violations(deployment, &ExpectedState::done(SEED))?,
        })
    })
}

fn read_only(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        let disk = SmallDisk::new(16 << 10)?;
        deployment.move_database(disk.path());
        queue_results(deployment, 2000, 20)?;
        disk.set_read_only(true)?;
        let writer = deployment.start("consumer-writer", &[])?;
        expect_exit_4(writer, "cannot open database")?;
        disk.set_read_only(false)?;
        // A disk with open files cannot be remounted read-only. But the kernel does so when a disk fails, and then writes
        // return EROFS.
        let inject = "inject=pwrite64:error=EROFS:when=45+";
        let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", inject];
        let writer = start_writer(deployment, variant, &under, &["--batch-size", "100"])?;
        expect_exit_4(writer, "disk I/O error")?;
        let done = deployment.store()?.summary(1)?.chunks_done;
        store_and_check(
            deployment,
            format!("rejected at the start; read-only with {done} of 100 chunks stored"),
        )
    })
}

fn corrupt(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        queue_results(deployment, 4000, 10)?;
        store_results(deployment)?;
        queue_results(deployment, 2000, 10)?;
        let copy = fs::read(deployment.database())?;
        // New rows go behind these pages, so a writer without the check does not read the damage.
        let pages = deployment.sqlite3(
            "select pageno from dbstat where name = 'results' and pagetype = 'leaf' order by path",
        )?;
        let pages: Vec<u64> = pages.lines().map(str::parse).collect::<Result<_, _>>()?;
        let damaged = &pages[..pages.len() / 2];
        ensure!(!damaged.is_empty(), "the first run has no rows");
        let mut file = fs::File::options()
            .write(true)
            .open(deployment.database())?;
        for page in damaged {
            file.seek(SeekFrom::Start((page - 1) * 4096))?;
            file.write_all(&[0xa5; 4096])?;
        }
        drop(file);
        let mut writer = match variant {
            Variant::Normal => deployment.start("consumer-writer", &[])?,
            Variant::Control => {
                deployment.start("faulty_role", &["writer", "--defect", "no-check"])?
            }
        };
        let results = deployment.queue("results");
        actions::wait_until("the writer to exit, or to consume the results", || {
            Ok(writer.try_wait()?.is_some() || deployment.depth(&results, "messages")? == 0)
        })?;
        let mut found = Vec::new();
        if writer.try_wait()?.is_some() {
            expect_exit_4(writer, "damaged")?;
        } else {
            found.push("the writer keeps working with a damaged database".to_owned());
            writer.kill()?;
        }
        remove_database(deployment)?;
        fs::write(deployment.database(), copy)?;
        let summary = format!(
            "rejected at the start, with {} pages damaged",
            damaged.len()
        );
        let mut outcome = store_and_check(deployment, summary)?;
        outcome.violations.extend(found);
        Ok(outcome)
    })
}

/// The database, its write-ahead log and its shared memory.
fn files(deployment: &Deployment) -> [PathBuf; 3] {
    ["db", "db-wal", "db-shm"].map(|extension| deployment.database().with_extension(extension))
}

fn remove_database(deployment: &Deployment) -> anyhow::Result<()> {
    for file in files(deployment) {
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn deleted(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, 4000, 10)?;
        let writer = start_writer(deployment, variant, &[], &[])?;
        let slow = ["--delay", "500ms", "--prefetch", "4"];
        let worker = actions::start_worker(deployment, "worker", &slow)?;
        deployment.wait_for_run("first results", |run| run.chunks_done > 0)?;
        // The worker is stopped, so that nothing is stored between the copy and the deletion; results arrive afterwards.
        worker.signal("STOP")?;
        let results = deployment.queue("results");
        deployment.wait_for_empty_queue(&results)?;
        actions::wait_for_writer_liveness(deployment)?;
        let copy = deployment.folder().join("copy.db");
        deployment.sqlite3(&format!("vacuum into '{}'", copy.display()))?;
        let done = deployment.store()?.summary(1)?.chunks_done;
        remove_database(deployment)?;
        worker.signal("CONT")?;
        expect_exit_4(writer, "was deleted or replaced")?;
        remove_database(deployment)?;
        fs::copy(&copy, deployment.database())?;
        let _other = actions::start_worker(deployment, "other", &[])?;
        let outcome = store_and_check(
            deployment,
            format!("detected, with {done} of 400 chunks stored"),
        )?;
        actions::terminate_cleanly(worker)?;
        Ok(outcome)
    })
}

fn long_reader(runner: &mut CaseRunner, variant: Variant) -> anyhow::Result<CaseOutcome> {
    let (targets, lasting) = match variant {
        Variant::Normal => runner.pick((150_000, 120), (20_000, 2)),
        Variant::Control => (20_000, 0),
    };
    runner.with_deployment(|deployment| {
        actions::publish_run(deployment, targets, 100)?;
        let writer = actions::start_writer(deployment)?;
        let mut reader = Some(Connection::open(deployment.database())?);
        if let Some(reader) = &reader {
            reader.execute_batch("BEGIN; SELECT count(*) FROM results")?;
        }
        let _worker = actions::start_worker(deployment, "worker", &["--delay", "0ms"])?;
        deployment.wait_until_idle()?;
        std::thread::sleep(Duration::from_secs(lasting));
        let [_, log, _] = files(deployment);
        let kept = fs::metadata(&log)?.len() >> 10;
        if variant == Variant::Normal {
            drop(reader.take());
        }
        actions::terminate_cleanly(writer)?;
        // The last connection that closes checkpoints the log and removes it.
        let left = fs::metadata(&log).map_or(0, |log| log.len() >> 10);
        drop(reader);
        let mut found = find_violations(deployment, &ExpectedState::done(SEED))?;
        if left > 0 {
            found.push(format!("{left} KiB of the write-ahead log are left"));
        }
        Ok(CaseOutcome {
            summary: format!("{targets} rows under a snapshot; the write-ahead log had {kept} KiB"),
            violations: found,
        })
    })
}
