//! Collects words into the list of targets: first mentions are listed, duplicates and excluded targets are counted.
//!
//! Each word is settled when it comes, so a list that grows too long fails at once. Writes names and labels to the
//! spool.

mod late_labels;
pub(crate) mod link_local;
mod mentions;
mod name_set;
pub(crate) mod target_list;
pub(crate) mod text_spool;

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use pingfleet_wire::Family;

use crate::{
    address_range::AddressRange,
    error::TargetsError,
    limits::{MAX_LABELLED_ADDRESSES, MemoryLimits},
    line_counts::LineClass,
    parse::{BadTargetReason, ParsedTarget, TargetSpec},
    probeable::{check_address, check_range},
    target_set::TargetSet,
};
use link_local::LinkLocalTargets;
use mentions::{MentionCounts, Mentions};
use name_set::{NameLookup, NameSet};
use target_list::{TargetList, TooMany};
use text_spool::{TextKind, TextSpool};

/// What the options say about all targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CollectOptions {
    pub(crate) family: Family,
    pub(crate) all_addresses: bool,
    /// More targets need `--yes`.
    pub(crate) most_targets: u64,
    pub(crate) limits: MemoryLimits,
}

/// The targets so far.
#[derive(Debug)]
pub(crate) struct Collector {
    options: CollectOptions,
    excludes: TargetSet,
    addresses: Mentions,
    names: NameSet,
    list: TargetList,
    spool: TextSpool,
    /// Whether an address is in the spool because of how it is written.
    spooled_addresses: bool,
    counts: MentionCounts,
    link_local: Option<LinkLocalTargets>,
}

/// Why a word was not collected.
#[derive(Debug)]
pub(crate) enum CollectError {
    /// It is a bad target.
    Bad(BadTargetReason),
    /// There can be no list.
    Fatal(TargetsError),
}

impl From<BadTargetReason> for CollectError {
    fn from(reason: BadTargetReason) -> Self {
        Self::Bad(reason)
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

/// What [`Collector::finish`] returns.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) list: TargetList,
    pub(crate) spool: TextSpool,
    pub(crate) counts: MentionCounts,
    pub(crate) link_local: Option<LinkLocalTargets>,
}

impl Collector {
    pub(crate) fn new(options: CollectOptions, excludes: TargetSet) -> Self {
        Self {
            options,
            excludes,
            addresses: Mentions::default(),
            names: NameSet::default(),
            list: TargetList::default(),
            spool: TextSpool::new(),
            spooled_addresses: false,
            counts: MentionCounts::default(),
            link_local: None,
        }
    }

    /// Adds what a word says, and returns what its line is.
    pub(crate) fn add(
        &mut self,
        target: ParsedTarget<'_>,
        labels: Option<&str>,
    ) -> Result<LineClass, CollectError> {
        let (listed, excluded) = (self.list.count(), self.counts.excluded);
        self.add_target(target, labels)?;
        self.check_size().map_err(CollectError::Fatal)?;
        Ok(if self.list.count() > listed {
            LineClass::Target
        } else if self.counts.excluded > excluded {
            LineClass::Excluded
        } else {
            LineClass::Duplicate
        })
    }

    /// Stops the reading of a list that is too long, before it fills the memory.
    fn check_size(&self) -> Result<(), TargetsError> {
        let limits = self.options.limits;
        let count = self.list.count();
        if count > self.options.most_targets {
            return Err(TargetsError::NeedsYes { count });
        }
        if self.names.len() > limits.names {
            return Err(TargetsError::TooManyNames);
        }
        let pieces = [
            self.addresses.ranges(),
            self.list.segments(),
            self.spool.count(),
        ];
        if pieces.into_iter().any(|pieces| pieces > limits.pieces) {
            return Err(TargetsError::TooManyPieces);
        }
        Ok(())
    }

    fn add_target(
        &mut self,
        target: ParsedTarget<'_>,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let family = self.options.family;
        let range = match target.spec() {
            TargetSpec::Address(address) => {
                check_address(address, family)?;
                return match address {
                    IpAddr::V6(v6) if address.to_string() != target.word() => {
                        self.add_as_written(v6, target.word(), labels)
                    }
                    _ => self.add_range(address.into(), labels),
                };
            }
            TargetSpec::Zoned { address, .. } => {
                check_address(address.into(), family)?;
                return self.add_name(target, TextKind::Zoned(address), labels);
            }
            TargetSpec::Name(_) => return self.add_name(target, TextKind::Name, labels),
            TargetSpec::Network(network) if self.options.all_addresses => network.into(),
            TargetSpec::Network(network) => AddressRange::hosts(network),
            TargetSpec::Range { first, last } => {
                AddressRange::new(first, last).expect("a range is parsed in order, of one family")
            }
        };
        check_range(range, family)?;
        if labels.is_some() && range.count() > MAX_LABELLED_ADDRESSES {
            return Err(BadTargetReason::ManyLabelled {
                count: range.count(),
            }
            .into());
        }
        self.add_range(range, labels)
    }

    /// The list, when everything is collected.
    pub(crate) fn finish(mut self) -> Result<Collected, TargetsError> {
        let late = self.addresses.late_labels();
        if !late.is_empty() {
            self.list = self
                .list
                .with_late_labels(late)
                .map_err(|TooMany(count)| TargetsError::TooMany { count })?;
            if self.spooled_addresses {
                self.label_spooled_addresses()
                    .map_err(TargetsError::TextSpool)?;
            }
        }
        Ok(Collected {
            list: self.list,
            spool: self.spool,
            counts: self.counts,
            link_local: self.link_local,
        })
    }

    /// Adds consecutive addresses as such: their text is the canonical one.
    fn add_range(&mut self, range: AddressRange, labels: Option<&str>) -> Result<(), CollectError> {
        let labels = labels
            .map(|labels| self.spool.add(TextKind::LabelsOnly, "", Some(labels)))
            .transpose()?;
        let (list, link_local) = (&mut self.list, &mut self.link_local);
        let counts = self
            .addresses
            .add(range, labels, self.excludes.addresses(), |part| {
                link_local::add(link_local, part);
                list.add(part, labels)
            })?;
        self.counts.add(counts);
        Ok(())
    }

    /// Adds one address, and keeps how it is written.
    fn add_as_written(
        &mut self,
        address: Ipv6Addr,
        word: &str,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let text = self.spool.add(TextKind::Address(address), word, labels)?;
        let (list, link_local) = (&mut self.list, &mut self.link_local);
        // If the address is listed already, this text gives it its labels.
        let labels = labels.map(|_| text);
        let counts = self.addresses.add(
            IpAddr::V6(address).into(),
            labels,
            self.excludes.addresses(),
            |part| {
                link_local::add(link_local, part);
                list.add_text(text)
            },
        )?;
        self.spooled_addresses = true;
        self.counts.add(counts);
        Ok(())
    }

    /// Adds a name, or an address with a zone.
    fn add_name(
        &mut self,
        target: ParsedTarget<'_>,
        kind: TextKind,
        labels: Option<&str>,
    ) -> Result<(), CollectError> {
        let spec = target.spec();
        let key = spec.name_key().unwrap_or_default();
        if self.excludes.contains_spec(spec) {
            let first = self.names.insert_excluded(&key);
            self.counts.add(MentionCounts {
                duplicates: (!first).into(),
                excluded: first.into(),
            });
            return Ok(());
        }
        match self.names.find(&key, &mut self.spool)? {
            NameLookup::New(free) => {
                let text = self.spool.add(kind, target.word(), labels)?;
                self.names.insert(&free, text);
                self.list.add_text(text)?;
            }
            NameLookup::Listed(text, mut first) => {
                if labels.is_some() && first.labels.is_none() {
                    first.labels = labels.map(str::to_owned);
                    self.spool.replace(text, &first)?;
                }
                self.counts.add(MentionCounts {
                    duplicates: 1,
                    excluded: 0,
                });
            }
        }
        Ok(())
    }

    /// Gives the addresses in the spool their late labels.
    fn label_spooled_addresses(&mut self) -> io::Result<()> {
        let late = self.addresses.late_labels();
        for id in self.list.texts() {
            let mut text = self.spool.read(id)?;
            let TextKind::Address(address) = text.kind else {
                continue;
            };
            if let Some(labels) = late.get(address.into()) {
                text.labels = self.spool.read(labels)?.labels;
                self.spool.replace(id, &text)?;
            }
        }
        Ok(())
    }
}
