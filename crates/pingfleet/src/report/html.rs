//! Writes the page of a run to a file.

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

/// Writes the page of a run to a file, which appears whole or not at all; `-` is standard output. `flags` are those of the
/// commands that it names.
pub(super) fn write(reader: Reader, run: i64, flags: &str, path: &Path) -> Result<(), Failure> {
    refuse_database(path, reader.path())?;
    if is_stdout(path) {
        // Ctrl-C ends the program at once: nothing is left behind.
        return write_to(&reader, run, flags, path);
    }
    run_async(FILES, async {
        let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
        let reader = reader.interrupted_by(stop.token);
        tokio::task::block_in_place(|| write_to(&reader, run, flags, path))
    })
}

fn write_to(reader: &Reader, run: i64, flags: &str, path: &Path) -> Result<(), Failure> {
    // It is opened before anything is read, so that a path that cannot be written is known at once.
    let mut output = Output::open(path)?;
    let page = match pingfleet_report::page(reader, run, flags) {
        Ok(page) => page,
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
        Ok(()) => output.finish(),
        // The reader of a pipe has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(output.failure(&error)),
    }
}
