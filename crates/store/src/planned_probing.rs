//! The probing settings of a run as the database keeps them: JSON of every field, so that a later run can repeat them.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use pingfleet_wire::{Family, Probing};
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::{Reader, StoreError, Writer};

/// How the targets of a run are probed, and how large its chunks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedProbing {
    /// How every target is probed.
    pub probing: Probing,
    /// Targets in a chunk, at most.
    pub chunk_size: usize,
}

/// The JSON object. Both conversions name every field, so that none can be forgotten.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlannedProbingJson {
    count: u16,
    interval_us: u64,
    timeout_us: u64,
    retries: u16,
    backoff_permille: u16,
    late_window_us: u64,
    size: u16,
    ttl: Option<u8>,
    source: Option<IpAddr>,
    interface: Option<String>,
    family: FamilyName,
    rate: Option<NonZeroU32>,
    chunk_size: usize,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyName {
    Any,
    V4,
    V6,
}

impl PlannedProbing {
    /// The JSON object for the column `probing` of the table `runs`.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "numbers and texts can always be written as JSON"
    )]
    pub fn to_json(&self) -> String {
        let Self {
            probing:
                Probing {
                    count,
                    interval,
                    timeout,
                    retries,
                    backoff_permille,
                    late_window,
                    size,
                    ttl,
                    source,
                    ref interface,
                    family,
                    rate,
                },
            chunk_size,
        } = *self;
        let json = PlannedProbingJson {
            count,
            interval_us: micros(interval),
            timeout_us: micros(timeout),
            retries,
            backoff_permille,
            late_window_us: micros(late_window),
            size,
            ttl,
            source,
            interface: interface.clone(),
            family: match family {
                Family::Any => FamilyName::Any,
                Family::V4 => FamilyName::V4,
                Family::V6 => FamilyName::V6,
            },
            rate,
            chunk_size,
        };
        serde_json::to_string(&json).expect("numbers and texts can be written as JSON")
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// What the JSON parser returns, for anything else.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let PlannedProbingJson {
            count,
            interval_us,
            timeout_us,
            retries,
            backoff_permille,
            late_window_us,
            size,
            ttl,
            source,
            interface,
            family,
            rate,
            chunk_size,
        } = serde_json::from_str(text)?;
        Ok(Self {
            probing: Probing {
                count,
                interval: Duration::from_micros(interval_us),
                timeout: Duration::from_micros(timeout_us),
                retries,
                backoff_permille,
                late_window: Duration::from_micros(late_window_us),
                size,
                ttl,
                source,
                interface,
                family: match family {
                    FamilyName::Any => Family::Any,
                    FamilyName::V4 => Family::V4,
                    FamilyName::V6 => Family::V6,
                },
                rate,
            },
            chunk_size,
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Writer {
    /// How the targets of a run are probed.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`]; [`StoreError::BadPlan`] when the settings cannot be read.
    pub fn planned_probing(&self, run: i64) -> Result<PlannedProbing, StoreError> {
        let json: String = self
            .connection
            .prepare_cached("SELECT probing FROM runs WHERE run = ?1")?
            .query_row([run], |row| row.get(0))
            .optional()?
            .ok_or_else(|| StoreError::NoSuchRun {
                wanted: run.to_string(),
            })?;
        PlannedProbing::from_json(&json).map_err(|error| StoreError::BadPlan {
            run,
            reason: format!("its probing settings cannot be read: {error}"),
        })
    }
}

impl Reader {
    /// How the targets of a run were probed. None if its settings cannot be read. One index lookup.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn planned_probing(&self, run: i64) -> Result<Option<PlannedProbing>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT probing FROM runs WHERE run = ?1";
            let json: Option<String> = connection
                .query_row(sql, [run], |row| row.get(0))
                .optional()?;
            Ok(json.and_then(|json| PlannedProbing::from_json(&json).ok()))
        })
    }

    /// The seed of the random order of a run. None if its order is that of its source. One index lookup.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn seed(&self, run: i64) -> Result<Option<u64>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT seed FROM runs WHERE run = ?1";
            let seed: Option<Option<i64>> = connection
                .query_row(sql, [run], |row| row.get(0))
                .optional()?;
            Ok(seed.flatten().map(i64::cast_unsigned))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(planned: &PlannedProbing) -> PlannedProbing {
        PlannedProbing::from_json(&planned.to_json()).expect("what was written can be read")
    }

    #[test]
    fn every_field_survives() {
        let defaults = PlannedProbing {
            probing: Probing::default(),
            chunk_size: 250,
        };
        assert_eq!(round_trip(&defaults), defaults);
        // No field has its default value, so that none can be dropped without being noticed.
        let other = PlannedProbing {
            probing: Probing {
                count: 3,
                interval: Duration::from_micros(1_234_567),
                timeout: Duration::from_micros(2_345_678),
                retries: 4,
                backoff_permille: 2250,
                late_window: Duration::from_micros(345_678),
                size: 1200,
                ttl: Some(17),
                source: Some(IpAddr::from([192, 0, 2, 9])),
                interface: Some("eth7".to_owned()),
                family: Family::V6,
                rate: None,
            },
            chunk_size: 99,
        };
        assert_eq!(round_trip(&other), other);
        for (key, value) in json(&other) {
            assert_ne!(json(&defaults).get(&key), Some(&value), "{key}");
        }
        for family in [Family::Any, Family::V4, Family::V6] {
            let mut planned = defaults.clone();
            planned.probing.family = family;
            planned.probing.source = Some(IpAddr::from([0x20, 1, 0, 0, 0, 0, 0, 1]));
            assert_eq!(round_trip(&planned), planned);
        }
    }

    fn json(planned: &PlannedProbing) -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(&planned.to_json()).expect("it is an object")
    }

    #[test]
    fn a_missing_or_unknown_field_is_refused() {
        let planned = PlannedProbing {
            probing: Probing::default(),
            chunk_size: 250,
        };
        for key in json(&planned).keys().filter(|key| {
            // An absent option is none.
            !["ttl", "source", "interface", "rate"].contains(&key.as_str())
        }) {
            let mut object = json(&planned);
            object.remove(key);
            let text = serde_json::Value::Object(object).to_string();
            assert!(PlannedProbing::from_json(&text).is_err(), "{key}");
        }
        let mut object = json(&planned);
        object.insert("new".to_owned(), 1.into());
        let text = serde_json::Value::Object(object).to_string();
        assert!(PlannedProbing::from_json(&text).is_err());
    }
}
