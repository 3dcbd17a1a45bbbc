//! The check for damage: a small file before the work, a large one beside it, and not at each start.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use pingfleet_store::{DatabaseThread, FileLock, OpenOptions, Reader, StoreError, Writer};
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

/// Lets a role open and close the file; whether it began a check.
async fn begins_a_check(path: &Path) -> Result<bool> {
    let began = |path: &Path| -> Result<Option<i64>> {
        let connection = Connection::open(path)?;
        Ok(connection.query_row("SELECT check_began_us FROM database", (), |row| row.get(0))?)
    };
    let before = began(path)?;
    DatabaseThread::open(role(path)).await?.close().await?;
    Ok(began(path)? != before)
}

#[tokio::test]
async fn a_large_file_is_checked_once_a_day() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    ensure!(begins_a_check(&path).await?, "never checked before");
    ensure!(!begins_a_check(&path).await?, "checked a moment ago");
    for (offset_us, due) in [(-DAY_US / 2, false), (-DAY_US * 2, true), (DAY_US, true)] {
        Connection::open(&path)?.execute(
            "UPDATE database SET check_began_us = check_began_us + ?1",
            [offset_us],
        )?;
        ensure!(begins_a_check(&path).await? == due, "{offset_us}");
        ensure!(!begins_a_check(&path).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_large_file_is_checked_after_a_role_was_killed() -> Result<()> {
    let folder = TempDir::new()?;
    let path = large(&folder)?;
    ensure!(begins_a_check(&path).await?);
    let lock = folder.path().join("fleet.db-writer.lock");
    // The control: a role that ends in order.
    let mut ends = Process::start("checking::child_is_a_writer", &path)?;
    ends.hear("working")?;
    ends.send_line("go")?;
    ends.join()?;
    ensure!(!lock.exists());
    ensure!(!begins_a_check(&path).await?);

    let mut killed = Process::start("checking::child_is_a_writer", &path)?;
    killed.hear("working")?;
    ensure!(!begins_a_check(&path).await?, "the other role is alive");
    ensure!(lock.exists());
    drop(killed);
    ensure!(lock.exists());
    ensure!(begins_a_check(&path).await?);
    ensure!(!lock.exists());
    ensure!(!begins_a_check(&path).await?, "it was checked since");
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

/// Bytes that this thread has read from files.
#[cfg(target_os = "linux")]
fn bytes_read() -> Result<u64> {
    use anyhow::Context;
    let io = fs::read_to_string("/proc/thread-self/io")?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(read.context("no counter")?.parse()?)
}

#[cfg(target_os = "linux")]
#[test]
fn a_role_starts_and_ends_without_reading_the_whole_file() -> Result<()> {
    use pingfleet_store::Transport;

    let folder = TempDir::new()?;
    let path = large(&folder)?;
    let before = bytes_read()?;
    let mut store = role(&path).open()?;
    store.try_commit()?;
    store.remove_abandoned_plans()?;
    store.close_settled_runs(Transport::Broker)?;
    store.close()?;
    let read = bytes_read()? - before;
    ensure!(read < 1 << 20, "{read} bytes");
    // The control: the check reads all of it.
    let before = bytes_read()?;
    Reader::open(&path)?.check()?;
    let read = bytes_read()? - before;
    ensure!(read > 16 << 20, "{read} bytes");
    Ok(())
}
