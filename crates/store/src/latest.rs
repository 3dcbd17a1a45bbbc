//! The table behind the view `latest`: the newest row of each target, brought up to date when a run ends.

use rusqlite::Connection;

use crate::StoreError;

/// Takes the rows of a run into `latest_rows`. Doing it again changes nothing.
pub(crate) fn update(connection: &Connection, run: i64) -> Result<(), StoreError> {
    // Sorted, so that the table's b-tree is walked once from left to right.
    connection
        .prepare_cached(
            "INSERT INTO latest_rows
                (target, run, chunk, position, status, probed_at_us, first_seen_us, last_up_us, changed_at_us)
             SELECT coalesce(name, address) AS target, run, chunk, position, status, probed_at_us, probed_at_us,
                    CASE WHEN status <= 1 THEN probed_at_us END, probed_at_us
             FROM results WHERE run = ?1 ORDER BY target
             ON CONFLICT (target) DO UPDATE SET
                run = excluded.run, chunk = excluded.chunk, position = excluded.position,
                status = excluded.status, probed_at_us = excluded.probed_at_us,
                last_up_us = coalesce(excluded.last_up_us, last_up_us),
                changed_at_us = CASE WHEN status = excluded.status THEN changed_at_us
                                     ELSE excluded.changed_at_us END
             WHERE excluded.probed_at_us > latest_rows.probed_at_us",
        )?
        .execute([run])?;
    Ok(())
}
