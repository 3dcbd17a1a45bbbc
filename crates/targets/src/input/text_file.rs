//! A file of one target a line. It holds at most [`MAX_LINE_BYTES`] of a line in memory.

use std::{
    io::{self, BufRead, ErrorKind},
    str,
};

use crate::{limits::MAX_LINE_BYTES, parse::BadTargetReason};

/// The word of one target in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InputWord<'a> {
    /// Number of the line on which it begins, from 1.
    pub(crate) line: u64,
    /// The word; where the line is bad, the begin of the line.
    pub(crate) text: &'a str,
    /// The labels as a JSON object, where the file has some for this target.
    pub(crate) labels: Option<&'a str>,
    /// Why this is no target, where the file shows it before the word is parsed.
    pub(crate) bad: Option<BadTargetReason>,
}

/// Calls `each` with every target of a text of lines, in order. Comments begin with `#`, at the start of a line or
/// after a blank.
///
/// # Errors
/// `failed` of a read error, and the errors of `each`.
pub(crate) fn read<E>(
    mut input: impl BufRead,
    failed: impl Fn(io::Error) -> E,
    mut each: impl FnMut(InputWord<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = Vec::new();
    let mut line = 0;
    while let Some(complete) = next_line(&mut input, &mut bytes).map_err(&failed)? {
        line += 1;
        let entry = |text, bad| InputWord {
            line,
            text,
            labels: None,
            bad,
        };
        let lossy;
        let entry = match check_text(&bytes) {
            _ if !complete => {
                lossy = String::from_utf8_lossy(&bytes);
                entry(lossy.as_ref(), Some(BadTargetReason::LongLine))
            }
            Err(why) => {
                lossy = String::from_utf8_lossy(&bytes);
                entry(lossy.as_ref(), Some(why))
            }
            Ok(text) => match without_comment(text) {
                "" => continue,
                text => entry(text, None),
            },
        };
        each(entry)?;
    }
    Ok(())
}

/// The text of some bytes of a file.
pub(crate) fn check_text(bytes: &[u8]) -> Result<&str, BadTargetReason> {
    if bytes.contains(&0) {
        return Err(BadTargetReason::Nul);
    }
    str::from_utf8(bytes).map_err(|_| BadTargetReason::NotUtf8)
}

fn without_comment(line: &str) -> &str {
    let line = line.trim();
    let comment = line.match_indices('#').find(|(at, _)| {
        let before = line[..*at].chars().next_back();
        before.is_none_or(char::is_whitespace)
    });
    comment.map_or(line, |(at, _)| line[..at].trim_end())
}

/// Reads the next line without its end, and returns whether it is complete; `None` after the last line.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let mut begun = false;
    let mut complete = true;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(begun.then_some(complete && line.len() <= MAX_LINE_BYTES));
        }
        begun = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        // One byte more, for the carriage return before the line's end.
        let room = MAX_LINE_BYTES + 1 - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        complete &= part.len() <= room;
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            if complete && line.ends_with(b"\r") {
                line.pop();
            }
            complete &= line.len() <= MAX_LINE_BYTES;
            return Ok(Some(complete));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    type Found = (u64, String, Option<BadTargetReason>);

    fn found(text: &[u8]) -> Vec<Found> {
        // With a buffer of 3 bytes every line is read in pieces.
        let input = BufReader::with_capacity(3, text);
        let mut found = Vec::new();
        let result: Result<(), io::Error> = read(
            input,
            |error| error,
            |entry| {
                found.push((entry.line, entry.text.to_owned(), entry.bad));
                Ok(())
            },
        );
        result.unwrap();
        found
    }

    fn good(line: u64, text: &str) -> Found {
        (line, text.to_owned(), None)
    }

    #[test]
    fn comments_blank_lines_and_line_ends_are_no_targets() {
        let text = b"# all\r\n\r\n  a\t# first\n\nb#c\n\t \n #\nlast";
        assert_eq!(found(text), [good(3, "a"), good(5, "b#c"), good(8, "last")]);
        assert_eq!(found(b""), []);
        assert_eq!(found(b"\n"), []);
        assert_eq!(found(b"a\n"), [good(1, "a")]);
    }

    #[test]
    fn lines_that_are_no_text_are_bad_and_the_next_ones_are_read() {
        let found = found(b"a\0b\nM\xfcller\nc");
        assert_eq!(found[0].2, Some(BadTargetReason::Nul));
        assert_eq!(
            found[1],
            (
                2,
                "M\u{fffd}ller".to_owned(),
                Some(BadTargetReason::NotUtf8)
            )
        );
        assert_eq!(found[2], good(3, "c"));
    }

    #[test]
    fn the_longest_line_is_read_and_a_longer_one_is_bad() {
        for end in ["", "\n", "\r\n"] {
            let longest = "x".repeat(MAX_LINE_BYTES);
            let text = format!("{longest}{end}");
            assert_eq!(found(text.as_bytes()), [good(1, &longest)], "{end:?}");
            let longer = found(format!("{longest}x{end}").as_bytes());
            assert_eq!(longer.len(), 1);
            assert_eq!(longer[0].2, Some(BadTargetReason::LongLine), "{end:?}");
        }
        let text = format!("{}\nb", "x".repeat(100_000));
        assert_eq!(found(text.as_bytes())[1], good(2, "b"));
    }

    #[test]
    fn an_endless_line_is_not_held() {
        let mut line = Vec::new();
        let mut input = BufReader::new(io::repeat(b'x').take(50_000_000));
        assert_eq!(next_line(&mut input, &mut line).unwrap(), Some(false));
        assert!(line.capacity() < 4 * MAX_LINE_BYTES);
    }
}
