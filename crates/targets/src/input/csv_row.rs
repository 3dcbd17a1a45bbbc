//! One row of a CSV file (RFC 4180). It holds at most [`MAX_LINE_BYTES`] of a row in memory.
//!
//! It uses `csv-core` instead of `csv`, because `csv` holds a row of any length in memory. `csv-core` accepts text after
//! a closing quote, and a file that ends in quotes; rows that do not follow RFC 4180 are found here.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

use crate::{
    input::line_reader::LineReader,
    limits::{MAX_COLUMNS, MAX_LINE_BYTES},
    parse::{self, BadTargetReason, TargetSpec},
};

/// One row of a CSV file, in buffers of fixed size.
pub(crate) struct CsvRow {
    separator: u8,
    parser: csv_core::Reader,
    /// The row as it is written, without its last line end; of a long one the begin.
    pub(crate) raw: Vec<u8>,
    /// Whether `raw` is the whole row.
    fits: bool,
    /// The row's cells, one after the other.
    text: Box<[u8]>,
    used: usize,
    /// Where each cell ends.
    ends: Box<[usize]>,
    ended: usize,
    /// How many cells the row has, also if there is no room for them.
    pub(crate) columns: usize,
    /// Whether the file ends in quotes.
    open: bool,
    pub(crate) first_line: u64,
    pub(crate) last_line: u64,
    /// The line on which the cell begins that is in quotes at the end of the row's last line but one.
    quote_line: u64,
    /// See [`quoted_row`](crate::input::InputWord::quoted_row).
    pub(crate) quoted_row: Option<u64>,
}

impl CsvRow {
    pub(crate) fn new(separator: u8) -> Self {
        Self {
            separator,
            parser: csv_core::ReaderBuilder::new().delimiter(separator).build(),
            raw: Vec::with_capacity(MAX_LINE_BYTES),
            fits: true,
            text: vec![0; MAX_LINE_BYTES + 1].into(),
            used: 0,
            ends: vec![0; MAX_COLUMNS].into(),
            ended: 0,
            columns: 0,
            open: false,
            first_line: 0,
            last_line: 0,
            quote_line: 0,
            quoted_row: None,
        }
    }

    /// Reads the row that begins with the current line. Its last line is the current one then. `target` is the index
    /// of the column of targets.
    pub(crate) fn read(
        &mut self,
        lines: &mut LineReader<impl BufRead>,
        target: usize,
    ) -> io::Result<()> {
        self.raw.clear();
        (self.used, self.ended, self.columns) = (0, 0, 0);
        (self.fits, self.open, self.quoted_row) = (true, false, None);
        self.first_line = lines.number();
        self.quote_line = lines.number();
        loop {
            let before = self.columns;
            if self.quoted_row.is_none()
                && lines.number() > self.first_line
                && has_target(lines.text(), self.separator, target)
            {
                self.quoted_row = Some(lines.number());
            }
            self.keep(lines.text());
            self.parse(lines.text());
            lines.rest(|piece| {
                self.fits = false;
                self.parse(piece);
            })?;
            // A line break outside quotes ends the row. The file's last line may have none.
            let end = lines.end();
            let cells = self.columns;
            let is_row = self.parse(if end.is_empty() { b"\n" } else { end });
            self.last_line = lines.number();
            if is_row {
                return Ok(());
            }
            if cells > before {
                self.quote_line = lines.number();
            }
            self.keep(end);
            if !lines.next()? {
                self.open = true;
                return Ok(());
            }
        }
    }

    /// Keeps bytes of the row as they are written, as long as there is room.
    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_LINE_BYTES - self.raw.len();
        self.raw.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.fits &= bytes.len() <= room;
    }

    /// Parses bytes of the row, and returns whether they end it.
    fn parse(&mut self, mut bytes: &[u8]) -> bool {
        // No bytes would mean the end of the file.
        while !bytes.is_empty() {
            let (result, read, written, ended) = self.parser.read_record(
                bytes,
                &mut self.text[self.used..],
                &mut self.ends[self.ended..],
            );
            bytes = &bytes[read..];
            self.used += written;
            self.ended += ended;
            self.columns += ended;
            match result {
                ReadRecordResult::InputEmpty | ReadRecordResult::End => return false,
                // The rest of the row overwrites the buffers: its cells are not used.
                ReadRecordResult::OutputFull => self.used = 0,
                ReadRecordResult::OutputEndsFull => self.ended = 0,
                ReadRecordResult::Record => return true,
            }
        }
        false
    }

    /// See [`quoted_row`](crate::input::InputWord::quoted_row), for a row that was read before the column of targets was known.
    pub(crate) fn quoted_row_for(&self, target: usize) -> Option<u64> {
        let mut lines = LineReader::new(self.raw.as_slice(), false);
        while lines.next().ok()? {
            if lines.number() > 1 && has_target(lines.text(), self.separator, target) {
                return Some(self.first_line + lines.number() - 1);
            }
        }
        None
    }

    /// How many lines the row has.
    pub(crate) fn lines(&self) -> u64 {
        self.last_line - self.first_line + 1
    }

    /// The line by which a bad row is named.
    pub(crate) fn bad_line(&self, why: &BadTargetReason) -> u64 {
        match why {
            BadTargetReason::OpenQuote | BadTargetReason::AfterQuote => self.quote_line,
            _ => self.first_line,
        }
    }

    /// The row's cells without surrounding blanks, as many as the header has.
    pub(crate) fn cells(
        &self,
        expected: usize,
        lines: &LineReader<impl BufRead>,
    ) -> Result<Vec<&str>, BadTargetReason> {
        if self.open {
            return Err(BadTargetReason::OpenQuote);
        }
        if !self.fits {
            return Err(if self.lines() > 1 {
                BadTargetReason::LongRow
            } else {
                BadTargetReason::LongLine
            });
        }
        if self.columns > MAX_COLUMNS {
            return Err(BadTargetReason::Columns {
                found: self.columns,
                expected: expected.min(MAX_COLUMNS),
            });
        }
        let mut begin = 0;
        let fields = self.ends[..self.ended].iter().map(|end| {
            let field = &self.text[begin..*end];
            begin = *end;
            field
        });
        let fields: Vec<_> = fields.collect();
        if !self.is_strict(&fields) {
            return Err(BadTargetReason::AfterQuote);
        }
        let cells = fields
            .into_iter()
            .map(|field| lines.check_text(field).map(str::trim));
        let cells: Vec<_> = cells.collect::<Result<_, _>>()?;
        if cells.len() != expected && cells.iter().any(|cell| !cell.is_empty()) {
            return Err(BadTargetReason::Columns {
                found: cells.len(),
                expected,
            });
        }
        Ok(cells)
    }

    /// Whether the row is written as RFC 4180 says: a cell that begins with a quote ends with one. Then the row's cells,
    /// written again, are the row.
    fn is_strict(&self, fields: &[&[u8]]) -> bool {
        let mut rest = self.raw.as_slice();
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                let Some(after) = rest.strip_prefix(&[self.separator]) else {
                    return false;
                };
                rest = after;
            }
            let after = if rest.starts_with(b"\"") {
                rest.strip_prefix(quoted(field).as_slice())
            } else {
                rest.strip_prefix(*field)
            };
            let Some(after) = after else {
                return false;
            };
            rest = after;
        }
        rest.is_empty()
    }
}

/// A cell in quotes.
fn quoted(field: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in field {
        if *byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    quoted
}

/// Whether a line that is no row reads like one: an address, a network or a range is where the target stands.
pub(crate) fn has_target(line: &[u8], separator: u8, target: usize) -> bool {
    let cell = line.split(|byte| *byte == separator).nth(target);
    let cell = cell.and_then(|cell| str::from_utf8(cell).ok());
    cell.is_some_and(|cell| {
        let parsed = parse::parse(cell.trim().trim_matches('"'));
        parsed.is_ok_and(|target| !matches!(target.spec(), TargetSpec::Name(_)))
    })
}
