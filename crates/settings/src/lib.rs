//! What every program does around its `run(...)`: layers of settings, logging, the stop signal, exit codes.
//!
//! Settings come from defaults, `pingfleet.toml`, the environment and flags; a later layer overrides an earlier one. All
//! problems are reported at once. Errors and `Debug` output never contain a secret.

mod common;
mod exit;
mod layers;
mod logging;
mod probing;
mod stop;
mod values;

pub use common::{Common, CommonArgs, LogFormat, Verbosity};
pub use exit::{Exit, Failure, main_with, printed};
pub use layers::{Layers, SettingsError};
pub use probing::{ProbingArgs, ProbingSettings};
pub use stop::Stop;
pub use values::{Rate, duration, number, rate};
