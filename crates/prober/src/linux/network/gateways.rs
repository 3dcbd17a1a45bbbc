//! The gateways' entries in the kernel's neighbour table: whether it knows their link addresses. A request to a gateway
//! whose link address is unknown waits in a short queue, and is thrown away if that is full or the gateway does not answer.
//! Invariant: a loss of a known link address is noticed even if it is known again before the next check. Nothing here waits.
//!
//! Source: Linux `rtnetlink(7)` (`RTM_GETNEIGH`), `linux/neighbour.h`.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

use netlink_packet_core::{Emitable, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NlasIterator};
use netlink_packet_route::{
    AddressFamily as NetlinkFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourHeader, NeighbourMessage},
};
use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
};

/// Bytes that one call receives at most.
const MAX_RECEIVE_BYTES: usize = 16 << 10;

/// Memory for changes that wait, in bytes: a sweep of neighbours makes many. Root gets it, others up to `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Messages begin at multiples of this (`NLMSG_ALIGN`).
const ALIGNMENT: usize = 4;

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
    socket: Option<OwnedFd>,
    entries: HashMap<Gateway, Entry>,
}

impl Gateways {
    /// Receives changes from now on, in the network namespace of the calling thread.
    pub(super) fn watch() -> Self {
        let socket = listen().inspect_err(
            |error| tracing::warn!(%error, "gateways that do not answer ARP are not detected"),
        );
        Self {
            socket: socket.ok(),
            entries: HashMap::new(),
        }
    }

    /// Reads what has changed, and the state of each of `gateways` now.
    pub(super) fn check(&mut self, gateways: impl Iterator<Item = Gateway>, now: Instant) {
        let Some(socket) = self.socket.as_ref().map(AsRawFd::as_raw_fd) else {
            return;
        };
        let mut by_index = HashMap::new();
        for gateway in gateways {
            let Ok(index) = if_nametoindex(gateway.0.as_str()) else {
                continue;
            };
            self.entries.entry(gateway.clone()).or_default();
            // The kernel answers before this call returns. If it fails, the reports of changes are still read.
            let asked = send(socket, &question(index, gateway.1), MsgFlags::empty());
            if let Err(error) = asked {
                tracing::debug!(%error, "cannot ask for the state of a gateway");
            }
            by_index.insert((index, gateway.1), gateway);
        }
        let mut bytes = [0; MAX_RECEIVE_BYTES];
        loop {
            match recv(socket, &mut bytes, MsgFlags::empty()) {
                Ok(length) => self.read_messages(&bytes[..length], &by_index, now),
                Err(Errno::EINTR) => {}
                // Returned once when reports were lost: any gateway may have been lost for a moment. The answers may be lost
                // as well, and the next check asks again.
                Err(Errno::ENOBUFS) => self.reports_lost(now),
                Err(_) => return,
            }
        }
    }

    fn reports_lost(&mut self, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.was_valid) {
            entry.failed = Some(now);
        }
    }

    fn read_messages(
        &mut self,
        mut bytes: &[u8],
        by_index: &HashMap<(u32, IpAddr), Gateway>,
        now: Instant,
    ) {
        while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
            let is_removed = message.message_type() == libc::RTM_DELNEIGH;
            if (is_removed || message.message_type() == libc::RTM_NEWNEIGH)
                && let Some((index, address, state)) = read_entry(message.payload())
                && let Some(gateway) = by_index.get(&(index, address))
            {
                let entry = self.entries.entry(gateway.clone()).or_default();
                if is_removed {
                    entry.remove(now);
                } else {
                    entry.take(state, now);
                }
            }
            let next = (message.length() as usize).next_multiple_of(ALIGNMENT);
            bytes = bytes.get(next..).unwrap_or_default();
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

fn listen() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
    let groups = libc::RTMGRP_NEIGH as u32;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// A request for one entry. Kernels before Linux 5.0 refuse it, and report changes only.
fn question(index: u32, address: IpAddr) -> Vec<u8> {
    let mut entry = NeighbourMessage::default();
    entry.header.ifindex = index;
    entry.header.family = match address {
        IpAddr::V4(_) => NetlinkFamily::Inet,
        IpAddr::V6(_) => NetlinkFamily::Inet6,
    };
    entry.attributes = vec![NeighbourAttribute::Destination(address.into())];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(entry));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The interface, the address and the state of an entry.
fn read_entry(payload: &[u8]) -> Option<(u32, IpAddr, u16)> {
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
        gateways.reports_lost(at(20));
        assert!(lost(&gateways, 20) && !lost(&gateways, 21));
    }

    #[test]
    fn an_entry_is_read_with_interface_address_and_state() {
        for address in ["192.0.2.7", "fe80::7"] {
            let address: IpAddr = address.parse().unwrap();
            let bytes = question(41, address);
            let message = NetlinkBuffer::new_checked(&bytes[..]).unwrap();
            let read = read_entry(message.payload());
            assert_eq!(read, Some((41, address, libc::NUD_NONE)));
            assert_eq!(read_entry(&message.payload()[..14]), None);
        }
    }
}
