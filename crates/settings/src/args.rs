//! Flags that several programs share and that are no plain settings.

use std::path::PathBuf;

use clap::Args;

use crate::{
    AnyKey as _, Layers, Verbosity,
    flags::{Flags, LogKeys},
    keys, logging,
};

/// Flags of every program.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Settings file [default: pingfleet.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more: -v chunks and transactions, -vv probes as well
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// The format of the log.
    #[command(flatten)]
    pub log: Flags<LogKeys>,
}

impl CommonArgs {
    /// Reads the settings file and the environment, and starts logging. `usual` is how much is logged without `-q` and
    /// `-v`.
    #[must_use]
    pub fn layers(&self, usual: Verbosity) -> Layers {
        let mut layers = Layers::read(self.config.as_deref());
        layers.set_flags(&self.log);
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => usual,
            (false, 1) => Verbosity::Debug,
            (false, _) => Verbosity::Trace,
        };
        logging::start(verbosity, layers.get(&keys::LOG_FORMAT));
        layers
    }
}

/// Flags of a program or command that opens the database.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct DatabaseArgs {
    /// The database file.
    #[arg(long, value_name = "PATH", help = keys::STORE_PATH.help())]
    pub db: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The database file. A path that is not Unicode is only possible as a flag: the layers hold text.
    pub fn path(&self, layers: &mut Layers) -> PathBuf {
        match &self.db {
            Some(path) => path.clone(),
            None => layers.get(&keys::STORE_PATH),
        }
    }
}
