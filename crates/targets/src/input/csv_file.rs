//! A CSV file (RFC 4180): the column `target` says what to probe, the other columns are labels. It holds at
//! most [`MAX_LINE_BYTES`] of a record in memory.
//!
//! It uses `csv-core` instead of `csv`, because `csv` holds a record of any length in memory, and counts the blank lines
//! before a record as part of the record.

use std::io::{self, BufRead, ErrorKind};

use csv_core::ReadRecordResult;

use crate::{
    bad_targets::shown,
    error::{FileProblem, TargetsError},
    input::text_file::{InputWord, check_text},
    limits::{MAX_COLUMNS, MAX_LINE_BYTES},
    parse::BadTargetReason,
};

/// Calls `each` with every target of a CSV file, in order; `file` is its name as it is shown.
///
/// # Errors
/// [`TargetsError::Unreadable`], [`TargetsError::File`], and the errors of `each`.
pub(crate) fn read(
    input: impl BufRead,
    file: &str,
    mut each: impl FnMut(InputWord<'_>) -> Result<(), TargetsError>,
) -> Result<(), TargetsError> {
    let unreadable = |source| TargetsError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let unfit = |problem| TargetsError::File {
        file: file.to_owned(),
        problem,
    };
    let mut records = CsvRecords::new(input);
    if !records.advance().map_err(unreadable)? {
        return Err(unfit(FileProblem::NoHeader));
    }
    let header = CsvHeader::of(&records).map_err(unfit)?;
    while records.advance().map_err(unreadable)? {
        match records.cells() {
            Ok(cells) if cells.iter().all(|cell| cell.is_empty()) => {}
            Ok(cells) => {
                let text = cells.get(header.target).copied().unwrap_or_default();
                let (labels, bad) = match header.labels(&cells) {
                    Ok(labels) => (labels, None),
                    Err(why) => (None, Some(why)),
                };
                each(InputWord {
                    line: records.line,
                    text,
                    labels: labels.as_deref(),
                    bad,
                })?;
            }
            Err(why) => each(InputWord {
                line: records.line,
                text: &String::from_utf8_lossy(&records.text[..records.shown]),
                labels: None,
                bad: Some(why),
            })?,
        }
    }
    Ok(())
}

/// The columns of a CSV file.
struct CsvHeader {
    names: Vec<String>,
    target: usize,
}

impl CsvHeader {
    fn of(records: &CsvRecords<impl BufRead>) -> Result<Self, FileProblem> {
        let names = records.cells().map_err(|_| FileProblem::Header)?;
        for (index, name) in names.iter().enumerate() {
            let is_target = |name: &str| name.eq_ignore_ascii_case("target");
            let same = |other: &&str| {
                *other == *name && !name.is_empty() || is_target(other) && is_target(name)
            };
            if names[..index].iter().any(same) {
                return Err(FileProblem::SameColumns { name: shown(name) });
            }
        }
        let target = names
            .iter()
            .position(|name| name.eq_ignore_ascii_case("target"))
            .ok_or_else(|| FileProblem::NoTargetColumn {
                columns: shown(&names.join(", ")),
            })?;
        Ok(Self {
            names: names.into_iter().map(str::to_owned).collect(),
            target,
        })
    }

    /// The labels of one record as a JSON object; `None` when all are empty.
    fn labels(&self, cells: &[&str]) -> Result<Option<String>, BadTargetReason> {
        if cells.len() != self.names.len() {
            return Err(BadTargetReason::Columns {
                found: cells.len(),
                expected: self.names.len(),
            });
        }
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

/// The records of a CSV file, one at a time in a buffer of fixed size.
struct CsvRecords<R> {
    input: R,
    parser: csv_core::Reader,
    /// The record's fields, one after the other.
    text: Box<[u8]>,
    /// Where each field ends.
    ends: Box<[usize]>,
    /// How many fields the record has.
    fields: usize,
    /// How many bytes of the record are in `text`.
    shown: usize,
    /// Whether the record has more bytes or fields than there is room for.
    overflow: bool,
    /// The line on which the record begins, from 1.
    line: u64,
    /// The line of the next byte of input.
    next_line: u64,
}

impl<R: BufRead> CsvRecords<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            parser: csv_core::Reader::new(),
            text: vec![0; MAX_LINE_BYTES].into(),
            ends: vec![0; MAX_COLUMNS].into(),
            fields: 0,
            shown: 0,
            overflow: false,
            line: 0,
            next_line: 1,
        }
    }

    /// Reads the next record; false after the last one.
    fn advance(&mut self) -> io::Result<bool> {
        self.skip_to_record()?;
        self.line = self.next_line;
        self.overflow = false;
        self.shown = 0;
        let (mut used, mut fields) = (0, 0);
        loop {
            let buffer = filled(&mut self.input)?;
            let (result, read, written, ended) =
                self.parser
                    .read_record(buffer, &mut self.text[used..], &mut self.ends[fields..]);
            self.next_line += newlines(&buffer[..read]);
            self.input.consume(read);
            used += written;
            fields += ended;
            self.shown = self.shown.max(used);
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    // The rest of this record overwrites the buffers: the record is not used.
                    self.overflow = true;
                    (used, fields) = (0, 0);
                }
                ReadRecordResult::Record => {
                    self.fields = fields;
                    return Ok(true);
                }
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    /// Skips blank lines and comments, so that the next byte begins a record.
    fn skip_to_record(&mut self) -> io::Result<()> {
        let mut comment = false;
        loop {
            let buffer = filled(&mut self.input)?;
            let mut skipped = 0;
            for byte in buffer {
                match byte {
                    b'\n' => comment = false,
                    b'#' => comment = true,
                    b'\r' => {}
                    _ if comment => {}
                    _ => break,
                }
                skipped += 1;
            }
            self.next_line += newlines(&buffer[..skipped]);
            let done = skipped < buffer.len() || buffer.is_empty();
            self.input.consume(skipped);
            if done {
                return Ok(());
            }
        }
    }

    /// The record's fields without surrounding blanks.
    fn cells(&self) -> Result<Vec<&str>, BadTargetReason> {
        if self.overflow {
            return Err(BadTargetReason::LongLine);
        }
        let mut begin = 0;
        let fields = self.ends[..self.fields].iter().map(|end| {
            let field = &self.text[begin..*end];
            begin = *end;
            check_text(field).map(str::trim)
        });
        fields.collect()
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
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
