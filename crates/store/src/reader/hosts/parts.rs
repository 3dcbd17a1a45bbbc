//! The targets of `latest` in parts, of which several may be read at once.

use std::{cmp::Reverse, sync::Arc, vec};

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{HostFilter, HostOrder, HostPage, StoredHost};
use crate::{
    Reader, StoreError,
    reader::{
        filter::FilterSql,
        target_key::{TargetKey, TargetRange},
    },
    schema::{LATEST_RANGE, STORED_LATEST_RANGE, STORED_LATEST_ROW},
};

/// Targets of one part: those that are selected, as far as `latest_rows` says it. They lie in `results` in another order, so
/// a large part reads few pages of the file twice. Each takes about 350 bytes, and its texts.
const PART_TARGETS: usize = 50_000;

/// The page cache of one part while rows are read in another order than they are stored, in KiB (negative in SQLite's own
/// notation).
const CACHE_KIB: i64 = 32 * 1024;

/// The parts of [`Reader::hosts`], in the wanted order. Nothing is open between two of them.
#[derive(Debug)]
pub struct HostParts<'r> {
    reader: &'r Reader,
    query: Arc<HostQuery>,
    keys: PartKeys,
}

/// The keys that no part has yet.
#[derive(Debug)]
enum PartKeys {
    /// Those behind this one. None when there are no more.
    Behind(Option<TargetKey>),
    /// These, which are sorted by something else.
    Sorted(vec::IntoIter<TargetKey>),
}

/// Some targets.
#[derive(Debug)]
pub struct HostPart<'r> {
    reader: &'r Reader,
    query: Arc<HostQuery>,
    keys: SomeKeys,
    /// As many of them are in a page, at most.
    max_targets: usize,
}

#[derive(Debug)]
enum SomeKeys {
    Range(TargetRange),
    List(Vec<TargetKey>),
}

/// The first of [`SomeKeys`].
enum FirstKeys<'k> {
    Range(TargetRange),
    List(&'k [TargetKey]),
}

impl<'r> Iterator for HostParts<'r> {
    type Item = Result<HostPart<'r>, StoreError>;

    /// The next part. Fails as [`Reader::open`].
    fn next(&mut self) -> Option<Self::Item> {
        let keys = match &mut self.keys {
            PartKeys::Behind(after) => {
                let range = self.query.next_range(self.reader, after).transpose()?;
                range.map(SomeKeys::Range)
            }
            PartKeys::Sorted(keys) => {
                let keys: Vec<_> = keys.take(PART_TARGETS).collect();
                Ok(SomeKeys::List((!keys.is_empty()).then_some(keys)?))
            }
        };
        Some(keys.map(|keys| HostPart {
            reader: self.reader,
            query: Arc::clone(&self.query),
            keys,
            max_targets: PART_TARGETS,
        }))
    }
}

impl HostPart<'_> {
    /// Its targets that the filter selects, in their order: their rows of one moment. When their texts are long, the page
    /// has the first ones, and beside it is a part with the others.
    ///
    /// # Errors
    /// As [`Reader::open`]; [`StoreError::BadCondition`] when the filter's condition fails on a row;
    /// [`StoreError::Interrupted`].
    pub fn read(self) -> Result<(HostPage, Option<Self>), StoreError> {
        let (page, max_targets, others) = self.reader.read(|connection| {
            if self.query.stored.is_none() {
                connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            }
            let snapshot = connection.transaction()?;
            let mut max_targets = self.max_targets;
            loop {
                let (first, others) = self.query.split(&snapshot, &self.keys, max_targets)?;
                let hosts = match first {
                    FirstKeys::List(keys) => stored_hosts(&snapshot, keys)?,
                    FirstKeys::Range(range) => {
                        let selected = self.query.select(StoredHost::COLUMNS, true);
                        let query = &self.query;
                        query.read(&snapshot, &selected, &range, StoredHost::from_row)?
                    }
                };
                if let Some(page) = HostPage::new(&snapshot, hosts)? {
                    return Ok((page, max_targets, others));
                }
                max_targets = (max_targets / 2).max(1);
            }
        })?;
        let others = others.map(|keys| Self {
            keys,
            max_targets,
            ..self
        });
        Ok((page, others))
    }
}

/// The targets with these keys, in their order. Each is one search by key, in the order of the keys.
fn stored_hosts(
    connection: &Connection,
    keys: &[TargetKey],
) -> Result<Vec<StoredHost>, StoreError> {
    let mut ascending: Vec<_> = (0..keys.len()).collect();
    ascending.sort_unstable_by_key(|at| &keys[*at]);
    let sql = format!("SELECT {} FROM ({STORED_LATEST_ROW})", StoredHost::COLUMNS);
    let mut statement = connection.prepare(&sql)?;
    let mut hosts: Vec<_> = keys.iter().map(|_| None).collect();
    for at in ascending {
        hosts[at] = statement
            .query_row([&keys[at]], StoredHost::from_row)
            .optional()?;
    }
    Ok(hosts.into_iter().flatten().collect())
}

/// The statements of all parts.
#[derive(Debug)]
struct HostQuery {
    /// Without a look at `results`, if the filter needs none.
    stored: Option<String>,
    statement: String,
    /// Those on `latest_rows t`, each behind an AND.
    conditions: String,
    filter: FilterSql,
}

impl HostQuery {
    fn new(filter: &HostFilter) -> Self {
        let age = filter.probed_before_us;
        let age = age.map(|before| format!(" AND t.probed_at_us < {before}"));
        // Without a look at the rows of `results`.
        let statuses = filter.rows.statuses.iter();
        let codes: Vec<_> = statuses.map(|status| status.code().to_string()).collect();
        let codes = (!codes.is_empty()).then(|| format!(" AND t.status IN ({})", codes.join(", ")));
        let conditions = age.unwrap_or_default() + &codes.unwrap_or_default();
        let rows = &filter.rows;
        let is_stored =
            rows.labels.is_empty() && rows.subnets.is_empty() && rows.condition.is_none();
        Self {
            stored: is_stored.then(|| format!("{STORED_LATEST_RANGE}{conditions}")),
            statement: format!("{LATEST_RANGE}{conditions}"),
            conditions,
            filter: rows.sql(3),
        }
    }

    /// The first targets, at most so many as [`Self::last_of`] counts, and the others if there are any.
    fn split<'k>(
        &self,
        connection: &Connection,
        keys: &'k SomeKeys,
        max_targets: usize,
    ) -> Result<(FirstKeys<'k>, Option<SomeKeys>), StoreError> {
        match keys {
            SomeKeys::List(keys) => {
                let (first, others) = keys.split_at(keys.len().min(max_targets));
                let others = (!others.is_empty()).then(|| SomeKeys::List(others.to_vec()));
                Ok((FirstKeys::List(first), others))
            }
            SomeKeys::Range(range) => {
                let is_part = max_targets < PART_TARGETS;
                let last = is_part
                    .then(|| self.last_of(connection, &range.after, max_targets))
                    .transpose()?
                    .flatten();
                let is_inside = |last: &TargetKey| range.last.as_ref().is_none_or(|end| last < end);
                let Some(last) = last.filter(is_inside) else {
                    return Ok((FirstKeys::Range(range.clone()), None));
                };
                let others = TargetRange {
                    after: last.clone(),
                    last: range.last.clone(),
                };
                let first = TargetRange {
                    after: range.after.clone(),
                    last: Some(last),
                };
                Ok((FirstKeys::Range(first), Some(SomeKeys::Range(others))))
            }
        }
    }

    /// The last one of so many targets behind a key, of those that are selected as far as `latest_rows` says it. None when
    /// there are fewer.
    fn last_of(
        &self,
        connection: &Connection,
        after: &TargetKey,
        targets: usize,
    ) -> Result<Option<TargetKey>, StoreError> {
        let sql = format!(
            "SELECT target FROM latest_rows t WHERE target > ?1{} ORDER BY target LIMIT 1 OFFSET ?2",
            self.conditions
        );
        let offset = targets as i64 - 1;
        let last = connection.query_row(&sql, (after, offset), |row| row.get(0));
        Ok(last.optional()?)
    }

    /// The next [`PART_TARGETS`] targets behind a key, which becomes the last one of them. None at the end.
    fn next_range(
        &self,
        reader: &Reader,
        after: &mut Option<TargetKey>,
    ) -> Result<Option<TargetRange>, StoreError> {
        let Some(first) = after.take() else {
            return Ok(None);
        };
        *after = reader.read(|connection| self.last_of(connection, &first, PART_TARGETS))?;
        Ok(Some(TargetRange {
            after: first,
            last: after.clone(),
        }))
    }

    /// Some columns of the selected rows. `is_stored` says that they are those of [`STORED_LATEST_RANGE`].
    fn select(&self, columns: &str, is_stored: bool) -> String {
        match &self.stored {
            Some(stored) if is_stored => format!("SELECT {columns} FROM ({stored})"),
            _ => self.filter.select(columns, "latest", &self.statement),
        }
    }

    /// The rows of some targets of what [`Self::select`] gives.
    fn read<T>(
        &self,
        connection: &Connection,
        selected: &str,
        range: &TargetRange,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.filter.prepare(connection)?;
        let sql = format!("{selected} ORDER BY row_target");
        let read_range = || {
            let mut statement = connection.prepare(&sql)?;
            self.filter.bind(&mut statement, &[])?;
            statement.raw_bind_parameter(1, &range.after)?;
            statement.raw_bind_parameter(2, range.last()?)?;
            let rows = statement.raw_query().mapped(&read);
            rows.collect::<Result<_, _>>()
        };
        read_range().map_err(|error| self.filter.explain(error))
    }
}

impl Reader {
    /// The newest row of each target that a filter selects, part by part. In another order than that of the targets, the
    /// rows are read twice, and their keys are kept in memory: about 60 bytes each.
    ///
    /// # Errors
    /// As [`HostPart::read`].
    pub fn hosts(
        &self,
        filter: &HostFilter,
        order: HostOrder,
    ) -> Result<HostParts<'_>, StoreError> {
        let query = HostQuery::new(filter);
        let keys = match order {
            HostOrder::Target => PartKeys::Behind(Some(TargetKey::FIRST)),
            order => PartKeys::Sorted(self.sorted_hosts(&query, order)?.into_iter()),
        };
        Ok(HostParts {
            reader: self,
            query: Arc::new(query),
            keys,
        })
    }

    fn sorted_hosts(
        &self,
        query: &HostQuery,
        order: HostOrder,
    ) -> Result<Vec<TargetKey>, StoreError> {
        let columns = format!("row_target, {}", order.column());
        let selected = query.select(&columns, order != HostOrder::Rtt);
        let read = |row: &Row<'_>| {
            let value: Option<f64> = row.get(1)?;
            let whole = value.map(|value| value.round() as i64);
            Ok((Reverse(whole), row.get::<_, TargetKey>(0)?))
        };
        let mut keys: Vec<(Reverse<Option<i64>>, TargetKey)> = Vec::new();
        let mut after = Some(TargetKey::FIRST);
        while let Some(range) = query.next_range(self, &mut after)? {
            keys.extend(self.read(|connection| {
                connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
                query.read(connection, &selected, &range, read)
            })?);
        }
        keys.sort_unstable();
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }
}
