//! A set of addresses of both families. No I/O.
//!
//! Invariant: memory follows the number of separate ranges, never the number of addresses.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    address_range::{AddressRange, Bounds},
    disjoint_ranges::DisjointRanges,
};

/// A set of addresses. An IPv4-mapped address is the same member as its IPv4 address.
#[derive(Debug, Clone, Default)]
pub struct IpRangeSet {
    v4: DisjointRanges<u32, ()>,
    v6: DisjointRanges<u128, ()>,
}

impl IpRangeSet {
    /// Adds all addresses of a range, in time logarithmic to the number of ranges.
    pub fn insert(&mut self, range: AddressRange) {
        match range.0 {
            Bounds::V4(first, last) => self.v4.insert(first.to_bits(), last.to_bits(), ()),
            Bounds::V6(first, last) => self.v6.insert(first.to_bits(), last.to_bits(), ()),
        }
    }

    /// How many ranges there are that do not touch: what the memory follows.
    #[must_use]
    pub(crate) fn ranges(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether an address is a member, in time logarithmic to the number of ranges.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get(address.to_bits()).is_some(),
            IpAddr::V6(address) => self.v6.get(address.to_bits()).is_some(),
        }
    }

    /// Whether the set has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The members as ranges that do not touch, ascending, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = AddressRange> {
        let v4 = self.v4.iter().map(|(first, last)| v4_bounds(first, last));
        let v6 = self.v6.iter().map(|(first, last)| v6_bounds(first, last));
        v4.chain(v6).map(AddressRange)
    }

    /// The parts of a range that are members, ascending.
    pub fn members_of(&self, range: AddressRange) -> impl Iterator<Item = AddressRange> {
        self.divide(range)
            .filter_map(|(part, member)| member.then_some(part))
    }

    /// The parts of a range that are no members, ascending.
    pub fn gaps_of(&self, range: AddressRange) -> impl Iterator<Item = AddressRange> {
        self.divide(range)
            .filter_map(|(part, member)| (!member).then_some(part))
    }

    /// All parts of a range, ascending, each with whether it is in the set.
    fn divide(&self, range: AddressRange) -> impl Iterator<Item = (AddressRange, bool)> {
        divide(range, &self.v4, &self.v6).map(|(part, value)| (part, value.is_some()))
    }
}

/// All parts of a range, ascending, each with its value.
pub(crate) fn divide<V: Copy + PartialEq>(
    range: AddressRange,
    v4: &DisjointRanges<u32, V>,
    v6: &DisjointRanges<u128, V>,
) -> impl Iterator<Item = (AddressRange, Option<V>)> {
    let mut rest = Some(range.0);
    iter::from_fn(move || {
        let (part, value) = match rest? {
            Bounds::V4(first, last) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                let (end, value) = v4.part_at(first);
                rest = (end < last).then(|| v4_bounds(end + 1, last));
                (v4_bounds(first, end.min(last)), value)
            }
            Bounds::V6(first, last) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                let (end, value) = v6.part_at(first);
                rest = (end < last).then(|| v6_bounds(end + 1, last));
                (v6_bounds(first, end.min(last)), value)
            }
        };
        Some((AddressRange(part), value))
    })
}

fn v4_bounds(first: u32, last: u32) -> Bounds {
    Bounds::V4(Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last))
}

fn v6_bounds(first: u128, last: u128) -> Bounds {
    Bounds::V6(Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Where the model's addresses begin in each family.
    const V6: u128 = 0x2001_0db8 << 96;

    fn v4(first: u32, last: u32) -> AddressRange {
        AddressRange(Bounds::V4(
            Ipv4Addr::from_bits(first),
            Ipv4Addr::from_bits(last),
        ))
    }

    fn v6(first: u128, last: u128) -> AddressRange {
        AddressRange(Bounds::V6(
            Ipv6Addr::from_bits(first),
            Ipv6Addr::from_bits(last),
        ))
    }

    /// Ranges as numbers, one for each address.
    fn numbers(ranges: impl Iterator<Item = AddressRange>) -> Vec<u32> {
        ranges
            .flat_map(|range| match range.0 {
                Bounds::V4(first, last) => first.to_bits()..=last.to_bits(),
                Bounds::V6(first, last) => {
                    (first.to_bits() - V6) as u32..=(last.to_bits() - V6) as u32
                }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_set_agrees_with_a_naive_one(
            inserted in prop::collection::vec((0_u32..200, 0_u32..20), 0..30),
            asked in (0_u32..200, 0_u32..60),
            is_v6: bool,
        ) {
            let range = |first: u32, last: u32| if is_v6 {
                v6(V6 + u128::from(first), V6 + u128::from(last))
            } else {
                v4(first, last)
            };
            let mut set = IpRangeSet::default();
            let mut naive = BTreeSet::new();
            for (first, more) in inserted {
                set.insert(range(first, first + more));
                naive.extend(first..=first + more);
            }
            let (first, last) = (asked.0, asked.0 + asked.1);
            let (within, without): (Vec<_>, Vec<_>) =
                (first..=last).partition(|address| naive.contains(address));
            for address in first..=last {
                let found = set.contains(range(address, address).first());
                prop_assert_eq!(found, naive.contains(&address));
            }
            prop_assert_eq!(numbers(set.members_of(range(first, last))), within);
            prop_assert_eq!(numbers(set.gaps_of(range(first, last))), without);
            prop_assert_eq!(set.is_empty(), naive.is_empty());
            let ranges = naive.iter().filter(|address| !naive.contains(&(**address + 1))).count();
            prop_assert_eq!(set.iter().count(), ranges);
            prop_assert_eq!(numbers(set.iter()), naive.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_addresses_of_both_families_are_members() {
        let mut set = IpRangeSet::default();
        set.insert(v4(u32::MAX, u32::MAX));
        set.insert(v4(0, 5));
        assert_eq!(set.iter().count(), 2);
        let ends = [0, 5, 6, u32::MAX].map(|bits| set.contains(Ipv4Addr::from_bits(bits).into()));
        assert_eq!(ends, [true, true, false, true]);
        assert_eq!(numbers(set.members_of(v4(4, u32::MAX))), [4, 5, u32::MAX]);

        let all = v6(0, u128::MAX);
        assert_eq!(set.gaps_of(all).collect::<Vec<_>>(), [all]);
        set.insert(v6(u128::MAX, u128::MAX));
        set.insert(all);
        assert_eq!(set.gaps_of(all).count(), 0);
        assert_eq!(set.members_of(all).collect::<Vec<_>>(), [all]);
    }

    #[test]
    fn mapped_addresses_are_the_same_members() {
        let mut set = IpRangeSet::default();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        set.insert(mapped.into());
        assert!(set.contains("10.0.0.1".parse().unwrap()));
        assert!(set.contains(mapped));
        assert!(!set.contains("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn consecutive_addresses_are_one_range() {
        let mut set = IpRangeSet::default();
        for bits in (0..1_000_000).rev() {
            set.insert(v4(bits, bits));
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [v4(0, 999_999)]);
    }
}
