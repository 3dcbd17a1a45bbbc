//! What the kernel tells of this box's links and addresses as they change, so that a link which is down for a moment
//! only is noticed as well. Nothing here waits.
//!
//! Source: Linux `netlink(7)`, `rtnetlink(7)`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

/// Room for one message; what tells of one link takes about 2 kB.
const MESSAGE: usize = 16 << 10;

/// Bytes of a message's own header (`struct nlmsghdr`), of a link's (`struct ifinfomsg`) and of an attribute's
/// (`struct rtattr`).
const HEADER: usize = 16;
const LINK: usize = 16;
const ATTRIBUTE: usize = 4;

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Something has.
    pub(super) any: bool,
    /// These links do not run, or did not for a moment.
    pub(super) ceased: Vec<String>,
    /// More has changed than the kernel had room to tell.
    pub(super) untold: bool,
}

/// The kernel's news of links.
#[derive(Debug)]
pub(super) struct Links(OwnedFd);

impl Links {
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

    /// What has changed since the last time.
    pub(super) fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        let mut bytes = [0; MESSAGE];
        loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(length) => changes.take(&bytes[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return changes,
                // ENOBUFS, which is told once, or something that is no news at all.
                Err(error) => {
                    changes.any = true;
                    changes.untold = true;
                    if error != Errno::ENOBUFS {
                        return changes;
                    }
                }
            }
        }
    }
}

impl Changes {
    /// Reads what one call has received: one message or several.
    fn take(&mut self, mut bytes: &[u8]) {
        self.any = true;
        while let Some((length, kind)) = lengths(bytes, u32_at(bytes, 0), HEADER) {
            let (message, rest) = bytes.split_at(length);
            if [libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&kind) {
                self.take_link(&message[HEADER..]);
            }
            // Messages begin at multiples of four (NLMSG_ALIGN).
            bytes = rest
                .get(length.next_multiple_of(4) - length..)
                .unwrap_or_default();
        }
        // A message that is not all there.
        self.untold |= !bytes.is_empty();
    }

    fn take_link(&mut self, link: &[u8]) {
        let runs = u32_at(link, 8).is_none_or(|flags| flags & libc::IFF_RUNNING as u32 != 0);
        let mut attributes = link.get(LINK..).unwrap_or_default();
        while let Some(length) = u16_at(attributes, 0).map(usize::from) {
            let (Some(value), Some(kind)) =
                (attributes.get(ATTRIBUTE..length), u16_at(attributes, 2))
            else {
                return;
            };
            if kind == libc::IFLA_IFNAME && !runs {
                let name = value.strip_suffix(&[0]).unwrap_or(value);
                self.ceased.push(String::from_utf8_lossy(name).into_owned());
                return;
            }
            attributes = attributes
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }
}

/// The length of the message that begins here and its kind, if all of it is there.
fn lengths(bytes: &[u8], length: Option<u32>, least: usize) -> Option<(usize, u16)> {
    let length = length? as usize;
    let is_whole = (least..=bytes.len()).contains(&length);
    is_whole.then_some(length).zip(u16_at(bytes, 4))
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

    fn link(kind: u16, flags: u32, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + LINK];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[HEADER + 8..HEADER + 12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in [
            (13_u16, vec![7]),
            (libc::IFLA_IFNAME, [name.as_bytes(), &[0]].concat()),
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

    fn changes(bytes: &[u8]) -> Vec<String> {
        let mut changes = Changes::default();
        changes.take(bytes);
        assert!(changes.any);
        changes.ceased
    }

    #[test]
    fn links_that_do_not_run_are_told_by_name() {
        let running = libc::IFF_RUNNING as u32;
        let news = [
            link(libc::RTM_NEWLINK, 1, "eth0"),
            link(libc::RTM_NEWLINK, running, "eth1"),
            link(libc::RTM_DELLINK, 0, "veth17a"),
            link(20, 0, "an-address"),
        ];
        assert_eq!(changes(&news.concat()), ["eth0", "veth17a"]);
    }

    #[test]
    fn no_message_is_read_past_its_end() {
        let whole = link(libc::RTM_NEWLINK, 0, "eth0");
        for length in 0..whole.len() {
            assert!(changes(&whole[..length]).is_empty(), "{length}");
        }
        let mut endless = whole.clone();
        endless[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(changes(&endless).is_empty());
        let mut attribute = whole;
        attribute[HEADER + LINK..HEADER + LINK + 2].copy_from_slice(&0_u16.to_ne_bytes());
        assert!(changes(&attribute).is_empty());
    }
}
