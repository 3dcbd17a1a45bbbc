//! The guarantees of the database: what it refuses, what a plan and its outcomes may become, and that every
//! contradiction is found.

mod checking;
mod child;
mod claims;
mod diff;
mod export;
mod filters;
mod history;
mod hosts;
mod implausible;
mod latest;
mod liveness;
mod locks;
mod logins;
mod model;
mod opening;
mod outbox;
mod overdue;
mod overview;
#[cfg(unix)]
mod permissions;
mod pipeline;
mod progress;
mod prune;
mod reader;
mod refusals;
mod rounds;
mod sample;
mod settling;
mod size;
mod temporary_files;
mod thread;
mod verify;
mod views;
