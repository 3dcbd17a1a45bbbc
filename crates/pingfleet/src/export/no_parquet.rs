//! Parquet in a build without its library.

use pingfleet_settings::{Exit, Failure};
use pingfleet_store::RunSummary;

use super::{Metadata, Output, Pages, WriteError};

/// # Errors
/// Always, with the command that builds with it.
pub(super) fn check() -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Usage,
        "this pingfleet was built without Parquet: build it with `cargo build --release --features parquet`, or export \
         csv or jsonl",
    ))
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
