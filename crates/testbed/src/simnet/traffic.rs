//! What the prober sent to the simulated network, and what it answered. A test compares these figures with the prober's
//! results. No I/O.

use std::{collections::HashMap, time::Duration};

use super::ObservedRequest;

/// Everything between the start and the end of a network.
#[derive(Debug, Default)]
pub struct Traffic {
    /// The requests, in the order in which they left.
    pub requests: Vec<ObservedRequest>,
    /// Messages that the network sent: answers, forgeries and noise.
    pub messages: u64,
    /// Messages that the prober's kernel received.
    pub delivered: u64,
    /// Messages that were not sent because the link was down.
    pub refused: u64,
    /// Requests that left the prober and were lost before the network.
    pub lost_before: u64,
    pub(super) answered: HashMap<u32, u32>,
}

impl Traffic {
    /// When the requests to a host left, in nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn departures(&self) -> HashMap<u32, Vec<u64>> {
        let mut departures: HashMap<u32, Vec<u64>> = HashMap::new();
        for request in &self.requests {
            departures
                .entry(request.host)
                .or_default()
                .push(request.at_ns);
        }
        departures
    }

    /// Requests of a host that got a genuine reply.
    #[must_use]
    pub fn answered(&self, host: u32) -> u32 {
        self.answered.get(&host).copied().unwrap_or(0)
    }

    /// Requests in each second after the first request.
    #[must_use]
    pub fn per_second(&self) -> Vec<u32> {
        let mut seconds = Vec::new();
        let start = self.requests.first().map_or(0, |first| first.at_ns);
        for request in &self.requests {
            let second = (request.at_ns.saturating_sub(start) / 1_000_000_000) as usize;
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            seconds[second] += 1;
        }
        seconds
    }

    /// The most requests in any stretch of time shorter than `window`, wherever it begins.
    #[must_use]
    pub fn busiest(&self, window: Duration) -> usize {
        let window = window.as_nanos() as u64;
        let mut first = 0;
        let mut most = 0;
        for (last, request) in self.requests.iter().enumerate() {
            while request.at_ns.saturating_sub(self.requests[first].at_ns) >= window {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simnet::IpVersion;

    fn traffic(at_ms: &[u64]) -> Traffic {
        let request = |(host, at): (usize, &u64)| ObservedRequest {
            at_ns: at * 1_000_000,
            host: host as u32 % 2,
            from: IpVersion::V4.address(0),
            family: IpVersion::V4,
            hops: 64,
            identifier: 0,
            sequence: 0,
            size: 0,
        };
        Traffic {
            requests: at_ms.iter().enumerate().map(request).collect(),
            ..Traffic::default()
        }
    }

    #[test]
    fn seconds_begin_with_the_first_request() {
        assert_eq!(traffic(&[5900, 6100, 6899, 6900]).per_second(), [3, 1]);
        assert!(traffic(&[]).per_second().is_empty());
    }

    #[test]
    fn the_busiest_window_may_begin_anywhere() {
        let traffic = traffic(&[0, 900, 1000, 1899, 1900]);
        assert_eq!(traffic.busiest(Duration::from_secs(1)), 3);
        assert_eq!(traffic.busiest(Duration::from_millis(1001)), 4);
        assert_eq!(traffic.busiest(Duration::from_millis(1)), 1);
    }

    #[test]
    fn departures_are_sorted_by_host() {
        let departures = traffic(&[1, 2, 3]).departures();
        assert_eq!(departures[&0], [1_000_000, 3_000_000]);
        assert_eq!(departures[&1], [2_000_000]);
    }
}
