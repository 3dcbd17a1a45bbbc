//! Labels for addresses that were listed before a word with labels named them. No I/O.

use std::net::IpAddr;

use crate::{
    address_range::{AddressRange, Bounds},
    collect::text_spool::TextId,
    disjoint_ranges::DisjointRanges,
    ip_range_set::divide,
};

/// Addresses and the place of their labels in the spool.
#[derive(Debug, Default)]
pub(crate) struct LateLabels {
    v4: DisjointRanges<u32, TextId>,
    v6: DisjointRanges<u128, TextId>,
}

impl LateLabels {
    /// Gives labels to addresses that have none here.
    pub(crate) fn insert(&mut self, range: AddressRange, labels: TextId) {
        match range.0 {
            Bounds::V4(first, last) => self.v4.insert(first.to_bits(), last.to_bits(), labels),
            Bounds::V6(first, last) => self.v6.insert(first.to_bits(), last.to_bits(), labels),
        }
    }

    /// The labels of an address.
    pub(crate) fn get(&self, address: IpAddr) -> Option<TextId> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get(address.to_bits()),
            IpAddr::V6(address) => self.v6.get(address.to_bits()),
        }
    }

    /// Whether no address has labels here.
    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The parts of a range, ascending, each with its labels.
    pub(crate) fn divide(
        &self,
        range: AddressRange,
    ) -> impl Iterator<Item = (AddressRange, Option<TextId>)> {
        divide(range, &self.v4, &self.v6)
    }
}
