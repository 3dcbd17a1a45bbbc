//! The rows of a run sorted by target: in memory as far as they fit, and otherwise in temporary files, each of which is
//! sorted, and which are merged when they are read (an external merge sort).

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _},
    net::IpAddr,
};

use ipnet::IpNet;
use pingfleet_wire::StatusKind;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::FoundTarget;
use crate::{
    Reader, StoreError,
    reader::{report::RowKey, target_key::TargetKey},
};

/// Rows that are sorted in memory, about 100 bytes each.
pub(super) const MAX_ROWS: usize = 250_000;

/// Rows of one page.
const PAGE_ROWS: usize = 50_000;

const PAGE: &str = "SELECT chunk, position, coalesce(name, address), iif(name IS NOT NULL, address, NULL), status, reason,
        rtt_avg_ns
    FROM results WHERE run = ?1 AND (chunk, position) > (?2, ?3) ORDER BY chunk, position LIMIT ?4";

/// What a diff needs of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiffRow {
    pub(super) target: TargetKey,
    /// The address of a name.
    pub(super) name_address: Option<TargetKey>,
    pub(super) status: u8,
    pub(super) reason: Option<String>,
    pub(super) rtt_avg_ns: Option<i64>,
}

impl DiffRow {
    pub(super) fn is_unknown(&self) -> bool {
        self.status == StatusKind::Unknown.code()
    }

    pub(super) fn answered(&self) -> bool {
        self.status <= StatusKind::Late.code()
    }

    pub(super) fn subnet(&self) -> Option<IpNet> {
        self.probed().subnet()
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.probed().address()
    }

    fn probed(&self) -> &TargetKey {
        self.name_address.as_ref().unwrap_or(&self.target)
    }

    pub(super) fn found(&self) -> FoundTarget {
        let own = || self.target.address().map(|_| &self.target);
        FoundTarget {
            address: self
                .name_address
                .as_ref()
                .or_else(own)
                .cloned()
                .map(String::from),
            // A CHECK of the table admits only these codes.
            status: StatusKind::ALL[usize::from(self.status)],
            reason: self.reason.clone(),
            rtt_avg_ns: self.rtt_avg_ns,
        }
    }
}

/// Sorted rows.
#[derive(Debug, Default)]
pub(super) struct SortedRows {
    files: Vec<File>,
    /// The last rows, which need no file.
    last: Vec<DiffRow>,
}

impl SortedRows {
    /// Reads the rows of a run, in pages.
    pub(super) fn read(reader: &Reader, run: i64) -> Result<Self, StoreError> {
        let mut sorted = Self::default();
        let mut after = (-1, -1);
        loop {
            let (rows, last) = reader.read(|connection| page(connection, run, after))?;
            let Some(last) = last else { break };
            after = last;
            sorted
                .add(rows, MAX_ROWS)
                .map_err(StoreError::TemporaryFile)?;
        }
        sort(&mut sorted.last);
        Ok(sorted)
    }

    fn add(&mut self, rows: Vec<DiffRow>, max_rows: usize) -> io::Result<()> {
        if self.last.len() + rows.len() > max_rows && !self.last.is_empty() {
            let mut full = std::mem::take(&mut self.last);
            sort(&mut full);
            self.files.push(write(&full)?);
        }
        self.last.extend(rows);
        Ok(())
    }

    /// The rows in the order of their targets.
    pub(super) fn merged(&self) -> io::Result<SortedRowsIter<'_>> {
        let mut parts = Vec::new();
        for file in &self.files {
            let mut file = file.try_clone()?;
            file.rewind()?;
            parts.push(Part::new(Rows::File(BufReader::with_capacity(
                1 << 16,
                file,
            )))?);
        }
        parts.push(Part::new(Rows::Memory(self.last.iter()))?);
        Ok(SortedRowsIter { parts })
    }
}

fn sort(rows: &mut [DiffRow]) {
    rows.sort_unstable_by(|one, other| one.target.cmp(&other.target));
}

fn page(
    connection: &Connection,
    run: i64,
    after: RowKey,
) -> Result<(Vec<DiffRow>, Option<RowKey>), StoreError> {
    let mut statement = connection.prepare(PAGE)?;
    let mut rows = statement.query((run, after.0, after.1, PAGE_ROWS as i64))?;
    let (mut found, mut last) = (Vec::with_capacity(PAGE_ROWS), None);
    while let Some(row) = rows.next()? {
        found.push(DiffRow {
            target: row.get(2)?,
            name_address: row.get(3)?,
            status: row.get(4)?,
            reason: row.get(5)?,
            rtt_avg_ns: row.get(6)?,
        });
        last = Some((row.get(0)?, row.get(1)?));
    }
    Ok((found, last))
}

/// Writes rows to a file that has no name: it is gone when the process ends.
fn write(rows: &[DiffRow]) -> io::Result<File> {
    let mut out = BufWriter::with_capacity(1 << 18, tempfile::tempfile()?);
    for row in rows {
        rmp_serde::encode::write(&mut out, row).map_err(io::Error::other)?;
    }
    out.flush()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

/// Where sorted rows come from.
enum Rows<'r> {
    Memory(std::slice::Iter<'r, DiffRow>),
    File(BufReader<File>),
}

/// Sorted rows with the first of them.
struct Part<'r> {
    first: Option<DiffRow>,
    rows: Rows<'r>,
}

impl<'r> Part<'r> {
    fn new(rows: Rows<'r>) -> io::Result<Self> {
        let mut part = Self { first: None, rows };
        part.take()?;
        Ok(part)
    }

    fn target(&self) -> Option<&TargetKey> {
        self.first.as_ref().map(|row| &row.target)
    }

    /// Takes the first row, and reads the next one.
    fn take(&mut self) -> io::Result<Option<DiffRow>> {
        let next = match &mut self.rows {
            Rows::Memory(rows) => rows.next().cloned(),
            Rows::File(file) => {
                if file.fill_buf()?.is_empty() {
                    None
                } else {
                    Some(rmp_serde::decode::from_read(file).map_err(io::Error::other)?)
                }
            }
        };
        Ok(std::mem::replace(&mut self.first, next))
    }
}

/// [`SortedRows::merged`].
pub(super) struct SortedRowsIter<'r> {
    parts: Vec<Part<'r>>,
}

impl Iterator for SortedRowsIter<'_> {
    type Item = io::Result<DiffRow>;

    fn next(&mut self) -> Option<Self::Item> {
        // A run of ten million targets has 40 parts.
        let parts = self.parts.iter_mut().filter(|part| part.first.is_some());
        let smallest = parts.min_by(|one, other| one.target().cmp(&other.target()))?;
        smallest.take().transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn row(target: TargetKey) -> DiffRow {
        DiffRow {
            target,
            name_address: Some(TargetKey::Ipv4(-7)),
            status: 6,
            reason: Some("no_arp".to_owned()),
            rtt_avg_ns: Some(1_000_000),
        }
    }

    fn key() -> impl Strategy<Value = TargetKey> {
        prop_oneof![
            (i64::from(i32::MIN)..=i64::from(i32::MAX)).prop_map(TargetKey::Ipv4),
            "[a-z0-9.]{1,12}".prop_map(TargetKey::Text),
        ]
    }

    proptest! {
        #[test]
        fn rows_of_several_files_come_in_the_order_of_their_targets(
            pages in vec(vec(key(), 0..6), 0..8), max_rows in 1..12_usize,
        ) {
            let mut sorted = SortedRows::default();
            for page in &pages {
                let rows = page.iter().cloned().map(row).collect();
                sorted.add(rows, max_rows).unwrap();
            }
            sorted.last.sort_unstable_by(|one, other| one.target.cmp(&other.target));
            let found: Vec<_> = sorted.merged().unwrap().collect::<Result<_, _>>().unwrap();
            let mut expected = pages.concat();
            expected.sort();
            let expected: Vec<_> = expected.into_iter().map(row).collect();
            prop_assert_eq!(&found, &expected);
            // A second pass reads the same.
            let again: Vec<_> = sorted.merged().unwrap().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(again, expected);
        }
    }
}
