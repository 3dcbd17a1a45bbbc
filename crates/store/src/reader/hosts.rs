//! The rows of the view `latest`, in parts by target, of which several may be read at once. What `latest_rows` has of a part
//! is read first, in the order of the targets; then their rows of `results`, in the order of the plan.

use std::{cmp::Reverse, collections::HashMap, sync::Arc, vec};

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{
    filter::{FilterSql, ReportFilter},
    history::StatusChange,
    report::{REPORT_COLUMNS, ReportRow},
    stored_rows::{self, ExportPage, Place},
    target_key::{TargetKey, TargetRange},
};
use crate::{
    Reader, StoreError,
    schema::{LATEST_RANGE, LATEST_ROW, STORED_LATEST_RANGE, STORED_LATEST_ROW},
};

/// The columns of the view `latest` behind [`REPORT_COLUMNS`], in order. A test compares them with the view.
pub const LATEST_COLUMNS: [&str; 4] = ["first_seen", "last_up", "changed_at", "changes_30d"];

/// Targets of one part: those that are selected, as far as `latest_rows` says it. They lie in `results` in another order, so
/// a large part reads few pages of the file twice. Each takes about 400 bytes.
const PART_TARGETS: usize = 50_000;

/// The page cache while rows are read in another order than they are stored, in KiB (negative in SQLite's own notation).
const CACHE_KIB: i64 = 64 * 1024;

/// Which targets to read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostFilter {
    /// By the newest row of the target. A condition is one on the view `latest`.
    pub rows: ReportFilter,
    /// Only targets that were probed before this time, in microseconds since 1970-01-01 UTC, and never since.
    pub probed_before_us: Option<i64>,
}

/// How targets are sorted. Equal ones have the order of [`Self::Target`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostOrder {
    /// IPv4 addresses by their number, and then all others by their text.
    #[default]
    Target,
    /// The longest mean round-trip time first, and at the end what was not measured.
    Rtt,
    /// The newest change of the status first.
    Changed,
    /// The most changes in 30 days first.
    Changes,
}

impl HostOrder {
    fn column(self) -> &'static str {
        match self {
            Self::Target => "0",
            Self::Rtt => "rtt_avg_ms * 1000000.0",
            Self::Changed => "row_changed_us",
            Self::Changes => "changes_30d",
        }
    }
}

/// One row of the view `latest`. The columns are [`REPORT_COLUMNS`] and [`LATEST_COLUMNS`].
#[derive(Debug, Clone, PartialEq)]
pub struct HostRow {
    /// The newest row of the target.
    pub row: ReportRow,
    /// When it was probed first, in microseconds since 1970-01-01 UTC.
    pub first_seen_us: i64,
    /// When it was up or late last.
    pub last_up_us: Option<i64>,
    /// When it got its status.
    pub changed_at_us: i64,
    /// How often its status changed in the last 30 days. `unknown` is no change.
    pub changes_30d: i64,
}

impl HostRow {
    /// The columns of [`LATEST_ROW`] that [`Self::from_row`] reads. SQLite computes no other one.
    fn columns() -> String {
        let columns = REPORT_COLUMNS.join(", ");
        format!("{columns}, row_first_seen_us, row_last_up_us, row_changed_us, changes_30d")
    }

    /// A row of [`Self::columns`].
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let further = REPORT_COLUMNS.len();
        Ok(Self {
            row: ReportRow::from_columns(row, 0)?,
            first_seen_us: row.get(further)?,
            last_up_us: row.get(further + 1)?,
            changed_at_us: row.get(further + 2)?,
            changes_30d: row.get(further + 3)?,
        })
    }
}

/// What `latest_rows` and `status_changes` have of a target.
#[derive(Debug)]
struct StoredHost {
    place: Place,
    first_seen_us: i64,
    last_up_us: Option<i64>,
    changed_at_us: i64,
    changes_30d: i64,
}

impl StoredHost {
    /// The columns of a statement on `latest` that [`Self::from_row`] reads.
    const COLUMNS: &str = "row_run, row_chunk, row_position, row_first_seen_us, row_last_up_us, \
        row_changed_us, changes_30d";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            place: [row.get(0)?, row.get(1)?, row.get(2)?],
            first_seen_us: row.get(3)?,
            last_up_us: row.get(4)?,
            changed_at_us: row.get(5)?,
            changes_30d: row.get(6)?,
        })
    }
}

/// Some targets, which need neither the database nor an allocation for each value.
#[derive(Debug, Default)]
pub struct HostPage {
    hosts: Vec<StoredHost>,
    /// Their rows, in the order of the plan.
    rows: ExportPage,
    run_ids: HashMap<i64, String>,
}

impl HostPage {
    /// The targets with their newest rows, which are read in the order of the plan.
    fn new(connection: &Connection, hosts: Vec<StoredHost>) -> Result<Self, StoreError> {
        let mut places: Vec<_> = hosts.iter().map(|host| host.place).collect();
        places.sort_unstable();
        let rows = stored_rows::rows_at(connection, &places)?;
        let mut run_ids = HashMap::new();
        for [run, ..] in rows.places() {
            if !run_ids.contains_key(run) {
                let sql = "SELECT run_id FROM runs WHERE run = ?1";
                let run_id: String = connection.query_row(sql, [run], |row| row.get(0))?;
                run_ids.insert(*run, run_id);
            }
        }
        Ok(Self {
            hosts,
            rows,
            run_ids,
        })
    }

    /// How many targets it has. 0 only at the end.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it is the end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The targets in the wanted order.
    pub fn hosts(&self) -> impl Iterator<Item = HostRow> {
        self.hosts.iter().filter_map(|host| {
            // As the view, which joins the tables: without a row there is no target.
            let row = self.rows.row_at(host.place)?;
            let [run, ..] = host.place;
            Some(HostRow {
                row: row.in_run(run, self.run_ids.get(&run)?),
                first_seen_us: host.first_seen_us,
                last_up_us: host.last_up_us,
                changed_at_us: host.changed_at_us,
                changes_30d: host.changes_30d,
            })
        })
    }
}

/// A target that did not answer when it was probed last.
#[derive(Debug, Clone, PartialEq)]
pub struct NewestChange {
    /// The target as it is now.
    pub host: HostRow,
    /// The last change of its status. None if it had no other one.
    pub change: Option<StatusChange>,
}

impl Reader {
    /// The targets that are not up now, those with the newest change of their status first, or when they were seen first:
    /// at most `limit`. Two searches by key for each.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn newest_changes(&self, limit: usize) -> Result<Vec<NewestChange>, StoreError> {
        self.read(|connection| {
            let mut newest = connection.prepare(
                "SELECT target FROM latest_rows WHERE status > 1
                 ORDER BY coalesce(changed_at_us, first_seen_us) DESC LIMIT ?1",
            )?;
            let mut last_change = connection.prepare(
                "SELECT changed_at_us, old_status, new_status FROM status_changes WHERE target = ?1
                 ORDER BY changed_at_us DESC LIMIT 1",
            )?;
            let mut rows = newest.query([limit as i64])?;
            let mut changes = Vec::new();
            while let Some(row) = rows.next()? {
                let target: TargetKey = row.get(0)?;
                if let Some(host) = host(connection, &target)? {
                    let change = last_change
                        .query_row([&target], StatusChange::from_row)
                        .optional()?;
                    changes.push(NewestChange { host, change });
                }
            }
            Ok(changes)
        })
    }
}

/// The newest row of a target. One search by key.
pub(super) fn host(
    connection: &Connection,
    key: &TargetKey,
) -> Result<Option<HostRow>, StoreError> {
    let sql = format!("SELECT {} FROM ({LATEST_ROW})", HostRow::columns());
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query_and_then([key], HostRow::from_row)?;
    Ok(rows.next().transpose()?)
}

/// The parts of [`Reader::hosts`], in the wanted order. Nothing is open between two of them.
#[derive(Debug)]
pub struct HostParts<'r> {
    reader: &'r Reader,
    query: Arc<HostQuery>,
    keys: PartKeys,
}

/// The keys that no part has yet.
#[derive(Debug)]
enum PartKeys {
    /// Those behind this one. None when there are no more.
    Behind(Option<TargetKey>),
    /// These, which are sorted by something else.
    Sorted(vec::IntoIter<TargetKey>),
}

/// Some targets.
#[derive(Debug)]
pub struct HostPart<'r> {
    reader: &'r Reader,
    query: Arc<HostQuery>,
    keys: SomeKeys,
}

#[derive(Debug)]
enum SomeKeys {
    Range(TargetRange),
    List(Vec<TargetKey>),
}

impl<'r> Iterator for HostParts<'r> {
    type Item = Result<HostPart<'r>, StoreError>;

    /// The next part. Fails as [`Reader::open`].
    fn next(&mut self) -> Option<Self::Item> {
        let keys = match &mut self.keys {
            PartKeys::Behind(after) => {
                let range = self.query.next_range(self.reader, after).transpose()?;
                range.map(SomeKeys::Range)
            }
            PartKeys::Sorted(keys) => {
                let keys: Vec<_> = keys.take(PART_TARGETS).collect();
                Ok(SomeKeys::List((!keys.is_empty()).then_some(keys)?))
            }
        };
        Some(keys.map(|keys| HostPart {
            reader: self.reader,
            query: Arc::clone(&self.query),
            keys,
        }))
    }
}

impl HostPart<'_> {
    /// Its targets that the filter selects, in their order: their rows of one moment.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row;
    /// [`StoreError::Interrupted`].
    pub fn read(self) -> Result<HostPage, StoreError> {
        self.reader.read(|connection| {
            if self.query.stored.is_none() {
                connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            }
            let snapshot = connection.transaction()?;
            let hosts = match &self.keys {
                SomeKeys::List(keys) => stored_hosts(&snapshot, keys)?,
                SomeKeys::Range(range) => {
                    let selected = self.query.select(StoredHost::COLUMNS, true);
                    let query = &self.query;
                    query.read(&snapshot, &selected, range, StoredHost::from_row)?
                }
            };
            HostPage::new(&snapshot, hosts)
        })
    }
}

/// The targets with these keys, in their order. Each is one search by key, in the order of the keys.
fn stored_hosts(
    connection: &Connection,
    keys: &[TargetKey],
) -> Result<Vec<StoredHost>, StoreError> {
    let mut ascending: Vec<_> = (0..keys.len()).collect();
    ascending.sort_unstable_by_key(|at| &keys[*at]);
    let sql = format!("SELECT {} FROM ({STORED_LATEST_ROW})", StoredHost::COLUMNS);
    let mut statement = connection.prepare(&sql)?;
    let mut hosts: Vec<_> = keys.iter().map(|_| None).collect();
    for at in ascending {
        hosts[at] = statement
            .query_row([&keys[at]], StoredHost::from_row)
            .optional()?;
    }
    Ok(hosts.into_iter().flatten().collect())
}

/// The statement of a page.
#[derive(Debug)]
struct HostQuery {
    /// Without a look at `results`, if the filter needs none.
    stored: Option<String>,
    statement: String,
    /// Those on `latest_rows t`, each behind an AND.
    conditions: String,
    filter: FilterSql,
}

impl HostQuery {
    fn new(filter: &HostFilter) -> Self {
        let age = filter.probed_before_us;
        let age = age.map(|before| format!(" AND t.probed_at_us < {before}"));
        // Without a look at the rows of `results`.
        let statuses = filter.rows.statuses.iter();
        let codes: Vec<_> = statuses.map(|status| status.code().to_string()).collect();
        let codes = (!codes.is_empty()).then(|| format!(" AND t.status IN ({})", codes.join(", ")));
        let conditions = age.unwrap_or_default() + &codes.unwrap_or_default();
        let rows = &filter.rows;
        let is_stored =
            rows.labels.is_empty() && rows.subnets.is_empty() && rows.condition.is_none();
        Self {
            stored: is_stored.then(|| format!("{STORED_LATEST_RANGE}{conditions}")),
            statement: format!("{LATEST_RANGE}{conditions}"),
            conditions,
            filter: rows.sql(3),
        }
    }

    /// The next [`PART_TARGETS`] targets behind a key, which becomes the last one of them. None at the end.
    fn next_range(
        &self,
        reader: &Reader,
        after: &mut Option<TargetKey>,
    ) -> Result<Option<TargetRange>, StoreError> {
        let Some(first) = after.take() else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT target FROM latest_rows t WHERE target > ?1{} ORDER BY target LIMIT 1 OFFSET ?2",
            self.conditions
        );
        *after = reader.read(|connection| {
            let offset = PART_TARGETS as i64 - 1;
            let last = connection.query_row(&sql, (&first, offset), |row| row.get(0));
            Ok(last.optional()?)
        })?;
        Ok(Some(TargetRange {
            after: first,
            last: after.clone(),
        }))
    }

    /// Some columns of the selected rows. `is_stored` says that they are those of [`STORED_LATEST_RANGE`].
    fn select(&self, columns: &str, is_stored: bool) -> String {
        match &self.stored {
            Some(stored) if is_stored => format!("SELECT {columns} FROM ({stored})"),
            _ => self.filter.select(columns, "latest", &self.statement),
        }
    }

    /// The rows of some targets of what [`Self::select`] gives.
    fn read<T>(
        &self,
        connection: &Connection,
        selected: &str,
        range: &TargetRange,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.filter.prepare(connection)?;
        let sql = format!("{selected} ORDER BY row_target");
        let read_range = || {
            let mut statement = connection.prepare(&sql)?;
            self.filter.bind(&mut statement, &[])?;
            statement.raw_bind_parameter(1, &range.after)?;
            statement.raw_bind_parameter(2, range.last()?)?;
            let rows = statement.raw_query().mapped(&read);
            rows.collect::<Result<_, _>>()
        };
        read_range().map_err(|error| self.filter.explain(error))
    }
}

impl Reader {
    /// The newest row of each target that a filter selects, part by part. In another order than that of the targets, the
    /// rows are read twice, and their keys are kept in memory: about 60 bytes each.
    ///
    /// # Errors
    /// As [`HostPart::read`].
    pub fn hosts(
        &self,
        filter: &HostFilter,
        order: HostOrder,
    ) -> Result<HostParts<'_>, StoreError> {
        let query = HostQuery::new(filter);
        let keys = match order {
            HostOrder::Target => PartKeys::Behind(Some(TargetKey::FIRST)),
            order => PartKeys::Sorted(self.sorted_hosts(&query, order)?.into_iter()),
        };
        Ok(HostParts {
            reader: self,
            query: Arc::new(query),
            keys,
        })
    }

    fn sorted_hosts(
        &self,
        query: &HostQuery,
        order: HostOrder,
    ) -> Result<Vec<TargetKey>, StoreError> {
        let columns = format!("row_target, {}", order.column());
        let selected = query.select(&columns, order != HostOrder::Rtt);
        let read = |row: &Row<'_>| {
            let value: Option<f64> = row.get(1)?;
            let whole = value.map(|value| value.round() as i64);
            Ok((Reverse(whole), row.get::<_, TargetKey>(0)?))
        };
        let mut keys: Vec<(Reverse<Option<i64>>, TargetKey)> = Vec::new();
        let mut after = Some(TargetKey::FIRST);
        while let Some(range) = query.next_range(self, &mut after)? {
            keys.extend(self.read(|connection| {
                connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
                query.read(connection, &selected, &range, read)
            })?);
        }
        keys.sort_unstable();
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }
}
