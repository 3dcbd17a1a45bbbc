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
pub const REPORT_COLUMNS: [&str; 17] = [
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
    /// RFC 3339, UTC.
    pub probed_at: String,
    /// JSON object.
    pub labels: Option<String>,
}

/// The place of a row in the plan: chunk and position.
pub(crate) type RowKey = (i64, i64);

/// It comes before each row.
pub(crate) const FIRST_KEY: RowKey = (-1, -1);

/// The rows with these keys, in this order. Each is one index lookup.
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
        let key = (row.get(0)?, row.get(1)?);
        let report = Self {
            run: row.get(2)?,
            run_id: row.get(3)?,
            target: row.get(4)?,
            address: row.get(5)?,
            status: row.get(6)?,
            reason: row.get(7)?,
            sent: row.get(8)?,
            received: row.get(9)?,
            loss_pct: row.get(10)?,
            rtt_ms: [row.get(11)?, row.get(12)?, row.get(13)?, row.get(14)?],
            attempts: row.get(15)?,
            worker: row.get(16)?,
            probed_at: row.get(17)?,
            labels: row.get(18)?,
        };
        Ok((key, report))
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
        let selected = filter.select("*", REPORT_PAGE);
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
