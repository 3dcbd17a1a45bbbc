//! A map from ranges of addresses of one family to values, in which ranges do not overlap. No I/O.
//!
//! Invariant: memory follows the number of ranges, never the number of addresses. Ranges of the same value that overlap
//! or touch are merged. A range costs its two ends and its value: 8 bytes for a set of IPv4, 32 for a set of IPv6, and the
//! free space in the nodes of a B-tree.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

/// The bits of an address of one family. They compare faster than the address itself.
pub(crate) trait AddressBits: Copy + Ord {
    /// The last address of the family.
    const LAST: Self;

    /// The address after this one, if there is one.
    fn next(self) -> Option<Self>;

    /// The address before this one, if there is one.
    fn previous(self) -> Option<Self>;
}

impl AddressBits for u32 {
    const LAST: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl AddressBits for u128 {
    const LAST: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// Ranges with their values.
#[derive(Debug, Clone)]
pub(crate) struct DisjointRanges<A, V> {
    /// The first address of each range to its last address and value.
    ranges: BTreeMap<A, (A, V)>,
}

impl<A, V> Default for DisjointRanges<A, V> {
    fn default() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }
}

impl<A: AddressBits, V: Copy + PartialEq> DisjointRanges<A, V> {
    /// Adds a range. Ranges that overlap it have the same value.
    pub(crate) fn insert(&mut self, mut first: A, mut last: A, value: V) {
        let touches = |end: A, start: A| end.next().is_none_or(|next| next >= start);
        let before = self.ranges.range(..=first).next_back();
        if let Some((start, (end, other))) = before
            && *other == value
            && touches(*end, first)
        {
            if *end >= last {
                return;
            }
            first = *start;
        }
        while let Some((start, (end, other))) = self.after(first)
            && other == value
            && touches(last, start)
        {
            self.ranges.remove(&start);
            last = last.max(end);
        }
        self.ranges.insert(first, (last, value));
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The value of an address.
    pub(crate) fn get(&self, address: A) -> Option<V> {
        let (_, (end, value)) = self.ranges.range(..=address).next_back()?;
        (*end >= address).then_some(*value)
    }

    /// The last address of the range, or of the gap between ranges, that an address is in; and the range's value.
    pub(crate) fn part_at(&self, address: A) -> (A, Option<V>) {
        match self.ranges.range(..=address).next_back() {
            Some((_, (end, value))) if *end >= address => (*end, Some(*value)),
            _ => {
                let next = self.after(address);
                let end = next.and_then(|(start, _)| start.previous());
                (end.unwrap_or(A::LAST), None)
            }
        }
    }

    /// First and last address of all ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (A, A)> {
        self.ranges.iter().map(|(first, (last, _))| (*first, *last))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first range that begins after an address.
    fn after(&self, address: A) -> Option<(A, (A, V))> {
        let mut after = self.ranges.range((Excluded(address), Unbounded));
        after.next().map(|(start, range)| (*start, *range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_different_values_are_not_merged() {
        let mut ranges = DisjointRanges::<u32, char>::default();
        ranges.insert(3, 5, 'b');
        ranges.insert(1, 2, 'a');
        ranges.insert(6, 7, 'b');
        let found: Vec<_> = ranges.iter().collect();
        assert_eq!(found, [(1, 2), (3, 7)]);
        assert_eq!(ranges.get(2), Some('a'));
        assert_eq!(ranges.part_at(4), (7, Some('b')));
        assert_eq!(ranges.part_at(8), (u32::MAX, None));
        assert_eq!(ranges.part_at(0), (0, None));
    }
}
