//! A `Reader` reads every database that it may read, and changes nothing: neither a file nor what a writer may do.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_store::{
    ChunkState, FileLock, Reader, ReportFilter, ReportRow, RunState, StoreError, Transport, Writer,
};
use pingfleet_wire::{Status, StatusKind};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::{delivery, options, reader, result, start},
};

/// A complete run, and the open writer that stored it.
fn filled(folder: &Path, sizes: &[usize]) -> Result<Writer> {
    let mut store = options(&folder.join("fleet.db")).open()?;
    let (_planned, works) = start(&mut store, Transport::Sweep, sizes)?;
    for work in &works {
        let statuses = [Status::Up, Status::DOWN];
        store.apply(Transport::Sweep, &[delivery(result(work, &statuses))])?;
    }
    Ok(store)
}

/// All rows of a run.
pub(crate) fn report(store: &Writer, run: i64) -> Result<Vec<ReportRow>> {
    let reader = reader(store)?;
    let mut pages = reader.report(run, &ReportFilter::default());
    let mut rows = Vec::new();
    loop {
        let page = pages.next_page()?;
        if page.is_empty() {
            return Ok(rows);
        }
        rows.extend(page);
    }
}

/// All files of a folder with their bytes.
fn contents(folder: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), fs::read(entry.path())?))
        })
        .collect()
}

/// Reads everything that a reader offers of the run of [`filled`].
fn read_all(path: &Path, rows: usize) -> Result<()> {
    let reader = Reader::open(path)?;
    let run = reader.find_run("latest")?;
    ensure!(reader.summaries()?.len() == 1 && reader.workers()?.is_empty());
    ensure!(reader.verify(run)?.is_complete());
    let mut pages = reader.report(run, &ReportFilter::default());
    let mut seen = 0;
    loop {
        let page = pages.next_page()?;
        if page.is_empty() {
            break;
        }
        seen += page.len();
    }
    ensure!(seen == rows, "{seen} rows");
    Ok(())
}

#[test]
fn reading_a_closed_database_changes_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    filled(folder.path(), &[3, 3])?.close()?;
    let before = contents(folder.path())?;
    ensure!(before.len() == 1, "{:?}", before.keys());
    read_all(&folder.path().join("fleet.db"), 6)?;
    ensure!(contents(folder.path())? == before, "the folder was changed");
    Ok(())
}

/// Spaces and the characters that mean something in a URI.
#[test]
fn any_file_name_can_be_read() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("a b?c#d%20é.db");
    filled(folder.path(), &[2])?.close()?;
    fs::rename(folder.path().join("fleet.db"), &path)?;
    read_all(&path, 2)
}

#[test]
fn nothing_is_created_for_a_missing_file() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    ensure!(matches!(
        Reader::open(&path),
        Err(StoreError::Missing { .. })
    ));
    fs::write(&path, b"")?;
    ensure!(matches!(
        Reader::open(&path),
        Err(StoreError::Missing { .. })
    ));
    ensure!(contents(folder.path())?.len() == 1);
    Ok(())
}

#[test]
fn an_older_schema_is_refused_with_the_command_that_upgrades_it() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    filled(folder.path(), &[2])?.close()?;
    Connection::open(&path)?.pragma_update(None, "user_version", 0)?;
    let before = contents(folder.path())?;
    match Reader::open(&path) {
        Err(error @ StoreError::Older { found: 0, .. }) => {
            ensure!(
                error.to_string().contains("`pingfleet doctor --db"),
                "{error}"
            );
        }
        other => bail!("{other:?}"),
    }
    ensure!(contents(folder.path())? == before, "the folder was changed");
    Ok(())
}

#[test]
fn a_newer_or_foreign_file_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    filled(folder.path(), &[2])?.close()?;
    Connection::open(&path)?.pragma_update(None, "user_version", 99)?;
    ensure!(matches!(
        Reader::open(&path),
        Err(StoreError::Newer { found: 99, .. })
    ));
    let other = folder.path().join("other.db");
    Connection::open(&other)?.execute_batch("CREATE TABLE t (a)")?;
    ensure!(matches!(
        Reader::open(&other),
        Err(StoreError::Foreign { .. })
    ));
    Ok(())
}

#[test]
fn a_reader_does_not_wait_for_a_transaction() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = filled(folder.path(), &[2])?;
    let other = Connection::open(store.path())?;
    other.execute_batch("BEGIN IMMEDIATE; UPDATE runs SET up = 7")?;
    // The control: a writer cannot work now.
    Connection::open(store.path())?
        .execute_batch("BEGIN IMMEDIATE")
        .expect_err("the database is not locked");
    ensure!(reader(&store)?.summary(1)?.counts[StatusKind::Up] == 1);
    other.execute_batch("COMMIT")?;
    ensure!(reader(&store)?.summary(1)?.counts[StatusKind::Up] == 7);
    store.try_commit()?;
    Ok(())
}

/// The frames of the log, and how many of them are in the file.
fn checkpoint(path: &Path) -> Result<(i64, i64)> {
    Ok(
        Connection::open(path)?.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| {
            Ok((row.get(1)?, row.get(2)?))
        })?,
    )
}

#[test]
fn a_reader_between_two_pages_does_not_keep_the_log() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = filled(folder.path(), &[4000, 4000])?;
    let reader = reader(&store)?;
    let mut pages = reader.report(1, &ReportFilter::default());
    ensure!(pages.next_page()?.len() == 5000);
    start(&mut store, Transport::Sweep, &[100; 10])?;
    let (frames, done) = checkpoint(store.path())?;
    ensure!(frames > 0 && done == frames, "{done} of {frames} frames");
    // The control: a statement that stays open keeps them.
    let other = Connection::open(store.path())?;
    let mut statement = other.prepare("SELECT * FROM results")?;
    let mut rows = statement.query(())?;
    rows.next()?.context("a row")?;
    start(&mut store, Transport::Sweep, &[100; 10])?;
    let (frames, done) = checkpoint(store.path())?;
    ensure!(done < frames, "{done} of {frames} frames");
    drop(rows);
    ensure!(pages.next_page()?.len() == 3000 && pages.next_page()?.is_empty());
    Ok(())
}

#[test]
fn a_reader_between_two_pages_does_not_keep_the_last_writer_from_removing_the_log() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path(), &[4000, 4000])?;
    let reader = reader(&store)?;
    let mut pages = reader.report(1, &ReportFilter::default());
    ensure!(pages.next_page()?.len() == 5000);
    store.close()?;
    ensure!(contents(folder.path())?.len() == 1);
    ensure!(pages.next_page()?.len() == 3000);
    ensure!(contents(folder.path())?.len() == 1);
    Ok(())
}

#[test]
fn a_writer_that_closes_beside_an_open_statement_leaves_all_in_the_file() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path(), &[3])?;
    let path = store.path().to_owned();
    let other = Connection::open(&path)?;
    other.query_row("SELECT count(*) FROM results", (), |_| Ok(()))?;
    store.close()?;
    ensure!(contents(folder.path())?.len() == 3);
    let copy = folder.path().join("copy.db");
    fs::copy(&path, &copy)?;
    read_all(&copy, 3)
}

#[test]
fn what_a_writer_changes_between_two_pages_is_seen() -> Result<()> {
    let folder = TempDir::new()?;
    filled(folder.path(), &[3, 3])?.close()?;
    let path = folder.path().join("fleet.db");
    let reader = Reader::open(&path)?;
    let mut store = options(&path).open()?;
    start(&mut store, Transport::Sweep, &[1])?;
    ensure!(reader.summaries()?.len() == 2);
    store.close()?;
    ensure!(reader.summaries()?.len() == 2);
    Ok(())
}

#[test]
fn a_file_that_was_replaced_is_not_mistaken_for_the_first_one() -> Result<()> {
    let folder = TempDir::new()?;
    filled(folder.path(), &[3])?.close()?;
    let path = folder.path().join("fleet.db");
    let reader = Reader::open(&path)?;
    let second = TempDir::new()?;
    filled(second.path(), &[3])?.close()?;
    fs::copy(second.path().join("fleet.db"), &path)?;
    ensure!(matches!(reader.summaries(), Err(StoreError::Gone { .. })));
    Ok(())
}

#[test]
fn the_table_admits_the_codes_of_the_enums_only() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path(), &[1])?;
    let connection = Connection::open(store.path())?;
    let admits = |table: &str, column: &str, code: usize| {
        connection
            .execute(&format!("UPDATE {table} SET {column} = {code}"), ())
            .is_ok()
    };
    for code in 0..20 {
        ensure!(admits("chunks", "state", code) == (code < ChunkState::ALL.len()));
        ensure!(admits("results", "status", code) == (code < StatusKind::ALL.len()));
        if let Some(status) = StatusKind::ALL.get(code) {
            ensure!(report(&store, 1)?[0].status == status.name());
        }
    }
    Ok(())
}

#[test]
fn a_run_whose_producer_was_killed_is_incomplete_at_once() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut producer = Process::start("reader::child_produces", &path)?;
    let run: i64 = producer.hear("started ")?.parse()?;
    let reader = Reader::open(&path)?;
    let states = || -> Result<[RunState; 3]> {
        Ok([
            reader.summary(run)?.state,
            reader.summaries()?[0].state,
            reader.verify(run)?.summary.state,
        ])
    };
    ensure!(states()? == [RunState::Running; 3]);
    producer.kill()?;
    let before = contents(folder.path())?;
    ensure!(states()? == [RunState::Incomplete; 3]);
    // The lock file of the killed producer is still there, and the reader left it alone.
    ensure!(before.len() == 4 && contents(folder.path())?.keys().eq(before.keys()));
    // The control: the view knows only the lease, which has not expired.
    let view: String =
        Connection::open(&path)?
            .query_row("SELECT state FROM run_summary", (), |row| row.get(0))?;
    ensure!(view == "running");
    // Another producer goes on.
    let _lock = FileLock::run(&path, run)?;
    ensure!(states()? == [RunState::Running; 3]);
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_produces() -> Result<()> {
    let mut store = options(&child::database()?).open()?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[2])?;
    // An hour ahead, so that the lease does not expire while the test looks.
    let ahead = "UPDATE runs SET lease_renewed_us = lease_renewed_us + 3600 * 1000000";
    Connection::open(store.path())?.execute_batch(ahead)?;
    println!("started {}", planned.run);
    child::wait()?;
    Ok(())
}

/// Readers that look at a lock do not keep a producer from taking it.
#[test]
fn a_reader_that_looks_at_a_lock_does_not_block_a_producer() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[2])?;
    let run = planned.run;
    drop(planned);
    let path = store.path().to_owned();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| -> Result<u32> {
            let reader = Reader::open(&path)?;
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                reader.summary(run)?;
                looks += 1;
            }
            Ok(looks)
        });
        let locked = (0..200).try_for_each(|_| -> Result<()> {
            // A killed producer leaves its file, so that readers have something to lock.
            fs::write(folder.path().join("fleet.db-run-1.lock"), "pid 1")?;
            FileLock::run(&path, run).map(drop)?;
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let looks = looking.join().expect("the reader does not panic")?;
        ensure!(looks > 0);
        locked
    })
}

/// Root may read and write everything, so these tests read as another user.
#[cfg(unix)]
mod permissions {
    use std::os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    };

    use super::*;

    const NOBODY: u32 = 65534;

    fn allow(path: &Path, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    }

    /// Runs a test of this module as `nobody`. The folder's files have mode 0444, the folder 0555, and neither changes.
    fn as_nobody(test: &str, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            allow(&entry?.path(), 0o444)?;
        }
        allow(folder, 0o555)?;
        let before = contents(folder)?;
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let test = format!("reader::permissions::{test}");
        Process::start_with(&test, &folder.join("fleet.db"), |command| {
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
        })?
        .join()?;
        let after = contents(folder)?;
        ensure!(after == before, "the folder was changed");
        allow(folder, 0o755)
    }

    #[test]
    #[ignore = "a process that other tests start"]
    fn child_reads() -> Result<()> {
        let path = child::database()?;
        // The control: this user may not write.
        ensure!(options(&path).open().is_err());
        read_all(&path, 6)
    }

    #[test]
    #[ignore = "a process that another test starts"]
    fn child_is_refused() -> Result<()> {
        match Reader::open(&child::database()?) {
            Err(error @ StoreError::CannotOpen { .. }) => {
                let text = error.to_string();
                ensure!(text.contains("fleet.db-shm is missing"), "{text}");
                ensure!(text.contains("pingfleet doctor --db"), "{text}");
                Ok(())
            }
            other => bail!("{other:?}"),
        }
    }

    /// What a killed writer leaves: the file, the log and its index.
    fn left_behind(folder: &Path) -> Result<()> {
        let own = TempDir::new()?;
        let store = filled(own.path(), &[3, 3])?;
        for suffix in ["", "-wal", "-shm"] {
            let name = format!("fleet.db{suffix}");
            fs::copy(own.path().join(&name), folder.join(&name))?;
        }
        drop(store);
        Ok(())
    }

    #[test]
    fn a_protected_file_in_a_protected_folder_can_be_read() -> Result<()> {
        let folder = TempDir::new()?;
        filled(folder.path(), &[3, 3])?.close()?;
        as_nobody("child_reads", folder.path())
    }

    #[test]
    fn a_protected_log_that_nobody_has_open_can_be_read() -> Result<()> {
        let folder = TempDir::new()?;
        left_behind(folder.path())?;
        as_nobody("child_reads", folder.path())
    }

    #[test]
    fn a_protected_file_that_a_writer_has_open_can_be_read() -> Result<()> {
        let folder = TempDir::new()?;
        let mut store = filled(folder.path(), &[3, 3])?;
        as_nobody("child_reads", folder.path())?;
        // Root writes on.
        if fs::metadata("/proc/self")?.uid() == 0 {
            store.try_commit()?;
        }
        Ok(())
    }

    #[test]
    fn a_log_without_its_index_is_refused_with_the_command_that_reads_it() -> Result<()> {
        let folder = TempDir::new()?;
        left_behind(folder.path())?;
        fs::remove_file(folder.path().join("fleet.db-shm"))?;
        as_nobody("child_is_refused", folder.path())
    }

    /// A symbolic link may lead to a database whose log lies beside the database, not beside the link.
    #[test]
    fn a_log_is_found_through_a_symbolic_link() -> Result<()> {
        let folder = TempDir::new()?;
        let store = filled(folder.path(), &[3, 3])?;
        let links = TempDir::new()?;
        let link: PathBuf = links.path().join("link.db");
        std::os::unix::fs::symlink(store.path(), &link)?;
        read_all(&link, 6)?;
        ensure!(contents(links.path())?.len() == 1);
        Ok(())
    }
}
