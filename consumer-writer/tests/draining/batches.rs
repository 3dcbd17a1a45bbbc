//! What ends a batch, and that its deliveries are acked after its commit, each in exactly one counter.

use std::time::Duration;

use anyhow::Result;
use consumer_writer::{WriterState, WriterSummary};
use pingfleet_broker::QueueName;
use pingfleet_wire::{Message as _, Token};
use uuid::Uuid;

use crate::{
    rig::{Rig, acked},
    watched::within,
};

#[tokio::test]
async fn nothing_is_acked_before_its_commit() -> Result<()> {
    let rig = Rig::new(40, 10)?;
    rig.put_results(0..40).await?;
    rig.put(QueueName::RESULTS, b"no result").await?;
    rig.put_results([7]).await?;
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 42).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        (summary.applied, summary.duplicates, summary.quarantined),
        (40, 1, 1)
    );
    assert_eq!(summary.rows, 400);
    rig.assert_no_early_ack();
    rig.acked(QueueName::RESULTS, 42).await?;
    assert_eq!(rig.ready(QueueName::RESULTS).await?, 0);
    rig.assert_complete()
}

#[tokio::test]
async fn a_batch_ends_when_it_has_its_rows() -> Result<()> {
    let mut rig = Rig::new(5, 10)?;
    rig.settings.batch_size = 20;
    rig.put_results(0..5).await?;
    let writer = rig.start().await?;
    // The fifth may be taken during the second commit.
    rig.acked(QueueName::RESULTS, 4).await?;
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [2, 2]);
    // The fifth alone is too little for a batch, until the writer stops.
    assert_eq!(writer.stop().await?.batches, 3);
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [2, 2, 1]);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_batch_ends_when_its_first_delivery_is_old_enough() -> Result<()> {
    let mut rig = Rig::new(3, 10)?;
    rig.settings.batch_size = 1_000_000;
    rig.settings.batch_interval = Duration::from_millis(50);
    rig.put_results(0..3).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 3).await?;
    writer.stop().await?;
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_batch_ends_when_half_of_the_window_is_in_it() -> Result<()> {
    let mut rig = Rig::new(200, 1)?;
    rig.settings.batch_size = 1_000_000;
    rig.put_results(0..200).await?;
    let writer = rig.start().await?;
    rig.taken(QueueName::RESULTS, 200).await?;
    rig.acked(QueueName::RESULTS, 128).await?;
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [128]);
    assert_eq!(writer.stop().await?.batches, 2);
    assert_eq!(acked(&rig.desk.log.events(), QueueName::RESULTS), [128, 72]);
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_result_that_comes_again_is_counted_and_changes_nothing() -> Result<()> {
    let rig = Rig::new(2, 3)?;
    let writer = rig.start().await?;
    rig.put_results([0, 0, 0]).await?;
    let mut other = rig.result(0);
    other.worker = "another".to_owned();
    rig.put(QueueName::RESULTS, &other.encode()).await?;
    rig.put_results([1]).await?;
    rig.acked(QueueName::RESULTS, 5).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.duplicates), (2, 3));
    assert_eq!(summary.rows, 6);
    assert_eq!(rig.verify()?.summary.duplicates, 3);
    assert_eq!(
        rig.value::<String>("SELECT group_concat(DISTINCT worker) FROM report")?,
        "tester"
    );
    rig.assert_complete()
}

/// Batches, rows, and the outcomes of deliveries.
fn counts(summary: &WriterSummary) -> [u64; 5] {
    [
        summary.batches,
        summary.rows,
        summary.applied,
        summary.duplicates,
        summary.quarantined,
    ]
}

#[tokio::test]
async fn the_summary_is_published_after_each_commit_and_the_last_one_is_returned() -> Result<()> {
    let rig = Rig::new(3, 3)?;
    let mut writer = rig.start().await?;
    let connected = |summary: &WriterSummary| summary.state == WriterState::Connected;
    let ready = within("a session", writer.summary.wait_for(connected)).await??;
    let mut expected = *ready;
    drop(ready);
    assert_eq!(counts(&expected), [0; 5]);
    for chunk in 0..3 {
        rig.put_results([chunk]).await?;
        // It also says when a commit takes long.
        let committed = |summary: &WriterSummary| summary.batches == u64::from(chunk) + 1;
        let summary = *within("the commit", writer.summary.wait_for(committed)).await??;
        assert_eq!(
            counts(&summary),
            [
                u64::from(chunk) + 1,
                3 * (u64::from(chunk) + 1),
                u64::from(chunk) + 1,
                0,
                0
            ]
        );
        assert_eq!(summary.last_commit.rows, 3);
        assert!(summary.last_commit.lag >= summary.last_commit.duration);
        let times = summary.commit_times;
        assert_eq!(times.counts.iter().sum::<u64>(), summary.batches);
        assert_eq!(
            times.sum,
            expected.commit_times.sum + summary.last_commit.duration
        );
        expected = summary;
        // It was committed before.
        assert_eq!(
            rig.value::<i64>("SELECT count(*) FROM report")?,
            expected.rows as i64
        );
    }
    let last = writer.summary.clone();
    // The last snapshot of the live page shows its state before the stop.
    assert_eq!(expected.state, WriterState::Connected);
    assert_eq!(writer.stop().await?, expected);
    assert_eq!(*last.borrow(), expected);
    rig.assert_complete()
}

#[tokio::test]
async fn what_does_not_fit_the_plan_is_quarantined_with_its_reason_and_acked() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    let writer = rig.start().await?;
    let good = rig.result(0);
    let mut foreign_token = good.clone();
    foreign_token.token = Token(Uuid::new_v4());
    let mut short = good.clone();
    short.outcomes.pop();
    let mut no_chunk = good.clone();
    no_chunk.key.chunk = 9;
    let mut no_run = good.clone();
    no_run.key.run = Uuid::new_v4();
    let mut never_set = good.clone();
    never_set.started_at_us = 0;
    let mut end_of_time = good.clone();
    end_of_time.started_at_us = 253_402_300_799_999_999;
    let mut flood = good.clone();
    flood.outcomes[1].sent = u16::MAX;
    let mut trailing = good.encode();
    trailing.push(0);
    let mut newer = good.encode();
    newer[1] = 2;
    let bad = [
        (foreign_token.encode(), "wrong token"),
        (
            short.encode(),
            "another number of outcomes than of targets: 2 of 3",
        ),
        (no_chunk.encode(), "unknown chunk: chunk 9 of run 1"),
        (no_run.encode(), "unknown run: "),
        (
            never_set.encode(),
            "probed before its run was planned: at 1970-01-01T00:00:00Z by the clock of worker tester",
        ),
        (end_of_time.encode(), "probed after it was delivered"),
        (
            flood.encode(),
            "more requests than the plan allows: target 1: 65535 of 3",
        ),
        (trailing, "bytes after the end of a message: 1"),
        (newer, "another wire version: version 2"),
        (Vec::new(), "not a pingfleet message"),
    ];
    for (body, _) in &bad {
        rig.put(QueueName::RESULTS, body).await?;
    }
    rig.put(QueueName::RESULTS, &good.encode()).await?;
    rig.acked(QueueName::RESULTS, bad.len() + 1).await?;
    let summary = writer.stop().await?;
    assert_eq!(
        counts(&summary),
        [summary.batches, 3, 1, 0, bad.len() as u64]
    );
    let connection = rig.connection()?;
    for (body, reason) in &bad {
        let kept: String = connection.query_row(
            "SELECT reason || ': ' || detail FROM quarantine WHERE queue = 'results' AND body = ?1 AND length = ?2",
            (body, body.len() as i64),
            |row| row.get(0),
        )?;
        assert!(kept.starts_with(reason), "{kept:?} instead of {reason:?}");
    }
    rig.assert_no_early_ack();
    rig.assert_complete()
}

#[tokio::test]
async fn a_message_over_the_limit_is_quarantined_unread() -> Result<()> {
    let rig = Rig::new(1, 3)?;
    // Without the limit this would be a result with something behind it.
    let mut long = rig.result(0).encode();
    long.resize(3 << 20, 0);
    rig.put(QueueName::RESULTS, &long).await?;
    rig.put(QueueName::HEARTBEATS, &long).await?;
    rig.put_results([0]).await?;
    let writer = rig.start().await?;
    rig.acked(QueueName::RESULTS, 2).await?;
    rig.acked(QueueName::HEARTBEATS, 1).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.applied, summary.quarantined), (1, 1));
    assert_eq!(
        rig.value::<String>(
            "SELECT reason || ': ' || detail || ', ' || length || ', ' || length(body) FROM quarantine"
        )?,
        "over the limit of a message: 3145728 bytes, 3145728, 64"
    );
    rig.assert_complete()
}

#[tokio::test]
async fn dead_letters_are_recorded_with_their_reason() -> Result<()> {
    let mut rig = Rig::new(3, 3)?;
    rig.settings.batch_interval = Duration::from_millis(10);
    let writer = rig.start().await?;
    rig.put_results([0]).await?;
    rig.acked(QueueName::RESULTS, 1).await?;
    rig.kill(&rig.works[1].encode()).await?;
    rig.kill(b"no chunk").await?;
    // A dead letter for a chunk that is done is a duplicate, and one for a dead chunk, too.
    rig.kill(&rig.works[0].encode()).await?;
    rig.kill(&rig.works[1].encode()).await?;
    rig.acked(QueueName::DEAD, 4).await?;
    let proof = rig.verify()?;
    assert_eq!(proof.dead_chunks, [(1, "delivery_limit".to_owned())]);
    assert_eq!(proof.outstanding_chunks, 1);
    // The result of a dead chunk makes it done after all.
    rig.put_results([1, 2]).await?;
    rig.acked(QueueName::RESULTS, 3).await?;
    let summary = writer.stop().await?;
    assert_eq!((summary.duplicates, summary.quarantined), (2, 1));
    assert_eq!(summary.applied, 4);
    assert_eq!(
        rig.value::<String>("SELECT queue FROM quarantine WHERE body = CAST('no chunk' AS BLOB)")?,
        "dead"
    );
    rig.assert_no_early_ack();
    rig.assert_complete()
}
