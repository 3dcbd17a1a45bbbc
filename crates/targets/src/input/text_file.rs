//! A file of one target a line.

use std::io::{self, BufRead};

use crate::{
    input::{
        InputWord,
        line_reader::{LineKind, LineReader},
    },
    line_counts::{LineClass, LineCounts},
    parse::BadTargetReason,
};

/// Calls `each` with every target from the current line on, in order. Comments begin with `#`, at the start of a line
/// or after a blank.
///
/// # Errors
/// `failed` of a read error, and the errors of `each`.
pub(crate) fn read<E>(
    lines: &mut LineReader<impl BufRead>,
    counts: &mut LineCounts,
    failed: impl Fn(io::Error) -> E,
    mut each: impl FnMut(InputWord<'_>) -> Result<LineClass, E>,
) -> Result<(), E> {
    loop {
        let class = match lines.kind() {
            LineKind::Blank => LineClass::Blank,
            LineKind::Comment => LineClass::Comment,
            LineKind::Content => {
                let text = if lines.is_whole() {
                    lines.check_text(lines.text()).map(without_comment)
                } else {
                    Err(BadTargetReason::LongLine)
                };
                let number = lines.number();
                match text {
                    Ok(text) => each(InputWord::on_line(number, text, None))?,
                    Err(why) => {
                        let text = String::from_utf8_lossy(lines.text());
                        each(InputWord::on_line(number, &text, Some(why)))?
                    }
                }
            }
        };
        counts.add(class, 1);
        if !lines.next().map_err(&failed)? {
            return Ok(());
        }
    }
}

fn without_comment(line: &str) -> &str {
    let line = line.trim();
    let comment = line.match_indices('#').find(|(at, _)| {
        let before = line[..*at].chars().next_back();
        before.is_none_or(char::is_whitespace)
    });
    comment.map_or(line, |(at, _)| line[..at].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = (u64, String, Option<BadTargetReason>);

    fn found(text: &[u8]) -> (Vec<Found>, LineCounts) {
        let mut lines = LineReader::new(text, false);
        let mut counts = LineCounts::default();
        let mut found = Vec::new();
        if lines.next().unwrap() {
            let result: io::Result<()> = read(
                &mut lines,
                &mut counts,
                |error| error,
                |word| {
                    found.push((word.line, word.text.to_owned(), word.bad));
                    Ok(LineClass::Target)
                },
            );
            result.unwrap();
        }
        (found, counts)
    }

    fn good(line: u64, text: &str) -> Found {
        (line, text.to_owned(), None)
    }

    #[test]
    fn comments_blank_lines_and_line_ends_are_no_targets() {
        let text = b"# all\r\n\r\n  a\t# first\n\nb#c\n\t \n #\rlast";
        let (found, counts) = found(text);
        assert_eq!(found, [good(3, "a"), good(5, "b#c"), good(8, "last")]);
        assert_eq!((counts.comments, counts.blank), (2, 3));
    }

    #[test]
    fn lines_that_are_no_text_are_bad_and_the_next_ones_are_read() {
        let (found, _) = found(b"a\0b\nM\xfcller\n# M\xfcller\nc");
        assert_eq!(found[0].2, Some(BadTargetReason::Nul));
        assert_eq!(
            found[1],
            (
                2,
                "M\u{fffd}ller".to_owned(),
                Some(BadTargetReason::NotUtf8)
            )
        );
        assert_eq!(found[2], good(4, "c"));
    }
}
