//! The rows of a run in parts for programs: whole chunks, of which several parts may be read at once.

use std::{ops::RangeInclusive, sync::Arc};

use rusqlite::Connection;

use super::{
    filter::{FilterSql, ReportFilter},
    stored_rows::{self, ExportPage},
};
use crate::{Reader, StoreError, schema::REPORT_CHUNKS};

/// Targets of one part, and of at most one chunk more: about 3 MB. SQLite is opened anew for each.
const PART_TARGETS: i64 = 20_000;

/// The parts of a run in the order of its plan. Nothing is open between two of them.
#[derive(Debug)]
pub struct ExportParts<'r> {
    reader: &'r Reader,
    filter: Arc<FilterSql>,
    run: i64,
    /// The first chunk of the next part.
    chunk: i64,
}

/// Some chunks of a run.
#[derive(Debug)]
pub struct ExportPart<'r> {
    reader: &'r Reader,
    filter: Arc<FilterSql>,
    run: i64,
    chunks: RangeInclusive<i64>,
}

impl<'r> ExportParts<'r> {
    pub(super) fn new(reader: &'r Reader, run: i64, filter: &ReportFilter) -> Self {
        Self {
            reader,
            filter: Arc::new(filter.sql(4)),
            run,
            chunk: 0,
        }
    }

    /// The last chunk of the part that begins with chunk `first`. None behind the last chunk.
    fn end_of_part(&self, connection: &Connection, first: i64) -> rusqlite::Result<Option<i64>> {
        let sql = "SELECT chunk, targets FROM chunks WHERE run = ?1 AND chunk >= ?2 ORDER BY chunk";
        let mut statement = connection.prepare(sql)?;
        let mut chunks = statement.query([self.run, first])?;
        let (mut last, mut targets) = (None, 0);
        while targets < PART_TARGETS
            && let Some(chunk) = chunks.next()?
        {
            last = Some(chunk.get(0)?);
            targets += chunk.get::<_, i64>(1)?;
        }
        Ok(last)
    }
}

impl<'r> Iterator for ExportParts<'r> {
    type Item = Result<ExportPart<'r>, StoreError>;

    /// The next part. Fails as [`Reader::open`].
    fn next(&mut self) -> Option<Self::Item> {
        let first = self.chunk;
        let last = self
            .reader
            .read(|connection| Ok(self.end_of_part(connection, first)?))
            .transpose()?;
        Some(last.map(|last| {
            self.chunk = last + 1;
            ExportPart {
                reader: self.reader,
                filter: Arc::clone(&self.filter),
                run: self.run,
                chunks: first..=last,
            }
        }))
    }
}

impl ExportPart<'_> {
    /// Its rows that the filter selects, in the order of the plan: those of one moment.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row;
    /// [`StoreError::Interrupted`].
    pub fn read(self) -> Result<ExportPage, StoreError> {
        self.reader.read(|connection| {
            self.filter.prepare(connection)?;
            let snapshot = connection.transaction()?;
            let page = match self.filter.on_results() {
                Some(filter) => {
                    let condition = format!("r.run = ?1 AND r.chunk BETWEEN ?2 AND ?3{filter}");
                    stored_rows::selected(&snapshot, &condition, |statement| {
                        self.filter.bind(statement, &self.key())
                    })
                }
                None => self
                    .places(&snapshot)
                    .and_then(|places| stored_rows::rows_at(&snapshot, &places)),
            };
            page.map_err(|error| self.filter.explain(error))
        })
    }

    fn key(&self) -> [i64; 3] {
        [self.run, *self.chunks.start(), *self.chunks.end()]
    }

    /// Where the rows are that the filter selects. SQLite computes no column of the view that the condition does not name.
    fn places(&self, connection: &Connection) -> rusqlite::Result<Vec<stored_rows::Place>> {
        let selected = self
            .filter
            .select("row_chunk, row_position", "report", REPORT_CHUNKS);
        let sql = format!("{selected} ORDER BY 1, 2");
        let mut statement = connection.prepare(&sql)?;
        self.filter.bind(&mut statement, &self.key())?;
        let places = statement
            .raw_query()
            .mapped(|row| Ok([self.run, row.get(0)?, row.get(1)?]));
        places.collect()
    }
}
