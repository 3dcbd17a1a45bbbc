//! What every program does around its `run(...)`: layers of settings, logging, the stop signal, exit codes.
//!
//! Settings come from defaults, `pingfleet.toml`, the environment and flags; a later layer overrides an earlier one. All
//! problems are reported at once. Errors and `Debug` output never contain a secret. [`keys`] is the table of all
//! settings.

mod args;
mod exit;
mod flags;
mod json_log;
mod key;
pub mod keys;
mod layers;
mod logging;
mod probing;
mod runtime;
mod shell;
mod stop;
mod text;
mod values;

pub use args::{CommonArgs, DatabaseArgs};
pub use exit::{Exit, Failure, OPEN_FILES_ADVICE, main_with, printed};
pub use flags::{
    BrokerArgs, DashboardKeys, Flags, KeyGroup, MetricsKeys, ProbingKeys, WorkerKeys, WriterKeys,
};
pub use key::{AnyKey, DefaultValue, Fixed, Flag, Key, Program, Unset};
pub use layers::{Layers, SettingsError};
pub use logging::{LogFormat, Verbosity};
pub use probing::{ProbingArgs, ProbingSettings};
pub use runtime::{FILES_FOR_PROBING, FILES_FOR_QUEUES, open_files_limit, run_async};
pub use shell::shell_word;
pub use stop::Stop;
pub use text::{read_bytes, read_secret, read_text, warn_if_exposed};
pub use values::{Rate, duration, number, rate};
