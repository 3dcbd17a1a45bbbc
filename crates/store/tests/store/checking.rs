//! The check for damage: a small file before the work, a large one beside it, and not at each start.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use pingfleet_store::{
    DatabaseThread, FileLock, OpenOptions, Reader, StoreError, Transport, Writer,
};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::options,
};

const DAY_US: i64 = 24 * 3600 * 1_000_000;

/// A database of about 20 MB, more than what is checked before the work.
fn large(folder: &TempDir) -> Result<PathBuf> {
    let path = folder.path().join("fleet.db");
    options(&path).open()?.close()?;
    let connection = Connection::open(&path)?;
    connection.execute_batch(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO quarantine (received_at_us, queue, reason, length, body)
         SELECT i, 'results', 'made for a test', 65536, randomblob(65536) FROM n",
    )?;
    drop(connection);
    ensure!(fs::metadata(&path)?.len() > 16 << 20);
    Ok(path)
}

/// Damages a page in the middle of the file.
fn damage(path: &Path) -> Result<()> {
    let mut content = fs::read(path)?;
    let middle = content.len() / 2 / 4096 * 4096;
    content[middle..middle + 64]
        .iter_mut()
        .for_each(|byte| *byte = !*byte);
    fs::write(path, content)?;
    Ok(())
}

/// As a role opens it.
fn role(path: &Path) -> OpenOptions {
    OpenOptions {
        check: true,
        create: false,
        ..options(path)
    }
}

#[tokio::test]
async fn damage_of_a_large_file_stops_the_role_during_its_work() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    damage(&path)?;
    let db = DatabaseThread::open(role(&path)).await?;
    loop {
        match db.call(Writer::try_commit).await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(StoreError::Corrupt { .. }) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match db.close().await {
        Err(StoreError::Corrupt { .. }) => {}
        other => bail!("{other:?}"),
    }
    // The control: whoever wants no check works on, because the damaged page is not read.
    let db = DatabaseThread::open(OpenOptions {
        check: false,
        ..role(&path)
    })
    .await?;
    db.call(Writer::try_commit).await?;
    db.close().await?;
    Ok(())
}

/// A writer that works at the same time changes nothing about what is found.
#[test]
fn a_reader_checks_on_demand_beside_a_writer() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    damage(&path)?;
    let done = AtomicBool::new(false);
    let checked = std::thread::scope(|scope| -> Result<_> {
        let writing = scope.spawn(|| -> Result<()> {
            let mut store = options(&path).open()?;
            while !done.load(Ordering::Relaxed) {
                store.note_writer_alive(Transport::Broker, "test")?;
            }
            Ok(())
        });
        let checked = Reader::open(&path).and_then(|reader| reader.check());
        done.store(true, Ordering::Relaxed);
        writing.join().expect("the writer does not panic")?;
        Ok(checked)
    })?;
    match checked {
        Err(StoreError::Corrupt { .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

#[test]
fn a_reader_checks_on_demand() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    let reader = Reader::open(&path)?;
    reader.check()?;
    damage(&path)?;
    match reader.check() {
        Err(StoreError::Corrupt { .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// Lets a role open the file, wait for the check if one is due, and close it. Whether one was due.
async fn is_checked(path: &Path) -> Result<bool> {
    let db = DatabaseThread::open(role(path)).await?;
    let is_due = db.has_check_ended().is_some();
    while db.has_check_ended() == Some(false) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    db.close().await?;
    Ok(is_due)
}

#[tokio::test]
async fn a_large_file_is_checked_once_a_day() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    ensure!(is_checked(&path).await?, "never checked before");
    ensure!(!is_checked(&path).await?, "checked a moment ago");
    for (offset_us, is_due) in [(-DAY_US / 2, false), (-DAY_US * 2, true), (DAY_US, true)] {
        Connection::open(&path)?.execute(
            "UPDATE database SET checked_us = checked_us + ?1",
            [offset_us],
        )?;
        ensure!(is_checked(&path).await? == is_due, "{offset_us}");
        ensure!(!is_checked(&path).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_check_stays_due_until_it_is_recorded() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    for _ in 0..2 {
        let db = DatabaseThread::open(role(&path)).await?;
        ensure!(db.has_check_ended().is_some());
        // Not closed in order.
        drop(db);
    }
    ensure!(is_checked(&path).await?);
    ensure!(!is_checked(&path).await?);
    Ok(())
}

#[tokio::test]
async fn a_large_file_is_checked_after_a_role_was_killed() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    ensure!(is_checked(&path).await?);
    let lock = folder.path().join("fleet.db-writer.lock");
    // The control: a role that ends in order.
    let mut ends = Process::start("checking::child_is_a_writer", &path)?;
    ends.hear("working")?;
    ends.send_line("go")?;
    ends.join()?;
    ensure!(!lock.exists());
    ensure!(!is_checked(&path).await?);

    let mut killed = Process::start("checking::child_is_a_writer", &path)?;
    killed.hear("working")?;
    ensure!(!is_checked(&path).await?, "the other role is alive");
    ensure!(lock.exists());
    drop(killed);
    ensure!(lock.exists());
    // Files of others, which only look like locks.
    let others = ["backup.lock", "run-.lock", "run-1x.lock", "writer.lock.old"]
        .map(|name| folder.path().join(format!("fleet.db-{name}")));
    for other in &others {
        fs::write(other, "dear to its owner")?;
    }
    ensure!(is_checked(&path).await?);
    ensure!(!lock.exists());
    for other in &others {
        ensure!(fs::read_to_string(other)? == "dear to its owner");
    }
    ensure!(!is_checked(&path).await?, "it was checked since");
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_is_a_writer() -> Result<()> {
    let path = child::database()?;
    let _lock = FileLock::writer(&path)?;
    println!("working");
    child::wait().map(drop)
}
