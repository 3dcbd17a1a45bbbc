//! What every program of pingfleet does around its `run(...)`: settings in layers, logging, the stop signal, exit codes.
//!
//! Settings come from defaults, `pingfleet.toml`, the environment and flags, the later before the earlier, and all
//! problems are reported at once. No secret is ever part of an error or of a `Debug` text.

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
