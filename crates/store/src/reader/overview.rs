//! What a run found: one pass over its rows, and one over those of `latest`.
//!
//! Both are read in pages, and nothing is open between two of them. In memory is at most a page, the histogram of the
//! round-trip times (some KB), and an entry for each subnet and worker.

mod changes;
mod detail;
mod rows;
mod subnets_not_up;

use rusqlite::{Connection, OptionalExtension};

pub(crate) use self::detail::sort_worst_first;
use self::{changes::LatestScan, detail::DetailScan, rows::RowScan, subnets_not_up::SubnetsNotUp};
pub use self::{
    detail::{RunDetail, SubnetStatuses, TimeBin},
    subnets_not_up::{SameOutcome, SubnetNotUp},
};
use super::report::{ReportRow, RowKey, rows_by_key};
use crate::{PlannedProbing, Reader, RunSummary, StoreError};

/// How many targets or subnets a list has at most.
const LISTED: usize = 20;

/// What a run found, so far if it is in progress. Of a pruned run it has the summary and the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOverview {
    /// The run with its counters.
    pub summary: RunSummary,
    /// How its targets are probed. None when the database has it from a version that wrote other settings.
    pub probing: Option<PlannedProbing>,
    /// Seed of the random order.
    pub seed: Option<u64>,
    /// Requests that the kernel accepted.
    pub requests: i64,
    /// Distinct requests that were answered.
    pub replies: i64,
    /// Round-trip times. None when nothing answered.
    pub rtt: Option<TargetRtt>,
    /// How many targets have the same status and reason, the most frequent first. A reason is without the addresses of
    /// single hosts (`arp_answered`, `answered_by`).
    pub reasons: Vec<(&'static str, Option<String>, i64)>,
    /// Subnets of at least [`Self::MIN_SUBNET_TARGETS`] targets, those with the largest share of targets that did not
    /// answer first, at most 20. All of them have such targets.
    pub worst_subnets: Vec<SubnetCounts>,
    /// The targets with the longest mean round-trip time, the longest first, at most 20.
    pub slowest: Vec<ReportRow>,
    /// The workers, by name.
    pub workers: Vec<RunWorker>,
    /// Prefixes in which no target answered, at most 20: those with the newest change first, if [`Self::changes`] is known,
    /// and then those with the most targets. None with the detail.
    pub subnets_not_up: Vec<SubnetNotUp>,
    /// How many such prefixes there are.
    pub subnets_not_up_count: i64,
    /// Targets that did not answer and are in none of these prefixes, at most 20; with the detail all that did not answer,
    /// at most [`RunDetail::MAX_NOT_UP`]. The newest changes first if [`Self::changes`] is known, else in the order of the
    /// plan.
    pub not_up: Vec<NotUp>,
    /// What changed since each target was probed before. None when a newer run has probed some of the targets, or the rows
    /// are not in `latest` yet.
    pub changes: Option<RunChanges>,
}

/// Round-trip times in nanoseconds: the shortest and the longest of all requests, and percentiles of the targets' means.
/// The percentiles are exact to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetRtt {
    /// Shortest.
    pub min_ns: i64,
    /// Half of the targets that answered are at most at this.
    pub p50_ns: i64,
    /// The same for 95 of 100.
    pub p95_ns: i64,
    /// The same for 99 of 100.
    pub p99_ns: i64,
    /// Longest.
    pub max_ns: i64,
}

/// The targets of a /24 or, for IPv6, a /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetCounts {
    /// The network.
    pub subnet: ipnet::IpNet,
    /// Targets with a row.
    pub targets: i64,
    /// Those that are neither up nor late.
    pub not_up: i64,
}

/// A worker's part of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunWorker {
    /// Its name. None for rows of a database that does not have it.
    pub worker: Option<String>,
    /// The login of its connection. None within one process, and for rows that an older version stored.
    pub login: Option<String>,
    /// Targets that it settled.
    pub targets: i64,
    /// Targets that it began to probe, per second from its first to its last one. None when all began at once.
    pub targets_per_s: Option<f64>,
    /// Attempts whose answers its machine may have lost.
    pub local_losses: i64,
}

/// A target that did not answer.
#[derive(Debug, Clone, PartialEq)]
pub struct NotUp {
    /// Its row.
    pub row: ReportRow,
    /// When it was probed in this run, last up, and probed first. None when [`RunOverview::changes`] is.
    pub history: Option<TargetHistory>,
}

/// Times of a target, in microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetHistory {
    /// When it was probed in this run.
    pub probed_at_us: i64,
    /// When it was up or late the last time.
    pub last_up_us: Option<i64>,
    /// When it was probed the first time.
    pub first_seen_us: i64,
    /// Since when it has this status.
    pub changed_at_us: i64,
}

/// What changed since each target was probed before, in an earlier run. A target that is `unknown` is no change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunChanges {
    /// Targets with another status than before, which did not answer.
    pub changed_not_up: i64,
    /// Targets with another status than before, which answered.
    pub changed_up: i64,
    /// Targets that no earlier run had.
    pub first_seen: i64,
}

impl RunOverview {
    /// The fewest targets of a subnet in [`Self::worst_subnets`]: with fewer, one silent host says nothing about a subnet.
    pub const MIN_SUBNET_TARGETS: i64 = 4;
}

/// Reads what a run found.
pub(super) fn overview(reader: &Reader, run: i64) -> Result<RunOverview, StoreError> {
    let rows = RowScan::new(LISTED, None);
    let settings = reader.read(|connection| settings(connection, run))?;
    read(reader, run, settings, rows).map(|(overview, _)| overview)
}

/// Reads what a run found, with what a page shows beyond that.
pub(super) fn with_detail(
    reader: &Reader,
    run: i64,
) -> Result<(RunOverview, RunDetail), StoreError> {
    let settings = reader.read(|connection| settings(connection, run))?;
    let elapsed_s = reader.summary(run)?.elapsed_s;
    let detail = DetailScan::new(settings.started_us, elapsed_s);
    let rows = RowScan::new(RunDetail::MAX_NOT_UP, Some(detail));
    let (overview, detail) = read(reader, run, settings, rows)?;
    Ok((
        overview,
        detail.map_or_else(RunDetail::default, DetailScan::finish),
    ))
}

fn read(
    reader: &Reader,
    run: i64,
    settings: RunSettings,
    mut rows: RowScan,
) -> Result<(RunOverview, Option<DetailScan>), StoreError> {
    let summary = reader.summary(run)?;
    let mut subnets = SubnetsNotUp::default();
    // Of a pruned run only the counts are known.
    if summary.pruned.is_none() {
        rows.read(reader, run)?;
        if rows.detail.is_none() {
            subnets = rows.subnets_not_up();
        }
    }
    let mut latest = LatestScan::new(&rows, &mut subnets);
    if summary.pruned.is_none() {
        latest.read(reader, run)?;
    }
    let changes = (summary.finished_at.is_some() && latest.rows == rows.count)
        .then_some(latest.changes)
        .filter(|_| rows.count > 0);
    let newest = latest.newest();
    let not_up: Vec<(RowKey, Option<TargetHistory>)> = if changes.is_some() {
        newest
    } else {
        subnets.forget_history();
        let first = rows.not_up_without(&subnets);
        first.into_iter().map(|key| (key, None)).collect()
    };
    let keys: Vec<RowKey> = not_up.iter().map(|(key, _)| *key).collect();
    // Each key has a row, or this is an error.
    let shown = reader.read(|connection| rows_by_key(connection, run, &keys));
    let slowest = rows.slowest();
    let slowest = reader.read(|connection| rows_by_key(connection, run, &slowest));
    // After all was read: it may have been pruned meanwhile.
    if summary.pruned.is_none() {
        reader.summary(run)?.refuse_pruned()?;
    }
    let detail = rows.detail.take();
    let mut subnets_not_up = subnets.newest_first();
    let subnets_not_up_count = subnets_not_up.len() as i64;
    subnets_not_up.truncate(LISTED);
    let overview = RunOverview {
        summary,
        probing: settings.probing,
        seed: settings.seed,
        requests: rows.requests,
        replies: rows.replies,
        rtt: rows.rtt(),
        reasons: rows.reasons(),
        worst_subnets: rows.worst_subnets(),
        slowest: slowest?,
        workers: rows.workers(),
        subnets_not_up,
        subnets_not_up_count,
        not_up: shown?
            .into_iter()
            .zip(not_up)
            .map(|(row, (_, history))| NotUp { row, history })
            .collect(),
        changes,
    };
    Ok((overview, detail))
}

/// How a run was planned.
struct RunSettings {
    probing: Option<PlannedProbing>,
    seed: Option<u64>,
    started_us: i64,
}

/// The settings of a run. One index lookup.
fn settings(connection: &Connection, run: i64) -> Result<RunSettings, StoreError> {
    let found = connection
        .query_row(
            "SELECT probing, seed, started_at_us FROM runs WHERE run = ?1",
            [run],
            |row| {
                Ok(RunSettings {
                    probing: PlannedProbing::from_json(&row.get::<_, String>(0)?).ok(),
                    seed: row.get::<_, Option<i64>>(1)?.map(i64::cast_unsigned),
                    started_us: row.get(2)?,
                })
            },
        )
        .optional()?;
    found.ok_or_else(|| StoreError::NoSuchRun {
        wanted: run.to_string(),
    })
}
