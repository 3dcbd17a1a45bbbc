//! Received messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    super::message::{EchoFormat, Echoed, HEADER},
    cursor::{Cursor, masked},
};

const IDENTIFIER: u16 = 77;

/// Its lower 16 bits are the sequence number.
const REQUEST_ID: u32 = 0x0001_0005;

/// Bytes of a cookie.
const COOKIE: usize = 8;

/// What a received message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyKind {
    /// The answer to the request.
    Answer,
    /// A reply with the cookie of the request and another payload.
    Cookie,
    /// A reply without the cookie.
    Changed,
    /// The request, as an ICMP error quotes it.
    Quote,
    /// Neither.
    Other,
}

/// The first byte chooses the socket: IPv6, raw, and whether the checksum is made right; the second one the size of the
/// request's payload, and the third one how much is cut off. The others are a mask for the genuine message.
///
/// A message counts only with the type, the identifier, the checksum and the payload that it must have, and its payload is
/// part of its bytes.
///
/// # Panics
/// When that does not hold.
#[must_use]
pub fn check_reply(bytes: &[u8]) -> ReplyKind {
    let received = Received::new(bytes);
    if let Some(quoted) = received.echo.quoted(&received.message) {
        return received.check_quote(quoted);
    }
    let read = received.echo.reply(&received.message);
    let icmp = received.reply_begins();
    assert_eq!(read.is_some(), icmp.is_some(), "{:x?}", received.message);
    match read.zip(icmp) {
        Some((reply, icmp)) => received.check_reply(reply, icmp),
        None => ReplyKind::Other,
    }
}

/// A message that came to a socket, and the request that it may answer.
struct Received {
    echo: EchoFormat,
    v6: bool,
    has_ip_header: bool,
    to: IpAddr,
    size: usize,
    /// That of the request.
    payload: Vec<u8>,
    message: Vec<u8>,
}

impl Received {
    fn new(bytes: &[u8]) -> Self {
        let mut bytes = Cursor::new(bytes);
        let [flags, size, cut] = bytes.take();
        let (v6, raw) = (flags & 1 != 0, flags & 2 != 0);
        let (is_checked, is_request) = (flags & 4 != 0, flags & 8 != 0);
        let size = usize::from(size);
        let to: IpAddr = if v6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        let echo = EchoFormat::new(v6, raw, IDENTIFIER);
        let mut genuine = Vec::new();
        echo.write(&mut genuine, REQUEST_ID, to, size);
        let payload = genuine[HEADER..].to_vec();
        if !is_request {
            genuine[0] = reply_type(v6);
        }
        let has_ip_header = raw && !v6;
        if has_ip_header {
            genuine = with_ip_header(&genuine);
        }
        let mut message = masked(genuine, bytes.rest());
        message.truncate(message.len().saturating_sub(cut.into()));
        if is_checked && let Some(icmp) = icmp_of(&message, has_ip_header) {
            let checksum = checksum(&message[icmp..]).to_be_bytes();
            if let Some(field) = message.get_mut(icmp + 2..icmp + 4) {
                field.copy_from_slice(&checksum);
            }
        }
        Self {
            echo,
            v6,
            has_ip_header,
            to,
            size,
            payload,
            message,
        }
    }

    /// The message is read as a request that an error quotes.
    fn check_quote(&self, quoted: Echoed<'_>) -> ReplyKind {
        assert_is_echo(&self.message, 0, quoted, if self.v6 { 128 } else { 8 });
        let may_quote = self
            .echo
            .may_quote(quoted.payload, REQUEST_ID, self.to, self.size);
        let compared = self.size.min(COOKIE);
        let head = quoted.payload.get(..compared);
        assert_eq!(
            may_quote,
            head.is_none_or(|head| head == &self.payload[..compared])
        );
        ReplyKind::Quote
    }

    /// The message is read as a reply, and its ICMP header is at `icmp`.
    fn check_reply(&self, reply: Echoed<'_>, icmp: usize) -> ReplyKind {
        let (echo, to, size) = (&self.echo, self.to, self.size);
        assert_is_echo(&self.message, icmp, reply, reply_type(self.v6));
        let compared = reply.payload.len().min(size);
        let is_same = |bytes: usize| reply.payload[..bytes] == self.payload[..bytes];
        let is_answer = echo.is_answer(reply.payload, REQUEST_ID, to, size);
        assert_eq!(is_answer, is_same(compared) && compared >= size.min(COOKIE));
        let has_cookie = echo.has_cookie(reply.payload, REQUEST_ID, to, size);
        assert_eq!(has_cookie, compared >= COOKIE && is_same(COOKIE));
        match (is_answer, has_cookie) {
            (true, _) => ReplyKind::Answer,
            (false, true) => ReplyKind::Cookie,
            (false, false) => ReplyKind::Changed,
        }
    }

    /// Where the ICMP header is, if the message is a reply with the identifier (RFC 792, RFC 4443 section 4.2).
    fn reply_begins(&self) -> Option<usize> {
        let icmp = icmp_of(&self.message, self.has_ip_header)?;
        let bytes = &self.message[icmp..];
        if self.has_ip_header {
            let total = usize::from(u16::from_be_bytes([self.message[2], self.message[3]]));
            let is_right = bytes.len() >= 4 && bytes[2..4] == checksum(bytes).to_be_bytes();
            if total <= self.message.len() && !is_right {
                return None;
            }
        }
        let is_reply = bytes.len() >= HEADER
            && bytes[0] == reply_type(self.v6)
            && bytes[4..6] == IDENTIFIER.to_be_bytes();
        is_reply.then_some(icmp)
    }
}

/// The type of an echo reply.
fn reply_type(v6: bool) -> u8 {
    if v6 { 129 } else { 0 }
}

/// Identifier, sequence number and payload of an echo are those of the bytes from `icmp` on.
fn assert_is_echo(message: &[u8], icmp: usize, echo: Echoed<'_>, icmp_type: u8) {
    let icmp = &message[icmp..];
    assert_eq!(icmp[0], icmp_type);
    assert_eq!(icmp[4..6], IDENTIFIER.to_be_bytes());
    assert_eq!(icmp[6..8], echo.sequence.to_be_bytes());
    assert_eq!(&icmp[HEADER..], echo.payload);
}

/// Where the ICMP message begins (RFC 791, section 3.1). `None` without a whole header.
fn icmp_of(message: &[u8], has_ip_header: bool) -> Option<usize> {
    if !has_ip_header {
        return Some(0);
    }
    let header = message.get(..20)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    (length <= message.len()).then_some(length)
}

/// The checksum of an ICMP message (RFC 1071), whatever its field holds.
fn checksum(icmp: &[u8]) -> u16 {
    let words = icmp.chunks(2).enumerate();
    let mut sum: u64 = words
        .filter(|(index, _)| *index != 1)
        .map(|(_, word)| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The message as a raw socket of IPv4 receives it.
fn with_ip_header(icmp: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((icmp.len() + 20) as u16).to_be_bytes());
    [&header[..], icmp].concat()
}
