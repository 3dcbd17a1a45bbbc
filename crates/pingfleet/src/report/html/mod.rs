//! The report as one HTML file that needs no network: `page` builds it, and this writes it.

mod charts;
mod map;
mod page;
mod picture;
mod sections;
mod table;

use std::{
    io::{self, Write as _},
    path::Path,
};

use askama::Template as _;
use pingfleet_settings::{Exit, Failure, Stop, run_async};
use pingfleet_store::{Reader, ReportFilter, StoreError};

use self::page::Page;
use super::summary::FEW_TARGETS;
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
    let page = match render(reader, run, flags) {
        Ok(page) => page,
        Err(PageError::Store(StoreError::Interrupted)) => {
            return Err(Failure::new(
                Exit::Interrupted,
                format_args!("interrupted: {} is not written", path.display()),
            ));
        }
        Err(PageError::Store(error)) => return Err(error.into()),
        Err(PageError::Draw(error)) => return Err(Failure::new(Exit::System, error)),
    };
    match output.write_all(page.as_bytes()) {
        Ok(()) => output.finish(),
        // The reader of a pipe has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(output.failure(&error)),
    }
}

/// Why there is no page.
enum PageError {
    Store(StoreError),
    /// A chart, a picture or the template failed; in memory none of them does.
    Draw(Box<dyn std::error::Error>),
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The page of a run.
fn render(reader: &Reader, run: i64, flags: &str) -> Result<String, PageError> {
    let (overview, detail) = reader.overview_with_detail(run)?;
    let has_rows = overview.summary.pruned.is_none();
    let few = if has_rows && overview.summary.targets <= FEW_TARGETS {
        let rows = reader.report(run, &ReportFilter::default()).next_page()?;
        // It may have been pruned meanwhile.
        reader.summary(run)?.refuse_pruned()?;
        Some(rows)
    } else {
        None
    };
    let page = Page::new(&overview, &detail, few.as_deref(), flags).map_err(PageError::Draw)?;
    let page = page
        .render()
        .map_err(|error| PageError::Draw(error.into()))?;
    Ok(escape_forbidden(page) + "\n")
}

/// Escapes what no XML document may have: a label or the name of a file can have any character.
///
/// Source: XML 1.0, section 2.2.
fn escape_forbidden(page: String) -> String {
    let is_forbidden = |letter: char| {
        (letter < ' ' && !matches!(letter, '\t' | '\n' | '\r'))
            || matches!(letter, '\u{fffe}' | '\u{ffff}')
    };
    if !page.contains(is_forbidden) {
        return page;
    }
    let mut escaped = String::with_capacity(page.len());
    for letter in page.chars() {
        if is_forbidden(letter) {
            escaped.extend(letter.escape_default());
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_forbids_is_escaped_and_nothing_else() {
        let allowed = "<p>\t\r\n é 日 👩\u{200d}💻 \u{202e}\u{9b}\u{fffd}</p>";
        assert_eq!(escape_forbidden(allowed.to_owned()), allowed);
        assert_eq!(
            escape_forbidden("a\0\u{1b}[2J\u{ffff}é".to_owned()),
            r"a\u{0}\u{1b}[2J\u{ffff}é"
        );
    }
}
