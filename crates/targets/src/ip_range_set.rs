//! A set of addresses as disjoint spans that never touch: what was mentioned, what is excluded. No I/O.
//!
//! Invariant: memory follows the number of spans, never the number of addresses. Addresses are stored in their own
//! width and computed with as `u128`, in which also the last IPv4 address has a successor.

use std::{collections::BTreeMap, iter};

/// Addresses from the first to the last, both included; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

impl Span {
    pub(crate) fn one(address: u128) -> Self {
        Self {
            first: address,
            last: address,
        }
    }

    /// How many addresses; one too few for all of IPv6.
    pub(crate) fn count(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// The addresses that are in both, if any.
    pub(crate) fn and(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }
}

/// An address as a map stores it.
pub(crate) trait AddressBits: Copy + Ord {
    fn widen(self) -> u128;

    /// The other way; `wide` is an address of this width.
    fn narrow(wide: u128) -> Self;
}

impl AddressBits for u32 {
    fn widen(self) -> u128 {
        self.into()
    }

    fn narrow(wide: u128) -> Self {
        wide as Self
    }
}

impl AddressBits for u128 {
    fn widen(self) -> u128 {
        self
    }

    fn narrow(wide: u128) -> Self {
        wide
    }
}

/// A set of addresses of one family.
#[derive(Debug)]
pub(crate) struct IpRangeSet<A> {
    /// First to last address of each span.
    spans: BTreeMap<A, A>,
}

impl<A> Default for IpRangeSet<A> {
    fn default() -> Self {
        Self {
            spans: BTreeMap::new(),
        }
    }
}

impl<A: AddressBits> IpRangeSet<A> {
    /// Adds a span, and merges it with those that it overlaps or touches.
    pub(crate) fn insert(&mut self, span: Span) {
        let Span {
            mut first,
            mut last,
        } = span;
        let before = self.spans.range_mut(..=A::narrow(first)).next_back();
        if let Some((start, end)) = before
            && end.widen().saturating_add(1) >= first
        {
            if end.widen() >= last {
                return;
            }
            first = start.widen();
            *end = A::narrow(last);
        }
        while let Some((start, end)) = self.after(first)
            && start <= last.saturating_add(1)
        {
            self.spans.remove(&A::narrow(start));
            last = last.max(end);
        }
        self.spans.insert(A::narrow(first), A::narrow(last));
    }

    /// The parts of a span that are in the set, ascending.
    pub(crate) fn parts(&self, span: Span) -> impl Iterator<Item = Span> {
        let before = self.spans.range(..A::narrow(span.first)).next_back();
        let within = self
            .spans
            .range(A::narrow(span.first)..=A::narrow(span.last));
        before
            .into_iter()
            .chain(within)
            .filter_map(move |(&first, &last)| {
                span.and(Span {
                    first: first.widen(),
                    last: last.widen(),
                })
            })
    }

    /// The parts of a span that are not in the set, ascending.
    pub(crate) fn gaps(&self, span: Span) -> impl Iterator<Item = Span> {
        let mut parts = self.parts(span);
        // The first address that is not yet looked at; none after the last one of the span.
        let mut rest = Some(span.first);
        iter::from_fn(move || {
            while let Some(first) = rest {
                let Some(part) = parts.next() else {
                    rest = None;
                    return Some(Span {
                        first,
                        last: span.last,
                    });
                };
                rest = (part.last < span.last).then(|| part.last + 1);
                if part.first > first {
                    return Some(Span {
                        first,
                        last: part.first - 1,
                    });
                }
            }
            None
        })
    }

    pub(crate) fn contains(&self, address: u128) -> bool {
        self.parts(Span::one(address)).next().is_some()
    }

    /// The first span that begins after an address.
    fn after(&self, address: u128) -> Option<(u128, u128)> {
        let next = A::narrow(address.checked_add(1)?);
        // Narrowing the successor of the last address would begin again at 0.
        if next.widen() <= address {
            return None;
        }
        let (&first, &last) = self.spans.range(next..).next()?;
        Some((first.widen(), last.widen()))
    }

    #[cfg(test)]
    pub(crate) fn spans(&self) -> usize {
        self.spans.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn span(first: u128, last: u128) -> Span {
        Span { first, last }
    }

    fn members(spans: impl Iterator<Item = Span>) -> Vec<u128> {
        spans.flat_map(|span| span.first..=span.last).collect()
    }

    proptest! {
        #[test]
        fn cover_agrees_with_a_naive_set(
            inserted in prop::collection::vec((0_u128..200, 0_u128..20), 0..30),
            asked in (0_u128..200, 0_u128..60),
        ) {
            let mut cover = IpRangeSet::<u32>::default();
            let mut naive = BTreeSet::new();
            for (first, more) in inserted {
                cover.insert(span(first, first + more));
                naive.extend(first..=first + more);
            }
            let asked = span(asked.0, asked.0 + asked.1);
            let (within, without): (Vec<_>, Vec<_>) =
                (asked.first..=asked.last).partition(|address| naive.contains(address));
            prop_assert_eq!(members(cover.parts(asked)), within);
            prop_assert_eq!(members(cover.gaps(asked)), without);
            let runs = naive.iter().filter(|address| !naive.contains(&(**address + 1))).count();
            prop_assert_eq!(cover.spans(), runs);
        }
    }

    #[test]
    fn the_last_addresses_of_both_families_are_members() {
        let mut v4 = IpRangeSet::<u32>::default();
        v4.insert(span(u32::MAX.into(), u32::MAX.into()));
        v4.insert(span(0, 5));
        assert!(v4.contains(u32::MAX.into()) && v4.contains(0) && !v4.contains(6));
        assert_eq!(v4.spans(), 2);

        let mut v6 = IpRangeSet::<u128>::default();
        v6.insert(span(u128::MAX, u128::MAX));
        v6.insert(span(0, u128::MAX));
        assert_eq!(v6.spans(), 1);
        assert_eq!(v6.gaps(span(0, u128::MAX)).count(), 0);
    }

    #[test]
    fn consecutive_addresses_are_one_span() {
        let mut cover = IpRangeSet::<u32>::default();
        for address in (0..1_000_000).rev() {
            cover.insert(Span::one(address));
        }
        assert_eq!(cover.spans(), 1);
    }
}
