//! Rows of `results` as they are stored, with their workers and labels. What the view `report` computes for a row is
//! computed here, and a test compares the two. Each table is read by itself, in the order of its key.

use std::{
    fmt::{self, Write as _},
    ops::Range,
};

use jiff::{SignedDuration, civil};
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, Row, Statement, types::ValueRef};

use super::report::ReportRow;
use crate::address::shown_address;

/// The columns of `results r` that [`ExportPage::add`] reads.
const COLUMNS: &str = "r.run, r.chunk, r.position, r.status, r.sent, r.received, r.attempts, r.probed_after_us, \
    r.address, r.rtt_avg_ns, r.rtt_min_ns, r.rtt_max_ns, r.rtt_stddev_ns, r.name, r.reason";

/// Rows that are passed over to the next key, at most; one that is farther away is searched. A search costs about as much
/// as so many steps.
const MAX_STEPS: i64 = 8;

/// The key of a row of `results` or `labels`: run, chunk and position.
pub(crate) type Place = [i64; 3];

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
    /// The login of its connection. None within one process, and for rows that an older version stored.
    pub login: Option<&'p str>,
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

    /// `probed_at` as the view has it: RFC 3339 in UTC, to the millisecond. It replaces what `text` has.
    ///
    /// # Errors
    /// None of its own: those of writing to a text.
    pub fn write_probed_at(&self, text: &mut String) -> fmt::Result {
        text.clear();
        self.probed_at_ms.map_or(Ok(()), |ms| write_time(text, ms))
    }

    /// The row with its run.
    pub(super) fn in_run(&self, run: i64, run_id: &str) -> ReportRow {
        let probed_at = self.probed_at_ms.map(time_text);
        ReportRow {
            run,
            run_id: run_id.to_owned(),
            target: self.target.to_owned(),
            address: self.address.map(str::to_owned),
            status: self.status.name().to_owned(),
            reason: self.reason.map(str::to_owned),
            sent: self.sent,
            received: self.received,
            loss_pct: self.loss_pct(),
            rtt_ms: self.rtt_ms(),
            attempts: self.attempts,
            worker: self.worker.map(str::to_owned),
            login: self.login.map(str::to_owned),
            // Empty without a time that SQLite knows: no worker sends one.
            probed_at: probed_at.unwrap_or_default(),
            labels: self.labels.map(str::to_owned),
        }
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
    login: Option<Span>,
    probed_after_us: i64,
    probed_at_ms: Option<i64>,
    labels: Option<Span>,
}

/// Some rows of a run, which need neither the database nor an allocation for each.
#[derive(Debug, Default)]
pub struct ExportPage {
    text: String,
    rows: Vec<StoredRow>,
    /// Where each row is.
    places: Vec<Place>,
}

impl ExportPage {
    /// How many rows it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has none: a part may have no row that the filter selects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in the order of the plan.
    pub fn rows(&self) -> impl Iterator<Item = ExportRow<'_>> {
        self.rows.iter().map(|row| self.shown(row))
    }

    /// The bytes of all its texts.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Where the rows are.
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The row at a place.
    pub(super) fn row_at(&self, place: Place) -> Option<ExportRow<'_>> {
        let at = self.places.binary_search(&place).ok()?;
        Some(self.shown(&self.rows[at]))
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
            login: row.login.as_ref().map(text),
            probed_at_ms: row.probed_at_ms,
            labels: row.labels.as_ref().map(text),
        }
    }

    /// Adds a row of [`COLUMNS`].
    fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let address = match row.get_ref(8)? {
            ValueRef::Integer(number) => shown_address(number).map(|address| {
                let start = self.text.len();
                write!(self.text, "{address}").expect("a text takes any text");
                self.since(start)
            }),
            _ => self.add_text(row, 8)?,
        };
        let name = self.add_text(row, 13)?;
        let avg: Option<i64> = row.get(9)?;
        let status: u8 = row.get(3)?;
        let added = StoredRow {
            target: name
                .or_else(|| address.clone())
                .ok_or_else(|| missing(row, 13))?,
            address,
            // A CHECK of the table admits only these codes.
            status: *StatusKind::ALL
                .get(usize::from(status))
                .ok_or_else(|| missing(row, 3))?,
            reason: self.add_text(row, 14)?,
            sent: row.get(4)?,
            received: row.get(5)?,
            rtt_ns: [
                row.get::<_, Option<i64>>(10)?.or(avg),
                avg,
                row.get::<_, Option<i64>>(11)?.or(avg),
                row.get::<_, Option<i64>>(12)?.or(avg.map(|_| 0)),
            ],
            attempts: row.get(6)?,
            worker: None,
            login: None,
            probed_after_us: row.get(7)?,
            probed_at_ms: None,
            labels: None,
        };
        self.rows.push(added);
        self.places.push(key_of(row)?);
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

    /// Adds what other tables have of the rows, whose places ascend.
    fn complete(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut chunks: Vec<_> = self
            .places
            .iter()
            .map(|[run, chunk, _]| [*run, *chunk])
            .collect();
        chunks.dedup();
        let places = std::mem::take(&mut self.places);
        let mut at = 0;
        let sql = "SELECT run, chunk, worker, started_at_us, login FROM chunks WHERE (run, chunk) >= (?1, ?2) ORDER BY run, chunk";
        for_each_key(&mut connection.prepare(sql)?, &chunks, |_, row| {
            let key: [i64; 2] = key_of(row)?;
            let worker = self.add_text(row, 2)?;
            let login = self.add_text(row, 4)?;
            let started_us: Option<i64> = row.get(3)?;
            while places.get(at).is_some_and(|place| place[..2] <= key[..]) {
                if places[at][..2] == key[..] {
                    let stored = &mut self.rows[at];
                    stored.worker.clone_from(&worker);
                    stored.login.clone_from(&login);
                    let probed_us = started_us.map(|started| started + stored.probed_after_us);
                    stored.probed_at_ms = probed_us.and_then(rounded_ms);
                }
                at += 1;
            }
            Ok(())
        })?;
        let sql = "SELECT run, chunk, position, labels FROM labels WHERE (run, chunk, position) >= (?1, ?2, ?3)
            ORDER BY run, chunk, position";
        for_each_key(&mut connection.prepare(sql)?, &places, |at, row| {
            self.rows[at].labels = self.add_text(row, 3)?;
            Ok(())
        })?;
        self.places = places;
        Ok(())
    }
}

/// The rows that a condition on `results r` selects, in the order of their places. `bind` sets its parameters.
pub(crate) fn selected(
    connection: &Connection,
    condition: &str,
    bind: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<ExportPage> {
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM results r WHERE {condition} ORDER BY r.run, r.chunk, r.position"
    ))?;
    bind(&mut statement)?;
    let mut page = ExportPage::default();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        page.add(row)?;
    }
    page.complete(connection)?;
    Ok(page)
}

/// The rows with these places, which ascend. A place without a row is left out.
pub(crate) fn rows_at(connection: &Connection, places: &[Place]) -> rusqlite::Result<ExportPage> {
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM results r WHERE (r.run, r.chunk, r.position) >= (?1, ?2, ?3)
            ORDER BY r.run, r.chunk, r.position"
    ))?;
    let mut page = ExportPage::default();
    for_each_key(&mut statement, places, |_, row| page.add(row))?;
    page.complete(connection)?;
    Ok(page)
}

/// Calls `found` with the rows that have one of these keys, which ascend, and with the index of the key. The statement
/// has the key in its first columns; its rows ascend, and the first one is that of its parameters or one behind it. Rows
/// that are near one another in the last column of the key are read in one pass.
fn for_each_key<const N: usize>(
    statement: &mut Statement<'_>,
    keys: &[[i64; N]],
    mut found: impl FnMut(usize, &Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut at = 0;
    while at < keys.len() {
        for (parameter, value) in (1..).zip(keys[at]) {
            statement.raw_bind_parameter(parameter, value)?;
        }
        let mut rows = statement.raw_query();
        loop {
            let Some(row) = rows.next()? else {
                return Ok(());
            };
            let key = key_of(row)?;
            while keys.get(at).is_some_and(|wanted| *wanted < key) {
                at += 1;
            }
            if keys.get(at) == Some(&key) {
                found(at, row)?;
                at += 1;
            }
            if !keys.get(at).is_some_and(|next| is_near(&key, next)) {
                break;
            }
        }
    }
    Ok(())
}

/// Whether a few steps lead from a key to a later one: as many as rows are between them, which the last column bounds.
fn is_near<const N: usize>(key: &[i64; N], next: &[i64; N]) -> bool {
    key[..N - 1] == next[..N - 1] && next[N - 1] - key[N - 1] <= MAX_STEPS
}

/// The key in the first columns of a row.
fn key_of<const N: usize>(row: &Row<'_>) -> rusqlite::Result<[i64; N]> {
    let mut key = [0; N];
    for (column, value) in key.iter_mut().enumerate() {
        *value = row.get(column)?;
    }
    Ok(key)
}

fn missing(row: &Row<'_>, column: usize) -> rusqlite::Error {
    let name = row
        .as_ref()
        .column_name(column)
        .map_or(String::new(), str::to_owned);
    rusqlite::Error::InvalidColumnType(column, name, rusqlite::types::Type::Null)
}

/// Microseconds since 1970-01-01 UTC as the views write them: RFC 3339 in UTC, to the millisecond. None for a time that
/// SQLite does not know.
#[must_use]
pub fn view_time(us: i64) -> Option<String> {
    rounded_ms(us).map(time_text)
}

fn time_text(ms: i64) -> String {
    let mut text = String::with_capacity(24);
    // A text takes everything.
    write_time(&mut text, ms).unwrap_or_default();
    text
}

/// Writes a time of [`KNOWN_TIMES_MS`].
fn write_time(text: &mut String, ms: i64) -> fmt::Result {
    let time = civil::date(1970, 1, 1)
        .at(0, 0, 0, 0)
        .saturating_add(SignedDuration::from_millis(ms));
    write!(
        text,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond(),
    )
}

/// Microseconds since 1970-01-01 UTC in milliseconds, rounded as SQLite's `strftime` rounds `us / 1000000.0`: it adds a
/// half to the number of milliseconds of the Julian day. None for a time that `strftime` does not know.
fn rounded_ms(us: i64) -> Option<i64> {
    let julian = us as f64 / 1_000_000.0 * 1000.0 + JULIAN_EPOCH_MS + 0.5;
    let ms = julian as i64 - JULIAN_EPOCH_MS as i64;
    KNOWN_TIMES_MS.contains(&ms).then_some(ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    /// A row that was probed at this time, and else nothing.
    fn probed_at(us: i64) -> Option<String> {
        let row = ExportRow {
            target: "",
            address: None,
            status: StatusKind::Up,
            reason: None,
            sent: 0,
            received: 0,
            rtt_ns: [None; 4],
            attempts: 1,
            worker: None,
            login: None,
            probed_at_ms: rounded_ms(us),
            labels: None,
        };
        let mut text = String::new();
        row.write_probed_at(&mut text).unwrap();
        row.probed_at_ms.map(|_| text)
    }

    proptest! {
        #[test]
        fn times_are_written_as_sqlite_writes_them(
            us in prop_oneof![
                -220_000_000_000_000_000_i64..260_000_000_000_000_000,
                -100_000_000_000_000_i64..2_000_000_000_000_000,
                253_402_200_000_000_000_i64..253_402_301_000_000_000,
            ],
        ) {
            let connection = Connection::open_in_memory().unwrap();
            let shown: Option<String> = connection
                .query_row(
                    "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000000.0, 'unixepoch')",
                    [us],
                    |row| row.get(0),
                )
                .unwrap();
            prop_assert_eq!(shown, probed_at(us));
        }

        #[test]
        fn each_wanted_key_that_exists_is_found_once(
            stored in prop::collection::btree_set((0_i64..3, 0_i64..40), 0..60),
            wanted in prop::collection::btree_set((0_i64..3, 0_i64..40), 0..60),
        ) {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch("CREATE TABLE t (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID").unwrap();
            for key in &stored {
                connection.execute("INSERT INTO t VALUES (?1, ?2)", *key).unwrap();
            }
            let sql = "SELECT a, b FROM t WHERE (a, b) >= (?1, ?2) ORDER BY a, b";
            let keys: Vec<_> = wanted.iter().map(|(a, b)| [*a, *b]).collect();
            let mut found = Vec::new();
            let mut statement = connection.prepare(sql).unwrap();
            for_each_key(&mut statement, &keys, |at, row| {
                found.push((row.get(0)?, row.get(1)?));
                assert_eq!(keys[at], key_of(row)?);
                Ok(())
            })
            .unwrap();
            let both: Vec<_> = wanted.intersection(&stored).copied().collect();
            prop_assert_eq!(found, both);
        }
    }
}
