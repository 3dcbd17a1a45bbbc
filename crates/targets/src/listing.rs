//! The targets in the order in which they were given: consecutive addresses, and texts in the spool, with prefix
//! sums. No I/O.
//!
//! Invariant: at most [`MOST_TARGETS`] targets; 16 bytes a segment, and 16 more for one of IPv6. Neighbours that follow
//! each other are one segment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    block::Block,
    cover::{Span, Stored},
    error::MOST_TARGETS,
    spool::Slot,
};

/// There are more targets than a plan may have: at least so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany(pub(super) u128);

/// Labels for addresses that are listed without: first address to last address and labels.
pub(super) type Relabelled<A> = BTreeMap<A, (A, Slot)>;

/// One target as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// An address, with the slot of its labels.
    Address(IpAddr, Option<Slot>),
    /// A text with its labels.
    Text(Slot),
}

/// The targets.
#[derive(Debug, Default)]
pub(super) struct Listing {
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
    labels: Option<Slot>,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    /// The first address.
    V4(u32),
    /// Where the first address is.
    V6(u32),
    /// The first text; the others are in the slots after it.
    Texts(Slot),
}

impl Listing {
    /// How many targets there are.
    pub(super) fn count(&self) -> u64 {
        self.count.into()
    }

    /// Appends consecutive addresses.
    pub(super) fn add(&mut self, block: Block, labels: Option<Slot>) -> Result<(), TooMany> {
        let more = self.room_for(block.count())?;
        let last = self.segments.last();
        let length = last.map_or(0, |last| self.count - last.before);
        let follows = last.is_some_and(|last| {
            last.labels == labels
                && match (last.content, block) {
                    (Content::V4(first), Block::V4(span)) => {
                        u128::from(first) + u128::from(length) == span.first
                    }
                    (Content::V6(at), Block::V6(span)) => {
                        self.v6[at as usize] + u128::from(length) == span.first
                    }
                    _ => false,
                }
        });
        if !follows {
            let content = match block {
                Block::V4(span) => Content::V4(u32::narrow(span.first)),
                Block::V6(span) => {
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
    pub(super) fn add_text(&mut self, slot: Slot) -> Result<(), TooMany> {
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
    pub(super) fn get(&self, index: u64) -> Listed {
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
                Listed::Address(Ipv4Addr::from_bits(first + offset).into(), labels)
            }
            Content::V6(at) => {
                let bits = self.v6[at as usize] + u128::from(offset);
                Listed::Address(Ipv6Addr::from_bits(bits).into(), labels)
            }
            Content::Texts(first) => Listed::Text(first.plus(offset)),
        }
    }

    /// All texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = Slot> {
        self.lengths()
            .filter_map(|(segment, length)| match segment.content {
                Content::Texts(first) => Some((0..length).map(move |offset| first.plus(offset))),
                Content::V4(_) | Content::V6(_) => None,
            })
            .flatten()
    }

    /// The same targets, in which addresses without labels have those that are meant for them.
    pub(super) fn relabelled(
        &self,
        v4: &Relabelled<u32>,
        v6: &Relabelled<u128>,
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
                        listing.add(Block::V4(part), labels)?;
                    }
                }
                Content::V6(at) => {
                    for (part, labels) in divided(span(self.v6[at as usize]), segment.labels, v6) {
                        listing.add(Block::V6(part), labels)?;
                    }
                }
            }
        }
        Ok(listing)
    }

    /// How many segments there are: what the memory follows.
    #[cfg(test)]
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    fn begin(&mut self, content: Content, labels: Option<Slot>) {
        self.segments.push(Segment {
            before: self.count,
            content,
            labels,
        });
    }

    fn room_for(&self, more: u128) -> Result<u32, TooMany> {
        let count = u128::from(self.count).saturating_add(more);
        if count > MOST_TARGETS.into() {
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
fn divided<A: Stored>(
    span: Span,
    labels: Option<Slot>,
    relabelled: &Relabelled<A>,
) -> Vec<(Span, Option<Slot>)> {
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
            let mut listing = Listing::default();
            for number in 0..1_000_000 {
                let address = Block::V4(Span::one(number * gap));
                listing.add(address, None).unwrap();
            }
            assert_eq!(listing.count(), 1_000_000);
            assert_eq!(listing.segments(), segments);
        }
    }

    #[test]
    fn one_more_than_the_most_is_refused() {
        let mut listing = Listing::default();
        let all = Span {
            first: 0,
            last: u128::from(MOST_TARGETS) - 1,
        };
        listing.add(Block::V6(all), None).unwrap();
        let more = Block::V4(Span::one(1));
        assert_eq!(listing.add(more, None), Err(TooMany((1 << 28) + 1)));
        let huge = Span {
            first: 0,
            last: u128::MAX,
        };
        assert_eq!(listing.add(Block::V6(huge), None), Err(TooMany(u128::MAX)));
    }
}
