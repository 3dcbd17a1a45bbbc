//! Harm to the database's file and disk, while results wait for the writer.

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
    acts::{self, SCRIPT},
    bench::{Bench, Case, Control, Outcome, Promise},
    fleet::Fleet,
    invariants::{Expected, violations},
    program::Program,
};

/// The control of those that befall a running writer: what acks first loses what it could not commit. What is refused at
/// the start takes nothing, however it acks.
const ACKS_FIRST: Control = Control {
    broken: "a writer that acks first",
    shown_by: &["are lost"],
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "disk-full",
        group: "sqlite",
        fault: "the database's disk (a tmpfs of some MiB) is full",
        holds: "the writer ends with 4 and says so; with room made, the run completes",
        control: ACKS_FIRST,
        run: disk_full,
    },
    Case {
        name: "io-errors",
        group: "sqlite",
        fault: "EIO from write and from fsync in the middle of a batch (strace inject)",
        holds: "the writer ends with 4 and says so; started again, it completes the run",
        control: ACKS_FIRST,
        run: io_errors,
    },
    Case {
        name: "locked",
        group: "sqlite",
        fault: "another program holds the database's lock for a minute; the writer is killed meanwhile",
        holds: "nothing is acked under the lock; the next writer waits for it, and completes the run",
        control: ACKS_FIRST,
        run: locked,
    },
    Case {
        name: "read-only",
        group: "sqlite",
        fault: "the database's disk may not be written any more: when the writer starts, and when it runs (EROFS, strace \
                inject)",
        holds: "the writer ends with 4 and says so; writable again, the run completes",
        control: ACKS_FIRST,
        run: read_only,
    },
    Case {
        name: "corrupt-page",
        group: "sqlite",
        fault: "pages of an older run overwritten in the database",
        holds: "the writer ends with 4 and says so, and takes nothing; with the file restored, the run completes",
        control: Control {
            broken: "a writer that opens the database without the check",
            shown_by: &["works on with a damaged database", "are lost"],
        },
        run: corrupt,
    },
    Case {
        name: "file-deleted",
        group: "sqlite",
        fault: "the database's files deleted under the running writer",
        holds: "the writer ends with 4 and says so, and acks nothing more; with the files restored, the run completes",
        control: ACKS_FIRST,
        run: deleted,
    },
    Case {
        name: "long-reader",
        group: "sqlite",
        fault: "a reader holds a snapshot while a sweep is written",
        holds: "the run completes, and the log is written back when reader and writer have left",
        control: Control {
            broken: "a reader that never leaves",
            shown_by: &["of the log are left"],
        },
        run: long_reader,
    },
];

/// The writer, or in the control the one that acks first.
fn start_writer(
    fleet: &Fleet,
    promise: Promise,
    under: &[&str],
    more: &[&str],
) -> anyhow::Result<Program> {
    match promise {
        Promise::Kept => fleet.start_under(under, "consumer-writer", more),
        Promise::Broken => {
            let mut arguments = vec!["writer", "--sabotage", "ack-first"];
            arguments.extend(more);
            fleet.start_under(under, "faulty", &arguments)
        }
    }
}

/// A program that has to end with 4, and to say why.
fn ends_with_4(mut program: Program, why: &str) -> anyhow::Result<()> {
    let status = program.ended()?;
    let said = program.said();
    ensure!(
        status.code() == Some(4) && said.contains(why),
        "it ended with {status} and never said {why:?}:\n{said}"
    );
    Ok(())
}

/// Publishes a run and has it probed, so that all of its results wait.
fn results_wait(fleet: &Fleet, targets: u32, chunk: u32) -> anyhow::Result<()> {
    acts::publish(fleet, targets, chunk)?;
    let worker = acts::worker(fleet, "worker", &["--delay", "0ms"])?;
    acts::wait_for_results(fleet, i64::from(targets / chunk))?;
    acts::dismiss(worker)
}

/// A writer without faults stores what waits.
fn store_the_rest(fleet: &Fleet) -> anyhow::Result<()> {
    let writer = acts::writer(fleet)?;
    fleet.rest()?;
    acts::dismiss(writer)
}

/// The same, after which everything must hold.
fn complete(fleet: &Fleet, story: String) -> anyhow::Result<Outcome> {
    store_the_rest(fleet)?;
    Ok(Outcome {
        story,
        violations: violations(fleet, &Expected::done(SCRIPT))?,
    })
}

fn disk_full(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let disk = SmallDisk::new(16 << 10)?;
        fleet.move_database(disk.path());
        results_wait(fleet, 20_000, 100)?;
        disk.fill(600 << 10)?;
        let small = ["--batch-size", "500"];
        let writer = start_writer(fleet, promise, &[], &small)?;
        ends_with_4(writer, "full")?;
        let before = fleet.messages()?;
        disk.empty()?;
        complete(fleet, format!("full with {before} of 200 results left"))
    })
}

fn io_errors(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let faults: &[(&str, u32)] = bench.pick(
        &[
            ("fsync", 5),
            ("fsync", 6),
            ("fsync", 9),
            ("pwrite64", 20),
            ("pwrite64", 45),
        ],
        &[("fsync", 6), ("pwrite64", 45)],
    );
    bench.with_fleet(|fleet| {
        for (call, number) in faults {
            results_wait(fleet, 2000, 20)?;
            // From then on every call fails, as on a disk that is gone.
            let inject = format!("inject={call}:error=EIO:when={number}+");
            let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", &inject];
            let writer = start_writer(fleet, promise, &under, &["--batch-size", "100"])?;
            ends_with_4(writer, "disk I/O error")?;
        }
        complete(fleet, format!("{} faults", faults.len()))
    })
}

fn locked(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let lasting = match promise {
        Promise::Kept => bench.pick(60, 14),
        Promise::Broken => 3,
    };
    bench.with_fleet(|fleet| {
        acts::publish(fleet, 400, 10)?;
        let mut first = start_writer(fleet, promise, &[], &[])?;
        first.wait_for("writer ready")?;
        let mut worker = acts::worker(fleet, "worker", &["--delay", "500ms"])?;
        worker.wait_for("worker ready")?;
        worker.signal("STOP")?;
        // It takes what comes before it meets the lock by its next sign of life.
        acts::wait_for_sign(fleet)?;
        acts::wait_for_sign(fleet)?;
        let other = Connection::open(fleet.database())?;
        other.busy_timeout(Duration::from_secs(30))?;
        other.execute_batch("BEGIN IMMEDIATE")?;
        worker.signal("CONT")?;
        if promise == Promise::Kept {
            first.wait_for("locked by another program")?;
        }
        std::thread::sleep(Duration::from_secs(lasting));
        first.kill()?;
        // The next one finds the lock, too.
        let next = fleet.start("consumer-writer", &[])?;
        std::thread::sleep(Duration::from_secs(1));
        other.execute_batch("ROLLBACK")?;
        fleet.rest()?;
        acts::dismiss(next)?;
        acts::dismiss(worker)?;
        Ok(Outcome {
            story: format!("locked for {lasting} s and more"),
            violations: violations(fleet, &Expected::done(SCRIPT))?,
        })
    })
}

fn read_only(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        let disk = SmallDisk::new(16 << 10)?;
        fleet.move_database(disk.path());
        results_wait(fleet, 2000, 20)?;
        disk.set_read_only(true)?;
        let writer = fleet.start("consumer-writer", &[])?;
        ends_with_4(writer, "cannot open database")?;
        disk.set_read_only(false)?;
        // Nobody can do that to a disk with an open file. A disk does it to itself when it fails, and then says EROFS.
        let inject = "inject=pwrite64:error=EROFS:when=45+";
        let under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", inject];
        let writer = start_writer(fleet, promise, &under, &["--batch-size", "100"])?;
        ends_with_4(writer, "disk I/O error")?;
        let done = fleet.store()?.summary(1)?.chunks_done;
        complete(
            fleet,
            format!("refused at once; read-only with {done} of 100 chunks stored"),
        )
    })
}

fn corrupt(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        results_wait(fleet, 4000, 10)?;
        store_the_rest(fleet)?;
        results_wait(fleet, 2000, 10)?;
        let copy = fs::read(fleet.database())?;
        // The next rows go behind all of them: who does not look for damage does not meet it.
        let pages = fleet.sqlite3(
            "select pageno from dbstat where name = 'results' and pagetype = 'leaf' order by path",
        )?;
        let pages: Vec<u64> = pages.lines().map(str::parse).collect::<Result<_, _>>()?;
        let damaged = &pages[..pages.len() / 2];
        ensure!(!damaged.is_empty(), "the first run has no rows");
        let mut file = fs::File::options().write(true).open(fleet.database())?;
        for page in damaged {
            file.seek(SeekFrom::Start((page - 1) * 4096))?;
            file.write_all(&[0xa5; 4096])?;
        }
        drop(file);
        let mut writer = match promise {
            Promise::Kept => fleet.start("consumer-writer", &[])?,
            Promise::Broken => fleet.start("faulty", &["writer", "--sabotage", "no-check"])?,
        };
        let results = fleet.queue("results");
        acts::wait_until("the writer to refuse, or to take what waits", || {
            Ok(writer.has_ended()?.is_some() || fleet.depth(&results, "messages")? == 0)
        })?;
        let mut found = Vec::new();
        if writer.has_ended()?.is_some() {
            ends_with_4(writer, "damaged")?;
        } else {
            found.push("the writer works on with a damaged database".to_owned());
            writer.kill()?;
        }
        remove_database(fleet)?;
        fs::write(fleet.database(), copy)?;
        let story = format!("refused at once, with {} pages damaged", damaged.len());
        let mut outcome = complete(fleet, story)?;
        outcome.violations.extend(found);
        Ok(outcome)
    })
}

/// The database and what SQLite keeps beside it.
fn files(fleet: &Fleet) -> [PathBuf; 3] {
    ["db", "db-wal", "db-shm"].map(|extension| fleet.database().with_extension(extension))
}

fn remove_database(fleet: &Fleet) -> anyhow::Result<()> {
    for file in files(fleet) {
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn deleted(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    bench.with_fleet(|fleet| {
        acts::publish(fleet, 4000, 10)?;
        let writer = start_writer(fleet, promise, &[], &[])?;
        let slow = ["--delay", "500ms", "--prefetch", "4"];
        let worker = acts::worker(fleet, "worker", &slow)?;
        fleet.wait_for_run("first results", |run| run.chunks_done > 0)?;
        // Nothing is stored between the copy and the deletion, and results come right after it.
        worker.signal("STOP")?;
        let results = fleet.queue("results");
        acts::wait_until("what is there to be stored", || {
            Ok(fleet.depth(&results, "messages")? == 0)
        })?;
        acts::wait_for_sign(fleet)?;
        let copy = fleet.folder().join("copy.db");
        fleet.sqlite3(&format!("vacuum into '{}'", copy.display()))?;
        let done = fleet.store()?.summary(1)?.chunks_done;
        remove_database(fleet)?;
        worker.signal("CONT")?;
        ends_with_4(writer, "was deleted or replaced")?;
        remove_database(fleet)?;
        fs::copy(&copy, fleet.database())?;
        let _other = acts::worker(fleet, "other", &[])?;
        let outcome = complete(fleet, format!("noticed, with {done} of 400 chunks stored"))?;
        acts::dismiss(worker)?;
        Ok(outcome)
    })
}

fn long_reader(bench: &mut Bench, promise: Promise) -> anyhow::Result<Outcome> {
    let (targets, lasting) = match promise {
        Promise::Kept => bench.pick((150_000, 120), (20_000, 2)),
        Promise::Broken => (20_000, 0),
    };
    bench.with_fleet(|fleet| {
        acts::publish(fleet, targets, 100)?;
        let writer = acts::writer(fleet)?;
        let mut reader = Some(Connection::open(fleet.database())?);
        if let Some(reader) = &reader {
            reader.execute_batch("BEGIN; SELECT count(*) FROM results")?;
        }
        let _worker = acts::worker(fleet, "worker", &["--delay", "0ms"])?;
        fleet.rest()?;
        std::thread::sleep(Duration::from_secs(lasting));
        let [_, log, _] = files(fleet);
        let kept = fs::metadata(&log)?.len() >> 10;
        if promise == Promise::Kept {
            drop(reader.take());
        }
        acts::dismiss(writer)?;
        // A log that was written back is removed.
        let left = fs::metadata(&log).map_or(0, |log| log.len() >> 10);
        drop(reader);
        let mut found = violations(fleet, &Expected::done(SCRIPT))?;
        if left > 0 {
            found.push(format!("{left} KiB of the log are left"));
        }
        Ok(Outcome {
            story: format!("{targets} rows under a snapshot; the log had {kept} KiB"),
            violations: found,
        })
    })
}
