//! `verify` finds every contradiction. Each tampered database here must lead to its finding.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};
use pingfleet_store::{Reader, RunState, Transport};
use pingfleet_wire::Status;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{dead_letter, delivery, options, reader, result, start};

/// 10.0.0.0 as the column `address` has it.
const FIRST_ADDRESS: i64 = 0x0a00_0000 - (1 << 31);

/// A complete run of three chunks with three targets each: the middle one of each chunk down, the others up.
struct Complete {
    folder: TempDir,
    path: PathBuf,
}

impl Complete {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("fleet.db");
        let mut store = options(&path).open()?;
        let (_planned, works) = start(&mut store, Transport::Sweep, &[3, 3, 3])?;
        for work in &works {
            let statuses = [Status::Up, Status::DOWN, Status::Up];
            store.apply(Transport::Sweep, &[delivery(result(work, &statuses))])?;
        }
        store.close()?;
        Ok(Self { folder, path })
    }

    /// The findings of `verify` after the database was tampered with.
    fn findings(&self, tampering: &str) -> Result<Vec<String>> {
        let copy = self.folder.path().join("tampered.db");
        fs::copy(&self.path, &copy)?;
        let connection = Connection::open(&copy)?;
        connection.execute_batch(tampering)?;
        ensure!(connection.changes() > 0, "{tampering}: nothing was changed");
        drop(connection);
        let store = options(&copy).open()?;
        let proof = reader(&store)?.verify(1)?;
        store.close()?;
        ensure!(
            proof.finding_count >= proof.findings.len() as i64,
            "{proof:?}"
        );
        ensure!(!proof.is_complete(), "{tampering}: still complete");
        Ok(proof
            .findings
            .into_iter()
            .map(|finding| finding.0)
            .collect())
    }
}

#[test]
fn an_untouched_run_is_complete() -> Result<()> {
    let complete = Complete::new()?;
    let proof = Reader::open(&complete.path)?.verify(1)?;
    ensure!(proof.is_complete(), "{proof:?}");
    ensure!((proof.planned_targets, proof.proven_targets) == (9, 9));
    ensure!(proof.summary.state == RunState::Complete);
    Ok(())
}

#[test]
fn every_tampering_is_found() -> Result<()> {
    let complete = Complete::new()?;
    let row = "WHERE chunk = 1 AND position";
    let cases = [
        (format!("DELETE FROM results {row} = 0"), "no row at position 0"),
        (format!("DELETE FROM results {row} = 1"), "no row at position 1"),
        (format!("DELETE FROM results {row} = 2"), "2 rows instead of 3"),
        ("DELETE FROM results WHERE chunk = 2".to_owned(), "0 rows instead of 3"),
        (format!("UPDATE results SET address = {FIRST_ADDRESS} {row} = 0"), "another target"),
        (
            format!("UPDATE results SET address = {FIRST_ADDRESS} {row} = 0"),
            "target 10.0.0.0 has more than one row",
        ),
        // The right address in another form than the one in which it is stored.
        (format!("UPDATE results SET address = '10.0.0.3' {row} = 0"), "another target"),
        (format!("UPDATE results SET address = NULL {row} = 0"), "another target"),
        (format!("UPDATE results SET name = 'x' {row} = 0"), "another target"),
        (format!("UPDATE results SET name = 'x' {row} = 2"), "another target"),
        (format!("UPDATE results SET position = 9 {row} = 2"), "another target"),
        (
            "UPDATE results SET position = position + 10 WHERE chunk = 1;
             UPDATE results SET position = 12 - position WHERE chunk = 1".to_owned(),
            "another target",
        ),
        (
            "INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address,
                rtt_avg_ns)
             SELECT run, chunk, 3, status, sent, received, attempts, probed_after_us, address, rtt_avg_ns
             FROM results WHERE chunk = 1 AND position = 0".to_owned(),
            "4 rows instead of 3",
        ),
        ("UPDATE results SET chunk = 7 WHERE chunk = 1".to_owned(), "belong to no chunk"),
        ("UPDATE results SET run = 2 WHERE chunk = 1".to_owned(), "0 rows instead of 3"),
        // A row of an unknown chunk does not replace a missing row.
        (format!("UPDATE results SET chunk = 7 {row} = 1"), "1 rows belong to no chunk"),
        (format!("UPDATE results SET status = 1 {row} = 0"), "counters per status"),
        (format!("UPDATE results SET status = 6 {row} = 0"), "contradicts itself"),
        (format!("UPDATE results SET received = 0 {row} = 0"), "contradicts itself"),
        (format!("UPDATE results SET received = 4 {row} = 0"), "contradicts itself"),
        (format!("UPDATE results SET rtt_avg_ns = NULL {row} = 0"), "contradicts itself"),
        (format!("UPDATE results SET received = 1 {row} = 1"), "contradicts itself"),
        ("UPDATE runs SET up = up + 1".to_owned(), "counters per status"),
        ("UPDATE runs SET up = up - 1, down = down + 1".to_owned(), "counters per status"),
        ("UPDATE runs SET targets = targets - 1".to_owned(), "the run counts 8 targets"),
        ("UPDATE runs SET chunks = chunks + 1".to_owned(), "counters of chunks"),
        ("UPDATE runs SET chunks_done = chunks_done - 1".to_owned(), "counters of chunks"),
        (
            "UPDATE runs SET chunks_done = chunks_done - 1, chunks_dead = 1".to_owned(),
            "counters of chunks",
        ),
        ("UPDATE chunks SET state = 1 WHERE chunk = 1".to_owned(), "3 rows instead of 0"),
        ("UPDATE chunks SET state = 2 WHERE chunk = 1".to_owned(), "3 rows instead of 0"),
        ("UPDATE chunks SET targets = 4 WHERE chunk = 1".to_owned(), "work message"),
        ("DELETE FROM plan WHERE chunk = 1".to_owned(), "chunk 1: its work message"),
        ("DELETE FROM chunks WHERE chunk = 1".to_owned(), "chunk 1 is missing"),
        ("DELETE FROM chunks WHERE chunk = 2".to_owned(), "the run counts 9 targets"),
        ("UPDATE plan SET token = zeroblob(16) WHERE chunk = 1".to_owned(), "work message"),
        ("UPDATE plan SET work = zeroblob(40) WHERE chunk = 1".to_owned(), "work message"),
        (
            "UPDATE plan SET work = (SELECT p.work FROM plan p WHERE p.chunk = 0) WHERE chunk = 1".to_owned(),
            "work message",
        ),
        ("UPDATE database SET uuid = zeroblob(16)".to_owned(), "work message"),
        ("UPDATE runs SET run_id = '01980000-0000-7000-8000-000000000001'".to_owned(), "work message"),
        (
            "DELETE FROM results WHERE chunk = 1; UPDATE chunks SET state = 1 WHERE chunk = 1;
             UPDATE runs SET chunks_done = 2, up = up - 2, down = down - 1".to_owned(),
            "complete by its state",
        ),
    ];
    for (tampering, wanted) in cases {
        let findings = complete.findings(&tampering)?;
        ensure!(
            findings.iter().any(|finding| finding.contains(wanted)),
            "{tampering}: {findings:?}"
        );
        // No count is negative.
        ensure!(
            !findings.iter().any(|finding| finding.starts_with('-')),
            "{tampering}: {findings:?}"
        );
    }
    Ok(())
}

#[test]
fn a_target_that_is_planned_twice_is_found() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (planned, works) = start(&mut store, Transport::Sweep, &[1, 1])?;
    let mut twin = works[1].clone();
    twin.targets.clone_from(&works[0].targets);
    Connection::open(&path)?.execute(
        "UPDATE plan SET work = ?1 WHERE chunk = 1",
        [pingfleet_wire::Message::encode(&twin)],
    )?;
    for work in &works {
        store.apply(Transport::Sweep, &[delivery(result(work, &[Status::Up]))])?;
    }
    let proof = reader(&store)?.verify(planned.run)?;
    ensure!(
        proof.finding_count == 1 && !proof.is_complete(),
        "{proof:?}"
    );
    ensure!(proof.findings[0].0.contains("more than one row"));
    Ok(())
}

#[test]
fn what_is_outstanding_or_dead_is_no_contradiction() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 2, 2])?;
    let batch = [
        delivery(result(&works[0], &[Status::Up])),
        dead_letter(&works[2]),
    ];
    store.apply(Transport::Broker, &batch)?;
    let proof = reader(&store)?.verify(planned.run)?;
    ensure!(proof.is_consistent() && !proof.is_complete(), "{proof:?}");
    ensure!((proof.planned_targets, proof.proven_targets) == (6, 2));
    ensure!((proof.outstanding_chunks, proof.dead_count) == (1, 1));
    Ok(())
}

#[test]
fn many_findings_are_counted_and_the_first_are_listed() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (planned, works) = start(&mut store, Transport::Sweep, &[100])?;
    store.apply(
        Transport::Sweep,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    Connection::open(&path)?.execute_batch("UPDATE results SET received = 0")?;
    let proof = reader(&store)?.verify(planned.run)?;
    ensure!((proof.finding_count, proof.findings.len()) == (100, 20));
    ensure!(proof.proven_targets == 0);
    Ok(())
}
