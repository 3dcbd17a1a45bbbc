//! What became of every line of the files: the sum of all classes is the number of lines read. No I/O.

use std::fmt;

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineClass {
    /// It has a target that no line before it has.
    Target,
    /// All its targets are excluded, and at least one was not mentioned before.
    Excluded,
    /// All its targets were mentioned before.
    Duplicate,
    Comment,
    Blank,
    /// The header of a CSV file, and the line that names its separator.
    Header,
    Bad,
}

/// How many lines of files and standard input were read, and what became of them. Arguments are no lines.
///
/// `read` is counted where lines are cut, the others where they are used, so a line that vanishes is noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// All lines.
    pub read: u64,
    /// Lines with a target that no line or argument before them has.
    pub targets: u64,
    /// Lines with excluded targets only.
    pub excluded: u64,
    /// Lines with targets only that were mentioned before.
    pub duplicates: u64,
    /// Lines of comments.
    pub comments: u64,
    /// Blank lines, and rows of empty cells.
    pub blank: u64,
    /// Headers of CSV files, with the lines that name their separators.
    pub header: u64,
    /// Lines that continue a row, because it has line breaks in quotes.
    pub continued: u64,
    /// All lines of bad rows.
    pub bad: u64,
}

impl LineCounts {
    /// The sum of all classes.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let Self {
            read: _,
            targets,
            excluded,
            duplicates,
            comments,
            blank,
            header,
            continued,
            bad,
        } = self;
        targets + excluded + duplicates + comments + blank + header + continued + bad
    }

    /// Counts the lines of one row: the lines after the first one of a good row are continued.
    pub(crate) fn add(&mut self, class: LineClass, lines: u64) {
        let count = match class {
            LineClass::Target => &mut self.targets,
            LineClass::Excluded => &mut self.excluded,
            LineClass::Duplicate => &mut self.duplicates,
            LineClass::Comment => &mut self.comments,
            LineClass::Blank => &mut self.blank,
            LineClass::Header => &mut self.header,
            LineClass::Bad => &mut self.bad,
        };
        match class {
            LineClass::Target | LineClass::Excluded | LineClass::Duplicate => {
                *count += 1;
                self.continued += lines - 1;
            }
            _ => *count += lines,
        }
    }
}

impl fmt::Display for LineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = if self.read == 1 { "line" } else { "lines" };
        write!(
            f,
            "{} {lines} read: targets {}, duplicates {}, comments {}, blank {}, bad {}",
            self.read, self.targets, self.duplicates, self.comments, self.blank, self.bad
        )?;
        for (count, what) in [
            (self.excluded, "excluded"),
            (self.header, "header"),
            (self.continued, "line breaks in quotes"),
        ] {
            if count > 0 {
                write!(f, ", {what} {count}")?;
            }
        }
        Ok(())
    }
}
