//! The rows of the view `latest`. What `latest_rows` has of some targets is read first, in their order; then their rows of
//! `results`, in the order of the plan.

mod parts;

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, Row};

pub use self::parts::{HostPart, HostParts};
use super::{
    filter::ReportFilter,
    history::StatusChange,
    report::{REPORT_COLUMNS, ReportRow},
    stored_rows::{self, ExportPage, ExportRow, Place},
    target_key::TargetKey,
};
use crate::{Reader, StoreError, schema::LATEST_ROW};

/// The columns of the view `latest` behind [`REPORT_COLUMNS`], in order. A test compares them with the view.
pub const LATEST_COLUMNS: [&str; 4] = ["first_seen", "last_up", "changed_at", "changes_30d"];

/// Bytes that the texts of a page may have. Of a part with more, a page has so many targets as fit.
const MAX_PAGE_TEXT: usize = 16 * 1024 * 1024;

/// Rows of `results` that are read before the bytes of the page are looked at again. A row has a name of at most 255 bytes
/// and labels of some KB, at most.
const ROWS_BETWEEN_LOOKS: usize = 5000;

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
    rows: Vec<ExportPage>,
    run_ids: HashMap<i64, String>,
}

impl HostPage {
    /// The targets with their newest rows, which are read in the order of the plan. None when their texts take more than
    /// [`MAX_PAGE_TEXT`], unless it is one target.
    fn new(connection: &Connection, hosts: Vec<StoredHost>) -> Result<Option<Self>, StoreError> {
        let mut places: Vec<_> = hosts.iter().map(|host| host.place).collect();
        places.sort_unstable();
        let mut rows: Vec<ExportPage> = Vec::new();
        let mut text_bytes = 0;
        for places in places.chunks(ROWS_BETWEEN_LOOKS) {
            let some = stored_rows::rows_at(connection, places)?;
            text_bytes += some.text_bytes();
            if text_bytes > MAX_PAGE_TEXT && hosts.len() > 1 {
                return Ok(None);
            }
            rows.push(some);
        }
        let mut run_ids = HashMap::new();
        for [run, ..] in rows.iter().flat_map(ExportPage::places) {
            if !run_ids.contains_key(run) {
                let sql = "SELECT run_id FROM runs WHERE run = ?1";
                let run_id: String = connection.query_row(sql, [run], |row| row.get(0))?;
                run_ids.insert(*run, run_id);
            }
        }
        Ok(Some(Self {
            hosts,
            rows,
            run_ids,
        }))
    }

    /// How many targets it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.iter().map(ExportPage::len).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn row_at(&self, place: Place) -> Option<ExportRow<'_>> {
        let is_before = |rows: &ExportPage| rows.places().last() < Some(&place);
        let at = self.rows.partition_point(is_before);
        self.rows.get(at)?.row_at(place)
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
