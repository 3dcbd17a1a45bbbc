//! Which addresses a host can have: the producer applies the rule to what the user writes, a worker to what a name
//! resolves to. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that no host has, from the first to the last: unspecified, multicast and limited broadcast (RFC 1122,
/// section 3.2.1.3; RFC 5771, section 3; RFC 4291, sections 2.5.2 and 2.7).
pub const NO_HOST_ADDRESSES: [(IpAddr, IpAddr); 5] = [
    (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    ),
    (
        IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)),
        IpAddr::V4(Ipv4Addr::new(239, 255, 255, 255)),
    ),
    (
        IpAddr::V4(Ipv4Addr::BROADCAST),
        IpAddr::V4(Ipv4Addr::BROADCAST),
    ),
    (
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
        IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
    ),
];

/// Whether a host can have an address. An IPv4-mapped address (RFC 4291, section 2.5.5.2) counts as its IPv4 address.
#[must_use]
pub fn is_host_address(address: IpAddr) -> bool {
    let address = address.to_canonical();
    // An order between families exists as well: all of IPv4 comes before IPv6, so no range reaches into the other one.
    NO_HOST_ADDRESSES
        .iter()
        .all(|(first, last)| !(*first..=*last).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_has_an_unspecified_multicast_or_broadcast_address() {
        for text in [
            "0.0.0.0",
            "224.0.0.0",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "ff00::",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
        ] {
            assert!(!is_host_address(text.parse().unwrap()), "{text}");
        }
        for text in [
            "0.0.0.1",
            "127.0.0.1",
            "223.255.255.255",
            "240.0.0.0",
            "255.255.255.254",
            "::1",
            "fe80::1",
            "feff::",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_host_address(text.parse().unwrap()), "{text}");
        }
    }
}
