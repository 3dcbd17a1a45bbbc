//! Messages of the commands that need runs which have ended.

use pingfleet_settings::{Exit, Failure};
use pingfleet_store::Reader;

/// No run is in the database. `flags` are those of the commands that it names.
pub(crate) fn no_run_yet(reader: &Reader, flags: &str) -> Failure {
    usage(format_args!(
        "no run is in {} yet. Start one: pingfleet sweep{flags} 127.0.0.0/24",
        reader.path().display()
    ))
}

pub(crate) fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, message)
}
