//! How a file is written: one target a line, or CSV with one of several separators. No I/O.

use crate::error::FileProblem;

/// How a file of targets is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InputFormat {
    /// CSV: the column `target` has the targets, the other columns are labels
    Csv,
    /// One target a line
    List,
}

/// What divides the cells of a CSV file whose header does not show it.
pub(crate) const COMMA: u8 = b',';

/// What may divide the cells of a header: a comma, and what Excel writes in its place.
const SEPARATORS: [u8; 3] = [COMMA, b';', b'\t'];

/// Begins the line that names Excel's separator.
const SEP: &str = "sep=";

/// Whether a file is CSV, by its first line that is neither blank nor a comment.
pub(crate) fn looks_like_csv(line: &[u8]) -> bool {
    let word = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let single = word.trim_ascii().eq_ignore_ascii_case(b"target");
    is_sep_line(line) || !single && separator_of_header(line).is_some()
}

/// The separator of a CSV file, by its header: one that leaves a cell `target`.
pub(crate) fn separator_of_header(line: &[u8]) -> Option<u8> {
    let has_target = |separator: &u8| {
        let cells = cells(line, *separator);
        cells.iter().any(|cell| is_target(cell.trim()))
    };
    SEPARATORS.into_iter().find(has_target)
}

/// Whether a column has the targets.
pub(crate) fn is_target(column: &str) -> bool {
    column.eq_ignore_ascii_case("target")
}

/// Whether a line has Excel's `sep=`.
pub(crate) fn is_sep_line(line: &[u8]) -> bool {
    let begin = line.strip_prefix(b"\"").unwrap_or(line).get(..SEP.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(SEP.as_bytes()))
}

/// The separator that a line `sep=;` names. It may stand in quotes.
pub(crate) fn named_separator(line: &[u8]) -> Result<u8, FileProblem> {
    let quoted = line
        .strip_prefix(b"\"")
        .and_then(|line| line.strip_suffix(b"\""));
    match quoted.unwrap_or(line)[SEP.len()..] {
        [separator]
            if separator == b'\t'
                || separator.is_ascii_punctuation() && !matches!(separator, b'"' | b'#') =>
        {
            Ok(separator)
        }
        _ => Err(FileProblem::Separator),
    }
}

/// The cells of one line.
fn cells(line: &[u8], separator: u8) -> Vec<String> {
    let mut parser = csv_core::ReaderBuilder::new().delimiter(separator).build();
    let (mut text, mut ends) = (vec![0; line.len() + 1], vec![0; line.len() + 1]);
    let (_, read, mut used, mut count) = parser.read_record(line, &mut text, &mut ends);
    debug_assert_eq!(read, line.len());
    // The end of the input ends the row.
    let (_, _, written, ended) = parser.read_record(b"", &mut text[used..], &mut ends[count..]);
    used += written;
    count += ended;
    let mut begin = 0;
    let cells = ends[..count].iter().map(|end| {
        let cell = String::from_utf8_lossy(&text[begin..(*end).min(used)]).into_owned();
        begin = *end;
        cell
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_shows_its_separator() {
        for (line, separator) in [
            ("target", Some(b',')),
            ("site,TARGET,note", Some(b',')),
            ("site;target;a,b", Some(b';')),
            ("site\ttarget", Some(b'\t')),
            ("\"a,b\"; \"x\";\"target\"", Some(b';')),
            ("\"target\";a", Some(b';')),
            ("name;ip", None),
            ("targets;ip", None),
            ("", None),
        ] {
            assert_eq!(separator_of_header(line.as_bytes()), separator, "{line}");
        }
    }

    #[test]
    fn a_single_word_is_no_header_unless_it_is_quoted() {
        assert!(!looks_like_csv(b"target") && !looks_like_csv(b"10.0.0.1"));
        assert!(looks_like_csv(b"\"target\"") && looks_like_csv(b"target,"));
        assert!(looks_like_csv(b"sep=;") && looks_like_csv(b"\"SEP=;\""));
    }

    #[test]
    fn excels_line_names_one_character() {
        for (line, separator) in [
            ("sep=;", Ok(b';')),
            ("SEP=,", Ok(b',')),
            ("sep=\t", Ok(b'\t')),
            ("\"sep=|\"", Ok(b'|')),
            ("sep=", Err(FileProblem::Separator)),
            ("sep=;;", Err(FileProblem::Separator)),
            ("sep=a", Err(FileProblem::Separator)),
            ("sep=\"", Err(FileProblem::Separator)),
        ] {
            assert_eq!(named_separator(line.as_bytes()), separator, "{line}");
        }
    }
}
