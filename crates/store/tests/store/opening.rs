//! Opening: by many processes at once, from an unfinished file, and beside others who use it.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use pingfleet_store::{OpenOptions, Reader, Transport, Writer};
use pingfleet_wire::Status;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::{delivery, options, result, start},
};

/// What the system's own `sqlite3` reads, one line a row.
fn shell(path: &Path, mode: &str, sql: &str) -> Result<String> {
    let output = Command::new("sqlite3")
        .arg(format!("file:{}{mode}", path.display()))
        .arg(sql)
        .output()
        .context("this test needs the program sqlite3")?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

const READ_ONLY: &str = "?mode=ro";

const ROWS: &str = "SELECT (SELECT count(*) FROM report) || ' ' || (SELECT count(*) FROM latest)
    || ' ' || (SELECT state FROM run_summary)";

fn sweep(store: &mut Writer) -> Result<()> {
    let (_planned, works) = start(store, Transport::Sweep, &[3, 2])?;
    for work in &works {
        store.apply(Transport::Sweep, &[delivery(result(work, &[Status::Up]))])?;
    }
    Ok(())
}

#[test]
fn processes_that_create_at_once_create_one_database() -> Result<()> {
    for _ in 0..10 {
        let folder = TempDir::new()?;
        let path = folder.path().join("fleet.db");
        let mut children = (0..6)
            .map(|_| Process::start("opening::child_opens", &path))
            .collect::<Result<Vec<_>>>()?;
        for child in &mut children {
            child.hear("waiting")?;
        }
        for child in &mut children {
            child.send_line("go")?;
        }
        let mut databases = children
            .iter_mut()
            .map(|child| child.hear("database "))
            .collect::<Result<Vec<_>>>()?;
        for child in &mut children {
            child.send_line("go")?;
        }
        for child in children {
            child.join()?;
        }
        databases.push(options(&path).open()?.database().to_string());
        databases.dedup();
        ensure!(databases.len() == 1, "{databases:?}");
    }
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_opens() -> Result<()> {
    let options = OpenOptions {
        check: true,
        ..options(&child::database()?)
    };
    println!("waiting");
    child::wait()?;
    let mut store = options.open()?;
    store.try_commit()?;
    println!("database {}", store.database());
    child::wait()?;
    store.close()?;
    Ok(())
}

#[test]
fn an_unfinished_file_of_ours_is_migrated() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    // "PFLT", as in schema.rs.
    let unfinished = Connection::open(&path)?;
    unfinished
        .execute_batch("PRAGMA application_id = 0x50464c54; PRAGMA user_version = 0; VACUUM")?;
    drop(unfinished);
    let mut store = OpenOptions {
        create: false,
        ..options(&path)
    }
    .open()?;
    sweep(&mut store)?;
    store.close()?;
    ensure!(shell(&path, READ_ONLY, "PRAGMA user_version")? == "6");
    Ok(())
}

#[test]
fn a_closed_database_is_one_file_that_others_read() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let database = store.database();
    sweep(&mut store)?;
    store.close()?;
    let names = std::fs::read_dir(folder.path())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    ensure!(names == ["fleet.db"], "{names:?}");
    ensure!(shell(&path, READ_ONLY, ROWS)? == "5 5 complete");
    ensure!(options(&path).open()?.database() == database);
    Ok(())
}

#[test]
fn others_read_a_database_that_is_open() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    sweep(&mut store)?;
    ensure!(shell(&path, READ_ONLY, ROWS)? == "5 5 complete");
    store.close()?;
    Ok(())
}

/// SQLite's locks are those of `fcntl`, and a process loses all of them on a file with the first descriptor of that
/// file that it closes. Then the next program that leaves takes itself for the last one, and removes the log.
#[test]
fn a_second_connection_of_the_process_takes_no_lock_from_the_first() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut first = options(&path).open()?;
    let second = options(&path).open()?;
    sweep(&mut first)?;
    ensure!(shell(&path, "", ROWS)? == "5 5 complete");
    start(&mut first, Transport::Sweep, &[1])?;
    ensure!(shell(&path, "", "SELECT count(*) FROM runs")? == "2");
    second.close()?;
    first.close()?;
    ensure!(Reader::open(&path)?.summaries()?.len() == 2);
    Ok(())
}

#[test]
fn a_refused_opening_takes_no_lock_from_an_open_database() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    sweep(&mut store)?;
    let newer = Connection::open(&path)?;
    newer.execute_batch("PRAGMA user_version = 7; PRAGMA wal_checkpoint(TRUNCATE)")?;
    ensure!(options(&path).open().is_err());
    newer.execute_batch("PRAGMA user_version = 6")?;
    drop(newer);
    shell(&path, "", ROWS)?;
    start(&mut store, Transport::Sweep, &[1])?;
    store.close()?;
    ensure!(Reader::open(&path)?.summaries()?.len() == 2);
    Ok(())
}
