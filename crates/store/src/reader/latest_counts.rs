//! How many rows of `latest` belong to each run.

use std::collections::HashMap;

use rusqlite::types::Value;

use crate::{Reader, StoreError};

/// Rows of one page.
const PAGE_ROWS: usize = 100_000;

/// Reads all rows of `latest`, in pages.
pub(super) fn latest_counts(reader: &Reader) -> Result<HashMap<i64, i64>, StoreError> {
    let mut counts = HashMap::new();
    // It comes before each target.
    let mut after = Value::Integer(i64::MIN);
    loop {
        let (runs, last) = reader.read(|connection| {
            let mut statement = connection.prepare(
                "SELECT target, run FROM latest_rows WHERE target > ?1 ORDER BY target LIMIT ?2",
            )?;
            let mut rows = statement.query((&after, PAGE_ROWS as i64))?;
            let mut runs = Vec::new();
            while let Some(row) = rows.next()? {
                runs.push(row.get::<_, i64>(1)?);
                if runs.len() == PAGE_ROWS {
                    return Ok((runs, Some(row.get(0)?)));
                }
            }
            Ok((runs, None))
        })?;
        for run in runs {
            *counts.entry(run).or_default() += 1;
        }
        let Some(last) = last else {
            return Ok(counts);
        };
        after = last;
    }
}
