//! From the command line to the list of targets: what is accepted, what is refused and why, and that every target
//! is in the list exactly once.

mod any_bytes;
mod corpus;
mod files;
mod independent;
mod lines;
mod model;
mod parse;
mod plan_time;

use std::io;

use clap::Parser;
use pingfleet_targets::{TargetArgs, Targets, TargetsError, read};
use pingfleet_wire::Family;

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    targets: TargetArgs,
}

/// The arguments of a command line, as the command reads them.
fn arguments<'a>(words: impl IntoIterator<Item = &'a str>) -> TargetArgs {
    CommandLine::try_parse_from(["test"].into_iter().chain(words))
        .expect("the arguments are those of a test")
        .targets
}

/// The list of a command line without standard input.
fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Targets, TargetsError> {
    read(&arguments(words), Family::Any, io::empty())
}

/// All targets as texts, with their labels, in the order in which they were given.
fn texts(targets: &Targets) -> Vec<(String, Option<String>)> {
    (0..targets.count())
        .map(|index| {
            let planned = targets.get(index).expect("the spool is readable");
            (planned.target.to_string(), planned.labels)
        })
        .collect()
}

/// All targets as texts.
fn names(targets: &Targets) -> Vec<String> {
    texts(targets).into_iter().map(|(text, _)| text).collect()
}
