//! Liveness: when the writers and workers were last seen, and the chunks that each worker has in hand.

use std::{num::NonZeroU32, time::Duration};

use pingfleet_wire::{
    ChunkInHand, Heartbeat, LocalLossCounts,
    timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT, WRITER_TIMEOUT},
};
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use uuid::Uuid;

use crate::{StoreError, Transport, Writer, now_us};

/// A worker that was last seen longer ago than this is deleted. Each restart of a worker is a new row.
const WORKER_FORGOTTEN_AFTER: Duration = Duration::from_hours(7 * 24);

/// A worker that was first seen less than this ago and has settled nothing is starting.
const STARTING_FOR: Duration = Duration::from_secs(10);

/// A heartbeat becomes the base of a rate when the next one is received this much later. Several that are received
/// together, as after a restart of the writer, do not say when they were sent.
const RATE_BASE_AGE: Duration = Duration::from_millis(HEARTBEAT_INTERVAL.as_millis() as u64 / 2);

/// The writer of one transport, when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterLiveness {
    /// When, in microseconds since 1970-01-01 UTC.
    pub seen_us: i64,
    /// Who ("pid 12 on host").
    pub holder: String,
    /// Deliveries taken.
    pub taken: i64,
    /// Deliveries applied.
    pub applied: i64,
    /// Deliveries that repeated what was applied.
    pub duplicates: i64,
    /// Deliveries put into quarantine.
    pub quarantined: i64,
}

/// The workers that are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveWorkers {
    /// How many.
    pub count: i64,
    /// How many chunks they may have in hand together, without those that drain.
    pub prefetch: i64,
}

/// What a worker does. In the order in which workers are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerState {
    /// Nothing was heard of it for [`WORKER_TIMEOUT`]. Its chunks go to other workers.
    Lost,
    /// It probes, or waits for chunks.
    Live,
    /// It was first seen less than 10 s ago, and has settled nothing yet.
    Starting,
    /// It stops: it finishes what it has in hand, and takes nothing new.
    Draining,
}

impl WorkerState {
    /// The word for it. What needs attention is in capitals.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lost => "LOST",
            Self::Live => "live",
            Self::Starting => "starting",
            Self::Draining => "draining",
        }
    }

    /// The sign before the word.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Lost => "✕",
            Self::Live => "●",
            Self::Starting => "○",
            Self::Draining => "◐",
        }
    }
}

/// The workers that were seen in the last 7 days, except for those that stopped in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// The moment to which states and ages refer, in microseconds since 1970-01-01 UTC: now; or, when the broker's writer is
    /// not there to receive heartbeats, when it was last seen. Those of a worker that was seen later refer to now: it is one
    /// of a sweep, which has a writer of its own.
    pub as_of_us: i64,
    /// Since the broker's writer was seen, if that is too long ago.
    pub writer_away: Option<Duration>,
    /// Whether a process has the writer's lock. None if the system does not show it.
    pub is_writer_running: Option<bool>,
    /// The workers: the lost ones first, and then by name.
    pub workers: Vec<WorkerRow>,
}

/// A worker, as its last heartbeat describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerRow {
    /// Random for each start of the process.
    pub instance: Uuid,
    /// What it does.
    pub state: WorkerState,
    /// Whether it is lost, and another process of the same name was heard after it: a service manager started the worker
    /// again. If that one is lost as well, it is the one to name.
    pub is_started_again: bool,
    /// Its name.
    pub worker: String,
    /// Process id on its machine.
    pub pid: i64,
    /// The version of its program.
    pub version: String,
    /// Its group.
    pub group: String,
    /// Probing threads.
    pub threads: i64,
    /// How many chunks it may have in hand.
    pub prefetch: i64,
    /// Its ceiling over all runs, in requests a second; unlimited when absent.
    pub rate: Option<i64>,
    /// Whether it is stopping and takes no new chunks.
    pub draining: bool,
    /// When it was last seen, in microseconds since 1970-01-01 UTC, by the clock of the master.
    pub last_seen_us: i64,
    /// Since then.
    pub age: Duration,
    /// Chunks in hand.
    pub in_hand: i64,
    /// Since it took the oldest chunk that it has in hand, by the clock of the master.
    pub oldest_in_hand: Option<Duration>,
    /// Chunks settled since its start.
    pub chunks_done: i64,
    /// Targets settled since its start.
    pub targets_done: i64,
    /// Requests a second between its last two heartbeats. None before the second one, and when it is lost.
    pub requests_per_s: Option<f64>,
    /// Requests sent since its start.
    pub requests_sent: i64,
    /// Replies to requests of settled targets since its start.
    pub replies: i64,
    /// Attempts that its machine may have lost since its start, by cause.
    pub local_losses: LocalLossCounts,
}

impl WorkerRow {
    fn read(row: &Row<'_>, now: i64) -> rusqlite::Result<Self> {
        let since = |at: i64| Duration::from_micros((now - at).max(0) as u64);
        let count = |column: &str| row.get::<_, i64>(column).map(|count| count as u64);
        let last_seen_us = row.get("last_seen_us")?;
        let is_new = since(row.get("first_seen_us")?) < STARTING_FOR;
        let state = if since(last_seen_us) >= WORKER_TIMEOUT {
            WorkerState::Lost
        } else if row.get("draining")? {
            WorkerState::Draining
        } else if is_new && row.get::<_, i64>("chunks_done")? == 0 {
            WorkerState::Starting
        } else {
            WorkerState::Live
        };
        Ok(Self {
            instance: row.get("instance")?,
            state,
            is_started_again: state == WorkerState::Lost && row.get("is_started_again")?,
            worker: row.get("worker")?,
            pid: row.get("pid")?,
            version: row.get("version")?,
            group: row.get("worker_group")?,
            threads: row.get("threads")?,
            prefetch: row.get("prefetch")?,
            rate: row.get("rate")?,
            draining: row.get("draining")?,
            last_seen_us,
            age: since(last_seen_us),
            in_hand: row.get("in_hand")?,
            oldest_in_hand: row.get::<_, Option<i64>>("oldest_taken_at_us")?.map(since),
            chunks_done: row.get("chunks_done")?,
            targets_done: row.get("targets_done")?,
            requests_per_s: requests_per_s(row)?.filter(|_| state != WorkerState::Lost),
            requests_sent: row.get("requests_sent")?,
            replies: row.get("replies")?,
            local_losses: LocalLossCounts {
                socket_drops: count("lost_socket_drops")?,
                send_path: count("lost_send_path")?,
                stalled: count("lost_stalled")?,
                canary: count("lost_canary")?,
                interrupted: count("lost_interrupted")?,
                link_down: count("lost_link_down")?,
                no_route: count("lost_no_route")?,
                no_address: count("lost_no_address")?,
                gateway_no_arp: count("lost_gateway_no_arp")?,
                local_firewall: count("lost_local_firewall")?,
                rp_filter: count("lost_rp_filter")?,
            },
        })
    }
}

impl Writer {
    /// Records that the writer is alive now.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn note_writer_alive(
        &mut self,
        transport: Transport,
        holder: &str,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO writers (transport, seen_us, holder) VALUES (?1, ?2, ?3)
                     ON CONFLICT (transport) DO UPDATE SET seen_us = excluded.seen_us, holder = excluded.holder",
                )?
                .execute((transport.name(), now_us(), holder))?;
            Ok(())
        })
    }

    /// When the writer was last seen, and its counters.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn writer_liveness(
        &self,
        transport: Transport,
    ) -> Result<Option<WriterLiveness>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT seen_us, holder, taken, applied, duplicates, quarantined FROM writers WHERE transport = ?1",
            )?
            .query_row([transport.name()], |row| {
                Ok(WriterLiveness {
                    seen_us: row.get(0)?,
                    holder: row.get(1)?,
                    taken: row.get(2)?,
                    applied: row.get(3)?,
                    duplicates: row.get(4)?,
                    quarantined: row.get(5)?,
                })
            })
            .optional()?)
    }

    /// The live workers: those that were seen within the last 30 s.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn live_workers(&self) -> Result<LiveWorkers, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT count(*), coalesce(sum(iif(draining, 0, prefetch)), 0) FROM workers WHERE last_seen_us > ?1",
            )?
            .query_row([now_us() - WORKER_TIMEOUT.as_micros() as i64], |row| {
                Ok(LiveWorkers {
                    count: row.get(0)?,
                    prefetch: row.get(1)?,
                })
            })?)
    }
}

/// The writers that ever wrote to this database: at most one of each transport.
pub(crate) fn writers(
    connection: &Connection,
) -> Result<Vec<(Transport, WriterLiveness)>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT transport, seen_us, holder, taken, applied, duplicates, quarantined FROM writers",
    )?;
    let rows = statement.query_map((), |row| {
        let writer = WriterLiveness {
            seen_us: row.get(1)?,
            holder: row.get(2)?,
            taken: row.get(3)?,
            applied: row.get(4)?,
            duplicates: row.get(5)?,
            quarantined: row.get(6)?,
        };
        Ok((row.get(0)?, writer))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Between the last heartbeat of a worker and its base.
fn requests_per_s(row: &Row<'_>) -> rusqlite::Result<Option<f64>> {
    let (Some(last), Some(before), Some(requests)) = (
        row.get::<_, Option<i64>>("heartbeat_us")?,
        row.get::<_, Option<i64>>("heartbeat_before_us")?,
        row.get::<_, Option<i64>>("requests_before")?,
    ) else {
        return Ok(None);
    };
    let seconds = (last - before) as f64 / 1_000_000.0;
    let sent = row.get::<_, i64>("requests_sent")? - requests;
    Ok((seconds > 0.0 && sent >= 0).then(|| sent as f64 / seconds))
}

/// All known workers.
pub(crate) fn fleet(connection: &Connection) -> Result<Fleet, StoreError> {
    let now = now_us();
    let writer_seen: Option<i64> = connection
        .prepare("SELECT seen_us FROM writers WHERE transport = ?1")?
        .query_row([Transport::Broker.name()], |row| row.get(0))
        .optional()?;
    let writer_away = writer_seen
        .map(|seen| Duration::from_micros((now - seen).max(0) as u64))
        .filter(|away| *away >= WRITER_TIMEOUT);
    let as_of_us = match (writer_away, writer_seen) {
        (Some(_), Some(seen)) => seen,
        _ => now,
    };
    let mut statement = connection.prepare(
        "SELECT w.*, count(h.chunk) AS in_hand, min(h.taken_at_us) AS oldest_taken_at_us,
                    max(w.last_seen_us) OVER (PARTITION BY w.worker) > w.last_seen_us AS is_started_again
             FROM workers w LEFT JOIN in_hand h ON h.instance = w.instance
             GROUP BY w.instance ORDER BY w.worker, w.first_seen_us",
    )?;
    let rows = statement.query_map((), |row| {
        let seen_after_us = row.get::<_, i64>("last_seen_us")? - as_of_us;
        let is_of_a_sweep = seen_after_us >= WRITER_TIMEOUT.as_micros() as i64;
        WorkerRow::read(row, if is_of_a_sweep { now } else { as_of_us })
    })?;
    let mut workers: Vec<_> = rows.collect::<Result<_, _>>()?;
    // Stable: otherwise by name.
    workers.sort_by_key(|worker| worker.state != WorkerState::Lost);
    Ok(Fleet {
        as_of_us,
        writer_away,
        is_writer_running: None,
        workers,
    })
}

/// Records that the worker of a result is alive. When several rows have that name, the newest one is meant: an older one
/// was lost, and must not be kept alive with the chunks that it had in hand.
pub(crate) fn note_result(
    connection: &Connection,
    worker: &str,
    now: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE workers SET last_seen_us = max(last_seen_us, ?2)
             WHERE instance = (SELECT instance FROM workers WHERE worker = ?1 ORDER BY first_seen_us DESC LIMIT 1)",
        )?
        .execute((worker, now))?;
    Ok(())
}

/// Stores a heartbeat: the worker's row, and all chunks that it has in hand.
pub(crate) fn store_heartbeat(
    connection: &Connection,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<(), StoreError> {
    store_worker(connection, heartbeat, now)?;
    connection
        .prepare_cached("DELETE FROM in_hand WHERE instance = ?1")?
        .execute([heartbeat.instance])?;
    if heartbeat.draining && heartbeat.in_hand.is_empty() {
        // Its last heartbeat: the worker has stopped in order, so its row goes.
        connection
            .prepare_cached("DELETE FROM workers WHERE instance = ?1")?
            .execute([heartbeat.instance])?;
        return Ok(());
    }
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO in_hand (instance, run_id, chunk, taken_at_us) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for ChunkInHand { key, age_ms } in &heartbeat.in_hand {
        let taken_at = now - i64::from(*age_ms) * 1000;
        insert.execute((heartbeat.instance, key.run.to_string(), key.chunk, taken_at))?;
    }
    let forgotten = now - WORKER_FORGOTTEN_AFTER.as_micros() as i64;
    connection
        .prepare_cached(
            "DELETE FROM in_hand WHERE instance IN (SELECT instance FROM workers WHERE last_seen_us < ?1)",
        )?
        .execute([forgotten])?;
    connection
        .prepare_cached("DELETE FROM workers WHERE last_seen_us < ?1")?
        .execute([forgotten])?;
    Ok(())
}

fn store_worker(
    connection: &Connection,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<(), StoreError> {
    let counts = &heartbeat.counts;
    let lost = &counts.local_losses;
    connection
        .prepare_cached(
            "INSERT INTO workers (instance, worker, pid, version, worker_group, threads, prefetch, rate,
                                  first_seen_us, last_seen_us, draining,
                                  chunks_done, targets_done, requests_sent, replies, lost_socket_drops,
                                  lost_send_path, lost_stalled, lost_canary, lost_interrupted, lost_link_down,
                                  lost_no_route, lost_no_address, lost_gateway_no_arp, lost_local_firewall,
                                  lost_rp_filter, heartbeat_us)
             VALUES (:instance, :worker, :pid, :version, :group, :threads, :prefetch, :rate,
                     :now, :now, :draining,
                     :chunks_done, :targets_done, :requests_sent, :replies, :socket_drops,
                     :send_path, :stalled, :canary, :interrupted, :link_down,
                     :no_route, :no_address, :gateway_no_arp, :local_firewall,
                     :rp_filter, :now)
             ON CONFLICT (instance) DO UPDATE SET
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
