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
    block::{self, Block},
    error::TargetsError,
    listing::{Listing, TooMany},
    reach::{Reach, Tally},
    spelling::Spelled,
    spool::Spool,
    texts::{Known, Texts},
    why::{MAX_LABELLED, Why},
};

/// What the options say about all targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) family: Family,
    pub(super) all_addresses: bool,
}

/// The mentions so far.
#[derive(Debug)]
pub(super) struct Gather {
    rules: Rules,
    v4: Reach<u32>,
    v6: Reach<u128>,
    texts: Texts,
    listing: Listing,
    spool: Spool,
    /// Whether an address was spooled for its spelling.
    respelled: bool,
    tally: Tally,
}

/// Why a mention was not taken in.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is a bad target.
    Bad(Why),
    /// There can be no list.
    Fatal(TargetsError),
}

impl From<Why> for Refused {
    fn from(why: Why) -> Self {
        Self::Bad(why)
    }
}

impl From<TooMany> for Refused {
    fn from(TooMany(count): TooMany) -> Self {
        Self::Fatal(TargetsError::TooMany { count })
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Fatal(TargetsError::Spool(error))
    }
}

/// What [`Gather::finish`] gives.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) listing: Listing,
    pub(super) spool: Spool,
    pub(super) tally: Tally,
}

impl Gather {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            v4: Reach::default(),
            v6: Reach::default(),
            texts: Texts::default(),
            listing: Listing::default(),
            spool: Spool::new(),
            respelled: false,
            tally: Tally::default(),
        }
    }

    /// Excludes what a word says, all addresses of a network included.
    pub(super) fn exclude(&mut self, spelled: Spelled<'_>, word: &str) {
        let block = match spelled {
            Spelled::Address(address) => Block::address(address),
            Spelled::Network(network) => Block::whole(network),
            Spelled::Range(first, last) => Block::range(first, last),
            Spelled::Zoned(..) | Spelled::Name(_) => return self.texts.exclude(word),
        };
        match block {
            Block::V4(span) => self.v4.exclude(span),
            Block::V6(span) => self.v6.exclude(span),
        }
    }

    /// Takes in what a word says.
    pub(super) fn mention(
        &mut self,
        spelled: Spelled<'_>,
        word: &str,
        labels: Option<&str>,
    ) -> Result<(), Refused> {
        let family = self.rules.family;
        let (first, block) = match spelled {
            Spelled::Address(address) => {
                block::check_address(address, family)?;
                // An IPv4 address has one spelling that can be read.
                if address.is_ipv4() || address.to_canonical().to_string() == word {
                    return self.block(Block::address(address), labels);
                }
                return self.respelled(Block::address(address), word, labels);
            }
            Spelled::Zoned(address, _) => {
                block::check_address(address.into(), family)?;
                return self.text(word, Some(address), labels);
            }
            Spelled::Name(name) => return self.text(name, None, labels),
            Spelled::Network(network) if self.rules.all_addresses => {
                (network.addr(), Block::whole(network))
            }
            Spelled::Network(network) => (network.addr(), Block::hosts(network)),
            Spelled::Range(first, last) => (first, Block::range(first, last)),
        };
        block::check_block(first, block, family)?;
        if labels.is_some() && block.count() > MAX_LABELLED {
            return Err(Why::ManyLabelled {
                count: block.count(),
            }
            .into());
        }
        self.block(block, labels)
    }

    /// The list, when everything was taken in.
    pub(super) fn finish(mut self) -> Result<Gathered, TargetsError> {
        let (v4, v6) = (self.v4.relabelled(), self.v6.relabelled());
        if !v4.is_empty() || !v6.is_empty() {
            self.listing = self
                .listing
                .relabelled(v4, v6)
                .map_err(|TooMany(count)| TargetsError::TooMany { count })?;
            if self.respelled {
                self.relabel_texts().map_err(TargetsError::Spool)?;
            }
        }
        Ok(Gathered {
            listing: self.listing,
            spool: self.spool,
            tally: self.tally,
        })
    }

    /// Consecutive addresses in their canonical spelling.
    fn block(&mut self, block: Block, labels: Option<&str>) -> Result<(), Refused> {
        let slot = labels
            .map(|labels| self.spool.add("", Some(labels)))
            .transpose()?;
        let listing = &mut self.listing;
        let tally = match block {
            Block::V4(span) => self
                .v4
                .mention(span, slot, |part| listing.add(Block::V4(part), slot)),
            Block::V6(span) => self
                .v6
                .mention(span, slot, |part| listing.add(Block::V6(part), slot)),
        };
        self.tally.add(tally?);
        Ok(())
    }

    /// One address whose spelling is kept.
    fn respelled(&mut self, block: Block, word: &str, labels: Option<&str>) -> Result<(), Refused> {
        let slot = self.spool.add(word, labels)?;
        let listing = &mut self.listing;
        // Should the address be listed already, its labels are these: a record serves with its labels alone, too.
        let labels = labels.map(|_| slot);
        let tally = match block {
            Block::V4(span) => self.v4.mention(span, labels, |_| listing.add_text(slot)),
            Block::V6(span) => self.v6.mention(span, labels, |_| listing.add_text(slot)),
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
    ) -> Result<(), Refused> {
        let excluded = address.is_some_and(|address| self.v6.excludes(address.to_bits()))
            || self.texts.excludes(text);
        if excluded {
            let first = self.texts.leave_out(text);
            self.tally.add(Tally {
                duplicates: (!first).into(),
                excluded: first.into(),
            });
            return Ok(());
        }
        match self.texts.find(text, &mut self.spool)? {
            Known::New(place) => {
                let slot = self.spool.add(text, labels)?;
                self.texts.enter(&place, slot);
                self.listing.add_text(slot)?;
            }
            Known::Listed(slot, first) => {
                if labels.is_some() && first.labels.is_none() {
                    self.spool.replace(slot, &first.text, labels)?;
                }
                self.tally.add(Tally {
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
            let labels = match Block::address(address) {
                Block::V4(span) => self.v4.labels_of(span.first),
                Block::V6(span) => self.v6.labels_of(span.first),
            };
            if let Some(labels) = labels {
                let labels = self.spool.read(labels)?.labels;
                self.spool.replace(slot, &record.text, labels.as_deref())?;
            }
        }
        Ok(())
    }
}
