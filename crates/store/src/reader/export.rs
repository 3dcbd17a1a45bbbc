//! The rows of a run in large pages, for programs: as fast as SQLite reads them.

use rusqlite::Connection;

use super::{
    filter::{FilterSql, ReportFilter},
    stored_rows::{self, ExportPage, Place},
};
use crate::{Reader, StoreError, reader::report::FIRST_KEY, schema::REPORT_PAGE};

/// Rows of one page: about 3 MB. SQLite is opened anew for each.
const PAGE_ROWS: usize = 20_000;

/// The pages of [`Reader::export`]. Between two of them nothing is open.
#[derive(Debug)]
pub struct ExportPages<'r> {
    reader: &'r Reader,
    filter: FilterSql,
    after: Place,
}

impl<'r> ExportPages<'r> {
    pub(super) fn new(reader: &'r Reader, run: i64, filter: &ReportFilter) -> Self {
        Self {
            reader,
            filter: filter.sql(4),
            after: [run, FIRST_KEY.0, FIRST_KEY.1],
        }
    }

    /// The next page, in the order of the plan. Empty at the end.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row;
    /// [`StoreError::Interrupted`].
    pub fn next_page(&mut self) -> Result<ExportPage, StoreError> {
        let page = self.reader.read(|connection| self.read(connection))?;
        if let Some(last) = page.places().last() {
            self.after = *last;
        }
        Ok(page)
    }

    /// All statements see the same rows.
    fn read(&self, connection: &mut Connection) -> Result<ExportPage, StoreError> {
        self.filter.prepare(connection)?;
        let snapshot = connection.transaction()?;
        let page = match self.filter.on_results() {
            Some(filter) => {
                let condition = format!("r.run = ?1 AND (r.chunk, r.position) > (?2, ?3){filter}");
                stored_rows::selected(&snapshot, &condition, PAGE_ROWS, |statement| {
                    self.filter.bind(statement, &self.after)
                })
            }
            None => self
                .places(&snapshot)
                .and_then(|places| stored_rows::rows_at(&snapshot, &places)),
        };
        page.map_err(|error| self.filter.explain(error))
    }

    /// Where the next rows are that the filter selects. SQLite computes no column of the view that the condition does not
    /// name.
    fn places(&self, connection: &Connection) -> rusqlite::Result<Vec<Place>> {
        let selected = self
            .filter
            .select("row_chunk, row_position", "report", REPORT_PAGE);
        let sql = format!("{selected} ORDER BY 1, 2 LIMIT {PAGE_ROWS}");
        let mut statement = connection.prepare(&sql)?;
        self.filter.bind(&mut statement, &self.after)?;
        let [run, ..] = self.after;
        let places = statement
            .raw_query()
            .mapped(|row| Ok([run, row.get(0)?, row.get(1)?]));
        places.collect()
    }
}
