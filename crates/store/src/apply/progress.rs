//! Adds a batch to the counters of its run.

use rusqlite::Connection;
use tracing::warn;

use crate::{
    StoreError,
    progress::{LastProgress, SettledTargets, StoredProgress},
};

/// Counts the targets that a batch settled, and stores the sum. `done` chunks of the run became done with it, which are in
/// its counters already. Counters that cannot be read are removed: the run has none from then on.
pub(super) fn count(
    connection: &Connection,
    last: &mut LastProgress,
    run: i64,
    settled: SettledTargets,
    done: usize,
    now: i64,
) -> Result<(), StoreError> {
    let (started_us, progress) = connection
        .prepare_cached(
            "SELECT n.started_at_us, n.chunks_done, p.progress
             FROM runs n LEFT JOIN run_progress p ON p.run = n.run WHERE n.run = ?1",
        )?
        .query_row([run], |row| {
            let is_first = row.get::<_, i64>(1)? == done as i64;
            let progress = match row.get_ref(2)?.as_blob_or_null()? {
                Some(stored) => Some(last.take(run, stored)),
                // What was settled before is not known of a run that an older version began.
                None => is_first.then(|| Ok(StoredProgress::default())),
            };
            Ok((row.get::<_, i64>(0)?, progress))
        })?;
    let Some(progress) = progress else {
        return Ok(());
    };
    let mut progress = match progress {
        Ok(progress) => progress,
        // They only repeat what the rows say, which must not wait for them.
        Err(reason) => {
            warn!(
                run,
                reason,
                "the counters of a run that the live page shows cannot be read, and are removed; its rows are not affected"
            );
            connection.execute("DELETE FROM run_progress WHERE run = ?1", [run])?;
            return Ok(());
        }
    };
    progress.add(settled, now - started_us);
    connection
        .prepare_cached(
            "INSERT INTO run_progress (run, progress) VALUES (?1, ?2)
             ON CONFLICT (run) DO UPDATE SET progress = excluded.progress",
        )?
        .execute((run, last.keep(run, progress)))?;
    Ok(())
}
