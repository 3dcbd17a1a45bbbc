//! All cases, by what they do harm to.

mod absence;
mod broker;
mod kills;
mod messages;
mod network;
mod sqlite;

use crate::bench::Case;

/// Every case, in the order in which the suite runs them.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        kills::CASES,
        broker::CASES,
        network::CASES,
        messages::CASES,
        sqlite::CASES,
        absence::CASES,
    ]
    .concat()
}

/// A case by its name.
#[must_use]
pub fn named(name: &str) -> Option<Case> {
    all().into_iter().find(|case| case.name == name)
}
