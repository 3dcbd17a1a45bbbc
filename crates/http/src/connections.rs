//! How many connections there may be, in all and of one address. No I/O.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;

/// The connections of each address that is not loopback: at most as many entries as connections.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The connections of one server.
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    counts: Counts,
    most_per_peer: usize,
}

/// One connection. It counts until this is dropped.
pub(crate) struct Permit {
    _of_all: OwnedSemaphorePermit,
    _of_peer: Option<OfPeer>,
}

struct OfPeer {
    peer: IpAddr,
    counts: Counts,
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limits.connections)),
            counts: Counts::default(),
            most_per_peer: limits.connections_per_peer,
        }
    }

    /// Counts a connection of this address, if there may be one more. Behind loopback there can be a proxy or a tunnel
    /// for many visitors, so these count in all only.
    pub(crate) fn admit(&self, peer: IpAddr) -> Option<Permit> {
        let of_all = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let peer = peer.to_canonical();
        let of_peer = if peer.is_loopback() {
            None
        } else {
            Some(self.count(peer)?)
        };
        Some(Permit {
            _of_all: of_all,
            _of_peer: of_peer,
        })
    }

    fn count(&self, peer: IpAddr) -> Option<OfPeer> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&peer).copied().unwrap_or(0);
        if count >= self.most_per_peer {
            return None;
        }
        counts.insert(peer, count + 1);
        let counts = Arc::clone(&self.counts);
        Some(OfPeer { peer, counts })
    }
}

impl Drop for OfPeer {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_hold_all_connections() {
        let limits = Limits {
            connections: 8,
            connections_per_peer: 3,
            ..Limits::default()
        };
        let connections = Connections::new(&limits);
        let admit = |peer: &str| connections.admit(peer.parse().unwrap());
        let mut held: Vec<Permit> = (0..3).map(|_| admit("192.0.2.1").unwrap()).collect();
        assert!(admit("192.0.2.1").is_none());
        // The same address on a socket for both families.
        assert!(admit("::ffff:192.0.2.1").is_none());
        // The control: others still come in, and this one again after one of its connections ended.
        let other = admit("2001:db8::1").unwrap();
        held.pop();
        held.push(admit("192.0.2.1").unwrap());
        assert!(admit("192.0.2.1").is_none());
        // Loopback is bounded by all connections only. What was refused took none of them.
        let local: Vec<Permit> = (0..4).map(|_| admit("127.0.0.1").unwrap()).collect();
        assert!(admit("127.0.0.1").is_none() && admit("::1").is_none());
        drop((held, other, local));
        assert!(connections.counts.lock().unwrap().is_empty());
    }
}
