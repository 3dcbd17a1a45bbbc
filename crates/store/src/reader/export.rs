//! The rows of a run as they are stored, in large pages, for programs: as fast as SQLite reads them. What the view
//! `report` computes for a row is computed here, and a test compares the two.

use std::{fmt::Write as _, ops::Range};

use pingfleet_wire::StatusKind;
use rusqlite::{Connection, Row, types::ValueRef};

use super::filter::{FilterSql, ReportFilter};
use crate::{
    Reader, StoreError,
    address::shown_address,
    reader::report::RowKey,
    schema::{EXPORT_COLUMNS, EXPORT_PAGE},
};

/// Rows of one page: about 3 MB. SQLite is opened anew for each.
const PAGE_ROWS: usize = 20_000;

/// The times that SQLite's functions know, in milliseconds since 1970-01-01 UTC: the years -4713 to 9999.
const KNOWN_TIMES_MS: Range<i64> = -210_866_760_000_000..253_402_300_800_000;

/// Milliseconds from the beginning of SQLite's Julian days to 1970-01-01 UTC.
const JULIAN_EPOCH_MS: f64 = 210_866_760_000_000.0;

/// One row of the view `report`, without the run. It borrows from its [`ExportPage`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExportRow<'p> {
    /// The target as the user gave it, or the address for an expanded CIDR.
    pub target: &'p str,
    /// The address that was probed.
    pub address: Option<&'p str>,
    /// The status.
    pub status: StatusKind,
    /// The reason, for statuses that have one.
    pub reason: Option<&'p str>,
    /// Requests that the kernel accepted.
    pub sent: i64,
    /// Distinct requests that were answered.
    pub received: i64,
    /// Round-trip times in nanoseconds: shortest, mean, longest, standard deviation.
    pub rtt_ns: [Option<i64>; 4],
    /// How many times the target was probed from the beginning.
    pub attempts: i64,
    /// Name of the worker.
    pub worker: Option<&'p str>,
    /// Milliseconds since 1970-01-01 UTC, rounded as the view rounds them.
    pub probed_at_ms: Option<i64>,
    /// JSON object.
    pub labels: Option<&'p str>,
}

impl ExportRow<'_> {
    /// 100 (1 - received / sent). None when nothing was sent.
    #[must_use]
    pub fn loss_pct(&self) -> Option<f64> {
        (self.sent > 0).then(|| 100.0 * (self.sent - self.received) as f64 / self.sent as f64)
    }

    /// Round-trip times in milliseconds, in the order of `rtt_ns`.
    #[must_use]
    pub fn rtt_ms(&self) -> [Option<f64>; 4] {
        self.rtt_ns.map(|ns| ns.map(|ns| ns as f64 / 1_000_000.0))
    }
}

/// A part of the text of a page.
type Span = Range<u32>;

/// An [`ExportRow`] whose texts are parts of the page's text.
#[derive(Debug)]
struct StoredRow {
    target: Span,
    address: Option<Span>,
    status: StatusKind,
    reason: Option<Span>,
    sent: i64,
    received: i64,
    rtt_ns: [Option<i64>; 4],
    attempts: i64,
    worker: Option<Span>,
    probed_at_ms: Option<i64>,
    labels: Option<Span>,
}

/// Some rows of a run, which need neither the database nor an allocation for each.
#[derive(Debug, Default)]
pub struct ExportPage {
    text: String,
    rows: Vec<StoredRow>,
    last: Option<RowKey>,
}

impl ExportPage {
    /// How many rows it has. 0 only at the end of the run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it is the end of the run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in the order of the plan.
    pub fn rows(&self) -> impl Iterator<Item = ExportRow<'_>> {
        self.rows.iter().map(|row| self.shown(row))
    }

    fn shown(&self, row: &StoredRow) -> ExportRow<'_> {
        let text = |span: &Span| &self.text[span.start as usize..span.end as usize];
        ExportRow {
            target: text(&row.target),
            address: row.address.as_ref().map(text),
            status: row.status,
            reason: row.reason.as_ref().map(text),
            sent: row.sent,
            received: row.received,
            rtt_ns: row.rtt_ns,
            attempts: row.attempts,
            worker: row.worker.as_ref().map(text),
            probed_at_ms: row.probed_at_ms,
            labels: row.labels.as_ref().map(text),
        }
    }

    /// Adds a row of [`EXPORT_PAGE`].
    fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let address = match row.get_ref(7)? {
            ValueRef::Integer(number) => shown_address(number).map(|address| {
                let start = self.text.len();
                write!(self.text, "{address}").expect("a text takes any text");
                self.since(start)
            }),
            _ => self.add_text(row, 7)?,
        };
        let name = self.add_text(row, 12)?;
        let avg: Option<i64> = row.get(8)?;
        let worker = self.add_worker(row)?;
        let started_at_us: Option<i64> = row.get(15)?;
        let after_us: i64 = row.get(6)?;
        let status: u8 = row.get(2)?;
        let added = StoredRow {
            target: name
                .or_else(|| address.clone())
                .ok_or_else(|| missing(row, 12))?,
            address,
            // A CHECK of the table admits only these codes.
            status: *StatusKind::ALL
                .get(usize::from(status))
                .ok_or_else(|| missing(row, 2))?,
            reason: self.add_text(row, 13)?,
            sent: row.get(3)?,
            received: row.get(4)?,
            rtt_ns: [
                row.get::<_, Option<i64>>(9)?.or(avg),
                avg,
                row.get::<_, Option<i64>>(10)?.or(avg),
                row.get::<_, Option<i64>>(11)?.or(avg.map(|_| 0)),
            ],
            attempts: row.get(5)?,
            worker,
            probed_at_ms: started_at_us.and_then(|started| rounded_ms(started + after_us)),
            labels: self.add_text(row, 16)?,
        };
        self.rows.push(added);
        self.last = Some((row.get(0)?, row.get(1)?));
        Ok(())
    }

    fn since(&self, start: usize) -> Span {
        start as u32..self.text.len() as u32
    }

    fn add_text(&mut self, row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Span>> {
        let value = row.get_ref(column)?;
        let Some(text) = value.as_str_or_null()? else {
            return Ok(None);
        };
        let start = self.text.len();
        self.text.push_str(text);
        Ok(Some(self.since(start)))
    }

    /// All rows of a chunk have the same worker, so its name is mostly that of the row before.
    fn add_worker(&mut self, row: &Row<'_>) -> rusqlite::Result<Option<Span>> {
        let before = self.rows.last().and_then(|row| row.worker.clone());
        if let Some(span) = before
            && row.get_ref(14)?.as_str_or_null()?
                == Some(&self.text[span.start as usize..span.end as usize])
        {
            return Ok(Some(span));
        }
        self.add_text(row, 14)
    }
}

fn missing(row: &Row<'_>, column: usize) -> rusqlite::Error {
    let name = row
        .as_ref()
        .column_name(column)
        .map_or(String::new(), str::to_owned);
    rusqlite::Error::InvalidColumnType(column, name, rusqlite::types::Type::Null)
}

/// Microseconds since 1970-01-01 UTC in milliseconds, rounded as SQLite's `strftime` rounds `us / 1000000.0`: it adds a
/// half to the number of milliseconds of the Julian day. None for a time that `strftime` does not know.
fn rounded_ms(us: i64) -> Option<i64> {
    let julian = us as f64 / 1_000_000.0 * 1000.0 + JULIAN_EPOCH_MS + 0.5;
    let ms = julian as i64 - JULIAN_EPOCH_MS as i64;
    KNOWN_TIMES_MS.contains(&ms).then_some(ms)
}

/// The pages of [`Reader::export`]. Between two of them nothing is open.
#[derive(Debug)]
pub struct ExportPages<'r> {
    reader: &'r Reader,
    run: i64,
    sql: String,
    filter: FilterSql,
    after: RowKey,
}

impl<'r> ExportPages<'r> {
    pub(super) fn new(reader: &'r Reader, run: i64, filter: &ReportFilter) -> Self {
        let filter = filter.sql(4);
        let sql = page_sql(&filter);
        Self {
            reader,
            run,
            sql,
            filter,
            after: (-1, -1),
        }
    }

    /// The next page, in the order of the plan. Empty at the end.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row;
    /// [`StoreError::Interrupted`].
    pub fn next_page(&mut self) -> Result<ExportPage, StoreError> {
        let page = self.reader.read(|connection| self.read(connection))?;
        if let Some(last) = page.last {
            self.after = last;
        }
        Ok(page)
    }

    fn read(&self, connection: &Connection) -> Result<ExportPage, StoreError> {
        self.filter.prepare(connection)?;
        let read = || {
            let mut statement = connection.prepare(&self.sql)?;
            let key = [self.run, self.after.0, self.after.1];
            self.filter.bind(&mut statement, &key)?;
            let mut page = ExportPage::default();
            let mut rows = statement.raw_query();
            while let Some(row) = rows.next()? {
                page.add(row)?;
            }
            Ok(page)
        };
        read().map_err(|error| self.filter.explain(error))
    }
}

/// The statement of a page. SQLite computes no column of the view that the condition does not name.
fn page_sql(filter: &FilterSql) -> String {
    let selected = filter.select(EXPORT_COLUMNS, "report", EXPORT_PAGE);
    format!("{selected} ORDER BY 1, 2 LIMIT {PAGE_ROWS}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    proptest! {
        #[test]
        fn times_are_rounded_as_sqlite_rounds_them(us in -10_000_000_000_000_000_i64..300_000_000_000_000_000) {
            let connection = Connection::open_in_memory().unwrap();
            let shown: Option<String> = connection
                .query_row(
                    "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000000.0, 'unixepoch')",
                    [us],
                    |row| row.get(0),
                )
                .unwrap();
            let ours: Option<String> = connection
                .query_row(
                    "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000.0, 'unixepoch')",
                    [rounded_ms(us)],
                    |row| row.get(0),
                )
                .unwrap();
            prop_assert_eq!(shown, ours);
        }
    }
}
