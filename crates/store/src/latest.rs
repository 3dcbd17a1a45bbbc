//! The table behind the view `latest`: the newest row of each target, brought up to date when a run ends.
//!
//! Invariant: no transaction takes in more than [`AT_ONCE`] targets that are new to the table, so the log stays small
//! however large a run is.

use rusqlite::Connection;

use crate::{Store, StoreError};

/// Targets that one transaction takes in. Each takes about 70 bytes of the log.
pub(crate) const AT_ONCE: i64 = 100_000;

/// Rows of a run, as they are taken in.
const ROWS: &str =
    "SELECT coalesce(name, address) AS target, run, chunk, position, status, probed_at_us
    FROM results WHERE run = ?1";

/// Takes the rows of a run into `latest_rows`. Doing it again changes nothing. A run that ends after a newer one tells
/// of the past only: when a target was first seen and last up, and that its status was another one for a while.
/// `changed_at` may then be later than the true change, and never earlier.
pub(crate) fn update(connection: &Connection, run: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(&take_in(&format!("({ROWS})")))?
        .execute([run])?;
    Ok(())
}

/// The same for one chunk, of a run whose other rows are taken in already.
pub(crate) fn update_chunk(
    connection: &Connection,
    run: i64,
    chunk: u32,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(&take_in(&format!("({ROWS} AND chunk = ?2)")))?
        .execute((run, chunk))?;
    Ok(())
}

impl Store {
    /// Takes in what a run has so far, in transactions of [`AT_ONCE`] targets. Each makes the table true of more
    /// targets, so a process that dies between them leaves nothing wrong, and the next one begins anew.
    pub(crate) fn take_in_ahead(&mut self, run: i64) -> Result<(), StoreError> {
        // Sorted once, in a temporary file, which has no log: what a transaction takes in is then a stretch of the
        // table, and no page is written in two of them.
        self.connection.execute_batch(FORGET)?;
        self.connection.execute(
            &format!("CREATE TEMP TABLE ahead AS {ROWS} ORDER BY target"),
            [run],
        )?;
        let rows: i64 = self.connection.query_row(
            "SELECT coalesce(max(rowid), 0) FROM temp.ahead",
            (),
            |row| row.get(0),
        )?;
        let mut taken = 0;
        while taken < rows {
            self.write(|transaction| {
                transaction
                    .prepare_cached(&take_in("temp.ahead WHERE rowid > ?1 AND rowid <= ?2"))?
                    .execute((taken, taken + AT_ONCE))?;
                Ok(())
            })?;
            taken += AT_ONCE;
        }
        Ok(self.connection.execute_batch(FORGET)?)
    }
}

const FORGET: &str = "DROP TABLE IF EXISTS temp.ahead";

/// The statement that takes in what `rows` has. It is sorted, so that the b-tree of `latest_rows` is walked once from
/// left to right.
fn take_in(rows: &str) -> String {
    format!(
            "INSERT INTO latest_rows
                (target, run, chunk, position, status, probed_at_us, first_seen_us, last_up_us, changed_at_us)
             SELECT target, run, chunk, position, status, probed_at_us, probed_at_us,
                    CASE WHEN status <= 1 THEN probed_at_us END, probed_at_us
             FROM {rows} ORDER BY target
             ON CONFLICT (target) DO UPDATE SET
                run = iif(excluded.probed_at_us > probed_at_us, excluded.run, run),
                chunk = iif(excluded.probed_at_us > probed_at_us, excluded.chunk, chunk),
                position = iif(excluded.probed_at_us > probed_at_us, excluded.position, position),
                status = iif(excluded.probed_at_us > probed_at_us, excluded.status, status),
                probed_at_us = max(excluded.probed_at_us, probed_at_us),
                first_seen_us = min(excluded.first_seen_us, first_seen_us),
                last_up_us = coalesce(max(excluded.last_up_us, last_up_us), excluded.last_up_us, last_up_us),
                changed_at_us = CASE
                    WHEN excluded.probed_at_us > probed_at_us
                        THEN iif(status = excluded.status, changed_at_us, excluded.probed_at_us)
                    WHEN status = excluded.status AND changed_at_us = first_seen_us
                        THEN min(excluded.probed_at_us, changed_at_us)
                    WHEN status <> excluded.status AND excluded.probed_at_us > changed_at_us THEN probed_at_us
                    ELSE changed_at_us END
             WHERE excluded.probed_at_us > latest_rows.probed_at_us
                OR excluded.first_seen_us < latest_rows.first_seen_us
                OR excluded.last_up_us > coalesce(latest_rows.last_up_us, excluded.last_up_us - 1)
                OR (excluded.status <> latest_rows.status AND excluded.probed_at_us > latest_rows.changed_at_us)"
    )
}
