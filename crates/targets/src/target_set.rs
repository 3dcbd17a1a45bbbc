//! A set of targets to match others against: what is excluded, a stop list, a filter.
//!
//! Invariant: an address in the set matches in every zone; an address with a zone matches in that zone only. Names match
//! as text: no name is resolved.

use std::{collections::HashSet, net::IpAddr};

use pingfleet_wire::Target;

use crate::{
    ip_range_set::IpRangeSet,
    limits::MemoryLimits,
    parse::{self, ParsedTarget, TargetSpec},
};

/// Addresses, networks, ranges, addresses with a zone and names.
#[derive(Debug, Clone, Default)]
pub struct TargetSet {
    addresses: IpRangeSet,
    /// The keys of names and of addresses with a zone.
    names: HashSet<String>,
}

impl TargetSet {
    /// Adds what a word says; of a network all addresses. They need not be addresses that may be probed.
    pub fn insert(&mut self, target: ParsedTarget<'_>) {
        let spec = target.spec();
        if let Some(range) = spec.addresses() {
            self.addresses.insert(range);
        } else if let Some(key) = spec.name_key() {
            self.names.insert(key.into_owned());
        }
    }

    /// Whether an address is in the set.
    #[must_use]
    pub fn contains_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(address)
    }

    /// Whether a target is in the set, as a plan or a worker has it.
    #[must_use]
    pub fn contains(&self, target: &Target) -> bool {
        match target {
            Target::Address(address) => self.contains_address(*address),
            Target::Text(text) => {
                parse::parse(text).is_ok_and(|target| self.contains_spec(target.spec()))
            }
        }
    }

    /// Whether what a word says is in the set; of a network or range, whether all of it is.
    #[must_use]
    pub fn contains_spec(&self, spec: TargetSpec<'_>) -> bool {
        match (spec, spec.addresses()) {
            (_, Some(range)) => self.addresses.gaps_of(range).next().is_none(),
            (TargetSpec::Zoned { address, .. }, None) if self.contains_address(address.into()) => {
                true
            }
            _ => spec
                .name_key()
                .is_some_and(|key| self.names.contains(key.as_ref())),
        }
    }

    /// The addresses of the set.
    #[must_use]
    pub fn addresses(&self) -> &IpRangeSet {
        &self.addresses
    }

    /// Whether the set is within these limits.
    pub(crate) fn is_within(&self, limits: MemoryLimits) -> bool {
        self.names.len() <= limits.set_names && self.addresses.ranges() <= limits.pieces
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &[&str]) -> TargetSet {
        let mut set = TargetSet::default();
        for word in words {
            set.insert(parse::parse(word).unwrap());
        }
        set
    }

    /// A target as the list has it.
    fn target(text: &str) -> Target {
        match text.parse::<IpAddr>() {
            Ok(address) if address.to_string() == text => Target::Address(address),
            _ => Target::Text(text.to_owned()),
        }
    }

    #[test]
    fn a_set_matches_addresses_however_they_are_written() {
        let set = set(&["10.0.0.0/24", "10.0.2.1-10.0.2.9", "2001:db8::/64"]);
        for text in [
            "10.0.0.0",
            "10.0.0.255",
            "10.0.2.1",
            "::ffff:10.0.2.9",
            "2001:db8::1",
            "2001:DB8:0::1",
        ] {
            assert!(set.contains(&target(text)), "{text}");
        }
        for text in ["10.0.1.0", "10.0.2.10", "2001:db8:0:1::1", "host"] {
            assert!(!set.contains(&target(text)), "{text}");
        }
    }

    #[test]
    fn names_match_in_any_case_and_zones_only_their_own() {
        let set = set(&["Host", "FE80::1%eth0", "fe80::2"]);
        for text in ["hOST", "fe80:0::1%eth0", "fe80::2%eth7"] {
            assert!(set.contains(&target(text)), "{text}");
        }
        for text in ["host.", "fe80::1", "fe80::1%eth1"] {
            assert!(!set.contains(&target(text)), "{text}");
        }
    }

    #[test]
    fn a_range_is_in_the_set_when_all_of_it_is() {
        let set = set(&["10.0.0.0/25", "10.0.0.128/25"]);
        let contains = |word| set.contains_spec(parse::parse(word).unwrap().spec());
        assert!(contains("10.0.0.0/24"));
        assert!(!contains("10.0.0.0/23"));
    }

    #[test]
    fn an_empty_set_contains_nothing() {
        let empty = set(&[]);
        assert!(empty.is_empty() && !empty.contains(&target("10.0.0.1")));
        assert!(!set(&["host"]).is_empty());
    }
}
