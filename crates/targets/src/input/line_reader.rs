//! The lines of a file, one at a time. A line ends with LF, CRLF or CR. It holds at most [`MAX_LINE_BYTES`] of a line in
//! memory; the rest of a longer one passes by in pieces.

use std::{
    io::{self, BufRead, ErrorKind},
    str,
};

use crate::{
    limits::{MAX_LINE_BYTES, MAX_LINES, MAX_STRETCH_BYTES},
    parse::BadTargetReason,
};

/// What a line is in every kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    Blank,
    /// Its first character is `#`. It may have any length and need not be valid UTF-8.
    Comment,
    /// Anything else.
    Content,
}

/// Reads lines.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    input: R,
    /// Whether the input was UTF-16: then a replacement character stands for what is not valid.
    utf16: bool,
    /// The line's begin, without its end.
    text: Vec<u8>,
    /// Whether all of the line is read.
    complete: bool,
    end: &'static [u8],
    number: u64,
}

impl<R: BufRead> LineReader<R> {
    pub(crate) fn new(input: R, utf16: bool) -> Self {
        Self {
            input,
            utf16,
            text: Vec::new(),
            complete: true,
            end: b"",
            number: 0,
        }
    }

    /// Reads the next line; false after the last one.
    pub(crate) fn next(&mut self) -> io::Result<bool> {
        self.rest(|_| {})?;
        if filled(&mut self.input)?.is_empty() {
            return Ok(false);
        }
        self.number += 1;
        if self.number > MAX_LINES {
            return Err(endless(format!("it has more than {MAX_LINES} lines")));
        }
        self.text.clear();
        self.complete = false;
        self.end = b"";
        loop {
            let room = MAX_LINE_BYTES - self.text.len();
            let buffer = filled(&mut self.input)?;
            let end = line_end(buffer);
            let part = end.unwrap_or(buffer.len());
            self.text.extend_from_slice(&buffer[..part.min(room)]);
            let at_end = end.is_some() || buffer.is_empty();
            self.input.consume(part.min(room));
            if part > room {
                return Ok(true);
            }
            if at_end {
                self.skip_end()?;
                return Ok(true);
            }
        }
    }

    /// Reads the rest of a line that is too long to be held, in pieces.
    pub(crate) fn rest(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut passed = 0;
        while !self.complete {
            let buffer = filled(&mut self.input)?;
            let end = line_end(buffer);
            let part = end.unwrap_or(buffer.len());
            let at_end = end.is_some() || buffer.is_empty();
            passed += part as u64;
            if passed > MAX_STRETCH_BYTES {
                let line = self.number;
                return Err(endless(format!(
                    "line {line} is longer than {MAX_STRETCH_BYTES} bytes"
                )));
            }
            if part > 0 {
                each(&buffer[..part]);
            }
            self.input.consume(part);
            if at_end {
                self.skip_end()?;
            }
        }
        Ok(())
    }

    /// The line without its end; of a long one the begin.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether [`Self::text`] is all of the line.
    pub(crate) fn is_whole(&self) -> bool {
        self.complete
    }

    /// What ends the line, if all of it is read; the last line may end with nothing.
    pub(crate) fn end(&self) -> &'static [u8] {
        self.end
    }

    /// The number of the line, from 1; 0 before the first one. After the last line it is the number of lines.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// What the line is.
    pub(crate) fn kind(&self) -> LineKind {
        if self.text.first().is_some_and(u8::is_ascii_alphanumeric) {
            return LineKind::Content;
        }
        let text = String::from_utf8_lossy(&self.text);
        let text = text.trim_start();
        if text.starts_with('#') {
            LineKind::Comment
        } else if text.is_empty() && self.complete {
            LineKind::Blank
        } else {
            LineKind::Content
        }
    }

    /// The text of some bytes of the file.
    pub(crate) fn check_text<'a>(&self, bytes: &'a [u8]) -> Result<&'a str, BadTargetReason> {
        if bytes.contains(&0) {
            return Err(BadTargetReason::Nul);
        }
        match str::from_utf8(bytes) {
            Ok(text) if self.utf16 && text.contains(char::REPLACEMENT_CHARACTER) => {
                Err(BadTargetReason::NotUtf16)
            }
            Ok(text) => Ok(text),
            Err(_) => Err(BadTargetReason::NotUtf8),
        }
    }

    /// Reads over the end of a line, which is next, and completes the line.
    fn skip_end(&mut self) -> io::Result<()> {
        self.complete = true;
        let Some(first) = filled(&mut self.input)?.first().copied() else {
            return Ok(());
        };
        self.input.consume(1);
        self.end = b"\n";
        if first == b'\r' {
            self.end = b"\r";
            if filled(&mut self.input)?.first() == Some(&b'\n') {
                self.input.consume(1);
                self.end = b"\r\n";
            }
        }
        Ok(())
    }
}

/// An input that is no list of targets, and may have no end.
fn endless(why: String) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        why + ", so it is no list of targets",
    )
}

fn line_end(buffer: &[u8]) -> Option<usize> {
    buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'))
}

/// The bytes in an input's buffer; empty at the end of the input.
fn filled(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    input.fill_buf()
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    /// All lines, with their ends and whether they are held as a whole.
    fn lines(text: &[u8]) -> Vec<(Vec<u8>, &'static [u8], bool)> {
        // With a buffer of 3 bytes every line is read in pieces.
        let mut lines = LineReader::new(BufReader::with_capacity(3, text), false);
        let mut found = Vec::new();
        while lines.next().unwrap() {
            let whole = lines.is_whole();
            let mut text = lines.text().to_vec();
            lines.rest(|piece| text.extend_from_slice(piece)).unwrap();
            found.push((text, lines.end(), whole));
        }
        assert_eq!(lines.number(), found.len() as u64);
        found
    }

    #[test]
    fn lines_end_with_lf_crlf_cr_or_the_file() {
        let expected: [(&[u8], &[u8]); 7] = [
            (b"a", b"\n"),
            (b"bcd", b"\r\n"),
            (b"", b"\r"),
            (b"efghi", b"\r"),
            (b"", b"\r\n"),
            (b"", b"\n"),
            (b"j", b""),
        ];
        let text: Vec<u8> = expected
            .iter()
            .flat_map(|(text, end)| [*text, *end].concat())
            .collect();
        let expected = expected.map(|(text, end)| (text.to_vec(), end, true));
        assert_eq!(lines(&text), expected);
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n").len(), 1);
    }

    #[test]
    fn the_longest_line_is_held_and_the_rest_of_a_longer_one_passes_by() {
        for end in [b"".as_slice(), b"\n", b"\r", b"\r\n"] {
            let mut text = vec![b'x'; MAX_LINE_BYTES];
            for whole in [true, false] {
                let found = lines(&[&text, end].concat());
                assert_eq!(found.len(), 1);
                assert_eq!((&found[0].0, found[0].2), (&text, whole), "{end:?}");
                text.push(b'x');
            }
        }
        let found = lines(&[&vec![b'x'; 100_000], b"\nb".as_slice()].concat());
        assert_eq!(found[0].0.len(), 100_000);
        assert_eq!(found[1].0, b"b");
    }

    #[test]
    fn a_long_line_is_not_held_and_an_endless_one_is_an_error() {
        let after = |length| {
            let input = BufReader::new(io::repeat(0).take(length));
            let mut lines = LineReader::new(input, false);
            assert!(lines.next().unwrap());
            let next = lines.next();
            assert!(lines.text.capacity() < 4 * MAX_LINE_BYTES);
            next
        };
        assert!(!after(MAX_STRETCH_BYTES).unwrap());
        let error = after(u64::MAX).unwrap_err().to_string();
        assert!(
            error.starts_with("line 1 is longer than 67108864 bytes"),
            "{error}"
        );
    }

    #[test]
    fn an_input_without_an_end_is_an_error_although_it_has_lines() {
        let mut lines = LineReader::new(&b"a\nb\nc\n"[..], false);
        lines.number = MAX_LINES - 2;
        // The control: the last lines that are read.
        assert!(lines.next().unwrap() && lines.next().unwrap());
        let error = lines.next().unwrap_err().to_string();
        assert!(
            error.starts_with("it has more than 1073741824 lines"),
            "{error}"
        );
    }
}
