//! Gathers mentions into the list of targets: first mentions are listed, duplicates and excludes are counted.
//!
//! Excludes come first; then each mention is settled when it comes, so that a list that grows too long is given up at
//! once. Writes names and labels to the spool.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use pingfleet_wire::Family;

use crate::{
    address_range::{self, AddressRange},
    error::TargetsError,
    limits::MAX_LABELLED_ADDRESSES,
    parse::{BadTargetReason, TargetSpec},
};

pub(crate) mod mentions;
pub(crate) mod name_set;
pub(crate) mod target_list;
pub(crate) mod text_spool;

use mentions::{MentionCounts, Mentions};
use name_set::{NameLookup, NameSet};
use target_list::{TargetList, TooMany};
use text_spool::TextSpool;

/// What the options say about all targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CollectOptions {
    pub(crate) family: Family,
    pub(crate) all_addresses: bool,
}

/// The mentions so far.
#[derive(Debug)]
pub(crate) struct Collector {
    rules: CollectOptions,
    v4: Mentions<u32>,
    v6: Mentions<u128>,
    texts: NameSet,
    listing: TargetList,
    spool: TextSpool,
    /// Whether an address was spooled for its spelling.
    respelled: bool,
    tally: MentionCounts,
}

/// Why a mention was not taken in.
#[derive(Debug)]
pub(crate) enum CollectError {
    /// It is a bad target.
    Bad(BadTargetReason),
    /// There can be no list.
    Fatal(TargetsError),
}

impl From<BadTargetReason> for CollectError {
    fn from(why: BadTargetReason) -> Self {
        Self::Bad(why)
    }
}

impl From<TooMany> for CollectError {
    fn from(TooMany(count): TooMany) -> Self {
        Self::Fatal(TargetsError::TooMany { count })
    }
}

impl From<io::Error> for CollectError {
    fn from(error: io::Error) -> Self {
        Self::Fatal(TargetsError::TextSpool(error))
    }
}

/// What [`Collector::finish`] gives.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) listing: TargetList,
    pub(crate) spool: TextSpool,
    pub(crate) tally: MentionCounts,
}

impl Collector {
    pub(crate) fn new(rules: CollectOptions) -> Self {
        Self {
            rules,
            v4: Mentions::default(),
            v6: Mentions::default(),
            texts: NameSet::default(),
            listing: TargetList::default(),
            spool: TextSpool::new(),
            respelled: false,
            tally: MentionCounts::default(),
        }
    }

    /// Excludes what a word says, all addresses of a network included.
    pub(crate) fn exclude(&mut self, spelled: TargetSpec<'_>, word: &str) {
        let block = match spelled {
            TargetSpec::Address(address) => AddressRange::address(address),
            TargetSpec::Network(network) => AddressRange::whole(network),
            TargetSpec::Range(first, last) => AddressRange::range(first, last),
            TargetSpec::Zoned(..) | TargetSpec::Name(_) => return self.texts.exclude(word),
        };
        match block {
            AddressRange::V4(span) => self.v4.exclude(span),
            AddressRange::V6(span) => self.v6.exclude(span),
        }
    }

    /// Takes in what a word says.
    pub(crate) fn mention(
        &mut self,
        spelled: TargetSpec<'_>,
        word: &str,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let family = self.rules.family;
        let (first, block) = match spelled {
            TargetSpec::Address(address) => {
                address_range::check_address(address, family)?;
                // An IPv4 address has one spelling that can be read.
                if address.is_ipv4() || address.to_canonical().to_string() == word {
                    return self.block(AddressRange::address(address), labels);
                }
                return self.respelled(AddressRange::address(address), word, labels);
            }
            TargetSpec::Zoned(address, _) => {
                address_range::check_address(address.into(), family)?;
                return self.text(word, Some(address), labels);
            }
            TargetSpec::Name(name) => return self.text(name, None, labels),
            TargetSpec::Network(network) if self.rules.all_addresses => {
                (network.addr(), AddressRange::whole(network))
            }
            TargetSpec::Network(network) => (network.addr(), AddressRange::hosts(network)),
            TargetSpec::Range(first, last) => (first, AddressRange::range(first, last)),
        };
        address_range::check_range(first, block, family)?;
        if labels.is_some() && block.count() > MAX_LABELLED_ADDRESSES {
            return Err(BadTargetReason::ManyLabelled {
                count: block.count(),
            }
            .into());
        }
        self.block(block, labels)
    }

    /// The list, when everything was taken in.
    pub(crate) fn finish(mut self) -> Result<Collected, TargetsError> {
        let (v4, v6) = (self.v4.relabelled(), self.v6.relabelled());
        if !v4.is_empty() || !v6.is_empty() {
            self.listing = self
                .listing
                .relabelled(v4, v6)
                .map_err(|TooMany(count)| TargetsError::TooMany { count })?;
            if self.respelled {
                self.relabel_texts().map_err(TargetsError::TextSpool)?;
            }
        }
        Ok(Collected {
            listing: self.listing,
            spool: self.spool,
            tally: self.tally,
        })
    }

    /// Consecutive addresses in their canonical spelling.
    fn block(&mut self, block: AddressRange, labels: Option<&str>) -> Result<(), CollectError> {
        let slot = labels
            .map(|labels| self.spool.add("", Some(labels)))
            .transpose()?;
        let listing = &mut self.listing;
        let tally = match block {
            AddressRange::V4(span) => self
                .v4
                .mention(span, slot, |part| listing.add(AddressRange::V4(part), slot)),
            AddressRange::V6(span) => self
                .v6
                .mention(span, slot, |part| listing.add(AddressRange::V6(part), slot)),
        };
        self.tally.add(tally?);
        Ok(())
    }

    /// One address whose spelling is kept.
    fn respelled(
        &mut self,
        block: AddressRange,
        word: &str,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let slot = self.spool.add(word, labels)?;
        let listing = &mut self.listing;
        // Should the address be listed already, its labels are these: a record serves with its labels alone, too.
        let labels = labels.map(|_| slot);
        let tally = match block {
            AddressRange::V4(span) => self.v4.mention(span, labels, |_| listing.add_text(slot)),
            AddressRange::V6(span) => self.v6.mention(span, labels, |_| listing.add_text(slot)),
        };
        self.respelled = true;
        self.tally.add(tally?);
        Ok(())
    }

    /// A name, or an address with a zone.
    fn text(
        &mut self,
        text: &str,
        address: Option<Ipv6Addr>,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let excluded = address.is_some_and(|address| self.v6.excludes(address.to_bits()))
            || self.texts.excludes(text);
        if excluded {
            let first = self.texts.leave_out(text);
            self.tally.add(MentionCounts {
                duplicates: (!first).into(),
                excluded: first.into(),
            });
            return Ok(());
        }
        match self.texts.find(text, &mut self.spool)? {
            NameLookup::New(place) => {
                let slot = self.spool.add(text, labels)?;
                self.texts.enter(&place, slot);
                self.listing.add_text(slot)?;
            }
            NameLookup::ListedTarget(slot, first) => {
                if labels.is_some() && first.labels.is_none() {
                    self.spool.replace(slot, &first.text, labels)?;
                }
                self.tally.add(MentionCounts {
                    duplicates: 1,
                    excluded: 0,
                });
            }
        }
        Ok(())
    }

    /// Gives labels to the addresses in the spool that got them after they were listed.
    fn relabel_texts(&mut self) -> io::Result<()> {
        for slot in self.listing.texts() {
            let record = self.spool.read(slot)?;
            let Ok(address) = record.text.parse::<IpAddr>() else {
                continue;
            };
            let labels = match AddressRange::address(address) {
                AddressRange::V4(span) => self.v4.labels_of(span.first),
                AddressRange::V6(span) => self.v6.labels_of(span.first),
            };
            if let Some(labels) = labels {
                let labels = self.spool.read(labels)?.labels;
                self.spool.replace(slot, &record.text, labels.as_deref())?;
            }
        }
        Ok(())
    }
}
