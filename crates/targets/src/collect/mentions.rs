//! Which addresses were mentioned, and which of their mentions count. No I/O.
//!
//! Invariant: an address is listed where it was first mentioned, once, unless it is excluded. It has the labels of its
//! first mention with labels.

use crate::{
    address_range::AddressRange,
    collect::{late_labels::LateLabels, target_list::TooMany, text_spool::TextId},
    ip_range_set::IpRangeSet,
};

/// The addresses that were mentioned.
#[derive(Debug, Default)]
pub(crate) struct Mentions {
    /// Mentioned without labels.
    plain: IpRangeSet,
    /// Mentioned with labels.
    labelled: IpRangeSet,
    late_labels: LateLabels,
}

/// How many targets of a mention were mentioned before, and how many are excluded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MentionCounts {
    pub(crate) duplicates: u128,
    pub(crate) excluded: u128,
}

impl MentionCounts {
    pub(crate) fn add(&mut self, more: Self) {
        self.duplicates = self.duplicates.saturating_add(more.duplicates);
        self.excluded = self.excluded.saturating_add(more.excluded);
    }
}

impl Mentions {
    /// Adds one mention, and calls `add` with each part of it that is new and not excluded, ascending.
    pub(crate) fn add(
        &mut self,
        range: AddressRange,
        labels: Option<TextId>,
        excluded: &IpRangeSet,
        mut add: impl FnMut(AddressRange) -> Result<(), TooMany>,
    ) -> Result<MentionCounts, TooMany> {
        let mut new = 0_u128;
        let mut wanted = 0_u128;
        for unlabelled in self.labelled.gaps_of(range) {
            for part in self.plain.gaps_of(unlabelled) {
                new = new.saturating_add(part.count());
                for part in excluded.gaps_of(part) {
                    wanted = wanted.saturating_add(part.count());
                    add(part)?;
                }
            }
            if let Some(labels) = labels {
                for part in self.plain.members_of(unlabelled) {
                    self.late_labels.insert(part, labels);
                }
            }
        }
        match labels {
            Some(_) => self.labelled.insert(range),
            None => self.plain.insert(range),
        }
        Ok(MentionCounts {
            duplicates: range.count() - new,
            excluded: new - wanted,
        })
    }

    /// How many ranges of addresses there are that do not touch.
    pub(crate) fn ranges(&self) -> usize {
        self.plain.ranges() + self.labelled.ranges()
    }

    /// Labels for addresses that were listed without labels.
    pub(crate) fn late_labels(&self) -> &LateLabels {
        &self.late_labels
    }
}
