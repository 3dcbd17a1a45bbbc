//! A target, or a subnet, over all runs.
//!
//! No index leads from a target to its rows: it would cost each run a third of the size of its rows. A target is looked for
//! where its newest row is, which is its place in all runs of the same plan; runs that do not have it there are
//! scanned, several at a time, until it is found. A scan is cheap, because only the columns of the key are decoded.

use std::{
    collections::HashSet,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use ipnet::IpNet;
use pingfleet_wire::StatusKind;
use rusqlite::{
    Connection, OptionalExtension, Row,
    types::{FromSqlError, Value},
};

use super::{
    filter::ReportFilter,
    hosts::{HostRow, host},
    report::{ReportRow, RowKey, rows_by_key},
    target_key::TargetKey,
};
use crate::{Reader, RunSummary, StatusCounts, StoreError};

/// Runs that are scanned at the same time.
const MAX_THREADS: usize = 4;

/// Names that are proposed in the place of one that no run has.
const MAX_SIMILAR: usize = 3;

/// Names that are less alike are not proposed: 1 is the same name.
const MIN_SIMILARITY: f64 = 0.7;

/// A change of the status of a target, as `latest` saw it. What is `unknown` is no change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusChange {
    /// When the new status was found, in microseconds since 1970-01-01 UTC.
    pub changed_at_us: i64,
    /// The status before.
    pub old: StatusKind,
    /// The new one.
    pub new: StatusKind,
}

/// A target over all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetRuns {
    /// Its newest row. None if no run that has it has ended.
    pub latest: Option<HostRow>,
    /// Its rows, the newest run first.
    pub rows: Vec<ReportRow>,
    /// Runs that have no row of it, without those that are pruned.
    pub runs_without: usize,
    /// Pruned runs that have no row of it: whether they had one is not known.
    pub runs_pruned: usize,
    /// The changes of its status, the oldest first. They may be older than the rows.
    pub changes: Vec<StatusChange>,
}

/// A subnet over all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetRuns {
    /// The runs that have targets of the subnet, the newest first.
    pub runs: Vec<SubnetRun>,
    /// Pruned runs: they are left out, because they lack rows.
    pub runs_pruned: usize,
}

/// The targets of a subnet in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetRun {
    /// The run.
    pub summary: RunSummary,
    /// The targets of the subnet with each status.
    pub counts: StatusCounts,
}

impl Reader {
    /// A target over all runs; `None` if none has it. One search by key a run, if it is everywhere at the same place of the
    /// plan; otherwise scans runs, on up to four threads.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn target_runs(&self, target: &str) -> Result<Option<TargetRuns>, StoreError> {
        let key = TargetKey::of(target);
        let (latest, changes, runs) = self.read(|connection| {
            let runs = runs_newest_first(connection)?;
            Ok((host(connection, &key)?, changes(connection, &key)?, runs))
        })?;
        // A target of a run that has ended is in `latest`.
        let may_have_it: Vec<i64> = runs
            .iter()
            .filter(|(_, has_ended)| latest.is_some() || !has_ended)
            .map(|(run, _)| *run)
            .collect();
        let places = self.places(&key, &may_have_it)?;
        let mut rows = Vec::new();
        for (run, place) in may_have_it.iter().zip(places) {
            let Some(place) = place else { continue };
            rows.extend(self.read(|connection| rows_by_key(connection, *run, &[place]))?);
        }
        if latest.is_none() && rows.is_empty() {
            return Ok(None);
        }
        // Read after the rows: a run that is pruned meanwhile counts as pruned.
        let pruned = self.read(pruned_runs)?;
        let has_row = |run: i64| rows.iter().any(|row| row.run == run);
        let lacking = runs.iter().filter(|(run, _)| !has_row(*run));
        let runs_pruned = lacking.filter(|(run, _)| pruned.contains(run)).count();
        Ok(Some(TargetRuns {
            latest,
            runs_without: runs.len() - rows.len() - runs_pruned,
            runs_pruned,
            rows,
            changes,
        }))
    }

    /// Where each of these runs has the row of a target.
    fn places(&self, key: &TargetKey, runs: &[i64]) -> Result<Vec<Option<RowKey>>, StoreError> {
        let usual = self.read(|connection| newest_place(connection, key))?;
        self.for_each_run(runs, |connection, run| match usual {
            Some(place) if is_at(connection, key, run, place)? => Ok(Some(place)),
            _ => place(connection, key, run),
        })
    }

    /// The targets of a subnet in each run that has any and is not pruned. Scans these runs, on up to four threads.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn subnet_runs(&self, subnet: IpNet) -> Result<SubnetRuns, StoreError> {
        let mut summaries = self.summaries()?;
        summaries.reverse();
        summaries.retain(|summary| summary.pruned.is_none());
        let runs: Vec<i64> = summaries.iter().map(|summary| summary.run).collect();
        let counts = self.for_each_run(&runs, |connection, run| counts(connection, run, subnet))?;
        // Read after the rows, of which a run that is pruned meanwhile lacks some.
        let pruned = self.read(pruned_runs)?;
        let found = summaries.into_iter().zip(counts);
        let runs = found
            .filter(|(summary, counts)| counts.total() > 0 && !pruned.contains(&summary.run))
            .map(|(summary, counts)| SubnetRun { summary, counts })
            .collect();
        Ok(SubnetRuns {
            runs,
            runs_pruned: pruned.len(),
        })
    }

    /// Runs a query for each run, on several threads, and returns the answers in the order of the runs.
    fn for_each_run<T: Send>(
        &self,
        runs: &[i64],
        query: impl Fn(&Connection, i64) -> Result<T, StoreError> + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut answers = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(run) = runs.get(at) else {
                    return Ok(answers);
                };
                answers.push((at, self.read(|connection| query(connection, *run))?));
            }
        };
        let mut answers = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.min(MAX_THREADS))
                .map(|_| scope.spawn(work))
                .collect();
            let mut answers = Vec::new();
            for thread in threads {
                let answered: Result<Vec<_>, StoreError> = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                answers.extend(answered?);
            }
            Ok::<_, StoreError>(answers)
        })?;
        answers.sort_unstable_by_key(|(at, _)| *at);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// What a user may have meant with a target that no run has: names with that address in the newest run, the nearest
    /// addresses, or the most similar names. Scans the newest run and the names of `latest`.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn similar_targets(&self, target: &str) -> Result<Vec<String>, StoreError> {
        let key = TargetKey::of(target);
        if key.address().is_none() {
            return self.similar_names(target);
        }
        self.read(|connection| {
            let names: Vec<String> = connection
                .prepare(
                    "SELECT name FROM results WHERE run = (SELECT max(run) FROM latest_rows) AND address = ?1
                     AND name IS NOT NULL LIMIT ?2",
                )?
                .query_map((&key, MAX_SIMILAR as i64), |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            if !names.is_empty() {
                return Ok(names);
            }
            let mut near = Vec::new();
            for sql in [
                "SELECT max(target) FROM latest_rows WHERE target < ?1",
                "SELECT min(target) FROM latest_rows WHERE target > ?1",
            ] {
                let found: Option<TargetKey> = connection.query_row(sql, [&key], |row| row.get(0))?;
                near.extend(found.filter(|found| found.address().is_some()).map(String::from));
            }
            Ok(near)
        })
    }

    fn similar_names(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let wanted = name.to_ascii_lowercase();
        self.read(|connection| {
            // Texts come behind all numbers.
            let mut statement = connection
                .prepare("SELECT target FROM latest_rows WHERE target >= '' ORDER BY target")?;
            let mut rows = statement.query(())?;
            let mut similar: Vec<(f64, String)> = Vec::new();
            while let Some(row) = rows.next()? {
                let found: String = row.get(0)?;
                let similarity = strsim::jaro_winkler(&wanted, &found.to_ascii_lowercase());
                let worst = similar.last().map_or(0.0, |(similarity, _)| *similarity);
                if similarity < MIN_SIMILARITY
                    || (similar.len() == MAX_SIMILAR && similarity <= worst)
                {
                    continue;
                }
                similar.push((similarity, found));
                similar.sort_by(|one, other| other.0.total_cmp(&one.0));
                similar.truncate(MAX_SIMILAR);
            }
            Ok(similar.into_iter().map(|(_, name)| name).collect())
        })
    }
}

/// Each run, and whether `latest` has its rows.
fn runs_newest_first(connection: &Connection) -> Result<Vec<(i64, bool)>, StoreError> {
    let mut statement =
        connection.prepare("SELECT run, finished_at_us IS NOT NULL FROM runs ORDER BY run DESC")?;
    let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn pruned_runs(connection: &mut Connection) -> Result<HashSet<i64>, StoreError> {
    let mut statement = connection.prepare("SELECT run FROM pruned_runs")?;
    let rows = statement.query_map((), |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn changes(connection: &Connection, key: &TargetKey) -> Result<Vec<StatusChange>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT changed_at_us, old_status, new_status FROM status_changes WHERE target = ?1 ORDER BY changed_at_us",
    )?;
    let rows = statement.query_map([key], StatusChange::from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl StatusChange {
    /// From the columns of `status_changes`.
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let kind = |column: &str| -> rusqlite::Result<StatusKind> {
            let code: u8 = row.get(column)?;
            let kind = StatusKind::ALL.get(usize::from(code)).copied();
            Ok(kind.ok_or(FromSqlError::OutOfRange(code.into()))?)
        };
        Ok(Self {
            changed_at_us: row.get("changed_at_us")?,
            old: kind("old_status")?,
            new: kind("new_status")?,
        })
    }
}

/// Where the newest row of a target is.
fn newest_place(connection: &Connection, key: &TargetKey) -> Result<Option<RowKey>, StoreError> {
    let found = connection
        .prepare_cached("SELECT chunk, position FROM latest_rows WHERE target = ?1")?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// Whether a run has the target at this place.
fn is_at(
    connection: &Connection,
    key: &TargetKey,
    run: i64,
    place: RowKey,
) -> Result<bool, StoreError> {
    let found: Option<TargetKey> = connection
        .prepare_cached(
            "SELECT coalesce(name, address) FROM results WHERE run = ?1 AND chunk = ?2 AND position = ?3",
        )?
        .query_row((run, place.0, place.1), |row| row.get(0))
        .optional()?;
    Ok(found.as_ref() == Some(key))
}

/// Where a run has the target. Scans the run up to there.
fn place(connection: &Connection, key: &TargetKey, run: i64) -> Result<Option<RowKey>, StoreError> {
    let is_it = match key.address() {
        // The address comes before the name, so most rows are decoded up to the address only.
        Some(_) => "address = ?2 AND name IS NULL",
        None => "name = ?2",
    };
    let sql = format!("SELECT chunk, position FROM results WHERE run = ?1 AND {is_it} LIMIT 1");
    let found = connection
        .prepare_cached(&sql)?
        .query_row((run, key), |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// The targets of a subnet in a run. Scans the run.
fn counts(connection: &Connection, run: i64, subnet: IpNet) -> Result<StatusCounts, StoreError> {
    let filter = ReportFilter {
        subnets: vec![subnet],
        ..ReportFilter::default()
    };
    let filter = filter.sql(4);
    filter.prepare(connection)?;
    // IPv4 addresses are numbers in their order.
    let [first, last] = [subnet.network(), subnet.broadcast()].map(TargetKey::of_address);
    let (is_inside, first, last) = match (first, last) {
        (TargetKey::Ipv4(first), TargetKey::Ipv4(last)) => {
            ("address BETWEEN ?2 AND ?3", first.into(), last.into())
        }
        _ => (
            "address >= ?2 AND in_subnets(address)",
            Value::Text(String::new()),
            Value::Null,
        ),
    };
    let sql = format!(
        "SELECT status, count(*) FROM results WHERE run = ?1 AND {is_inside} GROUP BY status"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    statement.raw_bind_parameter(1, run)?;
    statement.raw_bind_parameter(2, first)?;
    if statement.parameter_count() > 2 {
        statement.raw_bind_parameter(3, last)?;
    }
    let mut counts = [0; StatusKind::ALL.len()];
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        if let Some(count) = counts.get_mut(usize::from(row.get::<_, u8>(0)?)) {
            *count = row.get(1)?;
        }
    }
    Ok(counts.into())
}
