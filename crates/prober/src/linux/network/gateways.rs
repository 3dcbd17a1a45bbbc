//! The gateways' entries in the kernel's neighbour table: whether it knows their link addresses. A request to a gateway
//! whose link address is unknown waits in a short queue, and is thrown away if that is full or the gateway does not answer.
//! Invariant: a loss of a known link address is noticed even if it is known again before the next check. Nothing here waits.
//!
//! Source: Linux `rtnetlink(7)` (`RTM_GETNEIGH`), `linux/neighbour.h`.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use netlink_packet_core::{Emitable, NlasIterator};
use netlink_packet_route::{AddressFamily as NetlinkFamily, neighbour::NeighbourHeader};
use nix::{errno::Errno, libc, net::if_::if_nametoindex};

use super::{
    neighbours::question,
    netlink::{Messages, NetlinkSocket},
};

/// States in which the link address is known (`NUD_VALID`).
const VALID: u16 = libc::NUD_PERMANENT
    | libc::NUD_NOARP
    | libc::NUD_REACHABLE
    | libc::NUD_PROBE
    | libc::NUD_STALE
    | libc::NUD_DELAY;

/// A gateway: its interface and its address.
pub(super) type Gateway = (String, IpAddr);

/// What is known of one gateway.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Whether its link address is being looked for, or was not found.
    is_unresolved: bool,
    /// Whether it was ever known.
    was_valid: bool,
    /// When requests by it were last known to be lost.
    failed: Option<Instant>,
}

impl Entry {
    /// The kernel reports the entry in this state.
    fn take(&mut self, state: u16, now: Instant) {
        if state & VALID != 0 {
            // What waited may have been too much for the queue, unless it was the first that waited.
            if self.is_unresolved && self.was_valid {
                self.failed = Some(now);
            }
            *self = Self {
                is_unresolved: false,
                was_valid: true,
                ..*self
            };
        } else if state & libc::NUD_FAILED != 0 {
            self.is_unresolved = true;
            self.failed = Some(now);
        } else if state & libc::NUD_INCOMPLETE != 0 {
            self.is_unresolved = true;
        }
    }

    /// The entry was removed, with the requests that waited.
    fn remove(&mut self, now: Instant) {
        if self.was_valid || self.is_unresolved {
            self.failed = Some(now);
        }
        self.is_unresolved = false;
    }
}

/// The state of the gateways that are in use.
#[derive(Debug)]
pub(super) struct Gateways {
    socket: Option<NetlinkSocket>,
    entries: HashMap<Gateway, Entry>,
}

impl Gateways {
    /// Receives changes from now on, in the network namespace of the calling thread.
    pub(super) fn watch() -> Self {
        let socket = NetlinkSocket::open(libc::RTMGRP_NEIGH)
            .and_then(NetlinkSocket::with_large_buffer)
            .inspect_err(
                |error| tracing::warn!(%error, "gateways that do not answer ARP are not detected"),
            );
        Self {
            socket: socket.ok(),
            entries: HashMap::new(),
        }
    }

    /// Reads what has changed, and the state of each of `gateways` now.
    pub(super) fn check(&mut self, gateways: impl Iterator<Item = Gateway>, now: Instant) {
        let Some(socket) = &self.socket else {
            return;
        };
        let mut by_index = HashMap::new();
        for gateway in gateways {
            let Ok(index) = if_nametoindex(gateway.0.as_str()) else {
                continue;
            };
            self.entries.entry(gateway.clone()).or_default();
            // If it fails, the reports of changes are still read. Kernels before Linux 5.0 refuse it.
            if let Err(error) = socket.ask(&question(gateway.1, index)) {
                tracing::debug!(%error, "cannot ask for the state of a gateway");
            }
            by_index.insert((index, gateway.1), gateway);
        }
        let entries = &mut self.entries;
        loop {
            match socket.receive(|messages| take_reports(messages, entries, &by_index, now)) {
                Ok(()) | Err(Errno::EINTR) => {}
                // Returned once when reports were lost: any gateway may have been lost for a moment. The answers may be lost
                // as well, and the next check asks again.
                Err(Errno::ENOBUFS) => reports_lost(entries, now),
                Err(_) => return,
            }
        }
    }

    /// Whether a request by this gateway that left at `first` may be lost, because the gateway's link address is or was
    /// unknown.
    pub(super) fn may_have_lost(&self, gateway: &Gateway, first: Instant) -> bool {
        self.entries.get(gateway).is_some_and(|entry| {
            entry.is_unresolved || entry.failed.is_some_and(|failed| failed >= first)
        })
    }

    /// When requests by this gateway were last known to be lost: `now`, if its link address was known and is not now.
    pub(super) fn last_lost(&self, gateway: &Gateway, now: Instant) -> Option<Instant> {
        let entry = self.entries.get(gateway)?;
        if entry.is_unresolved && (entry.was_valid || entry.failed.is_some()) {
            Some(now)
        } else {
            entry.failed
        }
    }
}

/// Some reports of the kernel did not fit.
fn reports_lost(entries: &mut HashMap<Gateway, Entry>, now: Instant) {
    for entry in entries.values_mut().filter(|entry| entry.was_valid) {
        entry.failed = Some(now);
    }
}

/// Takes in reports of entries; of other entries than those of gateways nothing is kept.
fn take_reports(
    messages: Messages<'_>,
    entries: &mut HashMap<Gateway, Entry>,
    by_index: &HashMap<(u32, IpAddr), Gateway>,
    now: Instant,
) {
    for (kind, payload) in messages {
        let is_removed = kind == libc::RTM_DELNEIGH;
        if (is_removed || kind == libc::RTM_NEWNEIGH)
            && let Some((index, address, state)) = read_entry(payload)
            && let Some(gateway) = by_index.get(&(index, address))
        {
            let entry = entries.entry(gateway.clone()).or_default();
            if is_removed {
                entry.remove(now);
            } else {
                entry.take(state, now);
            }
        }
    }
}

/// The interface, the address and the state of an entry.
pub(super) fn read_entry(payload: &[u8]) -> Option<(u32, IpAddr, u16)> {
    let header = NeighbourHeader::parse(payload).ok()?;
    let attributes = payload.get(header.buffer_len()..)?;
    let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
    let destination = attributes.find(|attribute| attribute.kind() == libc::NDA_DST)?;
    let value = destination.value();
    let address = match header.family {
        NetlinkFamily::Inet => IpAddr::from(*value.first_chunk::<4>()?),
        NetlinkFamily::Inet6 => IpAddr::from(*value.first_chunk::<16>()?),
        _ => return None,
    };
    Some((header.ifindex, address, header.state.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_gateway_is_lost_while_it_is_unresolved_and_until_it_is_known_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let gateway = ("eth0".to_owned(), IpAddr::from([192, 0, 2, 1]));
        let mut gateways = Gateways {
            socket: None,
            entries: HashMap::new(),
        };
        let change = |gateways: &mut Gateways, state, now| {
            let entry = gateways.entries.entry(gateway.clone()).or_default();
            entry.take(state, now);
        };
        let lost = |gateways: &Gateways, first| gateways.may_have_lost(&gateway, at(first));
        assert!(!lost(&gateways, 0));
        // The first resolution loses nothing if it succeeds.
        change(&mut gateways, libc::NUD_INCOMPLETE, at(1));
        assert!(lost(&gateways, 1));
        assert_eq!(gateways.last_lost(&gateway, at(1)), None);
        change(&mut gateways, libc::NUD_REACHABLE, at(2));
        assert!(!lost(&gateways, 1));
        change(&mut gateways, libc::NUD_STALE, at(3));
        assert!(!lost(&gateways, 0));
        // It fails, and is found again.
        change(&mut gateways, libc::NUD_FAILED, at(4));
        assert!(lost(&gateways, 9));
        assert_eq!(gateways.last_lost(&gateway, at(5)), Some(at(5)));
        change(&mut gateways, libc::NUD_REACHABLE, at(6));
        assert!(lost(&gateways, 6) && !lost(&gateways, 7));
        assert_eq!(gateways.last_lost(&gateway, at(9)), Some(at(6)));
        gateways.entries.get_mut(&gateway).unwrap().remove(at(8));
        assert!(lost(&gateways, 8) && !lost(&gateways, 9));
        // Some of the kernel's reports did not fit.
        reports_lost(&mut gateways.entries, at(20));
        assert!(lost(&gateways, 20) && !lost(&gateways, 21));
    }

    #[test]
    fn an_entry_is_read_with_interface_address_and_state() {
        for address in ["192.0.2.7", "fe80::7"] {
            let address: IpAddr = address.parse().unwrap();
            let bytes = question(address, 41);
            let (_, payload) = Messages::new(&bytes).next().unwrap();
            assert_eq!(read_entry(payload), Some((41, address, libc::NUD_NONE)));
            assert_eq!(read_entry(&payload[..14]), None);
        }
    }
}
