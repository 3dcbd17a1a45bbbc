//! The targets in the order in which they were given: consecutive addresses, and texts in the spool, with prefix
//! sums. No I/O.
//!
//! Invariant: at most [`MAX_TARGETS`] targets; 16 bytes a segment, and 16 more for one of IPv6. Neighbours that follow
//! each other are one segment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    address_range::{AddressRange, Bounds},
    collect::{late_labels::LateLabels, text_spool::TextId},
    limits::MAX_TARGETS,
};

/// There are more targets than a plan may have: at least so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany(pub(crate) u128);

/// One target as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListedTarget {
    /// An address, with the place of its labels.
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
    /// Of addresses; the spool has the labels of a text together with the text.
    labels: Option<TextId>,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    /// The first address.
    V4(u32),
    /// The index of the first address in `v6`.
    V6(u32),
    /// The first text; the others have the ids after it.
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
        range: AddressRange,
        labels: Option<TextId>,
    ) -> Result<(), TooMany> {
        let more = self.room_for(range.count())?;
        let last = self.segments.last();
        let length = last.map_or(0, |last| self.count - last.before);
        let follows = last.is_some_and(|last| {
            last.labels == labels
                && match (last.content, range.0) {
                    (Content::V4(begin), Bounds::V4(first, _)) => {
                        begin.checked_add(length) == Some(first.to_bits())
                    }
                    (Content::V6(at), Bounds::V6(first, _)) => {
                        let next = self.v6[at as usize].checked_add(length.into());
                        next == Some(first.to_bits())
                    }
                    _ => false,
                }
        });
        if !follows {
            let content = match range.0 {
                Bounds::V4(first, _) => Content::V4(first.to_bits()),
                Bounds::V6(first, _) => {
                    self.v6.push(first.to_bits());
                    Content::V6(self.v6.len() as u32 - 1)
                }
            };
            self.begin(content, labels);
        }
        self.count += more;
        Ok(())
    }

    /// Appends a text.
    pub(crate) fn add_text(&mut self, id: TextId) -> Result<(), TooMany> {
        let more = self.room_for(1)?;
        let follows = self.segments.last().is_some_and(|last| {
            matches!(last.content, Content::Texts(first)
                if first.plus(self.count - last.before) == id)
        });
        if !follows {
            self.begin(Content::Texts(id), None);
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

    /// The indexes of the first and the last target of at most `most` segments, which are evenly spread.
    pub(crate) fn ends(&self, most: usize) -> impl Iterator<Item = u64> {
        let step = self.segments.len().div_ceil(most.max(1)).max(1);
        self.lengths().step_by(step).flat_map(|(segment, length)| {
            let first = u64::from(segment.before);
            let last = first + u64::from(length.saturating_sub(1));
            [Some(first), Some(last).filter(|last| *last != first)]
                .into_iter()
                .flatten()
        })
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

    /// The same targets, in which the addresses without labels have their late ones.
    pub(crate) fn with_late_labels(&self, late: &LateLabels) -> Result<Self, TooMany> {
        let mut list = Self::default();
        for (segment, length) in self.lengths() {
            let first = match segment.content {
                Content::Texts(first) => {
                    (0..length).try_for_each(|offset| list.add_text(first.plus(offset)))?;
                    continue;
                }
                Content::V4(first) => Ipv4Addr::from_bits(first).into(),
                Content::V6(at) => Ipv6Addr::from_bits(self.v6[at as usize]).into(),
            };
            for (part, labels) in late.divide(AddressRange::starting_at(first, length)) {
                list.add(part, labels.or(segment.labels))?;
            }
        }
        Ok(list)
    }

    /// How many segments there are: what the memory follows.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(bits: u32) -> AddressRange {
        IpAddr::V4(Ipv4Addr::from_bits(bits)).into()
    }

    fn v6(first: u128, last: u128) -> AddressRange {
        AddressRange(Bounds::V6(
            Ipv6Addr::from_bits(first),
            Ipv6Addr::from_bits(last),
        ))
    }

    #[test]
    fn a_segment_costs_16_bytes() {
        assert_eq!(size_of::<Segment>(), 16);
    }

    #[test]
    fn consecutive_addresses_are_one_segment() {
        for (gap, segments) in [(1, 1), (2, 1_000_000)] {
            let mut list = TargetList::default();
            for number in 0..1_000_000 {
                list.add(v4(number * gap), None).unwrap();
            }
            assert_eq!(list.count(), 1_000_000);
            assert_eq!(list.segments(), segments);
        }
    }

    #[test]
    fn addresses_after_the_last_one_of_a_family_begin_a_segment() {
        let mut list = TargetList::default();
        for range in [v4(u32::MAX), v4(0), v6(u128::MAX, u128::MAX), v6(0, 0)] {
            list.add(range, None).unwrap();
        }
        assert_eq!(list.segments(), 4);
    }

    #[test]
    fn one_more_than_the_most_is_refused() {
        let mut list = TargetList::default();
        list.add(v6(0, u128::from(MAX_TARGETS) - 1), None).unwrap();
        assert_eq!(list.add(v4(1), None), Err(TooMany((1 << 28) + 1)));
        assert_eq!(list.add(v6(0, u128::MAX), None), Err(TooMany(u128::MAX)));
    }
}
