//! Liveness: when the writers and workers were last seen, and the chunks that each worker has in hand.

mod claims;
mod heartbeats;

use std::{collections::BTreeMap, time::Duration};

use pingfleet_wire::{
    LocalLossCounts, MAX_PREFETCH,
    timing::{WORKER_TIMEOUT, WRITER_TIMEOUT},
};
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

pub use self::heartbeats::MAX_WORKERS_OF_LOGIN;
pub(crate) use self::{
    claims::forget_claims,
    heartbeats::{note_result, store_heartbeat},
};
use crate::{StoreError, Transport, Writer, now_us};

/// What all live workers of one login count for: their names are free to choose, so one login could open the publish window.
const MAX_PREFETCH_OF_LOGIN: i64 = 64 * MAX_PREFETCH as i64;

/// A worker that was first seen less than this ago and has settled nothing is starting.
const STARTING_FOR: Duration = Duration::from_secs(10);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

impl Fleet {
    /// Whether the workers have more than one login: then it says something to show each one's.
    #[must_use]
    pub fn has_logins(&self) -> bool {
        let mut logins = self.workers.iter().map(|worker| &worker.login);
        let first = logins.next();
        logins.any(|login| Some(login) != first)
    }

    /// The names that workers of several logins use at the same time, each with these logins.
    #[must_use]
    pub fn shared_names(&self) -> Vec<(&str, Vec<&str>)> {
        shared_names(&self.workers)
    }
}

/// The names that workers of several logins use at the same time, each with these logins. A lost worker uses none.
#[must_use]
pub fn shared_names(workers: &[WorkerRow]) -> Vec<(&str, Vec<&str>)> {
    let mut names = BTreeMap::<&str, Vec<&str>>::new();
    let live = workers
        .iter()
        .filter(|worker| worker.state != WorkerState::Lost);
    for worker in live {
        let logins = names.entry(&worker.worker).or_default();
        let login = worker.login.as_deref().unwrap_or_default();
        if !logins.contains(&login) {
            logins.push(login);
        }
    }
    let mut names: Vec<_> = names.into_iter().collect();
    names.retain(|(_, logins)| logins.len() > 1);
    for (_, logins) in &mut names {
        logins.sort_unstable();
    }
    names
}

/// A worker, as its last heartbeat describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerRow {
    /// Random for each start of the process.
    pub instance: Uuid,
    /// What it does.
    pub state: WorkerState,
    /// Whether it is lost, and another process of the same login and name was heard after it: a service manager started the worker
    /// again. If that one is lost as well, it is the one to name.
    pub is_started_again: bool,
    /// Its name. It chose it itself, so two logins may use one name.
    pub worker: String,
    /// The login of its connections, which the broker checked. None within one process.
    pub login: Option<String>,
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
            login: Some(row.get("login")?).filter(|login: &String| !login.is_empty()),
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

    /// The live workers: those that were seen within the last 30 s. A login counts with 64 full prefetches at most.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn live_workers(&self) -> Result<LiveWorkers, StoreError> {
        let mut of_logins = self.connection.prepare_cached(
            "SELECT count(*), sum(iif(draining, 0, min(prefetch, ?2)))
             FROM workers WHERE last_seen_us > ?1 GROUP BY login",
        )?;
        let since = now_us() - WORKER_TIMEOUT.as_micros() as i64;
        let of_logins = of_logins.query_map((since, MAX_PREFETCH), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
        let mut live = LiveWorkers::default();
        for of_login in of_logins {
            let (count, prefetch) = of_login?;
            live.count += count;
            live.prefetch += prefetch.min(MAX_PREFETCH_OF_LOGIN);
        }
        Ok(live)
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
                    max(w.last_seen_us) OVER (PARTITION BY w.login, w.worker) > w.last_seen_us AS is_started_again
             FROM workers w LEFT JOIN in_hand h ON h.login = w.login AND h.instance = w.instance
             GROUP BY w.login, w.instance ORDER BY w.worker, w.first_seen_us",
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
