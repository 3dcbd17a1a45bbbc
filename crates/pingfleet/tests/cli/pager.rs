//! A pager that is left open holds nothing of the database: its log can be written back and emptied meanwhile.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

use crate::screens::generated;

/// More than a page of `export`, and much more than a pipe holds.
const TARGETS: u32 = 21_000;

/// How long SQLite itself waits for readers. Only a reader that never ends exceeds it.
const UNTIL_READERS_END: Duration = Duration::from_mins(5);

/// A child that ends with the test.
struct Paged(Child);

impl Drop for Paged {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Writes to the database, and empties its log. Whether that was possible.
fn empties_the_log(connection: &Connection, wait: Duration) -> Result<bool> {
    connection.execute_batch("UPDATE runs SET duplicates = duplicates + 1")?;
    connection.busy_timeout(wait)?;
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: i64 = connection.query_row(sql, (), |row| row.get(0))?;
    Ok(is_busy == 0)
}

#[test]
fn the_log_can_be_emptied_while_a_pager_is_open() -> Result<()> {
    let dir = generated(TARGETS, 1)?;
    let path = dir.path("pingfleet.db");
    let connection = Connection::open(&path)?;
    let log = dir.path("pingfleet.db-wal");
    for arguments in [["report", "--targets"].as_slice(), &["hosts"], &["export"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pingfleet"))
            .args(arguments)
            .arg("--db")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        // The pager shows the first letter, and then reads no more.
        let mut stdout = child.stdout.take().context("a pipe")?;
        let mut child = Paged(child);
        stdout.read_exact(&mut [0])?;
        ensure!(
            empties_the_log(&connection, UNTIL_READERS_END)?,
            "{arguments:?}"
        );
        ensure!(log.metadata()?.len() == 0);
        // It is still there, and prints the rest.
        ensure!(child.0.try_wait()?.is_none(), "{arguments:?} has ended");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest)?;
        ensure!(rest.lines().count() >= TARGETS as usize);
        ensure!(child.0.wait()?.success());
    }
    // The control: a read transaction that stays open keeps the log.
    let mut reader = Connection::open(&path)?;
    let snapshot = reader.transaction()?;
    snapshot.query_row("SELECT count(*) FROM runs", (), |row| row.get::<_, i64>(0))?;
    ensure!(!empties_the_log(&connection, Duration::ZERO)?);
    ensure!(log.metadata()?.len() > 0);
    Ok(())
}
