//! The targets in the order in which they were given: consecutive addresses, and texts in the spool, with prefix
//! sums. No I/O.
//!
//! Invariant: at most [`MAX_TARGETS`] targets; 16 bytes a segment, and 16 more for one of IPv6. Neighbours that follow
//! each other are one segment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    address_range::AddressRange,
    collect::text_spool::TextId,
    ip_range_set::{AddressBits, Span},
    limits::MAX_TARGETS,
};

/// There are more targets than a plan may have: at least so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany(pub(crate) u128);

/// Labels for addresses that are listed without: first address to last address and labels.
pub(crate) type LateLabels<A> = BTreeMap<A, (A, TextId)>;

/// One target as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListedTarget {
    /// An address, with the slot of its labels.
    Address(IpAddr, Option<TextId>),
    /// A text with its labels.
    Text(TextId),
}

/// The targets.
#[derive(Debug, Default)]
pub(crate) struct TargetList {
    segments: Vec<Segment>,
    /// First addresses of the segments of IPv6.
    v6: Vec<u128>,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    /// How many targets precede it.
    before: u32,
    content: Content,
    /// Of addresses; the labels of texts are in their own slots.
    labels: Option<TextId>,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    /// The first address.
    V4(u32),
    /// Where the first address is.
    V6(u32),
    /// The first text; the others are in the slots after it.
    Texts(TextId),
}

impl TargetList {
    /// How many targets there are.
    pub(crate) fn count(&self) -> u64 {
        self.count.into()
    }

    /// Appends consecutive addresses.
    pub(crate) fn add(
        &mut self,
        block: AddressRange,
        labels: Option<TextId>,
    ) -> Result<(), TooMany> {
        let more = self.room_for(block.count())?;
        let last = self.segments.last();
        let length = last.map_or(0, |last| self.count - last.before);
        let follows = last.is_some_and(|last| {
            last.labels == labels
                && match (last.content, block) {
                    (Content::V4(first), AddressRange::V4(span)) => {
                        u128::from(first) + u128::from(length) == span.first
                    }
                    (Content::V6(at), AddressRange::V6(span)) => {
                        self.v6[at as usize] + u128::from(length) == span.first
                    }
                    _ => false,
                }
        });
        if !follows {
            let content = match block {
                AddressRange::V4(span) => Content::V4(u32::narrow(span.first)),
                AddressRange::V6(span) => {
                    self.v6.push(span.first);
                    Content::V6(self.v6.len() as u32 - 1)
                }
            };
            self.begin(content, labels);
        }
        self.count += more;
        Ok(())
    }

    /// Appends a text.
    pub(crate) fn add_text(&mut self, slot: TextId) -> Result<(), TooMany> {
        let more = self.room_for(1)?;
        let follows = self.segments.last().is_some_and(|last| {
            matches!(last.content, Content::Texts(first)
                if first.plus(self.count - last.before) == slot)
        });
        if !follows {
            self.begin(Content::Texts(slot), None);
        }
        self.count += more;
        Ok(())
    }

    /// The target at an index below the count.
    pub(crate) fn get(&self, index: u64) -> ListedTarget {
        let segment = self
            .segments
            .partition_point(|segment| u64::from(segment.before) <= index);
        let Segment {
            before,
            content,
            labels,
        } = self.segments[segment - 1];
        let offset = index as u32 - before;
        match content {
            Content::V4(first) => {
                ListedTarget::Address(Ipv4Addr::from_bits(first + offset).into(), labels)
            }
            Content::V6(at) => {
                let bits = self.v6[at as usize] + u128::from(offset);
                ListedTarget::Address(Ipv6Addr::from_bits(bits).into(), labels)
            }
            Content::Texts(first) => ListedTarget::Text(first.plus(offset)),
        }
    }

    /// All texts.
    pub(crate) fn texts(&self) -> impl Iterator<Item = TextId> {
        self.lengths()
            .filter_map(|(segment, length)| match segment.content {
                Content::Texts(first) => Some((0..length).map(move |offset| first.plus(offset))),
                Content::V4(_) | Content::V6(_) => None,
            })
            .flatten()
    }

    /// The same targets, in which addresses without labels have those that are meant for them.
    pub(crate) fn relabelled(
        &self,
        v4: &LateLabels<u32>,
        v6: &LateLabels<u128>,
    ) -> Result<Self, TooMany> {
        let mut listing = Self::default();
        for (segment, length) in self.lengths() {
            let span = |first: u128| Span {
                first,
                last: first + u128::from(length) - 1,
            };
            match segment.content {
                Content::Texts(first) => {
                    (0..length).try_for_each(|offset| listing.add_text(first.plus(offset)))?;
                }
                Content::V4(first) => {
                    for (part, labels) in divided(span(first.into()), segment.labels, v4) {
                        listing.add(AddressRange::V4(part), labels)?;
                    }
                }
                Content::V6(at) => {
                    for (part, labels) in divided(span(self.v6[at as usize]), segment.labels, v6) {
                        listing.add(AddressRange::V6(part), labels)?;
                    }
                }
            }
        }
        Ok(listing)
    }

    /// How many segments there are: what the memory follows.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    fn begin(&mut self, content: Content, labels: Option<TextId>) {
        self.segments.push(Segment {
            before: self.count,
            content,
            labels,
        });
    }

    fn room_for(&self, more: u128) -> Result<u32, TooMany> {
        let count = u128::from(self.count).saturating_add(more);
        if count > MAX_TARGETS.into() {
            return Err(TooMany(count));
        }
        Ok(more as u32)
    }

    /// The segments with their lengths.
    fn lengths(&self) -> impl Iterator<Item = (Segment, u32)> {
        let ends = self.segments.iter().skip(1).map(|segment| segment.before);
        let ends = ends.chain([self.count]);
        self.segments
            .iter()
            .zip(ends)
            .map(|(segment, end)| (*segment, end - segment.before))
    }
}

/// The parts of a span by their labels.
fn divided<A: AddressBits>(
    span: Span,
    labels: Option<TextId>,
    relabelled: &LateLabels<A>,
) -> Vec<(Span, Option<TextId>)> {
    let mut parts = Vec::new();
    let mut first = span.first;
    let before = relabelled.range(..A::narrow(span.first)).next_back();
    let within = relabelled.range(A::narrow(span.first)..=A::narrow(span.last));
    for (&from, &(to, slot)) in before.into_iter().chain(within) {
        let Some(part) = span.and(Span {
            first: from.widen(),
            last: to.widen(),
        }) else {
            continue;
        };
        if first < part.first {
            let last = part.first - 1;
            parts.push((Span { first, last }, labels));
        }
        parts.push((part, Some(slot)));
        first = part.last + 1;
    }
    if first <= span.last {
        let last = span.last;
        parts.push((Span { first, last }, labels));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_costs_16_bytes() {
        assert_eq!(size_of::<Segment>(), 16);
    }

    #[test]
    fn consecutive_addresses_are_one_segment() {
        for (gap, segments) in [(1, 1), (2, 1_000_000)] {
            let mut listing = TargetList::default();
            for number in 0..1_000_000 {
                let address = AddressRange::V4(Span::one(number * gap));
                listing.add(address, None).unwrap();
            }
            assert_eq!(listing.count(), 1_000_000);
            assert_eq!(listing.segments(), segments);
        }
    }

    #[test]
    fn one_more_than_the_most_is_refused() {
        let mut listing = TargetList::default();
        let all = Span {
            first: 0,
            last: u128::from(MAX_TARGETS) - 1,
        };
        listing.add(AddressRange::V6(all), None).unwrap();
        let more = AddressRange::V4(Span::one(1));
        assert_eq!(listing.add(more, None), Err(TooMany((1 << 28) + 1)));
        let huge = Span {
            first: 0,
            last: u128::MAX,
        };
        assert_eq!(
            listing.add(AddressRange::V6(huge), None),
            Err(TooMany(u128::MAX))
        );
    }
}
