//! How supervision ends, and which targets are printed until then.

use std::io;

use anyhow::Result;
use pingfleet_settings::{Exit, Failure};
use pingfleet_store::RunState;
use producer::{EndReason, PrintFilter, ProducerError, RunRequest};

use crate::rig::{Output, Rig, publishes, run_of};

const TARGETS: &str = "10.0.0.1-10.0.0.50";

#[tokio::test]
async fn supervision_ends_when_every_chunk_is_stored() -> Result<()> {
    let rig = Rig::new(10)?;
    let producing = rig.start(Rig::plan(&[TARGETS])?).await?;
    rig.answer(5).await?;
    let outcome = producing.ended().await??;
    assert_eq!(outcome.reason, EndReason::Settled);
    assert_eq!(outcome.exit(false), Exit::Complete);
    assert_eq!(outcome.exit(true), Exit::SomeDown);
    let proof = rig.reader()?.verify(run_of(&outcome)?)?;
    assert!(proof.is_complete(), "{proof:?}");
    Ok(())
}

#[tokio::test]
async fn cancel_ends_supervision_as_incomplete_and_publishes_nothing_more() -> Result<()> {
    let rig = Rig::new(10)?;
    let producing = rig.start(Rig::plan(&[TARGETS])?).await?;
    rig.published(5).await?;
    rig.answer(1).await?;
    let run = rig.store()?.find_run("latest")?;
    assert!(rig.store()?.cancel_run(run)?);
    let outcome = producing.ended().await??;
    assert_eq!(outcome.reason, EndReason::Settled);
    assert_eq!(outcome.exit(false), Exit::Incomplete);

    let resumed = rig.start(RunRequest::Resume(run)).await?.ended().await?;
    let Err(error @ ProducerError::NotOpen { .. }) = resumed else {
        panic!("{resumed:?}");
    };
    assert_eq!(Failure::from(error).exit, Exit::Usage);
    assert_eq!(
        publishes(&rig.watch.log.events()).values().sum::<usize>(),
        5
    );
    Ok(())
}

#[tokio::test]
async fn a_dead_chunk_ends_supervision_as_incomplete_and_retry_completes_it() -> Result<()> {
    let rig = Rig::new(10)?;
    let producing = rig.start(Rig::plan(&[TARGETS])?).await?;
    rig.answer(2).await?;
    rig.kill().await?;
    rig.answer(2).await?;
    let outcome = producing.ended().await??;
    assert_eq!(outcome.reason, EndReason::Settled);
    assert_eq!(outcome.exit(false), Exit::Incomplete);
    let run = run_of(&outcome)?;
    assert_eq!(
        outcome
            .summary
            .map(|summary| (summary.state, summary.chunks_dead)),
        Some((RunState::Incomplete, 1))
    );

    // Resume alone does not publish it again.
    let resumed = rig.start(RunRequest::Resume(run)).await?.ended().await??;
    assert_eq!(resumed.exit(false), Exit::Incomplete);
    let retried = rig.start(RunRequest::Retry(run)).await?;
    rig.answer(1).await?;
    let outcome = retried.ended().await??;
    assert_eq!(outcome.exit(false), Exit::Complete);
    assert_eq!(
        Vec::from_iter(publishes(&rig.watch.log.events())),
        [(0, 1), (1, 1), (2, 2), (3, 1), (4, 1)]
    );
    rig.assert_published_as_planned();
    let proof = rig.reader()?.verify(run)?;
    assert!(proof.is_complete(), "{proof:?}");
    Ok(())
}

/// The targets that a run of 10.0.0.1 to 10.0.0.50 prints.
async fn printed(filter: PrintFilter) -> Result<Vec<String>> {
    let mut rig = Rig::new(7)?;
    rig.settings.print = Some(filter);
    let output = Output::default();
    let producing = rig.start_on(Rig::plan(&[TARGETS])?, output.clone()).await?;
    rig.answer(8).await?;
    producing.ended().await??;
    output.lines()
}

fn every_second(first: u8) -> Vec<String> {
    let mut lines: Vec<_> = (first..=50)
        .step_by(2)
        .map(|last| format!("10.0.0.{last}"))
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn each_target_that_answered_is_printed_once() -> Result<()> {
    assert_eq!(printed(PrintFilter::Answered).await?, every_second(2));
    Ok(())
}

#[tokio::test]
async fn each_target_that_did_not_answer_is_printed_once() -> Result<()> {
    assert_eq!(printed(PrintFilter::Unanswered).await?, every_second(1));
    Ok(())
}

/// A producer whose standard output fails after the first chunk was stored.
async fn printing_fails(
    kind: io::ErrorKind,
) -> Result<(Rig, Result<producer::RunOutcome, ProducerError>)> {
    let mut rig = Rig::new(10)?;
    rig.settings.print = Some(PrintFilter::Answered);
    let output = Output {
        fails: Some(kind),
        ..Output::default()
    };
    let producing = rig.start_on(Rig::plan(&[TARGETS])?, output).await?;
    rig.published(5).await?;
    rig.answer(1).await?;
    let ended = producing.ended().await?;
    rig.settings.print = None;
    Ok((rig, ended))
}

#[tokio::test]
async fn a_closed_standard_output_ends_quietly_and_the_run_can_be_resumed() -> Result<()> {
    let (rig, ended) = printing_fails(io::ErrorKind::BrokenPipe).await?;
    let outcome = ended?;
    assert_eq!(outcome.reason, EndReason::OutputClosed);
    let resumed = rig.resume(run_of(&outcome)?).await?;
    rig.answer(4).await?;
    assert_eq!(resumed.ended().await??.exit(false), Exit::Complete);
    Ok(())
}

#[tokio::test]
async fn a_standard_output_on_a_full_disk_is_an_error() -> Result<()> {
    let (rig, ended) = printing_fails(io::ErrorKind::StorageFull).await?;
    let Err(error) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(Failure::from(error).exit, Exit::System);
    // The run can still be resumed.
    let resumed = rig.resume(1).await?;
    rig.answer(4).await?;
    assert_eq!(resumed.ended().await??.exit(false), Exit::Complete);
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_complete_after_the_stop_signal_is_settled_and_printed_whole() -> Result<()> {
    let mut rig = Rig::new(10)?;
    rig.settings.print = Some(PrintFilter::Answered);
    let mut output = Output::default();
    let producing = rig.start_on(Rig::plan(&[TARGETS])?, output.clone()).await?;
    rig.published(5).await?;
    rig.answer(1).await?;
    let mut outcome = producing.stop().await?;
    assert_eq!(outcome.exit(false), Exit::Interrupted);
    let db = rig.db().await?;
    // Control: with a chunk that is not stored the run stays interrupted.
    rig.answer(3).await?;
    producer::bring_up_to_date(&db, &mut outcome, &rig.settings, &mut output).await?;
    assert_eq!(outcome.exit(false), Exit::Interrupted);
    rig.answer(1).await?;
    producer::bring_up_to_date(&db, &mut outcome, &rig.settings, &mut output).await?;
    assert_eq!(outcome.reason, EndReason::Settled);
    assert_eq!(outcome.exit(false), Exit::Complete);
    assert_eq!(output.lines()?, every_second(2));
    Ok(db.close().await?)
}
