//! From what a word says to the addresses that it stands for. No I/O.
//!
//! Invariant: a block of targets holds no address that cannot be probed, and IPv4-mapped addresses only as IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use pingfleet_wire::Family;

use crate::{
    ip_range_set::Span,
    parse::bad_target_reason::{BadTargetReason, UNPROBEABLE_V4, UNPROBEABLE_V6, unprobeable},
};

/// Consecutive addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressRange {
    V4(Span),
    V6(Span),
}

/// All IPv4-mapped addresses, `::ffff:0:0/96` (RFC 4291, section 2.5.5.2).
const MAPPED: Span = Span {
    first: 0xffff_0000_0000,
    last: 0xffff_ffff_ffff,
};

impl AddressRange {
    /// One address; an IPv4-mapped one is the IPv4 address that it names.
    pub(crate) fn address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(Span::one(address.to_bits().into())),
            IpAddr::V6(address) => Self::V6(Span::one(address.to_bits())),
        }
    }

    /// From the first to the last address, of the same family as it.
    pub(crate) fn range(first: IpAddr, last: IpAddr) -> Self {
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let span = Span {
            first: bits(first),
            last: bits(last),
        };
        match first {
            IpAddr::V4(_) => Self::V4(span),
            IpAddr::V6(_) if MAPPED.and(span) == Some(span) => Self::V4(Span {
                first: span.first - MAPPED.first,
                last: span.last - MAPPED.first,
            }),
            IpAddr::V6(_) => Self::V6(span),
        }
    }

    /// All addresses of a network.
    pub(crate) fn whole(network: IpNet) -> Self {
        Self::range(network.network(), network.broadcast())
    }

    /// The hosts of a network: of IPv4 up to /30 without network and broadcast address (RFC 3021 for /31).
    pub(crate) fn hosts(network: IpNet) -> Self {
        match (Self::whole(network), network) {
            (Self::V4(span), IpNet::V4(network)) if network.prefix_len() <= 30 => Self::V4(Span {
                first: span.first + 1,
                last: span.last - 1,
            }),
            (whole, _) => whole,
        }
    }

    /// How many addresses; one too few for all of IPv6.
    pub(crate) fn count(self) -> u128 {
        let (Self::V4(span) | Self::V6(span)) = self;
        span.count()
    }
}

/// Whether one address may be probed.
pub(crate) fn check_address(address: IpAddr, family: Family) -> Result<(), BadTargetReason> {
    check_family(address.to_canonical(), family)?;
    unprobeable(address).map_or(Ok(()), Err)
}

/// Whether all addresses from the first to the last may be probed; `block` is what they make.
pub(crate) fn check_range(
    first: IpAddr,
    block: AddressRange,
    family: Family,
) -> Result<(), BadTargetReason> {
    check_family(first, family)?;
    match block {
        AddressRange::V4(span) if first.is_ipv6() => Err(mapped(span.first)),
        AddressRange::V4(span) => unprobeable_in(
            span,
            UNPROBEABLE_V4.map(|(first, last)| (first.to_bits().into(), last.to_bits().into())),
            |bits| Ipv4Addr::from_bits(bits as u32).into(),
        ),
        AddressRange::V6(span) => {
            let blocks = UNPROBEABLE_V6.map(|(first, last)| (first.to_bits(), last.to_bits()));
            unprobeable_in(span, blocks, |bits| Ipv6Addr::from_bits(bits).into())?;
            MAPPED
                .and(span)
                .map_or(Ok(()), |both| Err(mapped(both.first - MAPPED.first)))
        }
    }
}

fn check_family(address: IpAddr, family: Family) -> Result<(), BadTargetReason> {
    match (address, family) {
        (IpAddr::V4(_), Family::V6) => Err(BadTargetReason::NotV6),
        (IpAddr::V6(_), Family::V4) => Err(BadTargetReason::NotV4),
        _ => Ok(()),
    }
}

fn unprobeable_in<const N: usize>(
    span: Span,
    blocks: [(u128, u128); N],
    address: impl Fn(u128) -> IpAddr,
) -> Result<(), BadTargetReason> {
    let found = blocks
        .into_iter()
        .find_map(|(first, last)| span.and(Span { first, last }));
    found
        .and_then(|both| unprobeable(address(both.first)))
        .map_or(Ok(()), Err)
}

fn mapped(bits: u128) -> BadTargetReason {
    BadTargetReason::Mapped {
        meant: Ipv4Addr::from_bits(bits as u32),
    }
}
