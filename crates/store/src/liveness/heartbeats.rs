//! Stores heartbeats, and that results show their workers to be alive.
//!
//! Invariant: what one login sends changes rows of this login only. A worker's row has its login and its instance as key; the
//! instance is chosen by the worker, and another login can send the same one.

use std::{num::NonZeroU32, time::Duration};

use pingfleet_wire::{
    Heartbeat,
    timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT},
};
use rusqlite::{Connection, named_params};

use super::claims::store_claims;
use crate::StoreError;

/// A worker that was last seen longer ago than this is deleted. Each restart of a worker is a new row.
const WORKER_FORGOTTEN_AFTER: Duration = Duration::from_hours(7 * 24);

/// The most rows of workers that a login has: more than a fleet whose workers share one login, with their restarts of a week.
/// A new one replaces the one of the login that has been silent for longest. While none is silent, it gets no row.
pub const MAX_WORKERS_OF_LOGIN: i64 = 1000;

/// A heartbeat becomes the base of a rate when the next one is received this much later. Several that are received
/// together, as after a restart of the writer, do not say when they were sent.
const RATE_BASE_AGE: Duration = Duration::from_millis(HEARTBEAT_INTERVAL.as_millis() as u64 / 2);

/// The login as the tables have it.
pub(super) fn key(login: Option<&str>) -> &str {
    login.unwrap_or_default()
}

/// Records that the worker of a result is alive. When several rows have that name, the newest one is meant: an older one
/// was lost, and must not be kept alive with the chunks that it had in hand.
pub(crate) fn note_result(
    connection: &Connection,
    login: Option<&str>,
    worker: &str,
    now: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE workers SET last_seen_us = max(last_seen_us, ?3)
             WHERE login = ?1 AND instance = (SELECT instance FROM workers WHERE login = ?1 AND worker = ?2
                                              ORDER BY first_seen_us DESC LIMIT 1)",
        )?
        .execute((key(login), worker, now))?;
    Ok(())
}

/// Stores a heartbeat: the worker's row, and the chunks that it has in hand. Returns false, and stores nothing, when its login
/// has too many workers.
pub(crate) fn store_heartbeat(
    connection: &Connection,
    login: Option<&str>,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<bool, StoreError> {
    let login = key(login);
    if !has_room(connection, login, heartbeat, now)? {
        return Ok(false);
    }
    store_worker(connection, login, heartbeat, now)?;
    connection
        .prepare_cached("DELETE FROM in_hand WHERE login = ?1 AND instance = ?2")?
        .execute((login, heartbeat.instance))?;
    if heartbeat.draining && heartbeat.in_hand.is_empty() {
        // Its last heartbeat: the worker has stopped in order, so its row goes.
        connection
            .prepare_cached("DELETE FROM workers WHERE login = ?1 AND instance = ?2")?
            .execute((login, heartbeat.instance))?;
        return Ok(true);
    }
    store_claims(connection, login, heartbeat, now)?;
    forget(connection, now - WORKER_FORGOTTEN_AFTER.as_micros() as i64)?;
    Ok(true)
}

/// Removes the workers that were last seen before a time.
fn forget(connection: &Connection, seen_before_us: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "DELETE FROM in_hand WHERE (login, instance) IN (SELECT login, instance FROM workers WHERE last_seen_us < ?1)",
        )?
        .execute([seen_before_us])?;
    connection
        .prepare_cached("DELETE FROM workers WHERE last_seen_us < ?1")?
        .execute([seen_before_us])?;
    Ok(())
}

/// Whether the worker has a row, or its login may have one more. Makes room by removing the row of a silent worker.
fn has_room(
    connection: &Connection,
    login: &str,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<bool, StoreError> {
    let has_row = connection
        .prepare_cached("SELECT 1 FROM workers WHERE login = ?1 AND instance = ?2")?
        .exists((login, heartbeat.instance))?;
    if has_row {
        return Ok(true);
    }
    let rows: i64 = connection
        .prepare_cached("SELECT count(*) FROM workers WHERE login = ?1")?
        .query_row([login], |row| row.get(0))?;
    if rows < MAX_WORKERS_OF_LOGIN {
        return Ok(true);
    }
    let silent = "SELECT instance FROM workers WHERE login = ?1 AND last_seen_us < ?2 ORDER BY last_seen_us LIMIT 1";
    let silent_before = now - WORKER_TIMEOUT.as_micros() as i64;
    connection
        .prepare_cached(&format!(
            "DELETE FROM in_hand WHERE login = ?1 AND instance = ({silent})"
        ))?
        .execute((login, silent_before))?;
    let removed = connection
        .prepare_cached(&format!(
            "DELETE FROM workers WHERE login = ?1 AND instance = ({silent})"
        ))?
        .execute((login, silent_before))?;
    Ok(removed > 0)
}

fn store_worker(
    connection: &Connection,
    login: &str,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<(), StoreError> {
    let counts = &heartbeat.counts;
    let lost = &counts.local_losses;
    connection
        .prepare_cached(
            "INSERT INTO workers (login, instance, worker, pid, version, worker_group, threads, prefetch, rate,
                                  first_seen_us, last_seen_us, draining,
                                  chunks_done, targets_done, requests_sent, replies, lost_socket_drops,
                                  lost_send_path, lost_stalled, lost_canary, lost_interrupted, lost_link_down,
                                  lost_no_route, lost_no_address, lost_gateway_no_arp, lost_local_firewall,
                                  lost_rp_filter, heartbeat_us)
             VALUES (:login, :instance, :worker, :pid, :version, :group, :threads, :prefetch, :rate,
                     :now, :now, :draining,
                     :chunks_done, :targets_done, :requests_sent, :replies, :socket_drops,
                     :send_path, :stalled, :canary, :interrupted, :link_down,
                     :no_route, :no_address, :gateway_no_arp, :local_firewall,
                     :rp_filter, :now)
             ON CONFLICT (login, instance) DO UPDATE SET
                heartbeat_before_us = iif(:now - heartbeat_us >= :base_age, heartbeat_us, heartbeat_before_us),
                requests_before = iif(:now - heartbeat_us >= :base_age, requests_sent, requests_before),
                heartbeat_us = excluded.heartbeat_us,
                worker = excluded.worker, version = excluded.version, worker_group = excluded.worker_group,
                threads = excluded.threads, prefetch = excluded.prefetch, rate = excluded.rate,
                last_seen_us = excluded.last_seen_us, draining = excluded.draining,
                chunks_done = excluded.chunks_done, targets_done = excluded.targets_done,
                requests_sent = excluded.requests_sent, replies = excluded.replies,
                lost_socket_drops = excluded.lost_socket_drops, lost_send_path = excluded.lost_send_path,
                lost_stalled = excluded.lost_stalled, lost_canary = excluded.lost_canary,
                lost_interrupted = excluded.lost_interrupted, lost_link_down = excluded.lost_link_down,
                lost_no_route = excluded.lost_no_route, lost_no_address = excluded.lost_no_address,
                lost_gateway_no_arp = excluded.lost_gateway_no_arp,
                lost_local_firewall = excluded.lost_local_firewall, lost_rp_filter = excluded.lost_rp_filter",
        )?
        .execute(named_params! {
            ":login": login,
            ":instance": heartbeat.instance,
            ":worker": heartbeat.worker,
            ":pid": heartbeat.pid,
            ":version": heartbeat.program_version,
            ":group": heartbeat.group,
            ":threads": heartbeat.threads,
            ":prefetch": heartbeat.prefetch,
            ":rate": heartbeat.rate.map(NonZeroU32::get),
            ":now": now,
            ":base_age": RATE_BASE_AGE.as_micros() as i64,
            ":draining": heartbeat.draining,
            ":chunks_done": counts.chunks_done as i64,
            ":targets_done": counts.targets_done as i64,
            ":requests_sent": counts.requests_sent as i64,
            ":replies": counts.replies as i64,
            ":socket_drops": lost.socket_drops as i64,
            ":send_path": lost.send_path as i64,
            ":stalled": lost.stalled as i64,
            ":canary": lost.canary as i64,
            ":interrupted": lost.interrupted as i64,
            ":link_down": lost.link_down as i64,
            ":no_route": lost.no_route as i64,
            ":no_address": lost.no_address as i64,
            ":gateway_no_arp": lost.gateway_no_arp as i64,
            ":local_firewall": lost.local_firewall as i64,
            ":rp_filter": lost.rp_filter as i64,
        })?;
    Ok(())
}
