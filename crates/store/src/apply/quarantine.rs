//! Keeps messages that could not be applied.

use rusqlite::Connection;

use super::RawMessage;
use crate::StoreError;

/// How many bytes of a quarantined message are kept: with [`QUARANTINED_MESSAGES`] at most 40 MiB.
const QUARANTINED_BYTES: usize = 4 << 10;

/// How many quarantined messages are kept. The oldest are deleted first, so a flood cannot fill the disk.
const QUARANTINED_MESSAGES: i64 = 10_000;

/// Why a message is not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, in words that are the same for every such message.
    pub reason: &'static str,
    /// What it is about in this message: names, ids and numbers. Partly from the message, so untrusted.
    pub detail: String,
}

impl Refusal {
    /// A refusal for this reason.
    #[must_use]
    pub fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// Puts a message aside.
pub(super) fn keep(
    connection: &Connection,
    now: i64,
    raw: &RawMessage,
    refusal: &Refusal,
) -> Result<(), StoreError> {
    let kept = &raw.body[..raw.body.len().min(QUARANTINED_BYTES)];
    connection
        .prepare_cached(
            "INSERT INTO quarantine (received_at_us, queue, reason, detail, length, body, login)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            now,
            raw.queue,
            refusal.reason,
            &refusal.detail,
            raw.length as i64,
            kept,
            &raw.login,
        ))?;
    let id = connection.last_insert_rowid();
    connection
        .prepare_cached("DELETE FROM quarantine WHERE id <= ?1")?
        .execute([id - QUARANTINED_MESSAGES])?;
    Ok(())
}
