//! What a message that surge-ping has matched to a request means.

use std::net::IpAddr;

use surge_ping::IcmpPacket;

use super::is_own;
use crate::{prober::Destination, schedule::target_state::Unreachable};

/// What a message means for its target.
pub(super) enum Meaning {
    Reply,
    Unreachable(Unreachable),
    NoArp,
    Other,
}

/// The meaning of a message that belongs to a request to `to`.
pub(super) fn meaning(packet: &IcmpPacket, to: Destination) -> Meaning {
    let (icmp_type, code, reporter) = match packet {
        IcmpPacket::V4(packet) => (
            packet.get_icmp_type().0,
            packet.get_icmp_code().0,
            IpAddr::V4(packet.get_source()),
        ),
        IcmpPacket::V6(packet) => (
            packet.get_icmpv6_type().0,
            packet.get_icmpv6_code().0,
            IpAddr::V6(packet.get_source()),
        ),
    };
    let v6 = to.address.is_ipv6();
    match (v6, icmp_type) {
        // Echo reply (RFC 792, RFC 4443).
        (false, 0) | (true, 129) => Meaning::Reply,
        // Host or address unreachable, reported by this machine: it could not resolve the link address.
        (false, 3) | (true, 1) if code == if v6 { 3 } else { 1 } && is_own(reporter) => {
            Meaning::NoArp
        }
        // Unreachable, time exceeded, parameter problem, and for IPv6 packet too big.
        (false, 3 | 11 | 12) | (true, 1..=4) => Meaning::Unreachable(Unreachable {
            icmp_type,
            code,
            reporter,
        }),
        // Source quench and redirect say nothing about the target.
        _ => Meaning::Other,
    }
}
