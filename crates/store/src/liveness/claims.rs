//! What workers claim in their heartbeats to have in hand. A claim keeps a chunk from being published again, so a false one
//! must not do so for long.
//!
//! # The rule
//!
//! A claim is stored if the chunk exists, is published and is not settled. It counts
//!
//! - for the login that claims it: while another login's claim counts, and its worker was heard in the last 15 s, the claims
//!   of others are left out;
//! - until [`LIMIT`], four times what a chunk waits before it may be published again (10 s and twice the worst case of the
//!   chunk, doubled each time that it is published again), has passed since this login claimed it first. That moment is kept
//!   while the chunk is outstanding, whatever the login claims meanwhile and with any of its instances, and is another one after
//!   the chunk was published again.
//!
//! # Why a false claim does little
//!
//! It can be made for chunks that exist, so the rows are bounded by the plan. It ends, and cannot be begun anew: then the
//! chunk is published again if it is lost, and its true worker can claim it. Nobody is hindered: as long as a claim counts,
//! the chunk is not published again, whoever made the claim.
//!
//! # Why a true worker is not cut off
//!
//! The time counts from the claim, not from the publish: a chunk that waits in a long queue has no claim. A worker takes no
//! more than keeps it busy (`ping-worker/src/prefetch.rs`: what the rate sends during the worst case of a target, and three
//! chunks more), so a chunk is settled within about twice its worst case, which leaves as much again for other runs. Where a
//! ceiling of the worker, or a fixed prefetch, makes it slower than that, a chunk may be published once more although it is in
//! hand, and is probed twice; the limit has doubled then. The same holds where workers share a login and one takes over from
//! another that died: the limit counts from the first one. Nothing is lost, since the first result of a chunk counts.
//!
//! A worker that died keeps its chunks for 30 s at most, and for 15 s against another login. In between come the next
//! heartbeats of the worker that has them now, so that one of both is always heard.

use std::time::Duration;

use pingfleet_wire::{ChunkInHand, Heartbeat, timing::WORKER_TIMEOUT};
use rusqlite::{Connection, OptionalExtension as _};

use crate::{
    StoreError,
    chunks::{AGE_LIMIT, GRACE, MAYBE_PUBLISHED},
};

/// For how many age limits of its chunk a claim counts.
const LIMIT: i64 = 4;

/// A worker that was not heard for this long gives way to another login's claim.
const GIVES_WAY_AFTER: Duration = WORKER_TIMEOUT.checked_div(2).expect("two is not zero");

/// A chunk that can be claimed.
struct Claimed {
    run: i64,
    published_at_us: i64,
    age_limit_us: i64,
}

/// Stores the claims of a heartbeat. The worker's earlier ones are removed.
pub(super) fn store_claims(
    connection: &Connection,
    login: &str,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<(), StoreError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO in_hand (run, chunk, login, instance, taken_at_us, counts_until_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (run, chunk) DO UPDATE
            SET login = excluded.login, instance = excluded.instance, taken_at_us = excluded.taken_at_us,
                counts_until_us = excluded.counts_until_us
            WHERE in_hand.login = excluded.login OR in_hand.counts_until_us <= ?7
               OR NOT EXISTS (SELECT 1 FROM workers w
                              WHERE w.login = in_hand.login AND w.instance = in_hand.instance AND w.last_seen_us > ?8)",
    )?;
    for ChunkInHand { key, age_ms } in &heartbeat.in_hand {
        let Some(claimed) = outstanding(connection, &key.run.to_string(), key.chunk)? else {
            continue;
        };
        let first = first_claim(connection, login, key.chunk, &claimed, now)?;
        insert.execute((
            claimed.run,
            key.chunk,
            login,
            heartbeat.instance,
            now - i64::from(*age_ms) * 1000,
            first.saturating_add(LIMIT.saturating_mul(claimed.age_limit_us)),
            now,
            now - GIVES_WAY_AFTER.as_micros() as i64,
        ))?;
    }
    Ok(())
}

/// The chunk, if it is published and not settled.
fn outstanding(
    connection: &Connection,
    run_id: &str,
    chunk: u32,
) -> Result<Option<Claimed>, StoreError> {
    Ok(connection
        .prepare_cached(&format!(
            "SELECT c.run, c.published_at_us, {AGE_LIMIT} FROM runs n JOIN chunks c ON c.run = n.run
             WHERE n.run_id = ?1 AND c.chunk = ?2 AND {MAYBE_PUBLISHED} AND c.published_at_us > 0"
        ))?
        .query_row((run_id, chunk, GRACE.as_micros() as i64), |row| {
            Ok(Claimed {
                run: row.get(0)?,
                published_at_us: row.get(1)?,
                age_limit_us: row.get(2)?,
            })
        })
        .optional()?)
}

/// When the login first claimed the chunk since it was published last.
fn first_claim(
    connection: &Connection,
    login: &str,
    chunk: u32,
    claimed: &Claimed,
    now: i64,
) -> Result<i64, StoreError> {
    let first = connection
        .prepare_cached(
            "SELECT first_us FROM claims WHERE run = ?1 AND chunk = ?2 AND login = ?3 AND published_at_us = ?4",
        )?
        .query_row(
            (claimed.run, chunk, login, claimed.published_at_us),
            |row| row.get(0),
        )
        .optional()?;
    if let Some(first) = first {
        return Ok(first);
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO claims (run, chunk, login, published_at_us, first_us) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((claimed.run, chunk, login, claimed.published_at_us, now))?;
    Ok(now)
}

/// Forgets who has a chunk in hand, and since when it is claimed: it is settled.
pub(crate) fn forget_claims(
    connection: &Connection,
    run: i64,
    chunk: u32,
) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM claims WHERE run = ?1 AND chunk = ?2",
        "DELETE FROM in_hand WHERE run = ?1 AND chunk = ?2",
    ] {
        connection
            .prepare_cached(statement)?
            .execute((run, chunk))?;
    }
    Ok(())
}
