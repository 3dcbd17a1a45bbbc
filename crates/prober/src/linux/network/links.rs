//! The kernel's reports of links and addresses: the state of every link when it is asked, and what has changed in between.
//! A link that lost its carrier only for a moment is recognised by its counter of carrier losses. Nothing here waits.
//!
//! Source: Linux `netlink(7)`, `rtnetlink(7)`, `linux/if_link.h`.

use std::{ffi::CStr, io};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NlasIterator};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressHeader,
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkMessage},
};
use nix::{errno::Errno, libc};

use super::{
    interface::Interface,
    netlink::{Messages, NetlinkSocket, question},
};

/// A link, as a message describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    flags: LinkFlags,
    carrier_down_count: Option<u32>,
}

impl Link {
    /// Its state.
    pub(super) fn state(&self) -> Interface {
        Interface {
            flags: self.flags,
            carrier_down_count: self.carrier_down_count,
        }
    }
}

/// What the kernel has reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LinkEvents {
    /// States of links; of each link the newest one comes last.
    pub(super) links: Vec<Link>,
    /// Links that no longer exist.
    pub(super) removed: Vec<String>,
    /// Indices of links that lost an address.
    pub(super) lost_address: Vec<u32>,
    /// Indices of links that got an address, or for which the lifetime of one has changed.
    pub(super) got_address: Vec<u32>,
    /// Addresses have been added or removed.
    pub(super) addresses_changed: bool,
    /// Reports were lost: any link may have changed.
    pub(super) overrun: bool,
}

/// Receives the kernel's reports.
#[derive(Debug)]
pub(super) struct LinkMonitor(NetlinkSocket);

impl LinkMonitor {
    /// Receives from now on, in the network namespace of the calling thread.
    pub(super) fn listen() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let socket = NetlinkSocket::open(groups)?;
        Ok(Self(socket.with_large_buffer()?))
    }

    /// What has changed since the last call, and the state of every link now.
    pub(super) fn read(&self) -> LinkEvents {
        let mut events = LinkEvents::default();
        // If it fails, the reports of changes are still read.
        let mut asked = self.0.ask(&every_link());
        loop {
            match asked.and_then(|()| self.0.receive(|messages| events.take(messages))) {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return events,
                // ENOBUFS is returned once when reports were lost; the rest can still be read.
                Err(error) => {
                    events.overrun = true;
                    if error != Errno::ENOBUFS {
                        return events;
                    }
                }
            }
            asked = Ok(());
        }
    }
}

/// A request for the state of every link, without its packet counters.
fn every_link() -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    question(RouteNetlinkMessage::GetLink(link), NLM_F_DUMP)
}

impl LinkEvents {
    /// Reads what one call has received: one message or several. Only the needed attributes are decoded, so that an
    /// attribute of a newer kernel makes no message unreadable.
    pub(super) fn take(&mut self, mut messages: Messages<'_>) {
        for (kind, payload) in &mut messages {
            match kind {
                libc::RTM_NEWLINK => self.links.extend(read_link(payload)),
                libc::RTM_DELLINK => {
                    let link = read_link(payload);
                    self.removed.extend(link.map(|link| link.name));
                }
                libc::RTM_NEWADDR => {
                    self.addresses_changed = true;
                    self.got_address.extend(link_of_address(payload));
                }
                libc::RTM_DELADDR => {
                    self.addresses_changed = true;
                    self.lost_address.extend(link_of_address(payload));
                }
                _ => {}
            }
        }
        self.overrun |= messages.is_cut_short();
    }
}

/// The index of the link that an address belongs to.
fn link_of_address(payload: &[u8]) -> Option<u32> {
    let address = AddressHeader::parse(payload).ok()?;
    Some(address.index)
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    let (mut name, mut carrier_down_count) = (None, None);
    let attributes = payload.get(header.buffer_len()..)?;
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        match attribute.kind() {
            libc::IFLA_IFNAME => {
                let text = CStr::from_bytes_until_nul(attribute.value()).ok();
                name = text.map(|text| text.to_string_lossy().into_owned());
            }
            libc::IFLA_CARRIER_DOWN_COUNT => {
                let count = attribute.value().first_chunk();
                carrier_down_count = count.map(|bytes| u32::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    Some(Link {
        index: header.index,
        name: name?,
        flags: header.flags,
        carrier_down_count,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressMessage;

    use super::{super::netlink::tests::report as bytes, *};

    fn link_message(index: u32, name: &str, flags: LinkFlags, downs: u32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        link.attributes = vec![
            LinkAttribute::Mtu(1500),
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::CarrierDownCount(downs),
        ];
        link
    }

    fn events(bytes: &[u8]) -> LinkEvents {
        let mut events = LinkEvents::default();
        events.take(Messages::new(bytes));
        events
    }

    #[test]
    fn links_are_read_with_flags_and_carrier_losses() {
        let mut address = AddressMessage::default();
        address.header.index = 49;
        let up = LinkFlags::Up;
        let running = up | LinkFlags::Running;
        let read = events(
            &[
                bytes(RouteNetlinkMessage::NewLink(link_message(
                    40, "eth0", up, 0,
                ))),
                bytes(RouteNetlinkMessage::NewAddress(AddressMessage::default())),
                bytes(RouteNetlinkMessage::NewLink(link_message(
                    43, "eth1", running, 3,
                ))),
                bytes(RouteNetlinkMessage::DelLink(link_message(
                    41, "veth17a", up, 1,
                ))),
                bytes(RouteNetlinkMessage::DelAddress(address)),
            ]
            .concat(),
        );
        let link = |index, name: &str, flags, downs| Link {
            index,
            name: name.to_owned(),
            flags,
            carrier_down_count: Some(downs),
        };
        assert_eq!(
            read.links,
            [link(40, "eth0", up, 0), link(43, "eth1", running, 3)]
        );
        assert_eq!(read.removed, ["veth17a"]);
        assert_eq!((read.lost_address, read.got_address), (vec![49], vec![0]));
        assert!(read.addresses_changed && !read.overrun);
    }

    #[test]
    fn no_message_is_read_past_its_end() {
        let link = link_message(40, "eth0", LinkFlags::Up, 0);
        let whole = bytes(RouteNetlinkMessage::NewLink(link));
        for length in 1..whole.len() {
            let read = events(&whole[..length]);
            assert!(read.links.is_empty() && read.overrun, "{length}");
        }
        let mut without_length = whole.clone();
        without_length[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(events(&without_length).links.is_empty());
        // The length of the first attribute, after the headers of message and link.
        let mut attribute = whole;
        attribute[32..34].copy_from_slice(&0_u16.to_ne_bytes());
        assert!(events(&attribute).links.is_empty());
    }

    #[test]
    fn this_machine_has_a_loopback_link_in_each_answer() {
        let monitor = LinkMonitor::listen().unwrap();
        for _ in 0..2 {
            let read = monitor.read();
            assert!(read.links.iter().any(|link| link.name == "lo"), "{read:?}");
        }
    }
}
