//! The table behind the view `latest`: the newest row of each target, brought up to date when a run ends.

use rusqlite::Connection;

use crate::StoreError;

/// Takes the rows of a run into `latest_rows`. Doing it again changes nothing. A run that ends after a newer one tells
/// of the past only: when a target was first seen and last up, and that its status was another one for a while.
/// `changed_at` may then be later than the true change, and never earlier.
pub(crate) fn update(connection: &Connection, run: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(&take_in("run = ?1"))?
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
        .prepare_cached(&take_in("run = ?1 AND chunk = ?2"))?
        .execute((run, chunk))?;
    Ok(())
}

/// The statement that takes in the rows for which a condition holds. They are sorted, so that the table's b-tree is
/// walked once from left to right.
fn take_in(rows: &str) -> String {
    format!(
            "INSERT INTO latest_rows
                (target, run, chunk, position, status, probed_at_us, first_seen_us, last_up_us, changed_at_us)
             SELECT coalesce(name, address) AS target, run, chunk, position, status, probed_at_us, probed_at_us,
                    CASE WHEN status <= 1 THEN probed_at_us END, probed_at_us
             FROM results WHERE {rows} ORDER BY target
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
