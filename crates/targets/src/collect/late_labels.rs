//! Labels for addresses that were listed before a word with labels named them. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use range_set_blaze::RangeMapBlaze;

use crate::{
    address_range::{AddressRange, Bounds},
    collect::text_spool::TextId,
    ip_range_set::divide,
};

/// Addresses and the place of their labels in the spool.
#[derive(Debug, Default)]
pub(crate) struct LateLabels {
    v4: RangeMapBlaze<Ipv4Addr, TextId>,
    v6: RangeMapBlaze<Ipv6Addr, TextId>,
}

impl LateLabels {
    /// Gives labels to addresses that have none here.
    pub(crate) fn insert(&mut self, range: AddressRange, labels: TextId) {
        match range.0 {
            Bounds::V4(first, last) => self.v4.ranges_insert(first..=last, labels),
            Bounds::V6(first, last) => self.v6.ranges_insert(first..=last, labels),
        };
    }

    /// The labels of an address.
    pub(crate) fn get(&self, address: IpAddr) -> Option<TextId> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get(address).copied(),
            IpAddr::V6(address) => self.v6.get(address).copied(),
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
        divide(
            range,
            |first| {
                let (stretch, labels) = self.v4.range_or_gap_at(first);
                (*stretch.end(), labels.copied())
            },
            |first| {
                let (stretch, labels) = self.v6.range_or_gap_at(first);
                (*stretch.end(), labels.copied())
            },
        )
    }
}
