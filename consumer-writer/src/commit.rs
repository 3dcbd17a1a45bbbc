//! What a session has the database do. These are no methods of the session: a consumer is not `Sync`, so a future that borrows
//! the session cannot be spawned.

use std::{sync::Arc, time::Duration};

use pingfleet_store::{
    Applied, ClosedRun, DatabaseThread, DeadChunks, DecodedDelivery, Transport, run_span,
};
use tokio_util::sync::CancellationToken;

use crate::WriterError;

/// How long the last commit may take after the stop signal.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Records that the writer is alive. Waits while another program has the database's lock: nothing could be committed
/// meanwhile anyway.
pub(crate) async fn note_writer_alive(
    db: &DatabaseThread,
    transport: Transport,
    stop: &CancellationToken,
) -> Result<(), WriterError> {
    let holder = format!("pid {}", std::process::id());
    tokio::select! {
        seen = db.call_while_busy(move |store| store.note_writer_alive(transport, &holder)) => Ok(seen?),
        () = stop.cancelled() => Ok(()),
    }
}

/// Closes settled large runs. The stop signal ends a wait for another program's lock. The next writer closes them then.
pub(crate) async fn close_settled_runs(
    db: &DatabaseThread,
    transport: Transport,
    stop: &CancellationToken,
) -> Result<(), WriterError> {
    tokio::select! {
        // First, so that the call is always sent: the database's thread completes it even when this future is dropped.
        biased;
        closed = db.call_while_busy(move |store| store.close_settled_runs(transport)) => log_closed_runs(&closed?),
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Applies a batch. Waits while another program has the database's lock. Nothing is acked meanwhile.
pub(crate) async fn commit(
    db: &DatabaseThread,
    transport: Transport,
    batch: Vec<DecodedDelivery>,
    stop: &CancellationToken,
) -> Result<Applied, WriterError> {
    let batch = Arc::new(batch);
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    tokio::select! {
        applied = db.call_while_busy(move |store| store.apply(transport, &batch)) => Ok(applied?),
        // It is unknown whether the batch is committed. It is not acked, so it is redelivered.
        () = deadline => Err(WriterError::StopDeadline { seconds: STOP_DEADLINE.as_secs() }),
    }
}

/// Logs the runs that were closed.
pub(crate) fn log_closed_runs(closed: &[ClosedRun]) {
    for run in closed {
        run_span(run.run, run.run_id)
            .in_scope(|| tracing::info!(complete = run.complete, "run closed"));
    }
}

/// Logs the chunks that became dead.
pub(crate) fn log_dead_chunks(dead: &[DeadChunks]) {
    for dead in dead {
        run_span(dead.run, dead.run_id).in_scope(|| {
            tracing::warn!(
                chunks = dead.chunks,
                "chunks came back too often and are dead: `pingfleet verify` lists them, `pingfleet retry` publishes them again"
            );
        });
    }
}
