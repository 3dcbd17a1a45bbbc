//! Which addresses may be probed. No I/O.

use std::net::{IpAddr, Ipv4Addr};

use pingfleet_wire::{Family, NO_HOST_ADDRESSES};

use crate::{
    address_range::{AddressRange, Bounds},
    parse::BadTargetReason,
};

/// All IPv4-mapped addresses, `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED: AddressRange = AddressRange(Bounds::V6(
    Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
    Ipv4Addr::BROADCAST.to_ipv6_mapped(),
));

/// Whether one address may be probed.
pub(crate) fn check_address(address: IpAddr, family: Family) -> Result<(), BadTargetReason> {
    check(address.into(), family)
}

/// Whether all addresses of a range may be probed. A range of IPv6 in which some addresses are IPv4-mapped may not: they
/// are IPv4 addresses.
pub(crate) fn check_range(range: AddressRange, family: Family) -> Result<(), BadTargetReason> {
    check(range, family)?;
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
    let found = NO_HOST_ADDRESSES
        .into_iter()
        .filter_map(|(first, last)| AddressRange::new(first, last))
        .find_map(|no_hosts| range.intersection(no_hosts));
    found.map_or(Ok(()), |found| Err(reason(found.first())))
}

/// Why an address of [`NO_HOST_ADDRESSES`] is not a host's.
fn reason(address: IpAddr) -> BadTargetReason {
    if address.is_multicast() {
        BadTargetReason::Multicast { address }
    } else if address == Ipv4Addr::BROADCAST {
        BadTargetReason::Broadcast
    } else {
        BadTargetReason::Unspecified { address }
    }
}
