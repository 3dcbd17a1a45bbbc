//! Rows of a run in another order than that of its plan.
//!
//! The keys of all selected rows are sorted in memory: about 50 bytes a row, more for names.

use std::{cmp::Reverse, net::IpAddr};

use rusqlite::Row;

use super::{
    filter::ReportFilter,
    report::{FIRST_KEY, RowKey},
};
use crate::{Reader, StoreError, schema::REPORT_PAGE};

/// Keys of one page.
const PAGE_KEYS: usize = 50_000;

/// How rows are sorted. Equal ones keep the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The longest mean round-trip time first, and at the end what was not measured.
    Rtt,
    /// The largest share of lost requests first, and at the end what was not sent.
    Loss,
    /// Addresses by their number, IPv4 before IPv6, then names by their letters.
    Target,
}

/// What rows are compared by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    /// Nanoseconds or billionths. `None` is the smallest, and so the last.
    Largest(Reverse<Option<i64>>),
    Address(IpAddr),
    Name(String),
}

impl RowOrder {
    fn column(self) -> &'static str {
        match self {
            Self::Rtt => "rtt_avg_ms * 1000000.0",
            Self::Loss => "loss_pct * 1000000.0",
            Self::Target => "target",
        }
    }

    fn key(self, row: &Row<'_>) -> rusqlite::Result<SortKey> {
        if self == Self::Target {
            let text: String = row.get(2)?;
            return Ok(text
                .parse()
                .map_or_else(|_| SortKey::Name(text), SortKey::Address));
        }
        let value: Option<f64> = row.get(2)?;
        let whole = value.map(|value| value.round() as i64);
        Ok(SortKey::Largest(Reverse(whole)))
    }
}

/// The keys of the rows that a filter selects, sorted.
pub(super) fn sorted_keys(
    reader: &Reader,
    run: i64,
    filter: &ReportFilter,
    order: RowOrder,
) -> Result<Vec<RowKey>, StoreError> {
    let filter = filter.sql(4);
    let columns = format!("row_chunk, row_position, {}", order.column());
    let selected = filter.select(&columns, "report", REPORT_PAGE);
    let sql = format!("{selected} ORDER BY 1, 2 LIMIT {PAGE_KEYS}");
    let mut keys: Vec<(SortKey, RowKey)> = Vec::new();
    loop {
        let after = keys.last().map_or(FIRST_KEY, |(_, key)| *key);
        let page: Vec<(SortKey, RowKey)> = reader.read(|connection| {
            filter.prepare(connection)?;
            let read = || {
                let mut statement = connection.prepare(&sql)?;
                filter.bind(&mut statement, &[run, after.0, after.1])?;
                let rows = statement
                    .raw_query()
                    .mapped(|row| Ok((order.key(row)?, (row.get(0)?, row.get(1)?))));
                rows.collect::<Result<_, _>>()
            };
            read().map_err(|error| filter.explain(error))
        })?;
        if page.is_empty() {
            break;
        }
        keys.extend(page);
    }
    keys.sort_unstable();
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}
