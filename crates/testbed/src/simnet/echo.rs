//! Echo requests and what can be answered to them, as bytes (RFC 792 and RFC 4443 over RFC 791 and RFC 8200). Written
//! by hand, from the RFCs, so that the prober's own encoder is not checked against itself. No I/O.

use std::net::{IpAddr, Ipv6Addr};

use super::{Answer, IpVersion, Payload, Send};

/// The ICMP header of echo messages and errors, in bytes.
const ICMP_HEADER: usize = 8;

/// An error message holds as much of the request as fits (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
const LONGEST_ERROR: [usize; 2] = [576, 1280];

/// An echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EchoRequest {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) payload: Vec<u8>,
}

impl EchoRequest {
    /// Reads a whole IP packet; `None` when it is anything but an echo request.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let (from, to, icmp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 15) * 4;
                (*packet.get(9)? == 1).then_some(())?;
                (
                    <[u8; 4]>::try_from(packet.get(12..16)?).ok()?.into(),
                    <[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into(),
                    packet.get(header..)?,
                )
            }
            6 => {
                (*packet.get(6)? == 58).then_some(())?;
                (
                    <[u8; 16]>::try_from(packet.get(8..24)?).ok()?.into(),
                    <[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into(),
                    packet.get(40..)?,
                )
            }
            _ => return None,
        };
        let [request, _] = echo_types(IpVersion::of(to));
        let (header, payload) = icmp.split_at_checked(ICMP_HEADER)?;
        (header[..2] == [request, 0]).then(|| Self {
            from,
            to,
            identifier: u16::from_be_bytes([header[4], header[5]]),
            sequence: u16::from_be_bytes([header[6], header[7]]),
            payload: payload.to_vec(),
        })
    }

    /// How many hops an IP packet may still take: its TTL, or IPv6's hop limit.
    pub(super) fn hops(packet: &[u8]) -> Option<u8> {
        let field = match packet.first()? >> 4 {
            4 => 8,
            6 => 7,
            _ => return None,
        };
        packet.get(field).copied()
    }

    /// The message that `answer` describes; `None` where the family has no such message.
    pub(super) fn answered(&self, answer: &Answer) -> Option<Vec<u8>> {
        let family = IpVersion::of(self.to);
        let mut seen = self.clone();
        seen.identifier = seen.identifier.wrapping_add(answer.identifier);
        seen.sequence = seen.sequence.wrapping_add(answer.sequence);
        match answer.payload {
            Payload::Whole => {}
            Payload::Flipped => seen.payload.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Payload::FlippedAtEnd => seen.payload.last_mut().into_iter().for_each(|b| *b ^= 1),
            Payload::Shorter => {
                seen.payload.pop();
            }
            Payload::Empty => seen.payload.clear(),
            Payload::First(bytes) => seen.payload.truncate(bytes),
            Payload::Padded(bytes) => seen.payload.resize(seen.payload.len() + bytes, 0),
            Payload::Zeroed => seen.payload.fill(0),
        }
        let source = answer
            .source
            .map_or(self.to, |source| family.address(source));
        if answer.send == Send::Reply {
            let [_, reply] = echo_types(family);
            return Some(seen.message(source, self.from, reply));
        }
        let (icmp_type, code) = answer.send.error(family)?;
        if let Some(host) = answer.quotes {
            seen.to = family.address(host);
        }
        Some(match (answer.send, source) {
            (Send::Redirect, IpAddr::V6(source)) => seen.redirect_v6(source),
            _ => seen.error(source, icmp_type, code),
        })
    }

    /// A redirect of `ICMPv6`, with this request in its option (RFC 4861, sections 4.5 and 4.6.3). The kernel takes it
    /// from a link-local address only, and with a hop limit that no router has touched.
    fn redirect_v6(&self, source: Ipv6Addr) -> Vec<u8> {
        let [request, _] = echo_types(IpVersion::V6);
        let mut quote = self.message(self.from, self.to, request);
        quote.truncate(1024);
        quote.resize(quote.len().next_multiple_of(8), 0);
        let to = v6_octets(self.to);
        let units = (quote.len() / 8 + 1) as u8;
        let icmp = [
            &[137, 0, 0, 0, 0, 0, 0, 0],
            // Where to send instead, and whose packets: the same says that the destination is a neighbour.
            &to[..],
            &to[..],
            &[4, units, 0, 0, 0, 0, 0, 0],
            quote.as_slice(),
        ]
        .concat();
        let interface_identifier = source.to_bits() & u128::from(u64::MAX);
        let link_local = Ipv6Addr::from(0xfe80 << 112 | interface_identifier);
        let mut packet = packet(link_local.into(), self.from, icmp);
        packet[7] = 255;
        packet
    }

    /// An ICMP error that quotes this request.
    fn error(&self, source: IpAddr, icmp_type: u8, code: u8) -> Vec<u8> {
        let [request, _] = echo_types(IpVersion::of(self.to));
        let mut quote = self.message(self.from, self.to, request);
        let [v4, v6] = LONGEST_ERROR;
        quote.truncate(match IpVersion::of(self.to) {
            IpVersion::V4 => v4 - 20 - ICMP_HEADER,
            IpVersion::V6 => v6 - 40 - ICMP_HEADER,
        });
        let icmp = [&[icmp_type, code, 0, 0, 0, 0, 0, 0], quote.as_slice()].concat();
        packet(source, self.from, icmp)
    }

    fn message(&self, from: IpAddr, to: IpAddr, icmp_type: u8) -> Vec<u8> {
        let [i, j] = self.identifier.to_be_bytes();
        let [s, t] = self.sequence.to_be_bytes();
        let icmp = [&[icmp_type, 0, 0, 0, i, j, s, t], self.payload.as_slice()].concat();
        packet(from, to, icmp)
    }
}

/// ICMP types of echo request and reply.
fn echo_types(family: IpVersion) -> [u8; 2] {
    match family {
        IpVersion::V4 => [8, 0],
        IpVersion::V6 => [128, 129],
    }
}

/// An IP packet around an ICMP message, whose checksum is filled in. Both addresses are of one family.
fn packet(from: IpAddr, to: IpAddr, mut icmp: Vec<u8>) -> Vec<u8> {
    let length = icmp.len() as u16;
    let header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, 1, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum);
            let sum = checksum(&[&icmp]);
            icmp[2..4].copy_from_slice(&sum);
            header
        }
        (from, to) => {
            let (from, to) = (v6_octets(from), v6_octets(to));
            let [high, low] = length.to_be_bytes();
            let sum = checksum(&[&from, &to, &[0, 0, high, low, 0, 0, 0, 58], &icmp]);
            icmp[2..4].copy_from_slice(&sum);
            [&[0x60, 0, 0, 0, high, low, 58, 64], &from[..], &to[..]].concat()
        }
    };
    [header, icmp].concat()
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The internet checksum (RFC 1071). All parts but the last are of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(family: IpVersion) -> EchoRequest {
        EchoRequest {
            from: family.address(7),
            to: family.address(1),
            identifier: 0xabcd,
            sequence: 0xffff,
            payload: b"payload".to_vec(),
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for family in IpVersion::ALL {
            let echo = request(family);
            let [icmp_type, reply] = echo_types(family);
            let packet = echo.message(echo.from, echo.to, icmp_type);
            assert_eq!(EchoRequest::read(&packet), Some(echo.clone()));
            assert_eq!(EchoRequest::hops(&packet), Some(64));
            assert_eq!(
                EchoRequest::read(&echo.message(echo.from, echo.to, reply)),
                None
            );
            for cut in 0..packet.len() - echo.payload.len() {
                assert_eq!(EchoRequest::read(&packet[..cut]), None);
            }
        }
    }

    /// RFC 1071, section 3: its example of numbers.
    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        let sum = checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]);
        assert_eq!(sum, (!0xddf2_u16).to_be_bytes());
    }

    #[test]
    fn a_forged_quote_is_about_another_host() {
        let answer = Answer {
            send: Send::TtlExceeded,
            source: Some(9),
            quotes: Some(2),
            ..Answer::default()
        };
        let error = request(IpVersion::V4).answered(&answer).unwrap();
        assert_eq!(error[20..22], [11, 0]);
        let quoted = EchoRequest::read(&error[28..]).unwrap();
        assert_eq!(quoted.to, IpVersion::V4.address(2));
        assert_eq!(quoted.payload, b"payload");
    }
}
