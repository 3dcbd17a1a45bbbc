//! A CSV file (RFC 4180): the column `target` says what to probe, the other columns are labels.

use std::io::{self, BufRead};

use crate::{
    bad_targets::shown,
    error::{FileProblem, TargetsError},
    input::{
        InputWord,
        csv_row::{CsvRow, has_target},
        format::{COMMA, is_sep_line, is_target, named_separator, separator_of_header},
        line_reader::{LineKind, LineReader},
    },
    line_counts::{LineClass, LineCounts},
    parse::BadTargetReason,
};

/// Calls `each` with every target of a CSV file, in order; `file` is its name as it is shown. The current line is the
/// first one that is neither blank nor a comment.
///
/// # Errors
/// [`TargetsError::Unreadable`], [`TargetsError::File`], and the errors of `each`.
pub(crate) fn read(
    lines: &mut LineReader<impl BufRead>,
    counts: &mut LineCounts,
    file: &str,
    mut each: impl FnMut(InputWord<'_>) -> Result<LineClass, TargetsError>,
) -> Result<(), TargetsError> {
    let unreadable = |source| TargetsError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let unfit = |problem| TargetsError::File {
        file: file.to_owned(),
        problem,
    };
    let mut separator = None;
    if is_sep_line(lines.text()) {
        separator = Some(named_separator(lines.text()).map_err(unfit)?);
        counts.add(LineClass::Header, 1);
        if !next_content(lines, counts).map_err(unreadable)? {
            return Err(unfit(FileProblem::NoHeader));
        }
    }
    let separator = separator
        .or_else(|| separator_of_header(lines.text()))
        .unwrap_or(COMMA);
    let mut row = CsvRow::new(separator);
    row.read(lines, 0).map_err(unreadable)?;
    let header = CsvHeader::of(&row, lines).map_err(unfit)?;
    counts.add(LineClass::Header, row.lines());
    if let Some(line) = row.quoted_row_for(header.target) {
        each(InputWord::no_word(
            row.first_line,
            row.last_line,
            Some(line),
        ))?;
    }
    while lines.next().map_err(unreadable)? {
        let first = lines.number();
        let class = match lines.kind() {
            LineKind::Blank => LineClass::Blank,
            LineKind::Comment => {
                if has_target(lines.text(), separator, header.target) {
                    each(InputWord::no_word(first, first, None))?;
                }
                LineClass::Comment
            }
            LineKind::Content => {
                row.read(lines, header.target).map_err(unreadable)?;
                read_row(&row, &header, lines, &mut each)?
            }
        };
        counts.add(class, lines.number() - first + 1);
    }
    Ok(())
}

/// Calls `each` with a row, unless all its cells are empty.
fn read_row(
    row: &CsvRow,
    header: &CsvHeader,
    lines: &LineReader<impl BufRead>,
    each: &mut impl FnMut(InputWord<'_>) -> Result<LineClass, TargetsError>,
) -> Result<LineClass, TargetsError> {
    let cells = row.cells(header.names.len(), lines);
    if let Ok(cells) = &cells
        && cells.iter().all(|cell| cell.is_empty())
    {
        return Ok(LineClass::Blank);
    }
    let word = |line, text, labels, bad| InputWord {
        line,
        last_line: row.last_line,
        text,
        labels,
        bad,
        quoted_row: None,
        is_word: true,
    };
    match cells.and_then(|cells| Ok((cells[header.target], header.labels(&cells)?))) {
        Ok((text, labels)) => each(InputWord {
            quoted_row: row.quoted_row,
            ..word(row.first_line, text, labels.as_deref(), None)
        }),
        Err(why) => {
            let raw = String::from_utf8_lossy(&row.raw);
            each(word(row.bad_line(&why), &raw, None, Some(why)))
        }
    }
}

/// Goes to the next line that is neither blank nor a comment; false at the end of the file.
pub(crate) fn next_content(
    lines: &mut LineReader<impl BufRead>,
    counts: &mut LineCounts,
) -> io::Result<bool> {
    while lines.next()? {
        match lines.kind() {
            LineKind::Blank => counts.add(LineClass::Blank, 1),
            LineKind::Comment => counts.add(LineClass::Comment, 1),
            LineKind::Content => return Ok(true),
        }
    }
    Ok(false)
}

/// The columns of a CSV file.
struct CsvHeader {
    names: Vec<String>,
    target: usize,
}

impl CsvHeader {
    fn of(row: &CsvRow, lines: &LineReader<impl BufRead>) -> Result<Self, FileProblem> {
        let names = row
            .cells(row.columns, lines)
            .map_err(|why| FileProblem::Header { why })?;
        for (index, name) in names.iter().enumerate() {
            let same = |other: &&str| {
                *other == *name && !name.is_empty() || is_target(other) && is_target(name)
            };
            if names[..index].iter().any(same) {
                return Err(FileProblem::SameColumns { name: shown(name) });
            }
        }
        let target = names
            .iter()
            .position(|name| is_target(name))
            .ok_or_else(|| FileProblem::NoTargetColumn {
                columns: shown(&names.join(", ")),
            })?;
        Ok(Self {
            names: names.into_iter().map(str::to_owned).collect(),
            target,
        })
    }

    /// The labels of one row as a JSON object; `None` when all are empty.
    fn labels(&self, cells: &[&str]) -> Result<Option<String>, BadTargetReason> {
        if cells[self.target].is_empty() {
            return Err(BadTargetReason::NoTarget);
        }
        let mut labels = serde_json::Map::new();
        for (index, (name, cell)) in self.names.iter().zip(cells).enumerate() {
            if index == self.target || cell.is_empty() {
                continue;
            }
            if name.is_empty() {
                return Err(BadTargetReason::NamelessColumn { number: index + 1 });
            }
            labels.insert(name.clone(), (*cell).into());
        }
        Ok((!labels.is_empty()).then(|| serde_json::Value::Object(labels).to_string()))
    }
}
