//! Bad targets as they are reported to the user: the first few in full, all of them counted. No I/O.

use std::fmt;

use crate::{
    collect::CollectError, error::TargetsError, limits::MAX_REPORTED, line_counts::LineClass,
    parse::BadTargetReason,
};

/// How many characters of a bad target are shown.
const MAX_SHOWN_CHARS: usize = 100;

/// Where a word stands in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The file's name, ready to be shown.
    pub(crate) file: &'a str,
    pub(crate) line: u64,
    /// The last line, where there are several.
    pub(crate) last_line: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if self.last_line > self.line {
            write!(f, "-{}", self.last_line)?;
        }
        Ok(())
    }
}

/// A text that cannot be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTarget {
    file: Option<String>,
    line: u64,
    last_line: u64,
    text: String,
    reason: BadTargetReason,
}

impl BadTarget {
    /// The file's name, and the line from 1; `None` for an argument of the command line.
    #[must_use]
    pub fn place(&self) -> Option<(&str, u64)> {
        self.file.as_deref().map(|file| (file, self.line))
    }

    /// What is wrong with it.
    #[must_use]
    pub fn reason(&self) -> &BadTargetReason {
        &self.reason
    }
}

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            let place = Place {
                file,
                line: self.line,
                last_line: self.last_line,
            };
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.text, self.reason)
    }
}

/// All bad targets of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadTargets {
    reported: Vec<BadTarget>,
    count: u64,
}

impl BadTargets {
    /// The first 20.
    #[must_use]
    pub fn reported(&self) -> &[BadTarget] {
        &self.reported
    }

    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Keeps the reason of a bad word, and passes on what makes a list impossible.
    pub(crate) fn keep(
        &mut self,
        place: Option<Place<'_>>,
        word: &str,
        taken: Result<LineClass, CollectError>,
    ) -> Result<LineClass, TargetsError> {
        match taken {
            Ok(class) => Ok(class),
            Err(CollectError::Bad(reason)) => {
                self.add(place, word, reason);
                Ok(LineClass::Bad)
            }
            Err(CollectError::Fatal(error)) => Err(error),
        }
    }

    /// Adds one.
    pub(crate) fn add(&mut self, place: Option<Place<'_>>, text: &str, reason: BadTargetReason) {
        self.count += 1;
        if self.reported.len() < MAX_REPORTED {
            self.reported.push(BadTarget {
                file: place.map(|place| place.file.to_owned()),
                line: place.map_or(0, |place| place.line),
                last_line: place.map_or(0, |place| place.last_line),
                text: shown(text),
                reason,
            });
        }
    }
}

impl fmt::Display for BadTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bad) in self.reported.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "  {bad}")?;
        }
        match self.count - self.reported.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// A text of unknown origin in a form that is safe for a terminal: unprintable characters are escaped, and a long text is
/// cut.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == MAX_SHOWN_CHARS {
            shown.push_str("...");
            break;
        }
        if matches!(c, '\'' | '"' | '\\') {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    if shown.is_empty() {
        shown.push_str("(empty)");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_are_not_passed_on() {
        assert_eq!(
            shown("\u{1b}[2J'a\"\\\u{202e}é"),
            r#"\u{1b}[2J'a"\\u{202e}é"#
        );
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shown(&"x".repeat(101)), format!("{}...", "x".repeat(100)));
        assert_eq!(shown(&"x".repeat(100)), "x".repeat(100));
    }

    #[test]
    fn twenty_are_shown_and_all_are_counted() {
        let mut bad = BadTargets::default();
        for line in 1..=23 {
            bad.add(
                Some(Place {
                    file: "f.txt",
                    line,
                    last_line: line,
                }),
                "1234",
                BadTargetReason::Octets { found: 1 },
            );
        }
        let text = bad.to_string();
        assert_eq!(text.lines().count(), 21);
        assert!(text.contains("f.txt:20: 1234: an IPv4 address"), "{text}");
        assert!(text.ends_with("and 3 more"), "{text}");
    }
}
