//! All targets of a plan, as the caller sees them.

use std::{
    io,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use pingfleet_wire::Target;

use crate::{
    BadTargets, LineCounts,
    collect::{
        link_local::LinkLocalTargets,
        target_list::{ListedTarget, TargetList},
        text_spool::{TextKind, TextSpool},
    },
};

/// All targets of a plan, each once, in the order in which they were first mentioned.
#[derive(Debug)]
pub struct Targets {
    pub(crate) list: TargetList,
    pub(crate) spool: Mutex<TextSpool>,
    pub(crate) duplicates: u64,
    pub(crate) excluded: u64,
    pub(crate) skipped: BadTargets,
    pub(crate) lines: Option<LineCounts>,
    pub(crate) exclude_lines: Option<LineCounts>,
    pub(crate) notes: Vec<String>,
    pub(crate) link_local: Option<LinkLocalTargets>,
    pub(crate) sources: String,
}

/// One target of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTarget {
    /// What is probed.
    pub target: Target,
    /// Its labels as the text of a JSON object whose values are strings, if it has any.
    pub labels: Option<String>,
}

impl Targets {
    /// How many targets there are; at least 1 and at most 2^28.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.list.count()
    }

    /// How often a target was mentioned again.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// How many targets are excluded.
    #[must_use]
    pub fn excluded(&self) -> u64 {
        self.excluded
    }

    /// How many bad targets were skipped.
    #[must_use]
    pub fn skipped_bad(&self) -> u64 {
        self.skipped.count()
    }

    /// The bad targets that were skipped.
    #[must_use]
    pub fn skipped(&self) -> &BadTargets {
        &self.skipped
    }

    /// What became of every line of the files and standard input; `None` when there were none.
    #[must_use]
    pub fn lines(&self) -> Option<LineCounts> {
        self.lines
    }

    /// What became of every line of the exclude files; `None` when there were none.
    #[must_use]
    pub fn exclude_lines(&self) -> Option<LineCounts> {
        self.exclude_lines
    }

    /// Notes for the user on how the targets were read; at most 21 lines.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Link-local addresses of IPv6 without a zone, if there are any.
    #[must_use]
    pub fn link_local_without_zone(&self) -> Option<LinkLocalTargets> {
        self.link_local
    }

    /// Addresses that stand for all of them: the first and the last one of consecutive targets, as the user wrote them, of
    /// at most `most` such pieces, evenly spread. Without names and addresses with a zone.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn sample(&self, most: usize) -> io::Result<Vec<IpAddr>> {
        let mut sample = Vec::new();
        for index in self.list.ends(most) {
            match self.list.get(index) {
                ListedTarget::Address(address, _) => sample.push(address),
                ListedTarget::Text(id) => {
                    let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
                    if let TextKind::Address(address) = spool.read(id)?.kind {
                        sample.push(address.into());
                    }
                }
            }
        }
        Ok(sample)
    }

    /// Where the targets come from, as a run's description.
    #[must_use]
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// The target at an index, in the order in which they were given.
    ///
    /// # Errors
    /// When the temporary file with names and labels cannot be read.
    ///
    /// # Panics
    /// When the index is not below the count.
    pub fn get(&self, index: u64) -> io::Result<PlannedTarget> {
        assert!(index < self.count(), "target {index} of {}", self.count());
        let read = |id| {
            let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
            spool.read(id)
        };
        Ok(match self.list.get(index) {
            ListedTarget::Address(address, labels) => PlannedTarget {
                target: Target::Address(address),
                labels: labels.map(read).transpose()?.and_then(|text| text.labels),
            },
            ListedTarget::Text(id) => {
                let text = read(id)?;
                PlannedTarget {
                    target: Target::Text(text.word),
                    labels: text.labels,
                }
            }
        })
    }
}
