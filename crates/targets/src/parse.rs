//! What one word says: an address, a network, a range, an address with a zone, or a host name. No I/O.
//!
//! IPv4-mapped addresses (`::ffff:0:0/96`; RFC 4291, section 2.5.5.2) are IPv4 addresses from here on.
//! It only parses. `probeable` decides whether the addresses may be probed, `input::source` whether a word is a file.

pub(crate) mod bad_target_reason;
pub(crate) mod host_name;
mod misread;

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};

use crate::{address_range::AddressRange, bad_targets::shown};
pub use bad_target_reason::BadTargetReason;

/// The longest name of a network interface on Linux (`IFNAMSIZ` less the final NUL).
const MAX_ZONE_BYTES: usize = 15;

/// The prefix length of the network of all IPv4-mapped addresses.
const MAPPED_PREFIX: u8 = 96;

/// What a word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSpec<'a> {
    /// An address; never an IPv4-mapped one.
    Address(IpAddr),
    /// A network: its host bits may be set.
    Network(IpNet),
    /// Addresses of one family, the first not after the last.
    Range {
        /// The first address.
        first: IpAddr,
        /// The last address.
        last: IpAddr,
    },
    /// A link-local address in one zone, such as `fe80::1%eth0`.
    Zoned {
        /// The address.
        address: Ipv6Addr,
        /// The interface's name.
        zone: &'a str,
    },
    /// A host name.
    Name(&'a str),
}

/// A word and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedTarget<'a> {
    word: &'a str,
    spec: TargetSpec<'a>,
}

impl<'a> ParsedTarget<'a> {
    /// The word as it is written.
    #[must_use]
    pub fn word(&self) -> &'a str {
        self.word
    }

    /// What it says.
    #[must_use]
    pub fn spec(&self) -> TargetSpec<'a> {
        self.spec
    }
}

impl<'a> TargetSpec<'a> {
    /// All addresses of an address, network or range; `None` for a name and for an address with a zone.
    #[must_use]
    pub fn addresses(self) -> Option<AddressRange> {
        match self {
            Self::Address(address) => Some(address.into()),
            Self::Network(network) => Some(network.into()),
            Self::Range { first, last } => AddressRange::new(first, last),
            Self::Zoned { .. } | Self::Name(_) => None,
        }
    }

    /// The text that two names, or two addresses with a zone, have in common when they are the same target: names do
    /// not differ by case (RFC 4343), nor addresses by how they are written.
    pub(crate) fn name_key(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Name(name) if name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                Some(name.to_ascii_lowercase().into())
            }
            Self::Name(name) => Some(name.into()),
            Self::Zoned { address, zone } => Some(format!("{address}%{zone}").into()),
            Self::Address(_) | Self::Network(_) | Self::Range { .. } => None,
        }
    }
}

/// Parses one word.
///
/// # Errors
/// [`BadTargetReason`]: what is wrong with it, and how to write it where that is clear.
pub fn parse(word: &str) -> Result<ParsedTarget<'_>, BadTargetReason> {
    match spec(word) {
        Ok(spec) => Ok(ParsedTarget { word, spec }),
        Err(BadTargetReason::Url) => Err(BadTargetReason::Url),
        Err(why) => Err(misread::reason(word).unwrap_or(why)),
    }
}

fn spec(word: &str) -> Result<TargetSpec<'_>, BadTargetReason> {
    if word.is_empty() {
        return Err(BadTargetReason::Empty);
    }
    if word.contains(char::is_whitespace) {
        return Err(BadTargetReason::ManyWords);
    }
    if word.contains("://") {
        return Err(BadTargetReason::Url);
    }
    if let Ok(address) = word.parse() {
        return Ok(TargetSpec::Address(IpAddr::to_canonical(&address)));
    }
    if let Some((address, prefix)) = word.rsplit_once('/') {
        return network(address, prefix);
    }
    if let Some((address, zone)) = word.split_once('%') {
        return zoned(address, zone);
    }
    if let Some((first, last)) = word.split_once('-')
        && is_range(first, last)
    {
        return range(first, last);
    }
    if word.contains(['[', ']', ':']) {
        return Err(bracket_or_colon(word));
    }
    host_name::check(word)?;
    Ok(TargetSpec::Name(word))
}

fn network<'a>(address: &str, prefix: &str) -> Result<TargetSpec<'a>, BadTargetReason> {
    if let Some((inner, _)) = address.split_once('%') {
        return Err(if inner.parse::<IpAddr>().is_ok() {
            BadTargetReason::ZonedNetwork
        } else {
            BadTargetReason::NoNetwork
        });
    }
    let Ok(address) = address.parse::<IpAddr>() else {
        // 010.0.0.0/8 gets the same reason as 010.0.0.0.
        let like_address = !address.is_empty() && address.bytes().all(is_of_ipv4);
        return Err(match host_name::check(address) {
            Err(why) if like_address => why,
            _ => BadTargetReason::NoNetwork,
        });
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let plain = prefix.bytes().all(|byte| byte.is_ascii_digit())
        && (prefix == "0" || !prefix.starts_with('0'));
    let network = prefix
        .parse()
        .ok()
        .filter(|_| plain)
        .and_then(|length| IpNet::new(address, length).ok());
    network
        .map(canonical_network)
        .map(TargetSpec::Network)
        .ok_or_else(|| {
            mask(address, prefix).map_or(BadTargetReason::Prefix { most }, |meant| {
                BadTargetReason::Mask { meant }
            })
        })
}

/// Of a network of IPv4-mapped addresses the IPv4 network; any other one as it is.
fn canonical_network(network: IpNet) -> IpNet {
    let mapped = network.addr().to_canonical();
    let length = network.prefix_len().checked_sub(MAPPED_PREFIX);
    match (network, mapped, length) {
        (IpNet::V6(_), IpAddr::V4(address), Some(length)) => {
            Ipv4Net::new(address, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

/// The network of `10.0.0.0/255.255.255.0`.
fn mask(address: IpAddr, mask: &str) -> Option<IpNet> {
    let (IpAddr::V4(address), Ok(mask)) = (address, mask.parse::<Ipv4Addr>()) else {
        return None;
    };
    Ipv4Net::with_netmask(address, mask).ok().map(IpNet::V4)
}

fn zoned<'a>(address: &str, zone: &'a str) -> Result<TargetSpec<'a>, BadTargetReason> {
    let address: IpAddr = match address.parse() {
        Ok(address) => address,
        Err(_) if address.contains(':') && address.contains('-') => {
            return Err(BadTargetReason::ZonedRange);
        }
        Err(_) if address.contains(':') => return Err(BadTargetReason::NotIpv6),
        Err(_) => return Err(BadTargetReason::Character { character: '%' }),
    };
    let local = match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => address,
        _ => {
            return Err(BadTargetReason::ZoneNotLocal {
                address: address.to_canonical(),
            });
        }
    };
    if zone.contains('%') {
        return Err(BadTargetReason::ZonedRange);
    }
    let plain = zone.bytes().all(|byte| byte.is_ascii_graphic());
    if zone.is_empty() || zone.len() > MAX_ZONE_BYTES || !plain {
        return Err(BadTargetReason::Zone);
    }
    Ok(TargetSpec::Zoned {
        address: local,
        zone,
    })
}

/// Whether a word with a hyphen is meant as a range and not as a name: it begins with an address, or it consists of
/// digits and dots.
fn is_range(first: &str, last: &str) -> bool {
    let numeric = |text: &str| text.bytes().all(is_of_ipv4);
    match first.parse() {
        Ok(IpAddr::V6(_)) => true,
        Ok(IpAddr::V4(_)) => numeric(last) || last.contains(':'),
        Err(_) => {
            numeric(first) && numeric(last) && (first.contains('.') || last.contains('.'))
                || first.contains(':')
        }
    }
}

fn range<'a>(first: &str, last: &str) -> Result<TargetSpec<'a>, BadTargetReason> {
    let not_an_address = |end: &str| BadTargetReason::RangeEnd { end: shown(end) };
    let first = first.parse().map_err(|_| not_an_address(first))?;
    if let IpAddr::V4(first) = first
        && let Ok(octet) = last.parse::<u8>()
    {
        let [a, b, c, _] = first.octets();
        return Err(BadTargetReason::ShortRange {
            first,
            last: Ipv4Addr::new(a, b, c, octet),
        });
    }
    if last.contains('%') {
        return Err(BadTargetReason::ZonedRange);
    }
    let last: IpAddr = last.parse().map_err(|_| not_an_address(last))?;
    let (first, last) = match (first.to_canonical(), last.to_canonical()) {
        ends @ (IpAddr::V4(_), IpAddr::V4(_)) => ends,
        _ => (first, last),
    };
    if first.is_ipv4() != last.is_ipv4() {
        Err(BadTargetReason::MixedRange)
    } else if last < first {
        Err(BadTargetReason::Reversed { first, last })
    } else {
        Ok(TargetSpec::Range { first, last })
    }
}

/// Why a word with brackets or colons is no target.
fn bracket_or_colon(word: &str) -> BadTargetReason {
    let bracketed = word
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .filter(|(inner, _)| inner.parse::<Ipv6Addr>().is_ok());
    if let Some((inner, _)) = bracketed {
        return BadTargetReason::Brackets {
            inner: inner.to_owned(),
        };
    }
    match word.split_once(':') {
        Some((host, port))
            if !port.is_empty()
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && (host.parse::<Ipv4Addr>().is_ok() || host_name::check(host).is_ok()) =>
        {
            BadTargetReason::Port {
                host: host.to_owned(),
            }
        }
        Some(_) => BadTargetReason::NotIpv6,
        None => BadTargetReason::Character {
            character: if word.contains('[') { '[' } else { ']' },
        },
    }
}

fn is_of_ipv4(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.'
}
