//! Removes the rows of old runs, in many short transactions.
//!
//! A pruned run keeps its line in `runs` with all its counts, and of its rows those that `latest` shows. Before its first
//! row is removed, it is marked in `pruned_runs`: from then on nobody reads its rows as if they were all, and the writer
//! stores no more of them. Each transaction is correct by itself. When the process dies between two of them, the next call
//! removes the rest.

use std::{
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use rusqlite::OptionalExtension;
use tokio_util::sync::CancellationToken;

use crate::{Reader, RunSummary, StoreError, Writer, now_us, runs::run_span};

/// The migration that adds the table of pruned runs.
pub(crate) const PRUNED_RUNS: &str = "
-- Runs whose rows were removed, except for those that `latest` shows. archive: the file that has all rows.
CREATE TABLE pruned_runs (
    run          INTEGER PRIMARY KEY,
    pruned_at_us INTEGER NOT NULL,
    archive      TEXT
) STRICT;
";

/// How long one transaction should have the write lock. Their size follows from what the last ones took.
const STEP: Duration = Duration::from_millis(20);

/// Chunks in a transaction, at most, and rows, at least.
const MAX_STEP_CHUNKS: i64 = 1000;
const MIN_STEP_ROWS: i64 = 1000;

/// What [`Writer::remove_pruned_rows`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovedRows {
    /// Rows that were removed.
    pub removed: u64,
    /// Rows of the run that `latest` shows.
    pub kept: u64,
}

/// When the rows of a run were removed, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunedRun {
    /// RFC 3339, UTC.
    pub pruned_at: String,
    /// The file that has all rows of the run, if they were archived.
    pub archive: Option<String>,
}

impl RunSummary {
    /// Refuses a run whose rows were pruned.
    ///
    /// # Errors
    /// [`StoreError::Pruned`].
    pub fn refuse_pruned(&self) -> Result<(), StoreError> {
        match &self.pruned {
            Some(pruned) => Err(StoreError::Pruned {
                run: self.run,
                pruned_at: pruned.pruned_at.clone(),
                archive: pruned.archive.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Writer {
    /// Marks a run as pruned. Its rows must be where `archive` says, unless nobody needs them. The caller has the run's
    /// lock. Returns false, and changes nothing, when the run is not as `summary` says: it is open again, or has more
    /// rows.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn mark_pruned(
        &mut self,
        summary: &RunSummary,
        archive: Option<&str>,
    ) -> Result<bool, StoreError> {
        let is_marked = self.write(|transaction| {
            let settled: Option<i64> = transaction
                .query_row(
                    "SELECT up + late + unreachable + dns_failed + send_failed + unknown + down FROM runs
                     WHERE run = ?1 AND finished_at_us IS NOT NULL AND state <> 'running'",
                    [summary.run],
                    |row| row.get(0),
                )
                .optional()?;
            if settled != Some(summary.settled()) {
                return Ok(false);
            }
            for table in ["run_progress", "in_hand", "claims"] {
                transaction.execute(
                    &format!("DELETE FROM {table} WHERE run = ?1"),
                    [summary.run],
                )?;
            }
            transaction.execute(
                "INSERT INTO pruned_runs (run, pruned_at_us, archive) VALUES (?1, ?2, ?3)",
                (summary.run, now_us(), archive),
            )?;
            Ok(true)
        })?;
        if is_marked {
            let rows = summary.settled();
            run_span(summary.run, summary.run_id)
                .in_scope(|| tracing::info!(rows, archive, "run pruned"));
        }
        Ok(is_marked)
    }

    /// The pruned runs that have rows to remove: those that `latest` showed before, and what an interrupted call left. One
    /// pass over the rows that are left of pruned runs, and one over `latest` if there are any.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn pruned_runs_to_clean(&self, reader: &Reader) -> Result<Vec<i64>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT p.run, (SELECT count(*) FROM results r WHERE r.run = p.run),
                    EXISTS (SELECT 1 FROM plan l WHERE l.run = p.run)
                    OR EXISTS (SELECT 1 FROM chunks c WHERE c.run = p.run
                        AND NOT EXISTS (SELECT 1 FROM results r WHERE r.run = c.run AND r.chunk = c.chunk))
             FROM pruned_runs p
             WHERE EXISTS (SELECT 1 FROM chunks c WHERE c.run = p.run) ORDER BY p.run",
        )?;
        let runs = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let runs: Vec<(i64, i64, bool)> = runs.collect::<Result<_, _>>()?;
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let in_latest = reader.latest_counts()?;
        let is_left = |run, rows| in_latest.get(&run).copied().unwrap_or(0) != rows;
        Ok(runs
            .into_iter()
            .filter(|(run, rows, is_begun)| *is_begun || is_left(*run, *rows))
            .map(|(run, ..)| run)
            .collect())
    }

    /// Removes the rows of a run that is marked as pruned, except for those that `latest` shows, with its plan. Between
    /// two transactions it pauses as long as the last one took, so that other writers get their turn. Scans `latest` once.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]; [`StoreError::Interrupted`] when `stop` came first. A further call continues.
    pub fn remove_pruned_rows(
        &mut self,
        run: i64,
        stop: &CancellationToken,
    ) -> Result<RemovedRows, StoreError> {
        let kept = self.with_temporary_files(|store| store.note_kept_rows(run))?;
        let least = self.least_step(run)?;
        let mut removed = 0;
        let mut chunks = least;
        let mut first = i64::MIN;
        loop {
            if stop.is_cancelled() {
                return Err(StoreError::Interrupted);
            }
            // The chunks are looked up before the lock is taken.
            let Some(end) = self.end_of_step(run, first, chunks)? else {
                self.connection.execute_batch(DROP_KEPT_ROWS)?;
                return Ok(RemovedRows { removed, kept });
            };
            let (rows, began) = self.write(|transaction| {
                let began = Instant::now();
                let rows = remove_chunks(transaction, run, first..end)?;
                Ok((rows, began))
            })?;
            let took = began.elapsed();
            removed += rows;
            first = end;
            let fitting = STEP.as_secs_f64() / took.as_secs_f64() * chunks as f64;
            chunks = (fitting as i64).clamp(least, (2 * chunks).min(MAX_STEP_CHUNKS).max(least));
            thread::sleep(took);
        }
    }

    /// Lists the rows of a run that `latest` shows in a temporary table. Returns their number. A pruned run gets no more
    /// of them.
    fn note_kept_rows(&mut self, run: i64) -> Result<u64, StoreError> {
        self.connection.execute_batch(DROP_KEPT_ROWS)?;
        self.connection.execute_batch(
            "CREATE TEMP TABLE kept_rows (chunk INTEGER, position INTEGER, PRIMARY KEY (chunk, position)) WITHOUT ROWID",
        )?;
        let kept = self.connection.execute(
            "INSERT INTO temp.kept_rows SELECT chunk, position FROM latest_rows WHERE run = ?1 ORDER BY 1, 2",
            [run],
        )?;
        Ok(kept as u64)
    }

    /// The fewest chunks of a transaction: a smaller one mostly waits for the disk.
    fn least_step(&self, run: i64) -> Result<i64, StoreError> {
        Ok(self.connection.query_row(
            "SELECT 1 + ?2 * chunks / max(targets, 1) FROM runs WHERE run = ?1",
            (run, MIN_STEP_ROWS),
            |row| row.get(0),
        )?)
    }

    /// The number behind the last of the next `chunks` chunks from `first` on; none at the end.
    fn end_of_step(&self, run: i64, first: i64, chunks: i64) -> Result<Option<i64>, StoreError> {
        let last: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT max(chunk) FROM
                    (SELECT chunk FROM chunks WHERE run = ?1 AND chunk >= ?2 ORDER BY chunk LIMIT ?3)",
            )?
            .query_row((run, first, chunks), |row| row.get(0))?;
        Ok(last.map(|last| last + 1))
    }

    /// How many bytes of the database are in use: what `VACUUM` copies. Twice as many must be free: for the copy in
    /// SQLite's folder of temporary files, and for the log beside the database.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let pragma = |name: &str| {
            self.connection
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
        };
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok((pages * pragma("page_size")?).unsigned_abs())
    }

    /// Rewrites the file without its free pages (<https://www.sqlite.org/lang_vacuum.html>). Nobody can write meanwhile:
    /// the caller has the lock of the writer.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]: the file is as it was.
    pub fn vacuum(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("VACUUM")?;
        // The file gets shorter when the log is written back.
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
        Ok(())
    }
}

const DROP_KEPT_ROWS: &str = "DROP TABLE IF EXISTS temp.kept_rows";

/// The statements that remove the chunks from ?2 on, before ?3, of run ?1, except for what is kept: rows, labels, work
/// messages, and chunks without rows.
const REMOVALS: [&str; 4] = [
    "DELETE FROM results AS d WHERE d.run = ?1 AND d.chunk >= ?2 AND d.chunk < ?3
        AND NOT EXISTS (SELECT 1 FROM temp.kept_rows k WHERE k.chunk = d.chunk AND k.position = d.position)",
    "DELETE FROM labels AS d WHERE d.run = ?1 AND d.chunk >= ?2 AND d.chunk < ?3
        AND NOT EXISTS (SELECT 1 FROM temp.kept_rows k WHERE k.chunk = d.chunk AND k.position = d.position)",
    "DELETE FROM plan WHERE run = ?1 AND chunk >= ?2 AND chunk < ?3",
    "DELETE FROM chunks AS d WHERE d.run = ?1 AND d.chunk >= ?2 AND d.chunk < ?3
        AND NOT EXISTS (SELECT 1 FROM temp.kept_rows k WHERE k.chunk = d.chunk)",
];

/// Returns how many rows of results were removed.
fn remove_chunks(
    transaction: &rusqlite::Transaction<'_>,
    run: i64,
    chunks: Range<i64>,
) -> Result<u64, StoreError> {
    let mut removed = [0; REMOVALS.len()];
    for (sql, removed) in REMOVALS.iter().zip(&mut removed) {
        let mut statement = transaction.prepare_cached(sql)?;
        *removed = statement.execute((run, chunks.start, chunks.end))?;
    }
    Ok(removed[0] as u64)
}
