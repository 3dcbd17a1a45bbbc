//! A pager that is left open holds nothing of the database: a writer goes on, and the log does not grow.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

use crate::{live::Live, rig::TestDir, screens::generated};

/// More than what a command reads ahead: at most five parts of 20,000 rows of `export`; of `hosts` three parts of 50,000, but
/// of each only a page, because their labels are long.
const TARGETS: i64 = 150_000;

/// Puts these targets into run 1, in the order of their addresses, each with labels of 400 letters.
const FILL: &str = "
DELETE FROM results; DELETE FROM labels; DELETE FROM chunks; DELETE FROM latest_rows;
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < 150000)
INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address, rtt_avg_ns)
SELECT 1, i / 1000, i % 1000, 0, 1, 1, 1, 0, i, 1000000 FROM n;
INSERT INTO labels SELECT run, chunk, position, json_object('note', printf('%.*c', 400, 'x')) FROM results;
INSERT INTO chunks (run, chunk, targets, state, started_at_us) SELECT DISTINCT run, chunk, 1000, 3, 1 FROM results;
INSERT INTO latest_rows (target, run, chunk, position, status, probed_at_us, first_seen_us)
SELECT address, run, chunk, position, status, 1, 1 FROM results;
UPDATE runs SET targets = 150000, chunks = 150, chunks_done = 150, up = 150000, late = 0, unreachable = 0, dns_failed = 0,
    send_failed = 0, unknown = 0, down = 0;
INSERT INTO quarantine (id, received_at_us, queue, reason, length, body) VALUES (1, 1, 'results', 'test', 0, x'00');";

/// What the last target becomes after the pager has stopped to read.
const CHANGED: &str = "changed-meanwhile.example";

/// What the writer writes meanwhile, in transactions of a MB, and how large the log may become. SQLite writes it back when
/// it has 4 MB, and begins anew unless somebody reads.
const WRITTEN_MB: u64 = 48;
const MAX_LOG: u64 = 16_000_000;

/// A command that reads its pages ahead may be reading one in the first of these rounds, and in no later one.
const ROUNDS: usize = 8;

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

/// Writes to the database, and returns how long the log is then.
fn log_after_writing(connection: &Connection, log: &Path) -> Result<u64> {
    for _ in 0..WRITTEN_MB {
        connection.execute("UPDATE quarantine SET body = randomblob(1000000)", ())?;
    }
    Ok(log.metadata()?.len())
}

/// Whether the log can be emptied, when readers have this time to end.
fn empties_the_log(connection: &Connection, wait: Duration) -> Result<bool> {
    connection.busy_timeout(wait)?;
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: i64 = connection.query_row(sql, (), |row| row.get(0))?;
    Ok(is_busy == 0)
}

/// Whether the log stays short while somebody writes, in a round after readers had time to end.
fn log_stays_short(connection: &Connection, log: &Path, wait: Duration) -> Result<bool> {
    for _ in 0..ROUNDS {
        if log_after_writing(connection, log)? <= MAX_LOG {
            return Ok(true);
        }
        if !empties_the_log(connection, wait)? {
            return Ok(false);
        }
    }
    Ok(false)
}

/// A command whose pager has shown the first letter and reads no more.
fn paged(dir: &TestDir, arguments: &[&str]) -> Result<(Paged, impl std::io::Read + use<>)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pingfleet"))
        .args(arguments)
        .arg("--db")
        .arg(dir.path("pingfleet.db"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("a pipe")?;
    let child = Paged(child);
    stdout.read_exact(&mut [0])?;
    Ok((child, stdout))
}

#[test]
fn a_pager_that_is_left_open_does_not_let_the_log_grow() -> Result<()> {
    let dir = generated(1, 1)?;
    let path = dir.path("pingfleet.db");
    let connection = Connection::open(&path)?;
    connection.execute_batch(&format!("BEGIN; {FILL} COMMIT"))?;
    let log = dir.path("pingfleet.db-wal");
    ensure!(empties_the_log(&connection, UNTIL_READERS_END)?);
    let last = "WHERE run = 1 AND chunk = 149 AND position = 999";
    for arguments in [["report", "--targets"].as_slice(), &["hosts"], &["export"]] {
        let (mut child, mut stdout) = paged(&dir, arguments)?;
        let is_short = log_stays_short(&connection, &log, UNTIL_READERS_END)?;
        ensure!(is_short, "{arguments:?}: {} bytes", log.metadata()?.len());
        // It had not read all rows by then: the rest shows what the last one is now.
        let changed = format!("UPDATE results SET name = '{CHANGED}' {last}");
        connection.execute(&changed, ())?;
        ensure!(child.0.try_wait()?.is_none(), "{arguments:?} has ended");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest)?;
        ensure!(rest.lines().count() as i64 >= TARGETS, "{arguments:?}");
        ensure!(rest.contains(CHANGED), "{arguments:?} had read all before");
        ensure!(child.0.wait()?.success());
        connection.execute(&format!("UPDATE results SET name = NULL {last}"), ())?;
    }
    // The control: a read transaction that stays open lets the log grow.
    ensure!(empties_the_log(&connection, UNTIL_READERS_END)?);
    let mut reader = Connection::open(&path)?;
    let snapshot = reader.transaction()?;
    snapshot.query_row("SELECT count(*) FROM runs", (), |row| row.get::<_, i64>(0))?;
    ensure!(!log_stays_short(&connection, &log, Duration::ZERO)?);
    ensure!(log.metadata()?.len() > WRITTEN_MB * 1_000_000);
    Ok(())
}

/// The niceness of each thread of a process (`proc_pid_stat(5)`, field 19).
fn niceness(pid: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
        found.push(fields.split(' ').nth(16).context("a niceness")?.parse()?);
    }
    Ok(found)
}

#[test]
fn commands_that_read_let_a_sweep_go_first() -> Result<()> {
    let dir = generated(1, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute_batch(&format!("BEGIN; {FILL} COMMIT"))?;
    let own = niceness("self")?[0];
    for arguments in [["report", "--targets"].as_slice(), &["hosts"], &["export"]] {
        let (child, _stdout) = paged(&dir, arguments)?;
        let found = niceness(&child.0.id().to_string())?;
        let all = found.iter().all(|nice| *nice == (own + 10).min(19));
        ensure!(all, "{arguments:?}: {found:?}, and the test itself {own}");
    }
    // The control: all threads of a sweep are as nice as who started it.
    let sweep = "sweep --db sweep.db --dashboard=127.0.0.1:0 --rate 10 127.0.0.0/20";
    let arguments: Vec<_> = sweep.split(' ').collect();
    let live = Live::start(&dir, "pingfleet", &arguments, "sweep.log")?;
    let found = niceness(&live.program.pid().to_string())?;
    ensure!(
        found.iter().all(|nice| *nice == own),
        "{found:?}, not {own}"
    );
    Ok(())
}
