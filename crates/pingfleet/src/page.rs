//! Writes a page to a file.

use std::{
    io::{self, Write as _},
    path::Path,
};

use pingfleet_report::PageError;
use pingfleet_settings::{Exit, Failure, Stop, run_async};
use pingfleet_store::{Reader, StoreError};

use crate::export::{Output, is_stdout, refuse_database};

/// Files that are open: the database with its companions, the page, and the runtime's.
const FILES: u64 = 24;

/// Writes the page that `draw` makes to a file, which appears whole or not at all; `-` is standard output. Returns what
/// `draw` returns beside it.
pub(crate) fn write<T>(
    reader: Reader,
    path: &Path,
    draw: impl FnOnce(&Reader) -> Result<(String, T), PageError>,
) -> Result<T, Failure> {
    refuse_database(path, reader.path())?;
    if is_stdout(path) {
        // Ctrl-C ends the program at once: nothing is left behind.
        return write_to(&reader, path, draw);
    }
    run_async(FILES, async {
        let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
        let reader = reader.interrupted_by(stop.token);
        tokio::task::block_in_place(|| write_to(&reader, path, draw))
    })
}

fn write_to<T>(
    reader: &Reader,
    path: &Path,
    draw: impl FnOnce(&Reader) -> Result<(String, T), PageError>,
) -> Result<T, Failure> {
    // It is opened before anything is read, so that a path that cannot be written is known at once.
    let mut output = Output::open(path)?;
    let (page, drawn) = match draw(reader) {
        Ok(drawn) => drawn,
        Err(PageError::Store(StoreError::Interrupted)) => {
            return Err(Failure::new(
                Exit::Interrupted,
                format_args!("interrupted: {} is not written", path.display()),
            ));
        }
        Err(PageError::Store(error)) => return Err(error.into()),
        Err(error @ PageError::Draw(_)) => return Err(Failure::system(&error)),
    };
    match output.write_all(page.as_bytes()) {
        Ok(()) => output.finish()?,
        // The reader of a pipe has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(output.failure(&error)),
    }
    Ok(drawn)
}
