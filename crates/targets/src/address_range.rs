//! Consecutive addresses of one family. No I/O.
//!
//! Invariant: a range is never empty, and IPv4-mapped addresses (RFC 4291, section 2.5.5.2) are stored as IPv4 where
//! the whole range is mapped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange(pub(crate) Bounds);

/// First and last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bounds {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl AddressRange {
    /// From the first to the last address; `None` when they are of different families or in the wrong order. A range of
    /// IPv4-mapped addresses becomes the IPv4 range.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        if last < first {
            return None;
        }
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some(Self(Bounds::V4(first, last))),
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Some(match (first.to_ipv4_mapped(), last.to_ipv4_mapped()) {
                    (Some(first), Some(last)) => Self(Bounds::V4(first, last)),
                    _ => Self(Bounds::V6(first, last)),
                })
            }
            _ => None,
        }
    }

    /// The hosts of a network: without the network and broadcast address of an IPv4 network up to /30 (RFC 3021 for
    /// /31).
    #[must_use]
    pub fn hosts(network: IpNet) -> Self {
        match network {
            IpNet::V4(network) if network.prefix_len() <= 30 => {
                let first = Ipv4Addr::from_bits(network.network().to_bits() + 1);
                let last = Ipv4Addr::from_bits(network.broadcast().to_bits() - 1);
                Self(Bounds::V4(first, last))
            }
            _ => network.into(),
        }
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        match self.0 {
            Bounds::V4(first, _) => first.into(),
            Bounds::V6(first, _) => first.into(),
        }
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self.0 {
            Bounds::V4(_, last) => last.into(),
            Bounds::V6(_, last) => last.into(),
        }
    }

    /// How many addresses; for all of IPv6 one less, which is the largest number there is.
    #[must_use]
    pub fn count(self) -> u128 {
        match self.0 {
            Bounds::V4(first, last) => u128::from(last.to_bits() - first.to_bits()) + 1,
            Bounds::V6(first, last) => (last.to_bits() - first.to_bits()).saturating_add(1),
        }
    }

    /// The addresses that are in both, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        match (self.0, other.0) {
            (Bounds::V4(first, last), Bounds::V4(other_first, other_last)) => {
                let (first, last) = (first.max(other_first), last.min(other_last));
                (first <= last).then_some(Self(Bounds::V4(first, last)))
            }
            (Bounds::V6(first, last), Bounds::V6(other_first, other_last)) => {
                let (first, last) = (first.max(other_first), last.min(other_last));
                (first <= last).then_some(Self(Bounds::V6(first, last)))
            }
            _ => None,
        }
    }

    /// The `count` addresses from `first` on; `first` is at least `count` less one below the last address there is.
    pub(crate) fn starting_at(first: IpAddr, count: u32) -> Self {
        match first {
            IpAddr::V4(first) => {
                let last = Ipv4Addr::from_bits(first.to_bits() + (count - 1));
                Self(Bounds::V4(first, last))
            }
            IpAddr::V6(first) => {
                let last = Ipv6Addr::from_bits(first.to_bits() + u128::from(count - 1));
                Self(Bounds::V6(first, last))
            }
        }
    }
}

impl From<IpAddr> for AddressRange {
    /// One address. An IPv4-mapped address becomes the IPv4 address.
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(Bounds::V4(address, address)),
            IpAddr::V6(address) => Self(Bounds::V6(address, address)),
        }
    }
}

impl From<IpNet> for AddressRange {
    /// All addresses of a network.
    fn from(network: IpNet) -> Self {
        Self::new(network.network(), network.broadcast())
            .expect("a network begins before it ends, in one family")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("the test's addresses are valid")
    }

    #[test]
    fn a_range_needs_one_family_and_the_right_order() {
        let range = |first, last| AddressRange::new(address(first), address(last));
        assert_eq!(range("10.0.0.1", "10.0.0.9").unwrap().count(), 9);
        assert_eq!(range("10.0.0.9", "10.0.0.1"), None);
        assert_eq!(range("10.0.0.1", "2001:db8::1"), None);
        assert_eq!(range("2001:db8::1", "10.0.0.1"), None);
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_a_range_that_leaves_them_is_ipv6() {
        let mapped = AddressRange::new(address("::ffff:10.0.0.1"), address("::ffff:10.0.0.9"));
        assert_eq!(mapped.unwrap().first(), address("10.0.0.1"));
        let wider = AddressRange::new(address("::fffe:ffff:ffff"), address("::ffff:10.0.0.9"));
        assert!(wider.unwrap().first().is_ipv6());
    }

    #[test]
    fn hosts_leave_out_the_ends_of_ipv4_networks_only() {
        for (network, count) in [
            ("10.0.0.0/24", 254),
            ("10.0.0.0/30", 2),
            ("10.0.0.0/31", 2),
            ("10.0.0.0/32", 1),
            ("0.0.0.0/0", (1 << 32) - 2),
            ("2001:db8::/120", 256),
            ("::/0", u128::MAX),
        ] {
            let network: IpNet = network.parse().unwrap();
            assert_eq!(AddressRange::hosts(network).count(), count, "{network}");
        }
    }
}
