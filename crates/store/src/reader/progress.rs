//! How far a run is, from the counters that the writer keeps.

use rusqlite::{Connection, OptionalExtension};

use super::{
    overview::RunDetail,
    report::{ReportRow, rows_by_key},
};
use crate::{Reader, RunState, StoreError, progress::StoredProgress, run_summary::summary};

/// How far a run is: what its stored results say so far.
#[derive(Debug, Clone, PartialEq)]
pub struct RunProgress {
    /// What a page draws. Other than that of [`Reader::overview_with_detail`], the timeline has the targets by the time
    /// at which their results were stored, in at most 240 bins, and of a running run it ends now; the subnets are shorter than /24 and /64 when there are over
    /// 4,096 and 1,024; and the addresses are None for more than 4,096.
    pub detail: RunDetail,
    /// The sum of the mean round-trip times of the targets in [`RunDetail::rtt`], in nanoseconds.
    pub rtt_sum_ns: i64,
    /// The last targets that did not answer, the newest first, at most 50.
    pub last_not_up: Vec<ReportRow>,
}

impl Reader {
    /// How far a run is. None for one without stored results, one that an older version began, and a pruned one. Its cost
    /// does not grow with the run.
    ///
    /// # Errors
    /// [`StoreError::BadProgress`], [`StoreError::Sqlite`].
    pub fn progress(&self, run: i64) -> Result<Option<RunProgress>, StoreError> {
        self.read(|connection| {
            // A snapshot: the listed targets have rows.
            let snapshot = connection.unchecked_transaction()?;
            let Some(mut progress) = stored_progress(&snapshot, run)? else {
                return Ok(None);
            };
            let summary = summary(&snapshot, run)?;
            if summary.state == RunState::Running {
                progress.go_on_until((summary.elapsed_s * 1_000_000.0) as i64);
            }
            Ok(Some(RunProgress {
                last_not_up: rows_by_key(&snapshot, run, &progress.last_not_up())?,
                rtt_sum_ns: progress.rtt_sum_ns(),
                detail: progress.detail(),
            }))
        })
    }
}

/// The counters of a run. One index lookup.
pub(crate) fn stored_progress(
    connection: &Connection,
    run: i64,
) -> Result<Option<StoredProgress>, StoreError> {
    let stored: Option<Vec<u8>> = connection
        .prepare_cached("SELECT progress FROM run_progress WHERE run = ?1")?
        .query_row([run], |row| row.get(0))
        .optional()?;
    let decode = |bytes: Vec<u8>| {
        StoredProgress::decode(&bytes).map_err(|reason| StoreError::BadProgress { run, reason })
    };
    stored.map(decode).transpose()
}
