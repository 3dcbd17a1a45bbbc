//! The probing settings of a run as the database keeps them: JSON in the column `runs.probing`. No I/O.
//!
//! Invariant: nothing is left out. A later run of the same targets can be probed exactly as this one.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use pingfleet_wire::{Family, Probing};
use serde::{Deserialize, Serialize};

/// The probing settings of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredProbing {
    /// How each target is probed.
    pub probing: Probing,
    /// Targets in a chunk.
    pub chunk_size: usize,
}

impl StoredProbing {
    /// The JSON object for the column.
    pub(crate) fn to_json(&self) -> String {
        // Named field by field: a new setting does not compile until it is stored.
        let Probing {
            count,
            interval,
            timeout,
            retries,
            backoff_permille,
            late_window,
            size,
            ttl,
            source,
            interface,
            family,
            rate,
        } = self.probing.clone();
        let object = ProbingObject {
            count,
            interval_us: micros(interval),
            timeout_us: micros(timeout),
            retries,
            backoff_permille,
            late_window_us: micros(late_window),
            size,
            ttl,
            source,
            interface,
            family,
            rate,
            chunk_size: self.chunk_size,
        };
        serde_json::to_string(&object).expect("numbers and texts are always JSON")
    }

    /// Reads the column.
    ///
    /// # Errors
    /// When it was not written by [`Self::to_json`].
    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        let object: ProbingObject = serde_json::from_str(json)?;
        Ok(Self {
            probing: Probing {
                count: object.count,
                interval: Duration::from_micros(object.interval_us),
                timeout: Duration::from_micros(object.timeout_us),
                retries: object.retries,
                backoff_permille: object.backoff_permille,
                late_window: Duration::from_micros(object.late_window_us),
                size: object.size,
                ttl: object.ttl,
                source: object.source,
                interface: object.interface,
                family: object.family,
                rate: object.rate,
            },
            chunk_size: object.chunk_size,
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The JSON object. Times are in microseconds, as in the work message.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbingObject {
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
    #[serde(with = "FamilyText")]
    family: Family,
    rate: Option<NonZeroU32>,
    chunk_size: usize,
}

/// The texts of [`Family`] in the object.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Family", rename_all = "lowercase")]
enum FamilyText {
    Any,
    V4,
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_survives(probing: Probing) {
        let stored = StoredProbing {
            probing,
            chunk_size: 77,
        };
        let json = stored.to_json();
        assert_eq!(StoredProbing::from_json(&json).unwrap(), stored, "{json}");
    }

    /// Settings of which none is the default, so that a field that is lost is seen.
    fn unusual() -> Probing {
        Probing {
            count: 7,
            interval: Duration::from_micros(1501),
            timeout: Duration::from_micros(2_000_003),
            retries: 9,
            backoff_permille: 1234,
            late_window: Duration::from_micros(40_007),
            size: 1400,
            ttl: Some(13),
            source: Some("192.0.2.1".parse().unwrap()),
            interface: Some("eth7".to_owned()),
            family: Family::V6,
            rate: NonZeroU32::new(123_456),
        }
    }

    #[test]
    fn every_probing_setting_survives_the_database() {
        assert_survives(Probing::default());
        assert_survives(unusual());
        for family in [Family::Any, Family::V4, Family::V6] {
            assert_survives(Probing {
                family,
                ..unusual()
            });
        }
        assert_survives(Probing {
            source: Some("fd00::1".parse().unwrap()),
            rate: None,
            ..unusual()
        });
    }

    /// The control of the test above: each field of the object is there, is needed, and changes what is read.
    #[test]
    fn no_field_of_the_object_is_idle() {
        let object = |probing| {
            let stored = StoredProbing {
                probing,
                chunk_size: 77,
            };
            let json: serde_json::Value = serde_json::from_str(&stored.to_json()).unwrap();
            json.as_object().unwrap().clone()
        };
        let (default, unusual) = (object(Probing::default()), object(unusual()));
        for (key, value) in &default {
            let is_same = &unusual[key] == value;
            assert_eq!(is_same, key == "chunk_size", "{key}");
        }
        let mut longer = default;
        longer.insert("colour".to_owned(), "red".into());
        let json = serde_json::Value::from(longer).to_string();
        assert!(StoredProbing::from_json(&json).is_err(), "{json}");
    }
}
