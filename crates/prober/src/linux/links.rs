//! What the kernel tells of this box's links and addresses: their state when it is asked, and what changes in between.
//! A link without carrier is events at once, and one that lost it for a moment by its counter of such losses. Nothing
//! here waits.
//!
//! Source: Linux `netlink(7)`, `rtnetlink(7)`, `linux/if_link.h`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    },
};

/// Room for what one call receives. The kernel fills it with as many messages as fit.
const MESSAGES: usize = 16 << 10;

/// Bytes of a message's own header (`struct nlmsghdr`), of a link's (`struct ifinfomsg`) and of an attribute's
/// (`struct rtattr`). An address's (`struct ifaddrmsg`) has its link's index at the same place as a link's own.
const HEADER: usize = 16;
const LINK: usize = 16;
const INDEX: usize = 4;
const ATTRIBUTE: usize = 4;

/// A link that a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// As `netdevice(7)` has them.
    pub(super) flags: u32,
    /// How often it has lost its carrier, where the kernel tells (Linux 4.16).
    pub(super) carrier_down_count: Option<u32>,
}

/// What was events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LinkEvents {
    /// Links as they were, the newest state of each last.
    pub(super) links: Vec<Link>,
    /// Links that no longer exist.
    pub(super) removed: Vec<String>,
    /// Indices of links that lost an address.
    pub(super) lost_address: Vec<u32>,
    /// Addresses have changed.
    pub(super) addresses_changed: bool,
    /// More has changed than the kernel had room to tell.
    pub(super) overrun: bool,
}

/// The kernel's events of links.
#[derive(Debug)]
pub(super) struct LinkMonitor(OwnedFd);

impl LinkMonitor {
    /// Listens from now on, in the network of the calling thread.
    pub(super) fn listen() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self(socket))
    }

    /// What has changed since the last time, and the state of every link now.
    pub(super) fn read(&self) -> LinkEvents {
        let socket = self.0.as_raw_fd();
        let mut events = LinkEvents::default();
        let mut bytes = [0; MESSAGES];
        // The answer is in the socket when the call returns. Without one there is still the events.
        let mut asked = send(socket, &every_link(), MsgFlags::empty());
        loop {
            match asked.and_then(|_| recv(socket, &mut bytes, MsgFlags::empty())) {
                Ok(length) => events.read_messages(&bytes[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return events,
                // ENOBUFS, which is events once, or something that is no events at all.
                Err(error) => {
                    events.overrun = true;
                    if error != Errno::ENOBUFS {
                        return events;
                    }
                }
            }
            asked = Ok(0);
        }
    }
}

/// Asks for the state of every link, without its counters of packets.
fn every_link() -> Vec<u8> {
    let length = HEADER + LINK + ATTRIBUTE + 4;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(libc::RTM_GETLINK.to_ne_bytes());
    bytes.extend((flags as u16).to_ne_bytes());
    // Sequence, port, and a link's header that names none.
    bytes.extend([0; HEADER - 8 + LINK]);
    bytes.extend((ATTRIBUTE as u16 + 4).to_ne_bytes());
    bytes.extend(libc::IFLA_EXT_MASK.to_ne_bytes());
    bytes.extend(libc::RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    bytes
}

impl LinkEvents {
    /// Reads what one call has received: one message or several.
    fn read_messages(&mut self, mut bytes: &[u8]) {
        while let Some((message, kind)) = first_message(bytes) {
            match kind {
                libc::RTM_NEWLINK => self.links.extend(read_link(&message[HEADER..])),
                libc::RTM_DELLINK => {
                    let link = read_link(&message[HEADER..]);
                    self.removed.extend(link.map(|link| link.name));
                }
                libc::RTM_NEWADDR => self.addresses_changed = true,
                libc::RTM_DELADDR => {
                    self.addresses_changed = true;
                    self.lost_address.extend(u32_at(message, HEADER + INDEX));
                }
                _ => {}
            }
            // Messages begin at multiples of four (NLMSG_ALIGN).
            let next = message.len().next_multiple_of(4);
            bytes = bytes.get(next..).unwrap_or_default();
        }
        // A message that is not all there.
        self.overrun |= !bytes.is_empty();
    }
}

/// The message that begins here and its kind, if all of it is there.
fn first_message(bytes: &[u8]) -> Option<(&[u8], u16)> {
    let message = bytes.get(..u32_at(bytes, 0)? as usize)?;
    (message.len() >= HEADER)
        .then_some(message)
        .zip(u16_at(bytes, 4))
}

fn read_link(link: &[u8]) -> Option<Link> {
    let (index, flags) = (u32_at(link, INDEX)?, u32_at(link, 8)?);
    let (mut name, mut carrier_down_count) = (None, None);
    let mut attributes = link.get(LINK..)?;
    while let Some(length) = u16_at(attributes, 0).map(usize::from) {
        let (Some(value), Some(kind)) = (attributes.get(ATTRIBUTE..length), u16_at(attributes, 2))
        else {
            break;
        };
        match kind {
            libc::IFLA_IFNAME => {
                let text = value.strip_suffix(&[0]).unwrap_or(value);
                name = Some(String::from_utf8_lossy(text).into_owned());
            }
            libc::IFLA_CARRIER_DOWN_COUNT => carrier_down_count = u32_at(value, 0),
            _ => {}
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(Link {
        index,
        name: name?,
        flags,
        carrier_down_count,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u32, name: &str, carrier_down_count: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + LINK];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[HEADER + INDEX] = 40 + carrier_down_count as u8;
        bytes[HEADER + 8..HEADER + 12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in [
            (13, vec![7]),
            (libc::IFLA_IFNAME, [name.as_bytes(), &[0]].concat()),
            (
                libc::IFLA_CARRIER_DOWN_COUNT,
                carrier_down_count.to_ne_bytes().to_vec(),
            ),
        ] {
            bytes.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn events(bytes: &[u8]) -> LinkEvents {
        let mut events = LinkEvents::default();
        events.read_messages(bytes);
        events
    }

    #[test]
    fn links_are_told_with_flags_and_losses_of_carrier() {
        let link = |name: &str, flags, carrier_down_count| Link {
            index: 40 + carrier_down_count,
            name: name.to_owned(),
            flags,
            carrier_down_count: Some(carrier_down_count),
        };
        let events = events(
            &[
                message(libc::RTM_NEWLINK, 1, "eth0", 0),
                message(libc::RTM_NEWADDR, 0, "an-address", 0),
                message(libc::RTM_NEWLINK, 65, "eth1", 3),
                message(libc::RTM_DELLINK, 0, "veth17a", 1),
                message(libc::RTM_DELADDR, 0, "an-address", 9),
            ]
            .concat(),
        );
        assert_eq!(events.links, [link("eth0", 1, 0), link("eth1", 65, 3)]);
        assert_eq!(events.removed, ["veth17a"]);
        assert_eq!(events.lost_address, [49]);
        assert!(events.addresses_changed && !events.overrun);
    }

    #[test]
    fn no_message_is_read_past_its_end() {
        let whole = message(libc::RTM_NEWLINK, 0, "eth0", 0);
        for length in 1..whole.len() {
            let events = events(&whole[..length]);
            assert!(events.links.is_empty() && events.overrun, "{length}");
        }
        let mut endless = whole.clone();
        endless[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(events(&endless).links.is_empty());
        let mut attribute = whole;
        attribute[HEADER + LINK..HEADER + LINK + 2].copy_from_slice(&0_u16.to_ne_bytes());
        assert!(events(&attribute).links.is_empty());
    }

    #[test]
    fn this_box_has_a_loopback_link_that_is_told_each_time() {
        let links = LinkMonitor::listen().unwrap();
        for _ in 0..2 {
            let events = links.read();
            assert!(
                events.links.iter().any(|link| link.name == "lo"),
                "{events:?}"
            );
        }
    }
}
