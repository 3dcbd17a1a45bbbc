//! Finds runs by what a user gives.

use rusqlite::{Connection, OptionalExtension};

use crate::{StoreError, Transport, Writer};

/// The shortest UUID prefix that names a run.
const MIN_PREFIX: usize = 4;

/// Finds a run by its number, a UUID prefix, or `latest`, and returns its number.
pub(crate) fn find_run(connection: &Connection, wanted: &str) -> Result<i64, StoreError> {
    let no_such_run = || StoreError::NoSuchRun {
        wanted: wanted.to_owned(),
    };
    if wanted == "latest" {
        return connection
            .query_row("SELECT max(run) FROM runs", (), |row| {
                row.get::<_, Option<i64>>(0)
            })?
            .ok_or_else(no_such_run);
    }
    if let Ok(number) = wanted.parse::<i64>() {
        let found = connection
            .query_row("SELECT run FROM runs WHERE run = ?1", [number], |row| {
                row.get(0)
            })
            .optional()?;
        if let Some(run) = found {
            return Ok(run);
        }
    }
    let prefix = wanted.to_ascii_lowercase();
    // All UUIDs of a decade begin with the same digit, so a shorter prefix is probably a typing error.
    if prefix.len() < MIN_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(no_such_run());
    }
    // All text that begins with the prefix lies between it and the prefix with a byte behind it that is above all
    // hexadecimal digits: a range of the index on run_id.
    let (count, run): (i64, Option<i64>) = connection.query_row(
        "SELECT count(*), min(run) FROM runs WHERE run_id >= ?1 AND run_id < ?1 || 'g'",
        [&prefix],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    match (count, run) {
        (1, Some(run)) => Ok(run),
        (0, _) | (_, None) => Err(no_such_run()),
        (count, _) => Err(StoreError::AmbiguousRun {
            wanted: wanted.to_owned(),
            count,
        }),
    }
}

impl Writer {
    /// Finds a run by its number, a UUID prefix, or `latest`, and returns its number.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::AmbiguousRun`].
    pub fn find_run(&self, wanted: &str) -> Result<i64, StoreError> {
        find_run(&self.connection, wanted)
    }

    /// The transport of a run, for resuming it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`].
    pub fn transport(&self, run: i64) -> Result<Transport, StoreError> {
        self.connection
            .query_row("SELECT transport FROM runs WHERE run = ?1", [run], |row| {
                row.get(0)
            })
            .optional()?
            .ok_or_else(|| StoreError::NoSuchRun {
                wanted: run.to_string(),
            })
    }
}
