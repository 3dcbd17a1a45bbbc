//! The rows of a run, in pages by key.

use std::vec;

use rusqlite::{Connection, Row};

use super::{
    filter::{FilterSql, ReportFilter},
    row_order::{RowOrder, sorted_keys},
};
use crate::{
    Reader, StoreError,
    schema::{REPORT_PAGE, REPORT_ROW},
};

/// The columns of the view `report`, in order. A test compares them with the view.
pub const REPORT_COLUMNS: [&str; 18] = [
    "run",
    "run_id",
    "target",
    "address",
    "status",
    "reason",
    "sent",
    "received",
    "loss_pct",
    "rtt_min_ms",
    "rtt_avg_ms",
    "rtt_max_ms",
    "rtt_stddev_ms",
    "attempts",
    "worker",
    "login",
    "probed_at",
    "labels",
];

/// Rows of one page.
const PAGE_ROWS: usize = 5000;

/// One row of the view `report`. The columns are [`REPORT_COLUMNS`].
#[derive(Debug, Clone, PartialEq)]
pub struct ReportRow {
    /// The run's number.
    pub run: i64,
    /// The run's `UUIDv7`.
    pub run_id: String,
    /// The target as the user gave it, or the address for an expanded CIDR.
    pub target: String,
    /// The address that was probed.
    pub address: Option<String>,
    /// Name of the status.
    pub status: String,
    /// The reason, for statuses that have one.
    pub reason: Option<String>,
    /// Requests that the kernel accepted.
    pub sent: i64,
    /// Distinct requests that were answered.
    pub received: i64,
    /// 100 (1 - received / sent). None when nothing was sent.
    pub loss_pct: Option<f64>,
    /// Round-trip times in milliseconds: shortest, mean, longest, standard deviation.
    pub rtt_ms: [Option<f64>; 4],
    /// How many times the target was probed from the beginning.
    pub attempts: i64,
    /// Name of the worker.
    pub worker: Option<String>,
    /// The login of its connection. None within one process, and for rows that an older version stored.
    pub login: Option<String>,
    /// RFC 3339, UTC. Empty where SQLite does not know the time, as an older version could store it.
    pub probed_at: String,
    /// JSON object.
    pub labels: Option<String>,
}

/// The place of a row in the plan: chunk and position.
pub(crate) type RowKey = (i64, i64);

/// It comes before each row.
pub(crate) const FIRST_KEY: RowKey = (-1, -1);

/// The rows with these keys, in this order: one for each key, or an error. Each is one index lookup.
pub(crate) fn rows_by_key(
    connection: &Connection,
    run: i64,
    keys: &[RowKey],
) -> Result<Vec<ReportRow>, StoreError> {
    let mut statement = connection.prepare(REPORT_ROW)?;
    let row = |key: &RowKey| {
        statement.query_row((run, key.0, key.1), |row| {
            ReportRow::from_row(row).map(|(_, row)| row)
        })
    };
    Ok(keys.iter().map(row).collect::<Result<_, _>>()?)
}

impl ReportRow {
    /// A row of [`REPORT_PAGE`]: the key, then the columns of the view.
    fn from_row(row: &Row<'_>) -> rusqlite::Result<(RowKey, Self)> {
        Ok(((row.get(0)?, row.get(1)?), Self::from_columns(row, 2)?))
    }

    /// The columns of the view, of which the first is column `at`.
    pub(crate) fn from_columns(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            run: row.get(at)?,
            run_id: row.get(at + 1)?,
            target: row.get(at + 2)?,
            address: row.get(at + 3)?,
            status: row.get(at + 4)?,
            reason: row.get(at + 5)?,
            sent: row.get(at + 6)?,
            received: row.get(at + 7)?,
            loss_pct: row.get(at + 8)?,
            rtt_ms: [
                row.get(at + 9)?,
                row.get(at + 10)?,
                row.get(at + 11)?,
                row.get(at + 12)?,
            ],
            attempts: row.get(at + 13)?,
            worker: row.get(at + 14)?,
            login: row.get(at + 15)?,
            probed_at: row.get::<_, Option<String>>(at + 16)?.unwrap_or_default(),
            labels: row.get(at + 17)?,
        })
    }
}

/// The pages of [`Reader::report`]. Between two of them nothing is open.
#[derive(Debug)]
pub struct ReportPages<'r> {
    reader: &'r Reader,
    run: i64,
    query: PageQuery,
    after: RowKey,
    /// The keys of the rows that are not read yet, where the rows are sorted.
    sorted: Option<vec::IntoIter<RowKey>>,
}

impl<'r> ReportPages<'r> {
    pub(super) fn new(reader: &'r Reader, run: i64, filter: &ReportFilter) -> Self {
        Self {
            reader,
            run,
            query: PageQuery::new(filter),
            after: FIRST_KEY,
            sorted: None,
        }
    }

    pub(super) fn sorted(
        reader: &'r Reader,
        run: i64,
        filter: &ReportFilter,
        order: RowOrder,
    ) -> Result<Self, StoreError> {
        let keys = sorted_keys(reader, run, filter, order)?;
        Ok(Self {
            sorted: Some(keys.into_iter()),
            ..Self::new(reader, run, filter)
        })
    }

    /// The next page, in the order of the plan or sorted. Empty at the end.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row.
    pub fn next_page(&mut self) -> Result<Vec<ReportRow>, StoreError> {
        if let Some(keys) = &mut self.sorted {
            let keys: Vec<_> = keys.take(PAGE_ROWS).collect();
            return self
                .reader
                .read(|connection| rows_by_key(connection, self.run, &keys));
        }
        let rows = self
            .reader
            .read(|connection| self.query.read(connection, self.run, self.after))?;
        if let Some((key, _)) = rows.last() {
            self.after = *key;
        }
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }
}

/// The statement of a page of rows.
#[derive(Debug)]
pub(crate) struct PageQuery {
    sql: String,
    filter: FilterSql,
}

impl PageQuery {
    pub(crate) fn new(filter: &ReportFilter) -> Self {
        let filter = filter.sql(4);
        let selected = filter.select("*", "report", REPORT_PAGE);
        let sql = format!("{selected} ORDER BY 1, 2 LIMIT {PAGE_ROWS}");
        Self { sql, filter }
    }

    /// The rows of a run behind a key, at most [`PAGE_ROWS`].
    pub(crate) fn read(
        &self,
        connection: &Connection,
        run: i64,
        after: RowKey,
    ) -> Result<Vec<(RowKey, ReportRow)>, StoreError> {
        self.filter.prepare(connection)?;
        let read = || {
            let mut statement = connection.prepare(&self.sql)?;
            self.filter.bind(&mut statement, &[run, after.0, after.1])?;
            let rows = statement.raw_query().mapped(ReportRow::from_row);
            rows.collect::<Result<_, _>>()
        };
        read().map_err(|error| self.filter.explain(error))
    }
}
