//! Where words come from: arguments, text files, CSV files and standard input.

pub(crate) mod csv_file;
mod csv_row;
pub(crate) mod format;
pub(crate) mod line_reader;
pub(crate) mod source;
pub(crate) mod text_file;

use crate::parse::BadTargetReason;

/// The word of one target in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InputWord<'a> {
    /// Number of the line on which it begins, from 1; where a quote is wrong, of the line on which the quote opens.
    pub(crate) line: u64,
    /// Number of the line on which it ends.
    pub(crate) last_line: u64,
    /// The word; where the line is bad, the begin of the line.
    pub(crate) text: &'a str,
    /// The labels as a JSON object, where the file has some for this target.
    pub(crate) labels: Option<&'a str>,
    /// Why this is no target, where the file shows it before the word is parsed.
    pub(crate) bad: Option<BadTargetReason>,
    /// A line that stands in quotes, although it reads like a row of its own.
    pub(crate) quoted_row: Option<u64>,
    /// Whether it is a word. If not, it is a part of a CSV file that reads like a row and is none: a comment, or a line in
    /// a header's quotes.
    pub(crate) is_word: bool,
}

impl<'a> InputWord<'a> {
    /// A word of a file of lines.
    fn on_line(line: u64, text: &'a str, bad: Option<BadTargetReason>) -> Self {
        Self {
            line,
            last_line: line,
            text,
            labels: None,
            bad,
            quoted_row: None,
            is_word: true,
        }
    }

    /// No word, but what the user may take for one.
    fn no_word(line: u64, last_line: u64, quoted_row: Option<u64>) -> Self {
        Self {
            last_line,
            quoted_row,
            is_word: false,
            ..Self::on_line(line, "", None)
        }
    }
}
