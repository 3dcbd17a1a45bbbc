//! Echo requests as bytes, and what comes back. Every request carries a cookie that only its own reply can echo: a hash of
//! its id and its address, keyed with a secret of this process. Pure: no I/O.
//!
//! Source: RFC 792 (ICMP), RFC 4443 (`ICMPv6`), section 4.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

use pnet_packet::{
    icmp::{self, IcmpPacket, IcmpTypes, echo_reply, echo_request},
    icmpv6::{
        Icmpv6Packet, Icmpv6Types, echo_reply as echo_reply_v6, echo_request as echo_request_v6,
    },
    ipv4::Ipv4Packet,
};

/// Bytes of an echo message before its payload.
pub(super) const HEADER: usize = 8;

/// Bytes of the cookie, with which the payload begins. A shorter payload holds as much of it as fits.
const COOKIE: usize = 8;

/// The format of one socket's messages.
#[derive(Debug)]
pub(super) struct EchoFormat {
    v6: bool,
    raw: bool,
    identifier: u16,
    key: RandomState,
}

/// A message that may belong to an echo request: the address and the cookie decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Echoed<'a> {
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
}

impl EchoFormat {
    /// For a raw or a datagram socket, with the identifier of its requests.
    pub(super) fn new(v6: bool, raw: bool, identifier: u16) -> Self {
        Self {
            v6,
            raw,
            identifier,
            key: RandomState::new(),
        }
    }

    /// Length of the longest message that can answer a request with `size` bytes of payload.
    pub(super) fn longest_reply(size: usize) -> usize {
        // An IPv4 raw socket also receives the IP header, with up to 40 bytes of options (RFC 791).
        60 + HEADER + size
    }

    /// Appends an echo request to `to` with `size` bytes of payload. Its id is `request_id`, of which the lower 16 bits
    /// are its sequence number.
    pub(super) fn write(&self, bytes: &mut Vec<u8>, request_id: u32, to: IpAddr, size: usize) {
        let start = bytes.len();
        bytes.resize(start + HEADER, 0);
        let cookie = self.cookie(request_id, to);
        bytes.extend_from_slice(&cookie[..size.min(cookie.len())]);
        bytes.extend((cookie.len()..size).map(filling));
        let message = &mut bytes[start..];
        if self.v6 {
            // The kernel fills in the checksum (RFC 3542, section 3.1).
            if let Some(mut request) = echo_request_v6::MutableEchoRequestPacket::new(message) {
                request.set_icmpv6_type(Icmpv6Types::EchoRequest);
                request.set_identifier(self.identifier);
                request.set_sequence_number(request_id as u16);
            }
        } else {
            if let Some(mut request) = echo_request::MutableEchoRequestPacket::new(message) {
                request.set_icmp_type(IcmpTypes::EchoRequest);
                request.set_identifier(self.identifier);
                request.set_sequence_number(request_id as u16);
            }
            let checksum = IcmpPacket::new(message).map_or(0, |packet| icmp::checksum(&packet));
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// Reads a received message. `None` when it is not an echo reply with this socket's identifier.
    pub(super) fn reply<'a>(&self, bytes: &'a [u8]) -> Option<Echoed<'a>> {
        let message = if self.raw && !self.v6 {
            let ip = Ipv4Packet::new(bytes)?;
            let header = usize::from(ip.get_header_length()) * 4;
            let message = bytes.get(header..)?;
            // A raw socket receives a message before the kernel has checked it. A reply that is longer than the buffer is
            // cut off, and cannot be checked; its cookie can.
            let is_whole = usize::from(ip.get_total_length()) <= bytes.len();
            let packet = IcmpPacket::new(message)?;
            if is_whole && icmp::checksum(&packet) != packet.get_checksum() {
                return None;
            }
            message
        } else {
            bytes
        };
        let (is_reply, identifier, sequence) = if self.v6 {
            let reply = echo_reply_v6::EchoReplyPacket::new(message)?;
            (
                reply.get_icmpv6_type() == Icmpv6Types::EchoReply,
                reply.get_identifier(),
                reply.get_sequence_number(),
            )
        } else {
            let reply = echo_reply::EchoReplyPacket::new(message)?;
            (
                reply.get_icmp_type() == IcmpTypes::EchoReply,
                reply.get_identifier(),
                reply.get_sequence_number(),
            )
        };
        (is_reply && identifier == self.identifier).then(|| Echoed {
            sequence,
            payload: message.get(HEADER..).unwrap_or_default(),
        })
    }

    /// Reads the echo request that an ICMP error quotes, from its ICMP header on. The payload may be cut off. `None` when
    /// it is not a request of this socket.
    pub(super) fn quoted<'a>(&self, bytes: &'a [u8]) -> Option<Echoed<'a>> {
        let (is_request, identifier, sequence) = if self.v6 {
            Icmpv6Packet::new(bytes)?;
            let request = echo_request_v6::EchoRequestPacket::new(bytes)?;
            (
                request.get_icmpv6_type() == Icmpv6Types::EchoRequest,
                request.get_identifier(),
                request.get_sequence_number(),
            )
        } else {
            let request = echo_request::EchoRequestPacket::new(bytes)?;
            (
                request.get_icmp_type() == IcmpTypes::EchoRequest,
                request.get_identifier(),
                request.get_sequence_number(),
            )
        };
        (is_request && identifier == self.identifier).then(|| Echoed {
            sequence,
            payload: bytes.get(HEADER..).unwrap_or_default(),
        })
    }

    /// Whether `payload` answers request `request_id` to `to`, which had `size` bytes of payload. Some hosts return only
    /// the first bytes, and some add more. So the bytes that are there are compared, and the cookie must be whole.
    pub(super) fn is_answer(
        &self,
        payload: &[u8],
        request_id: u32,
        to: IpAddr,
        size: usize,
    ) -> bool {
        let returned = &payload[..payload.len().min(size)];
        returned.len() >= size.min(COOKIE) && self.starts_with_payload(returned, request_id, to)
    }

    /// Whether `payload` proves that its sender has seen request `request_id` to `to`: it begins with the cookie. Nothing
    /// proves that for a request whose payload is shorter than the cookie.
    pub(super) fn has_cookie(
        &self,
        payload: &[u8],
        request_id: u32,
        to: IpAddr,
        size: usize,
    ) -> bool {
        size >= COOKIE && payload.starts_with(&self.cookie(request_id, to))
    }

    /// Whether an error may quote request `request_id` to `to`. Routers quote eight bytes of the request or more (RFC 792,
    /// RFC 1812 section 4.3.2.3), and some pad the quote. So only the cookie is compared, if all of it is quoted.
    pub(super) fn may_quote(
        &self,
        payload: &[u8],
        request_id: u32,
        to: IpAddr,
        size: usize,
    ) -> bool {
        let cookie = self.cookie(request_id, to);
        let whole = cookie.len().min(size);
        payload.len() < whole || payload[..whole] == cookie[..whole]
    }

    fn starts_with_payload(&self, payload: &[u8], request_id: u32, to: IpAddr) -> bool {
        let cookie = self.cookie(request_id, to);
        let (head, rest) = payload.split_at(payload.len().min(cookie.len()));
        head == &cookie[..head.len()]
            && rest
                .iter()
                .enumerate()
                .all(|(index, byte)| *byte == filling(cookie.len() + index))
    }

    fn cookie(&self, request_id: u32, to: IpAddr) -> [u8; COOKIE] {
        self.key.hash_one((request_id, to)).to_ne_bytes()
    }
}

/// The payload byte at `index`, after the cookie.
fn filling(index: usize) -> u8 {
    index as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_reply(mut request: Vec<u8>, v6: bool) -> Vec<u8> {
        request[0] = if v6 { 129 } else { 0 };
        request
    }

    #[test]
    fn a_reply_needs_the_payload_of_its_request_or_a_prefix_with_the_cookie() {
        for v6 in [false, true] {
            let echo = EchoFormat::new(v6, false, 77);
            let to: IpAddr = if v6 {
                "fd00::1".parse().unwrap()
            } else {
                "10.0.0.1".parse().unwrap()
            };
            let other: IpAddr = if v6 {
                "fd00::2".parse().unwrap()
            } else {
                "10.0.0.2".parse().unwrap()
            };
            for size in [0, 1, 7, 8, 9, 56, 1400] {
                let mut bytes = Vec::new();
                echo.write(&mut bytes, 0x0001_0005, to, size);
                assert_eq!(bytes.len(), HEADER + size);
                assert_eq!(echo.reply(&bytes), None, "a request is not a reply");
                let bytes = as_reply(bytes, v6);
                let reply = echo.reply(&bytes).unwrap();
                assert_eq!(reply.sequence, 5);
                let is_answer = |payload: &[u8]| echo.is_answer(payload, 0x0001_0005, to, size);
                assert!(is_answer(reply.payload));
                assert!(is_answer(&[reply.payload, &[0, 0xff]].concat()));
                for length in 0..size {
                    let is_enough = length >= size.min(8);
                    assert_eq!(is_answer(&reply.payload[..length]), is_enough, "{length}");
                }
                let has_cookie = |id, to| echo.has_cookie(reply.payload, id, to, size);
                assert_eq!(has_cookie(0x0001_0005, to), size >= 8);
                if size >= 8 {
                    assert!(!echo.is_answer(reply.payload, 5, to, size));
                    assert!(!echo.is_answer(reply.payload, 0x0001_0005, other, size));
                    assert!(!has_cookie(5, to) && !has_cookie(0x0001_0005, other));
                }
                for flipped in HEADER..bytes.len() {
                    let mut wrong = bytes.clone();
                    wrong[flipped] ^= 0x10;
                    let reply = echo.reply(&wrong).unwrap();
                    assert!(!is_answer(reply.payload));
                }
                assert_eq!(EchoFormat::new(v6, false, 78).reply(&bytes), None);
            }
        }
    }

    #[test]
    fn a_raw_socket_ignores_a_reply_with_a_wrong_checksum() {
        let echo = EchoFormat::new(false, true, 9);
        let mut request = Vec::new();
        echo.write(&mut request, 3, "10.0.0.1".parse().unwrap(), 20);
        let mut reply = vec![0; 20];
        reply[0] = 0x45;
        reply.extend(as_reply(request, false));
        reply[3] = reply.len() as u8;
        assert_eq!(echo.reply(&reply), None);
        // What was cut off has no checksum that could be computed.
        let cut = &reply[..reply.len() - 1];
        assert_eq!(echo.reply(cut).unwrap().sequence, 3);
        let checksum = icmp::checksum(&IcmpPacket::new(&reply[20..]).unwrap());
        reply[22..24].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(echo.reply(&reply).unwrap().sequence, 3);
    }

    #[test]
    fn a_short_quote_is_compared_as_far_as_it_goes() {
        let echo = EchoFormat::new(false, true, 9);
        let to = "10.0.0.1".parse().unwrap();
        let mut request = Vec::new();
        echo.write(&mut request, 3, to, 56);
        let short = echo.quoted(&request[..HEADER]).unwrap();
        assert!(echo.may_quote(short.payload, 3, to, 56));
        let long = echo.quoted(&request).unwrap();
        assert!(echo.may_quote(long.payload, 3, to, 56));
        assert!(!echo.may_quote(long.payload, 4, to, 56));
        assert_eq!(echo.quoted(&request[..7]), None);
    }
}
