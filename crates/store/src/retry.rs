//! Targets of an earlier run that a new run probes again.

use std::net::IpAddr;

use pingfleet_wire::{StatusKind, Target};
use rusqlite::{Row, types::ValueRef};

use crate::{StoreError, Writer, address::shown_address};

/// A target of an earlier run, as its plan had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierTarget {
    /// Its place in the plan: chunk and position.
    pub place: (i64, i64),
    /// What is probed. A name is resolved again.
    pub target: Target,
    /// Its labels, as a JSON object.
    pub labels: Option<String>,
}

impl Writer {
    /// The targets of a run that have one of these statuses, in the order of its plan: at most `limit`, behind the place
    /// `after`. One search by key, which reads rows until it has found enough.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`]; [`StoreError::BadPlan`] when a row has neither a name nor an address.
    pub fn targets_with_status(
        &self,
        run: i64,
        statuses: &[StatusKind],
        after: Option<(i64, i64)>,
        limit: usize,
    ) -> Result<Vec<EarlierTarget>, StoreError> {
        let codes: Vec<_> = statuses
            .iter()
            .map(|status| status.code().to_string())
            .collect();
        let sql = format!(
            "SELECT r.chunk, r.position, r.name, r.address, l.labels FROM results r
             LEFT JOIN labels l ON l.run = r.run AND l.chunk = r.chunk AND l.position = r.position
             WHERE r.run = ?1 AND (r.chunk, r.position) > (?2, ?3) AND r.status IN ({})
             ORDER BY r.chunk, r.position LIMIT ?4",
            codes.join(", ")
        );
        let (chunk, position) = after.unwrap_or((-1, -1));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query((run, chunk, position, limit as i64))?;
        let mut targets = Vec::new();
        while let Some(row) = rows.next()? {
            let place = (row.get(0)?, row.get(1)?);
            let target = planned_target(row)?.ok_or_else(|| StoreError::BadPlan {
                run,
                reason: format!(
                    "the row at position {} of chunk {} has neither a name nor an address",
                    place.1, place.0
                ),
            })?;
            targets.push(EarlierTarget {
                place,
                target,
                labels: row.get(4)?,
            });
        }
        Ok(targets)
    }
}

/// The target of a row with its name and its address: what is no name was planned as an address.
fn planned_target(row: &Row<'_>) -> rusqlite::Result<Option<Target>> {
    if let Some(name) = row.get(2)? {
        return Ok(Some(Target::Text(name)));
    }
    let address: Option<IpAddr> = match row.get_ref(3)? {
        ValueRef::Integer(number) => shown_address(number).map(IpAddr::V4),
        ValueRef::Text(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok()),
        _ => None,
    };
    Ok(address.map(Target::Address))
}
