//! The flags that all programs have, and the settings that they resolve to.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pingfleet_broker::{BrokerError, RabbitBroker, RabbitConfig};
use pingfleet_store::{Durability, OpenOptions};
use pingfleet_wire::{DEFAULT_QUEUE_PREFIX, check_queue_prefix};

use crate::{Exit, Failure, Layers, logging};

/// The broker that `docker-compose up` starts, with its default login.
const DEFAULT_BROKER: &str = "amqp://pingfleet:pingfleet@127.0.0.1:5672/%2f";

/// The database file, in the current folder.
const DEFAULT_DATABASE: &str = "pingfleet.db";

/// Flags of every program.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Database file [default: pingfleet.db]
    #[arg(long, value_name = "PATH", global = true)]
    pub db: Option<PathBuf>,
    /// Settings file [default: pingfleet.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Broker, as `amqp://user@host:5672/vhost` [default: the one that docker-compose starts on this machine]. The
    /// password belongs in `PINGFLEET_BROKER__PASSWORD`, or in a file that `broker.password_file` names
    #[arg(long, value_name = "URL", global = true)]
    pub broker: Option<String>,
    /// Errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more: -v chunks and transactions, -vv probes as well
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Log as text, or as json with one object per line [default: text]
    // If clap listed the values, it would print blank lines around all other options.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        hide_possible_values = true,
        global = true
    )]
    pub log_format: Option<LogFormat>,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// Warnings, for commands that show a progress bar or a table.
    Warnings,
    /// State changes and totals, for programs that keep running.
    Normal,
    /// Chunks and transactions.
    Debug,
    /// Probes.
    Trace,
}

/// The resolved common settings.
#[derive(Debug, Clone)]
pub struct Common {
    /// The broker and its login.
    pub broker: RabbitConfig,
    /// The database file.
    pub database: PathBuf,
    /// Which failures a commit survives.
    pub durability: Durability,
}

impl CommonArgs {
    /// Reads the settings file and the environment, and adds the common flags.
    #[must_use]
    pub fn layers(&self) -> Layers {
        let mut layers = Layers::read(self.config.as_deref());
        layers.flag(
            "store.path",
            "--db",
            self.db.as_deref().and_then(Path::to_str),
        );
        layers.flag("broker.url", "--broker", self.broker.as_deref());
        let format = self.log_format.map(|format| match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        });
        layers.flag("log.format", "--log-format", format);
        layers
    }

    /// Resolves the common settings and starts logging. `usual` is how much is logged without `-q` and `-v`.
    /// `program` names the connection to the broker.
    pub fn resolve(&self, layers: &mut Layers, usual: Verbosity, program: &str) -> Common {
        let format = layers.get("log.format", LogFormat::Text, |text| {
            LogFormat::from_str(text, true)
                .map_err(|_| format!("{text:?} is neither text nor json"))
        });
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => usual,
            (false, 1) => Verbosity::Debug,
            (false, _) => Verbosity::Trace,
        };
        logging::start(verbosity, format);
        let url = layers.get("broker.url", DEFAULT_BROKER.to_owned(), |text| {
            // Checked here, because only here is the place of the value known.
            match RabbitBroker::new(&RabbitConfig::new(text)) {
                Ok(_) => Ok(text.to_owned()),
                Err(BrokerError::Url(why)) => Err(format!("not a broker's URL: {why}")),
                Err(other) => Err(other.to_string()),
            }
        });
        let prefix = layers.get("broker.prefix", DEFAULT_QUEUE_PREFIX.to_owned(), |text| {
            check_queue_prefix(text).map(|()| text.to_owned())
        });
        let direct = layers.get("broker.password", None, |text| Ok(Some(text.to_owned())));
        let from_file = layers.get("broker.password_file", None, |path| {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
            // Windows editors begin a file with a byte order mark.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            let password = text.lines().next().unwrap_or_default().to_owned();
            if password.is_empty() {
                Err(format!("{path} has no password on its first line"))
            } else {
                Ok(Some(password))
            }
        });
        let database = layers.get("store.path", PathBuf::from(DEFAULT_DATABASE), |text| {
            Ok(PathBuf::from(text))
        });
        // The layers hold text, so a path that is not Unicode is taken from the flag directly.
        let database = self.db.clone().unwrap_or(database);
        let durability = layers.get("store.durability", Durability::Full, |text| match text {
            "full" => Ok(Durability::Full),
            "normal" => Ok(Durability::Normal),
            "off" => Ok(Durability::Off),
            _ => Err(format!("{text:?} is neither full, normal nor off")),
        });
        Common {
            broker: RabbitConfig {
                url,
                prefix,
                password: from_file.or(direct),
                connection_name: program.to_owned(),
            },
            database,
            durability,
        }
    }
}

impl Common {
    /// The flags that name this database, for a command that is shown to the user.
    #[must_use]
    pub fn repeated(&self) -> String {
        if self.database == Path::new(DEFAULT_DATABASE) {
            String::new()
        } else {
            format!(" --db '{}'", self.database.display())
        }
    }

    /// How this program opens the database.
    #[must_use]
    pub fn database(&self, create: bool, check: bool) -> OpenOptions {
        OpenOptions {
            path: self.database.clone(),
            durability: self.durability,
            create,
            check,
        }
    }
}

impl From<pingfleet_store::StoreError> for Failure {
    fn from(error: pingfleet_store::StoreError) -> Self {
        use pingfleet_store::StoreError;
        let exit = match error {
            StoreError::NoSuchRun { .. } | StoreError::AmbiguousRun { .. } => Exit::Usage,
            _ => Exit::System,
        };
        Self {
            exit,
            ..Self::system(&error)
        }
    }
}

/// The message says how to fix most of them.
impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let advice = match &error {
            BrokerError::Unreachable { .. } => {
                "start one with `docker-compose up -d`, or name yours with --broker"
            }
            BrokerError::Login { .. } => {
                "give its password in PINGFLEET_BROKER__PASSWORD, or name a file that has it in broker.password_file"
            }
            BrokerError::NoTopology { .. } => {
                "declare it with `pingfleet broker init`, as a user with the configure permission"
            }
            BrokerError::OtherTopology { .. } => {
                "choose another broker.prefix, the same for all programs"
            }
            BrokerError::Forbidden { .. } | BrokerError::Url(_) | BrokerError::Lost(_) => {
                return Self::system(&error);
            }
        };
        let Self { exit, message } = Self::system(&error);
        Self::new(exit, format_args!("{message}: {advice}"))
    }
}
