//! Lost sessions, locked and failing databases: what is not committed comes again, and what is acked is stored.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result};
use consumer_writer::WriterError;
use pingfleet_broker::QueueName;
use pingfleet_store::StoreError;
use pingfleet_wire::Message as _;
use rusqlite::ErrorCode;

use crate::rig::{Rig, RunningWriter, acked};

/// Longer than the busy timeout after which the writer logs a warning and tries again.
const LONGER_THAN_BUSY: Duration = Duration::from_secs(11);

/// Waits until a program that began to wait for the lock after the writer, with a longer busy timeout, has given up.
async fn outwait_the_writer(rig: &Rig) -> Result<()> {
    let witness = rig.connection()?;
    witness.busy_timeout(LONGER_THAN_BUSY)?;
    let refused = tokio::task::spawn_blocking(move || witness.execute_batch("BEGIN IMMEDIATE"))
        .await?
        .err()
        .context("the lock is free")?;
    assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    Ok(())
}

#[tokio::test]
async fn a_session_lost_before_the_commit_costs_nothing() -> Result<()> {
    let mut rig = Rig::new(6, 10)?;
    rig.settings.batch_size = 1_000_000;
    rig.put_results(0..4).await?;
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 4).await?;
    rig.desk.cut.notify_one();
    rig.put_results(4..6).await?;
    rig.taken(QueueName::RESULTS, 4 + 6).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (6, 0));
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [6]);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_session_lost_between_commit_and_ack_costs_duplicates_only() -> Result<()> {
    let mut rig = Rig::new(4, 10)?;
    rig.settings.batch_size = 20;
    rig.desk.ack_is_lost.store(true, Ordering::Relaxed);
    rig.put_results(0..4).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 4).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (4, 2));
    assert_eq!(summary.rows, 40);
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 0);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn stop_commits_and_acks_what_is_in_hand() -> Result<()> {
    let mut rig = Rig::new(3, 10)?;
    rig.settings.batch_size = 1_000_000;
    rig.kill(&rig.works[2].encode()).await?;
    rig.put_results(0..2).await?;
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 2).await?;
    rig.taken(QueueName::DEAD, 1).await?;
    assert!(acked(&rig.desk.log.events(), QueueName::RESULTS).is_empty());
    let summary = writer.stop().await?;
    assert_eq!((summary.batches, summary.applied), (1, 3));
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [2]);
    assert_eq!(acked(&rig.desk.log.events(), QueueName::DEAD), [1]);
    let proof = rig.verify()?;
    assert_eq!((proof.proven_targets, proof.dead_count), (20, 1));
    rig.assert_no_early_ack();
    Ok(())
}

/// A writer that commits a batch by its age, and has committed the first chunk. Its first liveness update
/// is over then, so it does not meet the lock of the test.
async fn settled_in(rig: &mut Rig) -> Result<RunningWriter> {
    rig.settings.batch_size = 1_000_000;
    rig.settings.batch_interval = Duration::from_millis(50);
    let writer = rig.start().await?;
    rig.put_results([0]).await?;
    rig.acked(QueueName::RESULTS, 1).await?;
    Ok(writer)
}

#[tokio::test]
async fn a_locked_database_delays_and_loses_nothing() -> Result<()> {
    let mut rig = Rig::new(3, 10)?;
    let writer = settled_in(&mut rig).await?;
    let other = rig.connection()?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    rig.put_results([1]).await?;
    outwait_the_writer(&rig).await?;
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [1]);
    rig.put_results([2]).await?;
    other.execute_batch("COMMIT")?;
    rig.acked(QueueName::RESULTS, 3).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (3, 0));
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_writer_whose_liveness_update_waits_for_a_lock_can_be_stopped() -> Result<()> {
    let mut rig = Rig::new(1, 10)?;
    let writer = settled_in(&mut rig).await?;
    let other = rig.connection()?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    tokio::time::pause();
    // The paused clock first advances to the next liveness update, and then to the end of this sleep.
    tokio::time::sleep(Duration::from_secs(4)).await;
    writer.stop.cancel();
    let (ended, db) = writer.left().await?;
    assert_eq!(ended?.applied, 1);
    other.execute_batch("COMMIT")?;
    db.close().await?;
    rig.assert_complete()
}

#[tokio::test]
async fn a_writer_that_finds_the_database_locked_waits() -> Result<()> {
    let rig = Rig::new(1, 10)?;
    rig.put_results([0]).await?;
    // It is opened before, as that is not what is tested.
    let writer = rig.start().await?;
    let other = rig.connection()?;
    other.busy_timeout(LONGER_THAN_BUSY)?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    outwait_the_writer(&rig).await?;
    other.execute_batch("COMMIT")?;
    rig.acked(QueueName::RESULTS, 1).await?;
    writer.stop().await?;
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_writer_that_waits_for_a_lock_before_its_first_commit_stops_at_once() -> Result<()> {
    let rig = Rig::new(1, 10)?;
    let other = rig.connection()?;
    other.busy_timeout(LONGER_THAN_BUSY)?;
    let writer = rig.start().await?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    writer.stop.cancel();
    // It ends while the lock is still held.
    let (ended, db) = writer.left().await?;
    assert_eq!(ended?.applied, 0);
    other.execute_batch("COMMIT")?;
    Ok(db.close().await?)
}

#[tokio::test]
async fn stop_under_a_lock_acks_nothing_and_redelivery_shows_what_was_committed() -> Result<()> {
    let mut rig = Rig::new(2, 10)?;
    let writer = settled_in(&mut rig).await?;
    let other = rig.connection()?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    rig.put_results([1]).await?;
    rig.taken(QueueName::RESULTS, 2).await?;
    // The deadline of the stop passes while the commit waits for the lock.
    tokio::time::pause();
    writer.stop.cancel();
    let (ended, db) = writer.left().await?;
    assert!(
        matches!(ended, Err(WriterError::StopDeadline { .. })),
        "{ended:?}"
    );
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [1]);
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 1);
    other.execute_batch("COMMIT")?;
    db.close().await?;

    tokio::time::resume();
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 2).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (0, 1));
    rig.assert_complete()
}

/// A database in which the batch fails because of `fault`: nothing may be acked, all of it comes again to the next
/// writer, and that one counts no duplicate.
async fn ends_with_an_error_and_acks_nothing(fault: &str, fix: &str) -> Result<()> {
    let mut rig = Rig::new(4, 10)?;
    rig.settings.batch_size = 20;
    rig.connection()?.execute_batch(fault)?;
    rig.put_results(0..4).await?;
    let writer = rig.start().await?;
    let ended = writer.ended().await?;
    assert!(
        matches!(ended, Err(WriterError::Store(StoreError::Sqlite(_)))),
        "{ended:?}"
    );
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [2]);
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 2);
    assert_eq!(rig.value::<i64>("SELECT count(*) FROM results")?, 20);

    rig.connection()?.execute_batch(fix)?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 4).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (2, 0));
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_batch_that_fails_in_the_middle_ends_the_writer_with_nothing_of_it_acked() -> Result<()> {
    ends_with_an_error_and_acks_nothing(
        "CREATE TRIGGER fault BEFORE INSERT ON results WHEN NEW.chunk = 3 AND NEW.position = 5
         BEGIN SELECT RAISE(ABORT, 'the test says so'); END",
        "DROP TRIGGER fault",
    )
    .await
}

#[tokio::test]
async fn a_commit_that_fails_ends_the_writer_with_nothing_of_it_acked() -> Result<()> {
    // A deferred constraint is looked at by COMMIT alone.
    ends_with_an_error_and_acks_nothing(
        "CREATE TABLE parents (id INTEGER PRIMARY KEY);
         CREATE TABLE children (id INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER fault AFTER INSERT ON results WHEN NEW.chunk = 3 AND NEW.position = 9
         BEGIN INSERT INTO children VALUES (1); END",
        "DROP TRIGGER fault",
    )
    .await
}
