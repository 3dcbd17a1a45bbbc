//! JSON Lines and CSV. Both have the columns of the view `report`, in its order.

use std::io::{self, BufWriter, Write};

use pingfleet_store::{ExportRow, REPORT_COLUMNS, RunSummary};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Metadata, Output, Pages, WriteError};

/// Bytes that are written at once.
const BUFFER: usize = 256 * 1024;

/// A row with its fields in the order of [`REPORT_COLUMNS`]. `L` is how the format writes labels.
#[derive(Debug, Serialize)]
struct TextRow<'a, L> {
    run: i64,
    run_id: &'a str,
    target: &'a str,
    address: Option<&'a str>,
    status: &'static str,
    reason: Option<&'a str>,
    sent: i64,
    received: i64,
    loss_pct: Option<f64>,
    rtt_min_ms: Option<f64>,
    rtt_avg_ms: Option<f64>,
    rtt_max_ms: Option<f64>,
    rtt_stddev_ms: Option<f64>,
    attempts: i64,
    worker: Option<&'a str>,
    login: Option<&'a str>,
    probed_at: Option<&'a str>,
    labels: Option<L>,
}

impl<'a, L> TextRow<'a, L> {
    /// `time` keeps the text of the row's time.
    fn new(
        run: (i64, &'a str),
        row: &ExportRow<'a>,
        time: &'a mut String,
        labels: Option<L>,
    ) -> io::Result<Self> {
        let [rtt_min_ms, rtt_avg_ms, rtt_max_ms, rtt_stddev_ms] = row.rtt_ms();
        row.write_probed_at(time).map_err(io::Error::other)?;
        Ok(Self {
            run: run.0,
            run_id: run.1,
            target: row.target,
            address: row.address,
            status: row.status.name(),
            reason: row.reason,
            sent: row.sent,
            received: row.received,
            loss_pct: row.loss_pct(),
            rtt_min_ms,
            rtt_avg_ms,
            rtt_max_ms,
            rtt_stddev_ms,
            attempts: row.attempts,
            worker: row.worker,
            login: row.login,
            probed_at: row.probed_at_ms.map(|_| time.as_str()),
            labels,
        })
    }
}

/// One JSON object per line.
pub(super) fn write_json_lines(
    summary: &RunSummary,
    pages: Pages<'_>,
    metadata: &mut Metadata,
    output: &mut Output,
) -> Result<(), WriteError> {
    let mut out = BufWriter::with_capacity(BUFFER, output);
    let run_id = summary.run_id.to_string();
    let mut time = String::new();
    for page in pages {
        let page = page?;
        for row in page.rows() {
            let labels = row
                .labels
                .map(serde_json::from_str::<&RawValue>)
                .transpose();
            let labels = labels.map_err(io::Error::other)?;
            let row = TextRow::new((summary.run, &run_id), &row, &mut time, labels)?;
            serde_json::to_writer(&mut out, &row).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        metadata.rows += page.len() as u64;
    }
    Ok(out.flush()?)
}

/// With one of these at its beginning, a spreadsheet takes a text for a formula, or skips it and looks at what follows
/// (<https://owasp.org/www-community/attacks/CSV_Injection>). The last four are wide forms of the first four.
const FORMULA: [char; 11] = [
    '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
];

/// The text of a field that no spreadsheet takes for a formula: with an apostrophe before it, if need be. `buffer` keeps it.
fn no_formula<'a>(text: &'a str, buffer: &'a mut String) -> &'a str {
    if !text.starts_with(FORMULA) {
        return text;
    }
    buffer.clear();
    buffer.push('\'');
    buffer.push_str(text);
    buffer
}

/// CSV (RFC 4180) with a header. `is_safe` says whether no field may be a formula. What can be one comes from others: the
/// target, the reason, the worker and its login. Labels are JSON and begin with a brace.
pub(super) fn write_csv(
    summary: &RunSummary,
    pages: Pages<'_>,
    is_safe: bool,
    metadata: &mut Metadata,
    output: &mut Output,
) -> Result<(), WriteError> {
    let mut out = csv::WriterBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::CRLF)
        .buffer_capacity(BUFFER)
        .from_writer(output);
    out.write_record(REPORT_COLUMNS).map_err(io_error)?;
    let run_id = summary.run_id.to_string();
    let mut time = String::new();
    let [mut target, mut reason, mut worker, mut login] = [const { String::new() }; 4];
    for page in pages {
        let page = page?;
        for row in page.rows() {
            let mut row = TextRow::new((summary.run, &run_id), &row, &mut time, row.labels)?;
            if is_safe {
                row.target = no_formula(row.target, &mut target);
                row.reason = row.reason.map(|text| no_formula(text, &mut reason));
                row.worker = row.worker.map(|text| no_formula(text, &mut worker));
                row.login = row.login.map(|text| no_formula(text, &mut login));
            }
            out.serialize(&row).map_err(io_error)?;
        }
        metadata.rows += page.len() as u64;
    }
    Ok(out.flush()?)
}

/// The system's error. `io::Error::from` would hide that the reader closed the pipe.
fn io_error(error: csv::Error) -> io::Error {
    let text = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        _ => io::Error::other(text),
    }
}
