//! Flags that several programs share and that are no plain settings.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    AnyKey as _, Layers, Verbosity,
    flags::{Flags, LogKeys},
    keys, logging,
    shell::flag_with_value,
    values::check_database_path,
};

/// Flags of every program.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Settings file [default: pingfleet.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Errors only, and data that was asked for
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
        if let Err(why) = logging::start(verbosity, layers.get(&keys::LOG_FORMAT)) {
            layers.problem(&format!("{}: {why}", logging::FILTER_VARIABLE));
        }
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
            Some(path) => {
                if let Err(why) = check_database_path(path) {
                    layers.problem(&format!("--db: {why}"));
                }
                path.clone()
            }
            None => layers.get(&keys::STORE_PATH),
        }
    }

    /// The flags that name the settings file and this database, each behind a space, for a command that is printed: it
    /// works with them as this one did. `path` is what [`Self::path`] returned.
    #[must_use]
    pub fn as_flags(&self, path: &Path, layers: &Layers) -> String {
        let mut flags = layers.config_flag();
        // Without the flag another layer names the file, and may name another one for the next command.
        if self.db.is_some() || path != Path::new(keys::STORE_PATH.default.0) {
            flags += &flag_with_value("--db", path);
        }
        flags
    }
}
