//! Why a word is no target that can be probed. No I/O.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use crate::{
    limits::{MAX_LABELLED_ADDRESSES, MAX_LINE_BYTES},
    parse::misread::unicode_name,
};

/// What is wrong with the word of one target. The message of a reason says how to write it where that is clear.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each reason says what it is")]
pub enum BadTargetReason {
    #[error("an empty target")]
    Empty,
    #[error("one target a line (a range is written without blanks, a comment begins with #)")]
    ManyWords,
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    LongLine,
    #[error(
        "contains a NUL byte (a compressed or binary file, or UTF-16 without a byte order mark? save it as UTF-8)"
    )]
    Nul,
    #[error("not valid UTF-8")]
    NotUtf8,
    #[error("not valid UTF-16")]
    NotUtf16,
    #[error("no such file")]
    NoSuchFile,
    #[error("a URL is no target: write its host alone")]
    Url,
    #[error("a target has no port: write {host}")]
    Port { host: String },
    #[error("an address has no brackets: write {inner}")]
    Brackets { inner: String },

    #[error("not an IPv6 address")]
    NotIpv6,
    #[error("an octet has no leading zeros (some programs read them as octal): write {meant}")]
    LeadingZeros { meant: Ipv4Addr },
    #[error("an octet is at most 255, not {octet}")]
    LargeOctet { octet: String },
    #[error("an IPv4 address has four octets, not {found} (a network is written 10.0.0.0/24)")]
    Octets { found: usize },
    #[error("an address has no final dot: write {meant}")]
    FinalDot { meant: Ipv4Addr },

    #[error("no address before the slash: a network is written 10.0.0.0/24")]
    NoNetwork,
    #[error("the prefix length is a number from 0 to {most}")]
    Prefix { most: u8 },
    #[error("a prefix length, not a mask: write {meant}")]
    Mask { meant: IpNet },
    #[error("a network has no zone: write its addresses one by one")]
    ZonedNetwork,

    #[error("the end of a range is a whole address: write {first}-{last}")]
    ShortRange { first: Ipv4Addr, last: Ipv4Addr },
    #[error("{end} is not an address: a range is written 10.0.0.1-10.0.0.99")]
    RangeEnd { end: String },
    #[error("the range ends before it begins: write {last}-{first}")]
    Reversed { first: IpAddr, last: IpAddr },
    #[error("the range begins and ends in different address families")]
    MixedRange,
    #[error("a range has no zone: write its addresses one by one")]
    ZonedRange,

    #[error("only link-local addresses (fe80::/10) have a zone: write {address}")]
    ZoneNotLocal { address: IpAddr },
    #[error("the zone is an interface's name of 1 to 15 characters, as in fe80::1%eth0")]
    Zone,

    #[error("an empty label: a name's labels are divided by single dots")]
    EmptyLabel,
    #[error("a label of {length} characters: at most 63 are allowed")]
    LongLabel { length: usize },
    #[error("a name of {length} characters: at most 253 are allowed")]
    LongName { length: usize },
    #[error("only ASCII is allowed: write the name in punycode (xn--...)")]
    NotAscii,
    #[error("{character:?} cannot stand in a name")]
    Character { character: char },
    #[error(
        "{character:?} cannot stand in a name: write one target a line, or CSV with a header (--format csv)"
    )]
    Separator { character: char },
    #[error("'#' cannot stand in a name: a comment needs a blank before it, so write {meant}")]
    Comment { meant: String },
    #[error("'*' cannot stand in a name: for the network write {meant}")]
    Wildcard { meant: Ipv4Net },
    #[error("contains an invisible character, {}: remove it", unicode_name(*.character))]
    Invisible { character: char },
    #[error("contains {} and not a hyphen: write {meant}", unicode_name(*.character))]
    Dash { character: char, meant: String },
    #[error("a label begins with a hyphen")]
    Hyphen,
    #[error("a name's last label is not a number, and it is no IPv4 address")]
    NumericName,

    #[error("{address} is no host's address")]
    Unspecified { address: IpAddr },
    #[error("255.255.255.255 is the broadcast address, not a host's")]
    Broadcast,
    #[error("{address} is a multicast address, not a host's")]
    Multicast { address: IpAddr },
    #[error("contains IPv4-mapped addresses: write them as IPv4 ({meant})")]
    Mapped { meant: Ipv4Addr },
    #[error("an IPv6 target, and only IPv4 is allowed (-4, -S or probing.family)")]
    NotV4,
    #[error("an IPv4 target, and only IPv6 is allowed (-6, -S or probing.family)")]
    NotV6,

    #[error("a quote opens here that nothing closes: all lines to the end of the file are in it")]
    OpenQuote,
    #[error(
        "text after a closing quote: a quote in a cell is written twice, and the cell in quotes"
    )]
    AfterQuote,
    #[error(
        "a row of lines in quotes, longer than {MAX_LINE_BYTES} bytes: does a quote close too late?"
    )]
    LongRow,
    #[error("{found} columns, and the header has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("no target in its column")]
    NoTarget,
    #[error("a value in column {number}, which has no name in the header")]
    NamelessColumn { number: usize },
    #[error(
        "labels for {count} addresses: at most {MAX_LABELLED_ADDRESSES} on one line, so write smaller networks"
    )]
    ManyLabelled { count: u128 },
}

impl BadTargetReason {
    /// Whether the word may be the name of a file, although it is no target.
    pub(crate) fn may_be_path(&self) -> bool {
        matches!(
            self,
            Self::ManyWords
                | Self::NoNetwork
                | Self::NotIpv6
                | Self::EmptyLabel
                | Self::LongLabel { .. }
                | Self::LongName { .. }
                | Self::NotAscii
                | Self::Character { .. }
                | Self::Hyphen
        )
    }

    /// Whether the word may be the name of a file if it ends like one.
    pub(crate) fn may_be_file_name(&self) -> bool {
        self.may_be_path() || matches!(self, Self::Comment { .. } | Self::Separator { .. })
    }
}
