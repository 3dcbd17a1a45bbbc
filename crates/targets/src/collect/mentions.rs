//! Which addresses of one family were mentioned, and which of their mentions count. No I/O.
//!
//! Invariant: an address is listed where it was first mentioned, once, unless it is excluded; it has the labels of its
//! first mention with labels.

use crate::{
    collect::{
        target_list::{LateLabels, TooMany},
        text_spool::TextId,
    },
    ip_range_set::{AddressBits, IpRangeSet, Span},
};

/// What was mentioned of one address family.
#[derive(Debug)]
pub(crate) struct Mentions<A> {
    plain: IpRangeSet<A>,
    labelled: IpRangeSet<A>,
    excluded: IpRangeSet<A>,
    relabelled: LateLabels<A>,
}

impl<A> Default for Mentions<A> {
    fn default() -> Self {
        Self {
            plain: IpRangeSet::default(),
            labelled: IpRangeSet::default(),
            excluded: IpRangeSet::default(),
            relabelled: LateLabels::new(),
        }
    }
}

/// How many addresses of a mention were there before, and how many are excluded.
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

impl<A: AddressBits> Mentions<A> {
    pub(crate) fn exclude(&mut self, span: Span) {
        self.excluded.insert(span);
    }

    pub(crate) fn excludes(&self, address: u128) -> bool {
        self.excluded.contains(address)
    }

    /// Takes in one mention, and calls `add` with each part of it that is to be listed, ascending.
    pub(crate) fn mention(
        &mut self,
        span: Span,
        labels: Option<TextId>,
        mut add: impl FnMut(Span) -> Result<(), TooMany>,
    ) -> Result<MentionCounts, TooMany> {
        let mut new = 0_u128;
        let mut excluded = 0_u128;
        for unlabelled in self.labelled.gaps(span) {
            for part in self.plain.gaps(unlabelled) {
                new = new.saturating_add(part.count());
                let mut wanted = 0_u128;
                for part in self.excluded.gaps(part) {
                    wanted = wanted.saturating_add(part.count());
                    add(part)?;
                }
                excluded = excluded.saturating_add(part.count() - wanted);
            }
            if let Some(labels) = labels {
                for part in self.plain.parts(unlabelled) {
                    let last = A::narrow(part.last);
                    self.relabelled
                        .insert(A::narrow(part.first), (last, labels));
                }
            }
        }
        match labels {
            Some(_) => self.labelled.insert(span),
            None => self.plain.insert(span),
        }
        Ok(MentionCounts {
            duplicates: span.count() - new,
            excluded,
        })
    }

    /// Labels for addresses that were listed without.
    pub(crate) fn relabelled(&self) -> &LateLabels<A> {
        &self.relabelled
    }

    /// The labels that an address got after it was listed, if any.
    pub(crate) fn labels_of(&self, address: u128) -> Option<TextId> {
        let (_, (last, labels)) = self.relabelled.range(..=A::narrow(address)).next_back()?;
        (last.widen() >= address).then_some(*labels)
    }
}
