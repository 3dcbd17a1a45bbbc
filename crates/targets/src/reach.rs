//! Which addresses of one family were mentioned, and which of their mentions count. No I/O.
//!
//! Invariant: an address is listed where it was first mentioned, once, unless it is excluded; it has the labels of its
//! first mention with labels.

use crate::{
    cover::{Cover, Span, Stored},
    listing::{Relabelled, TooMany},
    spool::Slot,
};

/// What was mentioned of one address family.
#[derive(Debug)]
pub(super) struct Reach<A> {
    plain: Cover<A>,
    labelled: Cover<A>,
    excluded: Cover<A>,
    relabelled: Relabelled<A>,
}

impl<A> Default for Reach<A> {
    fn default() -> Self {
        Self {
            plain: Cover::default(),
            labelled: Cover::default(),
            excluded: Cover::default(),
            relabelled: Relabelled::new(),
        }
    }
}

/// How many addresses of a mention were there before, and how many are excluded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) duplicates: u128,
    pub(super) excluded: u128,
}

impl Tally {
    pub(super) fn add(&mut self, more: Self) {
        self.duplicates = self.duplicates.saturating_add(more.duplicates);
        self.excluded = self.excluded.saturating_add(more.excluded);
    }
}

impl<A: Stored> Reach<A> {
    pub(super) fn exclude(&mut self, span: Span) {
        self.excluded.insert(span);
    }

    pub(super) fn excludes(&self, address: u128) -> bool {
        self.excluded.contains(address)
    }

    /// Takes in one mention, and calls `add` with each part of it that is to be listed, ascending.
    pub(super) fn mention(
        &mut self,
        span: Span,
        labels: Option<Slot>,
        mut add: impl FnMut(Span) -> Result<(), TooMany>,
    ) -> Result<Tally, TooMany> {
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
        Ok(Tally {
            duplicates: span.count() - new,
            excluded,
        })
    }

    /// Labels for addresses that were listed without.
    pub(super) fn relabelled(&self) -> &Relabelled<A> {
        &self.relabelled
    }

    /// The labels that an address got after it was listed, if any.
    pub(super) fn labels_of(&self, address: u128) -> Option<Slot> {
        let (_, (last, labels)) = self.relabelled.range(..=A::narrow(address)).next_back()?;
        (last.widen() >= address).then_some(*labels)
    }
}
