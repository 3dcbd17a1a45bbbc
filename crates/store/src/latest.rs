//! The table behind the view `latest`: the newest row of each target, updated when a run ends.
//!
//! A trigger notes in `status_changes` each status that an update replaces.
//!
//! Invariant: no transaction inserts more than [`MAX_ROWS_PER_STEP`] rows, so the log stays small for a run of any size.

use pingfleet_wire::StatusKind;
use rusqlite::Connection;

use crate::{StoreError, Writer};

/// Rows that one transaction upserts. Each takes about 50 bytes of the log.
pub(crate) const MAX_ROWS_PER_STEP: i64 = 100_000;

/// The rows of a run with the columns that the upsert needs. CROSS JOIN fixes the order of the loops: chunk by chunk, as
/// the rows are stored.
const ROWS: &str =
    "SELECT coalesce(r.name, r.address) AS target, r.run, r.chunk, r.position, r.status,
           c.started_at_us + r.probed_after_us AS probed_at_us
    FROM chunks c CROSS JOIN results r ON r.run = c.run AND r.chunk = c.chunk WHERE c.run = ?1";

/// Upserts the rows of a run into `latest_rows`. Repeating it changes nothing. A run that ends after a newer run only
/// changes the past: when a target was first seen and last up, and that its status was different for a while.
/// `changed_at` may then be later than the true change, but never earlier.
pub(crate) fn update(connection: &Connection, run: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(&upsert_latest(&format!("({ROWS})")))?
        .execute([run])?;
    Ok(())
}

/// The same for one chunk of a run whose other rows are in the table already.
pub(crate) fn update_chunk(
    connection: &Connection,
    run: i64,
    chunk: u32,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(&upsert_latest(&format!("({ROWS} AND c.chunk = ?2)")))?
        .execute((run, chunk))?;
    Ok(())
}

impl Writer {
    /// Upserts the rows that a run has so far, in transactions of [`MAX_ROWS_PER_STEP`] rows. Each transaction is correct
    /// by itself. When the process dies between two of them, the next process starts again with the first row.
    pub(crate) fn upsert_latest_in_steps(&mut self, run: i64) -> Result<(), StoreError> {
        self.with_temporary_files(|store| {
            if store.keeps_temporary_files_in_memory() {
                store.upsert_latest_by_chunks(run)
            } else {
                store.upsert_latest_sorted(run)
            }
        })
    }

    /// Needs a temporary file as large as the rows.
    fn upsert_latest_sorted(&mut self, run: i64) -> Result<(), StoreError> {
        // The rows are sorted once, in a temporary table, which has no log. Then each transaction writes one key range of
        // `latest_rows`, and no page is written by two of them.
        self.connection.execute_batch(DROP_PENDING)?;
        self.connection.execute(
            &format!("CREATE TEMP TABLE pending_latest AS {ROWS} ORDER BY target"),
            [run],
        )?;
        let rows: i64 = self.connection.query_row(
            "SELECT coalesce(max(rowid), 0) FROM temp.pending_latest",
            (),
            |row| row.get(0),
        )?;
        let mut taken = 0;
        while taken < rows {
            self.write(|transaction| {
                transaction
                    .prepare_cached(&upsert_latest(
                        "temp.pending_latest WHERE rowid > ?1 AND rowid <= ?2",
                    ))?
                    .execute((taken, taken + MAX_ROWS_PER_STEP))?;
                Ok(())
            })?;
            taken += MAX_ROWS_PER_STEP;
        }
        Ok(self.connection.execute_batch(DROP_PENDING)?)
    }

    /// Needs memory for the rows of one transaction. Slower: almost each transaction writes all pages of `latest_rows`.
    fn upsert_latest_by_chunks(&mut self, run: i64) -> Result<(), StoreError> {
        let (targets, chunks): (i64, i64) = self.connection.query_row(
            "SELECT targets, chunks FROM runs WHERE run = ?1",
            [run],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        // The chunks of a run have about the same size.
        let chunk_size = targets.div_euclid(chunks.max(1)) + 1;
        let chunks_per_step = (MAX_ROWS_PER_STEP / chunk_size).max(1);
        let mut first = 0;
        while first < chunks {
            self.write(|transaction| {
                transaction
                    .prepare_cached(&upsert_latest(&format!(
                        "({ROWS} AND c.chunk >= ?2 AND c.chunk < ?3)"
                    )))?
                    .execute((run, first, first + chunks_per_step))?;
                Ok(())
            })?;
            first += chunks_per_step;
        }
        Ok(())
    }
}

const DROP_PENDING: &str = "DROP TABLE IF EXISTS temp.pending_latest";

/// The statement that upserts the rows of `rows`. They are sorted by key, so the b-tree of `latest_rows` is walked once
/// from left to right.
///
/// A row stores neither a `last_up_us` that is `probed_at_us`, nor a `changed_at_us` that is `first_seen_us`. So a new row
/// has neither, and the statement computes the values of the old row first.
fn upsert_latest(rows: &str) -> String {
    let changed_at = "coalesce(latest_rows.changed_at_us, latest_rows.first_seen_us)";
    let last_up = "iif(latest_rows.status <= 1, latest_rows.probed_at_us, latest_rows.last_up_us)";
    let unknown = StatusKind::Unknown.code();
    let new_up = "iif(excluded.status <= 1, excluded.probed_at_us, NULL)";
    format!(
        "INSERT INTO latest_rows (target, run, chunk, position, status, probed_at_us, first_seen_us)
         SELECT target, run, chunk, position, status, probed_at_us, probed_at_us
         FROM {rows} ORDER BY target
         ON CONFLICT (target) DO UPDATE SET
            run = iif(excluded.probed_at_us > probed_at_us, excluded.run, run),
            chunk = iif(excluded.probed_at_us > probed_at_us, excluded.chunk, chunk),
            position = iif(excluded.probed_at_us > probed_at_us, excluded.position, position),
            status = iif(excluded.probed_at_us > probed_at_us, excluded.status, status),
            known_status = CASE WHEN iif(excluded.probed_at_us > probed_at_us, excluded.status, status) = {unknown}
                THEN iif(status = {unknown}, known_status, status) END,
            probed_at_us = max(excluded.probed_at_us, probed_at_us),
            first_seen_us = min(excluded.first_seen_us, first_seen_us),
            last_up_us = CASE WHEN iif(excluded.probed_at_us > probed_at_us, excluded.status, status) > 1
                THEN coalesce(max({new_up}, {last_up}), {new_up}, {last_up}) END,
            changed_at_us = nullif(
                CASE
                    WHEN excluded.probed_at_us > probed_at_us
                        THEN iif(status = excluded.status, {changed_at}, excluded.probed_at_us)
                    WHEN status = excluded.status AND changed_at_us IS NULL
                        THEN min(excluded.probed_at_us, first_seen_us)
                    WHEN status <> excluded.status AND excluded.probed_at_us > {changed_at} THEN probed_at_us
                    ELSE {changed_at} END,
                min(excluded.first_seen_us, first_seen_us))
         WHERE excluded.probed_at_us > latest_rows.probed_at_us
            OR excluded.first_seen_us < latest_rows.first_seen_us
            OR {new_up} > coalesce({last_up}, {new_up} - 1)
            OR (excluded.status <> latest_rows.status AND excluded.probed_at_us > {changed_at})"
    )
}
