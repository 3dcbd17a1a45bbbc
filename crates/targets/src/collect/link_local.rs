//! Listed link-local addresses of IPv6 without a zone. No I/O.

use std::net::{IpAddr, Ipv6Addr};

use crate::address_range::{AddressRange, Bounds};

/// All link-local addresses, `fe80::/10` (RFC 4291, section 2.4).
const LINK_LOCAL: AddressRange = AddressRange(Bounds::V6(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    Ipv6Addr::from_bits((0xfec0_u128 << 112) - 1),
));

/// Targets that the kernel sends nothing to unless an interface is chosen for all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLocalTargets {
    /// The one that was mentioned first.
    pub first: IpAddr,
    /// How many there are.
    pub count: u128,
}

/// Adds those of a range that is listed.
pub(crate) fn add(found: &mut Option<LinkLocalTargets>, range: AddressRange) {
    let Some(part) = range.intersection(LINK_LOCAL) else {
        return;
    };
    let all = found.get_or_insert(LinkLocalTargets {
        first: part.first(),
        count: 0,
    });
    all.count = all.count.saturating_add(part.count());
}
