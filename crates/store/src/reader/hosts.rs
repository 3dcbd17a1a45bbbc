//! The rows of the view `latest`, in pages by target. What `latest_rows` has of them is read first, in the order of the
//! targets; then their rows of `results`, in the order of the plan.

use std::{cmp::Reverse, collections::HashMap};

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{
    filter::{FilterSql, ReportFilter},
    history::StatusChange,
    report::{REPORT_COLUMNS, ReportRow},
    stored_rows::{self, ExportPage, ExportRow, Place},
    target_key::TargetKey,
};
use crate::{
    Reader, StoreError,
    schema::{LATEST_PAGE, LATEST_ROW, STORED_LATEST_PAGE, STORED_LATEST_ROW},
};

/// The columns of the view `latest` behind [`REPORT_COLUMNS`], in order. A test compares them with the view.
pub const LATEST_COLUMNS: [&str; 4] = ["first_seen", "last_up", "changed_at", "changes_30d"];

/// Rows of one page, at most. They lie in `results` in another order, so a large page reads few pages of the file twice.
/// Each takes about 350 bytes, and its texts.
const PAGE_ROWS: usize = 100_000;

/// Bytes that the texts of a page may have. A page with more is read again with half of the rows.
const MAX_PAGE_TEXT: usize = 16 * 1024 * 1024;

/// Rows of `results` that are read before the bytes of the page are looked at again. A row has a name of at most 255 bytes
/// and labels of some KB, at most.
const PART_ROWS: usize = 5000;

/// Rows of a page of keys.
const PAGE_KEYS: usize = 100_000;

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
    key: TargetKey,
    place: Place,
    first_seen_us: i64,
    last_up_us: Option<i64>,
    changed_at_us: i64,
    changes_30d: i64,
}

impl StoredHost {
    /// The columns of a statement on `latest` that [`Self::from_row`] reads.
    const COLUMNS: &str = "row_target, row_run, row_chunk, row_position, row_first_seen_us, row_last_up_us, \
        row_changed_us, changes_30d";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: row.get(0)?,
            place: [row.get(1)?, row.get(2)?, row.get(3)?],
            first_seen_us: row.get(4)?,
            last_up_us: row.get(5)?,
            changed_at_us: row.get(6)?,
            changes_30d: row.get(7)?,
        })
    }
}

/// Some targets, which need neither the database nor an allocation for each value.
#[derive(Debug, Default)]
pub struct HostPage {
    hosts: Vec<StoredHost>,
    /// Their rows, in the order of the plan. No part is empty.
    parts: Vec<ExportPage>,
    run_ids: HashMap<i64, String>,
}

impl HostPage {
    /// The targets with their newest rows, which are read in the order of the plan. None when their texts take more than
    /// [`MAX_PAGE_TEXT`].
    fn new(connection: &Connection, hosts: Vec<StoredHost>) -> Result<Option<Self>, StoreError> {
        let mut places: Vec<_> = hosts.iter().map(|host| host.place).collect();
        places.sort_unstable();
        let mut parts: Vec<ExportPage> = Vec::new();
        let mut text_bytes = 0;
        for places in places.chunks(PART_ROWS) {
            let part = stored_rows::rows_at(connection, places)?;
            text_bytes += part.text_bytes();
            if text_bytes > MAX_PAGE_TEXT && hosts.len() > 1 {
                return Ok(None);
            }
            parts.extend(Some(part).filter(|part| !part.is_empty()));
        }
        let mut run_ids = HashMap::new();
        for [run, ..] in parts.iter().flat_map(ExportPage::places) {
            if !run_ids.contains_key(run) {
                let sql = "SELECT run_id FROM runs WHERE run = ?1";
                let run_id: String = connection.query_row(sql, [run], |row| row.get(0))?;
                run_ids.insert(*run, run_id);
            }
        }
        Ok(Some(Self {
            hosts,
            parts,
            run_ids,
        }))
    }

    /// How many targets it has. 0 only at the end.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(ExportPage::len).sum()
    }

    /// Whether it is the end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn row_at(&self, place: Place) -> Option<ExportRow<'_>> {
        let is_before = |part: &ExportPage| part.places().last() < Some(&place);
        let part = self.parts.partition_point(is_before);
        self.parts.get(part)?.row_at(place)
    }

    /// The targets in the wanted order.
    pub fn hosts(&self) -> impl Iterator<Item = HostRow> {
        self.hosts.iter().filter_map(|host| {
            // As the view, which joins the tables: without a row there is no target.
            let row = self.row_at(host.place)?;
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

/// The pages of [`Reader::hosts`]. Between two of them nothing is open.
#[derive(Debug)]
pub struct HostPages<'r> {
    reader: &'r Reader,
    query: HostQuery,
    after: TargetKey,
    /// The keys of the rows where the rows are sorted, and how many of them are read.
    sorted: Option<(Vec<TargetKey>, usize)>,
    /// Rows of a page, at most.
    page_rows: usize,
}

impl HostPages<'_> {
    /// The next page. Empty at the end.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row.
    pub fn next_page(&mut self) -> Result<HostPage, StoreError> {
        loop {
            let found = self.reader.read(|connection| {
                if self.query.stored.is_none() {
                    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
                }
                let snapshot = connection.transaction()?;
                let hosts = match self.next_keys() {
                    Some(keys) => stored_hosts(&snapshot, keys)?,
                    None => self
                        .query
                        .stored_page(&snapshot, &self.after, self.page_rows)?,
                };
                let (last, count) = (hosts.last().map(|host| host.key.clone()), hosts.len());
                let page = HostPage::new(&snapshot, hosts)?;
                Ok(page.map(|page| (last, page)).ok_or(count))
            })?;
            let (last, page) = match found {
                Ok(found) => found,
                Err(too_many) => {
                    self.page_rows = too_many / 2;
                    continue;
                }
            };
            let read = self.next_keys().map(<[_]>::len);
            let is_last = read.map_or(last.is_none(), |read| read == 0);
            if let (Some((_, done)), Some(read)) = (&mut self.sorted, read) {
                *done += read;
            }
            if let Some(last) = last {
                self.after = last;
            }
            // As an empty page is the end, one without a row is passed over.
            if is_last || !page.is_empty() {
                return Ok(page);
            }
        }
    }

    /// The keys of the next page, where the rows are sorted.
    fn next_keys(&self) -> Option<&[TargetKey]> {
        let (keys, done) = self.sorted.as_ref()?;
        let left = &keys[*done..];
        Some(&left[..left.len().min(self.page_rows)])
    }
}

/// The targets with these keys, in their order. Each is one search by key, in the order of the keys.
fn stored_hosts(
    connection: &Connection,
    keys: &[TargetKey],
) -> Result<Vec<StoredHost>, StoreError> {
    let mut ascending: Vec<_> = (0..keys.len()).collect();
    ascending.sort_unstable_by_key(|at| &keys[*at]);
    let mut statement = connection.prepare(STORED_LATEST_ROW)?;
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
            stored: is_stored.then(|| format!("{STORED_LATEST_PAGE}{conditions}")),
            statement: format!("{LATEST_PAGE}{conditions}"),
            filter: rows.sql(2),
        }
    }

    /// The targets behind a key.
    fn stored_page(
        &self,
        connection: &Connection,
        after: &TargetKey,
        rows: usize,
    ) -> Result<Vec<StoredHost>, StoreError> {
        let selected = self.select(StoredHost::COLUMNS, true);
        self.read(connection, &selected, rows, after, StoredHost::from_row)
    }

    /// Some columns of the selected rows. `is_stored` says that they are those of [`STORED_LATEST_PAGE`].
    fn select(&self, columns: &str, is_stored: bool) -> String {
        match &self.stored {
            Some(stored) if is_stored => format!("SELECT {columns} FROM ({stored})"),
            _ => self.filter.select(columns, "latest", &self.statement),
        }
    }

    /// The rows behind a key of what [`Self::select`] gives.
    fn read<T>(
        &self,
        connection: &Connection,
        selected: &str,
        rows: usize,
        after: &TargetKey,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.filter.prepare(connection)?;
        let sql = format!("{selected} ORDER BY row_target LIMIT {rows}");
        let read_page = || {
            let mut statement = connection.prepare(&sql)?;
            self.filter.bind(&mut statement, &[])?;
            statement.raw_bind_parameter(1, after)?;
            let rows = statement.raw_query().mapped(&read);
            rows.collect::<Result<_, _>>()
        };
        read_page().map_err(|error| self.filter.explain(error))
    }
}

impl Reader {
    /// The newest row of each target that a filter selects, page by page. In another order than that of the targets, the
    /// rows are read twice, and their keys are kept in memory: about 60 bytes each.
    ///
    /// # Errors
    /// As [`HostPages::next_page`].
    pub fn hosts(
        &self,
        filter: &HostFilter,
        order: HostOrder,
    ) -> Result<HostPages<'_>, StoreError> {
        let query = HostQuery::new(filter);
        let sorted = match order {
            HostOrder::Target => None,
            order => Some((self.sorted_hosts(&query, order)?, 0)),
        };
        Ok(HostPages {
            reader: self,
            query,
            after: TargetKey::FIRST,
            sorted,
            page_rows: PAGE_ROWS,
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
        loop {
            let after = keys.last().map_or(TargetKey::FIRST, |(_, key)| key.clone());
            let page = self.read(|connection| {
                connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
                query.read(connection, &selected, PAGE_KEYS, &after, read)
            })?;
            if page.is_empty() {
                break;
            }
            keys.extend(page);
        }
        keys.sort_unstable();
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }
}
