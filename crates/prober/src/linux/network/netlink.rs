//! A socket for the kernel's reports of its network configuration, and the messages on it. Nothing here waits.
//!
//! Source: Linux `netlink(7)`, `rtnetlink(7)`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
};

/// Bytes that one call receives at most. The kernel puts as many messages into them as fit.
const MAX_RECEIVE_BYTES: usize = 16 << 10;

/// Messages begin at multiples of this (`NLMSG_ALIGN`).
const ALIGNMENT: usize = 4;

/// Memory for reports that wait, in bytes: some thousand changes of links.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A netlink socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct NetlinkSocket(OwnedFd);

impl NetlinkSocket {
    /// Receives the reports of these groups from now on (`RTMGRP_...`); 0 for answers only.
    ///
    /// # Errors
    /// When the kernel does not permit such a socket.
    pub(super) fn open(groups: i32) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self(socket))
    }

    /// Makes room for many reports: root may have as much as it asks for, others up to `net.core.rmem_max`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn with_large_buffer(self) -> io::Result<Self> {
        setsockopt(&self.0, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&self.0, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
        Ok(self)
    }

    /// Asks the kernel. The answer, or its first part, can be received when this returns.
    ///
    /// # Errors
    /// The errno of `send(2)`.
    pub(super) fn ask(&self, question: &[u8]) -> Result<(), Errno> {
        send(self.0.as_raw_fd(), question, MsgFlags::empty()).map(drop)
    }

    /// Hands the messages of one receipt to `take`.
    ///
    /// # Errors
    /// The errno of `recv(2)`: EAGAIN when nothing is left, ENOBUFS once after reports were lost.
    pub(super) fn receive(&self, take: impl FnOnce(Messages<'_>)) -> Result<(), Errno> {
        let mut bytes = [0; MAX_RECEIVE_BYTES];
        let length = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        take(Messages::new(&bytes[..length]));
        Ok(())
    }
}

/// The bytes of a question, with more flags (`NLM_F_...`).
pub(super) fn question(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    bytes(message)
}

fn bytes(mut message: NetlinkMessage<RouteNetlinkMessage>) -> Vec<u8> {
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The messages of one receipt: the type (`RTM_...`, `NLMSG_...`) and the payload of each. Only whole messages are read.
#[derive(Debug)]
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// The messages in the bytes of one receipt.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether something is left that is no whole message.
    pub(super) fn is_cut_short(&self) -> bool {
        !self.0.is_empty()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let next = (message.length() as usize).next_multiple_of(ALIGNMENT);
        self.0 = self.0.get(next..).unwrap_or_default();
        Some((message.message_type(), message.payload()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message as the kernel sends it, up to where the next one begins.
    pub(in super::super) fn report(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut bytes = bytes(NetlinkMessage::from(message));
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}
