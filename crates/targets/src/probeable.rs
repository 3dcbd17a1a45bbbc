//! Which addresses may be probed. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pingfleet_wire::Family;

use crate::{
    address_range::{AddressRange, Bounds},
    parse::BadTargetReason,
};

/// All IPv4-mapped addresses, `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED: AddressRange = AddressRange(Bounds::V6(
    Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
    Ipv4Addr::BROADCAST.to_ipv6_mapped(),
));

/// Addresses that no host has.
const NO_HOSTS: [AddressRange; 5] = [
    v4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
    v4(
        Ipv4Addr::new(224, 0, 0, 0),
        Ipv4Addr::new(239, 255, 255, 255),
    ),
    v4(Ipv4Addr::BROADCAST, Ipv4Addr::BROADCAST),
    v6(Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    v6(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        Ipv6Addr::from_bits(u128::MAX),
    ),
];

const fn v4(first: Ipv4Addr, last: Ipv4Addr) -> AddressRange {
    AddressRange(Bounds::V4(first, last))
}

const fn v6(first: Ipv6Addr, last: Ipv6Addr) -> AddressRange {
    AddressRange(Bounds::V6(first, last))
}

/// Whether one address may be probed.
pub(crate) fn check_address(address: IpAddr, family: Family) -> Result<(), BadTargetReason> {
    check(address.into(), family)
}

/// Whether all addresses of a range may be probed; `first` is its first address as it is written. A range of
/// IPv4-mapped addresses may not: which of its addresses are meant is unclear.
pub(crate) fn check_range(
    first: IpAddr,
    range: AddressRange,
    family: Family,
) -> Result<(), BadTargetReason> {
    match range.first() {
        IpAddr::V4(meant) if first.is_ipv6() => return Err(BadTargetReason::Mapped { meant }),
        _ => check(range, family)?,
    }
    let mapped = range
        .intersection(MAPPED)
        .and_then(|mapped| match mapped.0 {
            Bounds::V6(first, _) => first.to_ipv4_mapped(),
            Bounds::V4(..) => None,
        });
    mapped.map_or(Ok(()), |meant| Err(BadTargetReason::Mapped { meant }))
}

fn check(range: AddressRange, family: Family) -> Result<(), BadTargetReason> {
    match (range.first(), family) {
        (IpAddr::V4(_), Family::V6) => return Err(BadTargetReason::NotV6),
        (IpAddr::V6(_), Family::V4) => return Err(BadTargetReason::NotV4),
        _ => {}
    }
    let found = NO_HOSTS
        .into_iter()
        .find_map(|no_hosts| range.intersection(no_hosts));
    found.map_or(Ok(()), |found| Err(reason(found.first())))
}

/// Why an address of [`NO_HOSTS`] is not a host's.
fn reason(address: IpAddr) -> BadTargetReason {
    if address.is_multicast() {
        BadTargetReason::Multicast { address }
    } else if address == Ipv4Addr::BROADCAST {
        BadTargetReason::Broadcast
    } else {
        BadTargetReason::Unspecified { address }
    }
}
