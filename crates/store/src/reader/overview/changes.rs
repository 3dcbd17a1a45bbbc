//! The rows of `latest` that belong to a run: what changed, and since when.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use pingfleet_wire::StatusKind;
use rusqlite::{Connection, types::Value};

use super::{RunChanges, TargetHistory, rows::RowScan, subnets_not_up::SubnetsNotUp};
use crate::{
    Reader, StoreError,
    reader::{report::RowKey, target_key::TargetKey},
};

/// Rows of one page.
const PAGE_ROWS: usize = 100_000;

const PAGE: &str = "SELECT target, run, chunk, position, status, probed_at_us, first_seen_us,
        iif(status <= 1, probed_at_us, last_up_us), coalesce(changed_at_us, first_seen_us)
    FROM latest_rows WHERE target > ?1 ORDER BY target LIMIT ?2";

/// What was found so far.
#[derive(Debug)]
pub(super) struct LatestScan<'s> {
    /// Rows that belong to the run.
    pub(super) rows: i64,
    pub(super) changes: RunChanges,
    /// How many targets are kept.
    max_not_up: usize,
    /// The targets that did not answer and changed last, the oldest change on top.
    newest: BinaryHeap<Reverse<(i64, Reverse<RowKey>)>>,
    histories: HashMap<RowKey, TargetHistory>,
    rows_of_run: &'s RowScan,
    /// The prefixes whose targets are not kept one by one.
    subnets: &'s mut SubnetsNotUp,
}

/// A row of a page.
struct LatestRow {
    target: TargetKey,
    key: RowKey,
    status: u8,
    history: TargetHistory,
}

impl<'s> LatestScan<'s> {
    /// Keeps as many targets that did not answer as the scan of the rows, and none of these prefixes.
    pub(super) fn new(rows_of_run: &'s RowScan, subnets: &'s mut SubnetsNotUp) -> Self {
        Self {
            rows: 0,
            changes: RunChanges::default(),
            max_not_up: rows_of_run.max_not_up,
            newest: BinaryHeap::new(),
            histories: HashMap::new(),
            rows_of_run,
            subnets,
        }
    }

    pub(super) fn read(&mut self, reader: &Reader, run: i64) -> Result<(), StoreError> {
        // It comes before each target.
        let mut after = Value::Integer(i64::MIN);
        loop {
            let (rows, last) = reader.read(|connection| page(connection, run, &after))?;
            for row in rows {
                self.add(&row);
            }
            let Some(last) = last else { return Ok(()) };
            after = last;
        }
    }

    fn add(&mut self, row: &LatestRow) {
        self.rows += 1;
        let answered = row.status <= StatusKind::Late.code();
        let history = row.history;
        if history.first_seen_us == history.probed_at_us {
            self.changes.first_seen += 1;
        } else if history.changed_at_us == history.probed_at_us {
            if answered {
                self.changes.changed_up += 1;
            } else if row.status != StatusKind::Unknown.code() {
                self.changes.changed_not_up += 1;
            }
        }
        if !answered {
            let address = match &row.target {
                TargetKey::Ipv4(_) => row.target.address(),
                TargetKey::Text(_) => {
                    let address = self.rows_of_run.name_address(row.key);
                    address.or_else(|| row.target.address())
                }
            };
            if let Some(subnet) = address.and_then(|address| self.subnets.find(address)) {
                self.subnets.add_history(subnet, history);
                return;
            }
            self.newest
                .push(Reverse((history.changed_at_us, Reverse(row.key))));
            self.histories.insert(row.key, history);
            if self.newest.len() > self.max_not_up
                && let Some(Reverse((_, Reverse(oldest)))) = self.newest.pop()
            {
                self.histories.remove(&oldest);
            }
        }
    }

    /// The targets that did not answer, the newest change first.
    pub(super) fn newest(&self) -> Vec<(RowKey, Option<TargetHistory>)> {
        let mut newest: Vec<_> = self.newest.iter().collect();
        newest.sort_unstable();
        newest
            .into_iter()
            .map(|Reverse((_, Reverse(key)))| (*key, self.histories.get(key).copied()))
            .collect()
    }
}

/// The rows of one page that belong to the run, and the last target of the page; `None` at the end.
fn page(
    connection: &Connection,
    run: i64,
    after: &Value,
) -> Result<(Vec<LatestRow>, Option<Value>), StoreError> {
    let mut statement = connection.prepare(PAGE)?;
    let mut rows = statement.query((after, PAGE_ROWS as i64))?;
    let mut found = Vec::new();
    let mut read = 0;
    while let Some(row) = rows.next()? {
        read += 1;
        if row.get::<_, i64>(1)? == run {
            found.push(LatestRow {
                target: row.get(0)?,
                key: (row.get(2)?, row.get(3)?),
                status: row.get(4)?,
                history: TargetHistory {
                    probed_at_us: row.get(5)?,
                    first_seen_us: row.get(6)?,
                    last_up_us: row.get(7)?,
                    changed_at_us: row.get(8)?,
                },
            });
        }
        if read == PAGE_ROWS {
            return Ok((found, Some(row.get(0)?)));
        }
    }
    Ok((found, None))
}
