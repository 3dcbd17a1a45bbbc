//! Keeps messages that could not be applied.

use rusqlite::Connection;

use super::RawMessage;
use crate::StoreError;

/// How many bytes of a quarantined message are kept: with [`QUARANTINED_MESSAGES`] at most 40 MiB.
const QUARANTINED_BYTES: usize = 4 << 10;

/// How many quarantined messages are kept. The oldest are deleted first, so a flood cannot fill the disk.
const QUARANTINED_MESSAGES: i64 = 10_000;

/// A reason without the numbers and ids of one message: `wrong token for chunk N of run N`.
pub(crate) fn general_reason(reason: &str) -> String {
    let words = reason.split(' ').map(|word| {
        if word.contains(|letter: char| letter.is_ascii_digit()) {
            "N"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Puts a message aside.
pub(super) fn keep(
    connection: &Connection,
    now: i64,
    raw: &RawMessage,
    reason: &str,
) -> Result<(), StoreError> {
    let kept = &raw.body[..raw.body.len().min(QUARANTINED_BYTES)];
    connection
        .prepare_cached(
            "INSERT INTO quarantine (received_at_us, queue, reason, length, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((now, raw.queue, reason, raw.length as i64, kept))?;
    let id = connection.last_insert_rowid();
    connection
        .prepare_cached("DELETE FROM quarantine WHERE id <= ?1")?
        .execute([id - QUARANTINED_MESSAGES])?;
    Ok(())
}
