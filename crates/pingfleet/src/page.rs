//! Writes a page to a file.

use std::{
    io::{self, Write as _},
    path::Path,
};

use pingfleet_report::PageError;
use pingfleet_settings::{Exit, Failure, Stop, run_async};
use pingfleet_store::{Reader, StoreError};
use tokio_util::sync::CancellationToken;

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
        return write_to(&reader, path, &CancellationToken::new(), draw);
    }
    run_async(FILES, async {
        let stop = Stop::watch().map_err(|error| Failure::system(&error))?;
        let reader = reader.interrupted_by(stop.token.clone());
        tokio::task::block_in_place(|| write_to(&reader, path, &stop.token, draw))
    })
}

fn write_to<T>(
    reader: &Reader,
    path: &Path,
    stop: &CancellationToken,
    draw: impl FnOnce(&Reader) -> Result<(String, T), PageError>,
) -> Result<T, Failure> {
    // It is opened before anything is read, so that a path that cannot be written is known at once.
    let mut output = Output::open(path)?;
    let (page, drawn) = match draw(reader) {
        Ok(drawn) => drawn,
        Err(PageError::Store(StoreError::Interrupted)) => return Err(interrupted(path)),
        Err(PageError::Store(error)) => return Err(error.into()),
        Err(error @ PageError::Draw(_)) => return Err(Failure::system(&error)),
    };
    match output.write_all(page.as_bytes()) {
        Ok(()) => {}
        // The reader of a pipe has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(drawn),
        Err(error) => return Err(output.failure(&error)),
    }
    output.sync()?;
    // Drawing and writing do not look at it.
    if stop.is_cancelled() {
        return Err(interrupted(path));
    }
    output.finish()?;
    Ok(drawn)
}

fn interrupted(path: &Path) -> Failure {
    Failure::new(
        Exit::Interrupted,
        format_args!("interrupted: {} is not written", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pingfleet_store::{Durability, FileMode, OpenOptions};
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_page_that_is_interrupted_while_it_is_drawn_is_not_there() {
        let folder = TempDir::new().unwrap();
        let database = folder.path().join("fleet.db");
        let options = OpenOptions {
            path: database.clone(),
            durability: Durability::Off,
            create: true,
            mode: FileMode::User,
            check: false,
        };
        options.open().unwrap().close().unwrap();
        let reader = Reader::open(&database).unwrap();
        let page = folder.path().join("page.html");
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let before = names();
        for is_interrupted in [true, false] {
            let stop = CancellationToken::new();
            let drawn = write_to(&reader, &page, &stop, |_| {
                if is_interrupted {
                    stop.cancel();
                }
                Ok(("page".to_owned(), ()))
            });
            assert_eq!(drawn.is_err(), is_interrupted);
            if let Err(failure) = drawn {
                assert_eq!(failure.exit, Exit::Interrupted);
                assert_eq!(names(), before);
            }
        }
        // The control: without the signal it is there.
        assert_eq!(fs::read_to_string(&page).unwrap(), "page");
        assert_eq!(names().len(), before.len() + 1);
    }
}
