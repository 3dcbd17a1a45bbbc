//! How the targets of a run are probed, and how long a target and a chunk can take. No I/O.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    target::optional_address,
    timing::{MAX_TARGET_TIME, MAX_WAIT},
};

/// Which addresses of a name may be probed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    /// A before AAAA.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// How every target of a run is probed. Part of the plan, and so of every work message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probing {
    /// Requests to each target, whatever is outstanding; 1 to 1,000.
    pub count: u16,
    /// Gap between the requests to one target.
    #[serde(with = "micros")]
    pub interval: Duration,
    /// How long the first requests are waited for.
    #[serde(with = "micros")]
    pub timeout: Duration,
    /// How many more requests follow one by one when none was answered; 0 to 100.
    pub retries: u16,
    /// Factor of the timeout from retry to retry, in thousandths; 1,000 to 10,000.
    pub backoff_permille: u16,
    /// How long late answers are waited for at the end.
    #[serde(with = "micros")]
    pub late_window: Duration,
    /// Bytes of ICMP payload; 0 to 65,507.
    pub size: u16,
    /// Time to live, or hop limit; the system's own when absent.
    pub ttl: Option<u8>,
    /// Source address of the requests.
    #[serde(with = "optional_address")]
    pub source: Option<IpAddr>,
    /// Network interface that the requests leave by.
    pub interface: Option<String>,
    /// Which addresses of a name are probed.
    #[serde(with = "family")]
    pub family: Family,
    /// Requests a second on one worker, over all chunks of the run; unlimited when absent.
    pub rate: Option<NonZeroU32>,
}

impl Default for Probing {
    /// The defaults of the command line: one request, two retries after 1 s, 1.5 s and 2.25 s, 1,000 requests a second.
    fn default() -> Self {
        Self {
            count: 1,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            retries: 2,
            backoff_permille: 1500,
            late_window: Duration::ZERO,
            size: 56,
            ttl: None,
            source: None,
            interface: None,
            family: Family::Any,
            rate: NonZeroU32::new(1000),
        }
    }
}

impl Probing {
    /// How long request number `request` (from 0) is waited for: timeout for the first `count`, then
    /// timeout x backoff^k for retry k (from 1).
    #[must_use]
    pub fn wait(&self, request: u32) -> Duration {
        let retry = (request + 1).saturating_sub(u32::from(self.count));
        let factor = (f64::from(self.backoff_permille) / 1000.0).powi(retry as i32);
        Duration::try_from_secs_f64(self.timeout.as_secs_f64() * factor)
            .map_or(MAX_WAIT, |wait| wait.min(MAX_WAIT))
    }

    /// The most requests that one target can take in one pass.
    #[must_use]
    pub fn most_requests(&self) -> u32 {
        u32::from(self.count) + u32::from(self.retries)
    }

    /// The longest that one target can take in one pass, from its first request to its settling.
    #[must_use]
    pub fn worst_target(&self) -> Duration {
        let gaps = u32::from(self.count).saturating_sub(1);
        let spread = self.interval.saturating_mul(gaps);
        (gaps..self.most_requests())
            .map(|request| self.wait(request))
            .fold(spread + self.late_window, Duration::saturating_add)
    }

    /// How long `requests` take to send at the run's rate; zero when it is unlimited.
    #[must_use]
    pub fn sending(&self, requests: u64) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(requests as f64 / f64::from(rate.get()))
        })
    }

    /// The longest that a chunk of `targets` can take: sending everything, then the last target's waits.
    #[must_use]
    pub fn worst_chunk(&self, targets: usize) -> Duration {
        self.sending(targets as u64 * u64::from(self.most_requests())) + self.worst_target()
    }

    /// Whether one target is settled within [`MAX_TARGET_TIME`], at the run's rate.
    #[must_use]
    pub fn is_timely(&self) -> bool {
        self.worst_target() + self.sending(self.most_requests().into()) <= MAX_TARGET_TIME
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let in_range = (1..=1000).contains(&self.count)
            && self.retries <= 100
            && (1000..=10_000).contains(&self.backoff_permille)
            && self.size <= 65_507
            && self.ttl != Some(0)
            && !self.timeout.is_zero()
            && [self.interval, self.timeout, self.late_window]
                .iter()
                .all(|wait| *wait <= MAX_WAIT)
            && self.interface.as_ref().is_none_or(|name| {
                (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
            });
        if !in_range {
            Err("a probing setting is out of its range".to_owned())
        } else if !self.is_timely() {
            Err("one target would take over ten minutes".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Durations as whole microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}

/// The family as the number that users know: 0 (any), 4 or 6.
mod family {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Family;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference to the field"
    )]
    pub(super) fn serialize<S: Serializer>(
        family: &Family,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(match family {
            Family::Any => 0,
            Family::V4 => 4,
            Family::V6 => 6,
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Family, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Family::Any),
            4 => Ok(Family::V4),
            6 => Ok(Family::V6),
            _ => Err(D::Error::custom("an address family is 0, 4 or 6")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_the_retries_only() {
        let probing = Probing {
            count: 3,
            ..Probing::default()
        };
        let waits: Vec<_> = (0..5)
            .map(|request| probing.wait(request).as_millis())
            .collect();
        assert_eq!(waits, [1000, 1000, 1000, 1500, 2250]);
    }

    #[test]
    fn worst_case_of_the_defaults() {
        let probing = Probing::default();
        assert_eq!(probing.worst_target(), Duration::from_millis(4750));
        assert_eq!(probing.worst_chunk(250), Duration::from_millis(5500));
    }
}
