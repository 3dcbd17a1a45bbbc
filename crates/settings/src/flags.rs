//! The flags of a group of keys, made from the table of keys.

use std::{fmt, marker::PhantomData};

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::{AnyKey, keys};

/// Keys whose flags a program offers together.
pub trait KeyGroup: 'static {
    /// The heading in `--help`, if it is not that of the command.
    const HEADING: Option<&'static str> = None;
    /// Whether all subcommands accept the flags as well.
    const GLOBAL: bool = false;
    /// The keys. Those without a flag are skipped.
    const KEYS: &'static [&'static dyn AnyKey];
}

/// The flags of probing.
#[derive(Debug, Clone)]
pub struct ProbingKeys;

impl KeyGroup for ProbingKeys {
    const HEADING: Option<&'static str> = Some("Probing");
    const KEYS: &'static [&'static dyn AnyKey] = keys::PROBING;
}

/// The flags of the worker.
#[derive(Debug, Clone)]
pub struct WorkerKeys;

impl KeyGroup for WorkerKeys {
    const KEYS: &'static [&'static dyn AnyKey] = keys::WORKER;
}

/// The flags of the writer.
#[derive(Debug, Clone)]
pub struct WriterKeys;

impl KeyGroup for WriterKeys {
    const KEYS: &'static [&'static dyn AnyKey] = keys::WRITER;
}

/// The flags of the live page.
#[derive(Debug, Clone)]
pub struct DashboardKeys;

impl KeyGroup for DashboardKeys {
    const KEYS: &'static [&'static dyn AnyKey] = keys::DASHBOARD;
}

/// The flags of a worker's metrics.
#[derive(Debug, Clone)]
pub struct MetricsKeys;

impl KeyGroup for MetricsKeys {
    const KEYS: &'static [&'static dyn AnyKey] = keys::METRICS;
}

/// The flags of a program that uses a broker.
#[derive(Debug, Clone)]
pub struct BrokerKeys;

impl KeyGroup for BrokerKeys {
    const HEADING: Option<&'static str> = Some("Common options");
    const KEYS: &'static [&'static dyn AnyKey] = keys::BROKER;
}

/// The flags of all programs.
#[derive(Debug, Clone)]
pub struct LogKeys;

impl KeyGroup for LogKeys {
    const HEADING: Option<&'static str> = Some("Common options");
    const GLOBAL: bool = true;
    const KEYS: &'static [&'static dyn AnyKey] = keys::LOG;
}

/// The flags of the group `G` that were given, as text. [`crate::Layers::set_flags`] takes them.
#[derive(Clone)]
pub struct Flags<G> {
    given: Vec<(&'static dyn AnyKey, String)>,
    group: PhantomData<G>,
}

/// The flags of a program that uses a broker.
pub type BrokerArgs = Flags<BrokerKeys>;

impl<G> Flags<G> {
    /// The keys whose flags were given, with their texts.
    pub(crate) fn given(&self) -> &[(&'static dyn AnyKey, String)] {
        &self.given
    }

    /// The text of a flag, if it was given.
    #[must_use]
    pub fn text(&self, key: &dyn AnyKey) -> Option<&str> {
        let given = self
            .given
            .iter()
            .find(|(known, _)| known.name() == key.name());
        given.map(|(_, text)| text.as_str())
    }
}

impl<G> Default for Flags<G> {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            group: PhantomData,
        }
    }
}

/// Without the texts: one may be a URL with a password.
impl<G> fmt::Debug for Flags<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.given.iter().map(|(key, _)| key.name());
        f.debug_set().entries(names).finish()
    }
}

impl<G: KeyGroup> Args for Flags<G> {
    fn augment_args(command: Command) -> Command {
        G::KEYS.iter().fold(command, |command, key| {
            let Some(flag) = key.flag() else {
                return command;
            };
            let argument = Arg::new(key.name())
                .long(flag.long)
                .short(flag.short)
                .value_name(flag.value)
                // Then the message says what the value may be.
                .allow_negative_numbers(true)
                .help(key.help())
                .help_heading(G::HEADING)
                .global(G::GLOBAL);
            command.arg(argument)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: KeyGroup> FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for key in G::KEYS.iter().filter(|key| key.flag().is_some()) {
            if let Some(text) = matches.get_one::<String>(key.name()) {
                self.given.retain(|(known, _)| known.name() != key.name());
                self.given.push((*key, text.clone()));
            }
        }
        Ok(())
    }
}
