//! From what the user typed to the list of targets and their order.
//!
//! [`read`] takes the arguments, files and standard input and gives [`Targets`], in which every target stands once, in
//! the order in which they were given; [`Order`] says in which order they are probed. Invariant: memory follows what
//! the user wrote, never the number of addresses that it stands for: networks and ranges are never walked through,
//! texts and labels lie in a temporary file.
//!
//! A word goes through `spelling` (what does it say?), `block` (which addresses are that, and may they be probed?),
//! and `gather` (which of them are new and wanted?) into `listing`.

mod args;
mod bad;
mod block;
mod cover;
mod error;
mod gather;
mod lines;
mod listing;
mod name;
mod notes;
mod order;
mod reach;
mod reading;
mod source;
mod spelling;
mod spool;
mod table;
mod texts;
mod why;

use std::{
    io,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use pingfleet_wire::Target;

pub use args::TargetArgs;
pub use bad::{BadTarget, BadTargets};
pub use error::{FileProblem, TargetsError};
pub use order::Order;
pub use reading::read;

use listing::{Listed, Listing};
use spool::Spool;

/// All targets of a plan, each once, in the order in which they were first mentioned.
#[derive(Debug)]
pub struct Targets {
    listing: Listing,
    spool: Mutex<Spool>,
    duplicates: u64,
    excluded: u64,
    skipped: BadTargets,
    notes: Vec<String>,
    sources: String,
}

/// One target of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
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
    pub fn get(&self, index: u64) -> io::Result<Planned> {
        assert!(index < self.count(), "target {index} of {}", self.count());
        let read = |slot| {
            let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
            spool.read(slot)
        };
        Ok(match self.listing.get(index) {
            Listed::Address(address, labels) => Planned {
                target: Target::Address(address),
                labels: labels
                    .map(read)
                    .transpose()?
                    .and_then(|record| record.labels),
            },
            Listed::Text(slot) => {
                let record = read(slot)?;
                Planned {
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
