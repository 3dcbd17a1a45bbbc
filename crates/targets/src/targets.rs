//! All targets of a plan, as the caller sees them.

use std::{
    io,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use pingfleet_wire::Target;

use crate::{
    BadTargets,
    collect::{
        target_list::{ListedTarget, TargetList},
        text_spool::TextSpool,
    },
};

/// All targets of a plan, each once, in the order in which they were first mentioned.
#[derive(Debug)]
pub struct Targets {
    pub(crate) listing: TargetList,
    pub(crate) spool: Mutex<TextSpool>,
    pub(crate) duplicates: u64,
    pub(crate) excluded: u64,
    pub(crate) skipped: BadTargets,
    pub(crate) notes: Vec<String>,
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
        self.listing.count()
    }

    /// How often a target was mentioned again.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// How many targets were left out because they are excluded.
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

    /// What the user should know of how the targets were read; at most 21 lines.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the targets come from, for the description of a run.
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
        let read = |slot| {
            let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
            spool.read(slot)
        };
        Ok(match self.listing.get(index) {
            ListedTarget::Address(address, labels) => PlannedTarget {
                target: Target::Address(address),
                labels: labels
                    .map(read)
                    .transpose()?
                    .and_then(|record| record.labels),
            },
            ListedTarget::Text(slot) => {
                let record = read(slot)?;
                PlannedTarget {
                    // A text is kept when it is a name, or another spelling than the address's own.
                    target: match record.text.parse::<IpAddr>() {
                        Ok(address) if address.to_string() == record.text => {
                            Target::Address(address)
                        }
                        _ => Target::Text(record.text),
                    },
                    labels: record.labels,
                }
            }
        })
    }
}
