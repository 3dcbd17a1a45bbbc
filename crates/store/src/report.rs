//! Reads the rows of a run.

use rusqlite::Row;

use crate::{StoreError, Writer, address::address_text, chunk_state::chunk_state};

/// One row of the view `report`.
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

impl ReportRow {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            run: row.get(0)?,
            run_id: row.get(1)?,
            target: row.get(2)?,
            address: row.get(3)?,
            status: row.get(4)?,
            reason: row.get(5)?,
            sent: row.get(6)?,
            received: row.get(7)?,
            loss_pct: row.get(8)?,
            rtt_ms: [row.get(9)?, row.get(10)?, row.get(11)?, row.get(12)?],
            attempts: row.get(13)?,
            worker: row.get(14)?,
            probed_at: row.get(15)?,
            labels: row.get(16)?,
        })
    }
}

/// Which rows of a run to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportFilter {
    /// Only these statuses, by name; all when empty.
    pub statuses: Vec<String>,
}

impl Writer {
    /// Reads the rows of a run in the order of its plan, and gives each to `each` until that returns false.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn report(
        &self,
        run: i64,
        filter: &ReportFilter,
        mut each: impl FnMut(ReportRow) -> bool,
    ) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT * FROM report WHERE run = ?1")?;
        let mut rows = statement.query([run])?;
        while let Some(row) = rows.next()? {
            let row = ReportRow::from_row(row)?;
            let wanted = filter.statuses.is_empty() || filter.statuses.contains(&row.status);
            if wanted && !each(row) {
                break;
            }
        }
        Ok(())
    }

    /// The numbers of the chunks of a run that are done, ascending.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn done_chunks(&self, run: i64) -> Result<Vec<u32>, StoreError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT chunk FROM chunks WHERE run = ?1 AND state = ",
            chunk_state!(Done),
            " ORDER BY chunk"
        ))?;
        let rows = statement.query_map([run], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The targets of one chunk that answered, or with `answered` false those that did not, in their order.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn chunk_targets(
        &self,
        run: i64,
        chunk: u32,
        answered: bool,
    ) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT coalesce(name, ",
            address_text!("address"),
            ") FROM results
                 WHERE run = ?1 AND chunk = ?2 AND (status <= 1) = ?3 ORDER BY position"
        ))?;
        let rows = statement.query_map((run, chunk, answered), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
