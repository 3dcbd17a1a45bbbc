//! Addresses of the simulated network. Its hosts are numbered, and each number is an IPv4 and an IPv6 address, so that
//! one scenario serves both families. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many hosts have addresses: their numbers are below this.
pub const HOSTS: u32 = 1 << 22;

/// The hosts' IPv4 addresses: 10.64.0.0/10.
const V4: u32 = 0x0a40_0000;

/// The hosts' IPv6 addresses: `fd00:64::/64`, of which the last 22 bits count.
const V6: u128 = 0xfd00_0064 << 96;

/// What is routed to the device, for each family.
pub(super) const PREFIXES: [&str; 2] = ["10.64.0.0/10", "fd00:64::/64"];

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4 with ICMP (RFC 792).
    V4,
    /// IPv6 with `ICMPv6` (RFC 4443).
    V6,
}

impl IpVersion {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// The name in scenario files and messages: `v4` or `v6`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The address of a host, whose number is below [`HOSTS`].
    #[must_use]
    pub fn address(self, host: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(V4 + host % HOSTS).into(),
            Self::V6 => Ipv6Addr::from(V6 + u128::from(host % HOSTS)).into(),
        }
    }
}

/// The prober's own address.
pub(super) fn own(family: IpVersion) -> IpAddr {
    match family {
        IpVersion::V4 => Ipv4Addr::new(10, 63, 0, 1).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfd00, 0x63, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The host that has this address.
pub(super) fn host(address: IpAddr) -> Option<u32> {
    let host = match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(V4)?,
        IpAddr::V6(address) => u32::try_from(address.to_bits().checked_sub(V6)?).ok()?,
    };
    (host < HOSTS).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_both_of_its_addresses() {
        for family in IpVersion::ALL {
            for number in [0, 1, 255, 256, 70_000, HOSTS - 1] {
                assert_eq!(host(family.address(number)), Some(number));
            }
        }
        for foreign in ["10.63.255.255", "10.128.0.0", "fd00:64::40:0", "fd00:63::1"] {
            assert_eq!(host(foreign.parse().unwrap()), None, "{foreign}");
        }
    }
}
