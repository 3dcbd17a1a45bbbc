//! Parquet in a build without its library.

use pingfleet_settings::{Exit, Failure};
use pingfleet_store::RunSummary;

use super::{Metadata, Output, Pages, WriteError};

/// # Errors
/// Always, with the command that builds with it, and with what can be done `otherwise`.
pub(super) fn check(otherwise: &str) -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Usage,
        format_args!(
            "this pingfleet was built without Parquet: build it with `cargo build --release --features parquet`, or \
             {otherwise}"
        ),
    ))
}

/// Is never called after [`check`].
pub(super) fn read_rows(_: &std::path::Path) -> std::io::Result<u64> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Is never called after [`check`].
pub(super) fn write(
    _: &RunSummary,
    _: Pages<'_>,
    _: &mut Metadata,
    _: &mut Output,
) -> Result<(), WriteError> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into())
}
