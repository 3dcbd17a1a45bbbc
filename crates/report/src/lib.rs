//! What the report of a run says: in words, for the terminal and for a browser, as one HTML page that needs no network, and
//! as parts of a page that follows a run.

pub mod changes;
mod charts;
mod diff_page;
mod hilbert;
pub mod json;
mod map;
mod map_section;
mod page;
pub mod parts;
mod picture;
mod sections;
pub mod sentences;
pub mod table;
pub mod words;

use std::error::Error;

use askama::Template as _;
use pingfleet_store::{Reader, ReportFilter, ReportRow, RunDiff, RunOverview, StoreError};
use thiserror::Error;

use crate::{diff_page::DiffPage, page::Page};

/// A run of at most this many targets is shown as a list of them.
const FEW_TARGETS: i64 = 10;

/// Why there is no page.
#[derive(Debug, Error)]
pub enum PageError {
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A chart, a picture or the template failed; in memory none of them does.
    #[error("the page cannot be drawn: {0}")]
    Draw(Box<dyn Error + Send + Sync>),
}

/// All targets of a run that has a few of them and was not pruned; none of another one.
///
/// # Errors
/// [`StoreError`], also when the run was pruned meanwhile.
pub fn few_targets(
    reader: &Reader,
    overview: &RunOverview,
) -> Result<Option<Vec<ReportRow>>, StoreError> {
    let summary = &overview.summary;
    if summary.pruned.is_some() || summary.targets > FEW_TARGETS {
        return Ok(None);
    }
    let rows = reader
        .report(summary.run, &ReportFilter::default())
        .next_page()?;
    // It may have been pruned meanwhile.
    reader.summary(summary.run)?.refuse_pruned()?;
    Ok(Some(rows))
}

/// The page of a run, which is well-formed XML as well. `flags` are those of the commands that it names.
///
/// # Errors
/// [`PageError`].
pub fn page(reader: &Reader, run: i64, flags: &str) -> Result<String, PageError> {
    let (overview, detail) = reader.overview_with_detail(run)?;
    let few = few_targets(reader, &overview)?;
    let page = Page::new(&overview, &detail, few.as_deref(), flags).map_err(PageError::Draw)?;
    let page = page
        .render()
        .map_err(|error| PageError::Draw(error.into()))?;
    Ok(escape_forbidden(page) + "\n")
}

/// The page of the difference of two runs, as [`page`]. `command` lists all changes.
///
/// # Errors
/// [`PageError`]; [`StoreError::TemporaryFile`] when the sorted rows cannot be read again; [`StoreError::Interrupted`].
pub fn diff_page(reader: &Reader, diff: &mut RunDiff, command: &str) -> Result<String, PageError> {
    let probing = [
        reader.planned_probing(diff.before.run)?,
        reader.planned_probing(diff.after.run)?,
    ];
    let page = DiffPage::new(diff, &probing, command).map_err(StoreError::from_sorted_rows)?;
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
