//! All cases, grouped by what fails.

mod broker;
mod database;
mod machine;
mod messages;
mod network;
mod processes;
mod queues;
mod writer_absent;

use crate::runner::Case;

/// Every case, in the order in which the suite runs them.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        processes::CASES,
        broker::CASES,
        queues::CASES,
        network::CASES,
        messages::CASES,
        database::CASES,
        writer_absent::CASES,
        machine::CASES,
    ]
    .concat()
}

/// A case by its name.
#[must_use]
pub fn named(name: &str) -> Option<Case> {
    all().into_iter().find(|case| case.name == name)
}
