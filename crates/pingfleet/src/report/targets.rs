//! The list of targets, as a table.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use pingfleet_settings::{Failure, printed};
use pingfleet_store::{REPORT_COLUMNS, Reader, ReportRow};
use serde::Serializer as _;
use serde_json::{Value, json};

use super::{ReportArgs, layout::escaped};

/// Rows of one table. A longer report is printed as several tables, so that memory stays bounded.
const TABLE_ROWS: usize = 5000;

/// Prints the targets of a run that the filter selects.
pub(super) fn list(args: &ReportArgs, reader: &Reader, run: i64) -> Result<(), Failure> {
    let filter = args.filter.resolve(reader)?;
    let mut tables = Tables::new();
    let mut pages = match args.sort {
        Some(sort) => reader.sorted_report(run, &filter, sort.into())?,
        None => reader.report(run, &filter),
    };
    let mut written = Ok(());
    while written.is_ok() {
        // Nothing of the database is open while the rows are printed, which a pager may delay.
        let rows = pages.next_page()?;
        if rows.is_empty() {
            written = tables.end();
            break;
        }
        written = rows.iter().try_for_each(|row| tables.row(row));
    }
    printed(written)
}

/// Writes one JSON object and a newline. The fields keep their order.
pub(crate) fn write_json(
    out: &mut impl Write,
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> io::Result<()> {
    serde_json::Serializer::new(&mut *out).collect_map(fields)?;
    writeln!(out)
}

/// The values of a row in the order of the columns.
pub(crate) fn values(row: &ReportRow) -> [Value; REPORT_COLUMNS.len()] {
    let labels = row
        .labels
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let [min, avg, max, stddev] = row.rtt_ms;
    [
        json!(row.run),
        json!(row.run_id),
        json!(row.target),
        json!(row.address),
        json!(row.status),
        json!(row.reason),
        json!(row.sent),
        json!(row.received),
        json!(row.loss_pct),
        json!(min),
        json!(avg),
        json!(max),
        json!(stddev),
        json!(row.attempts),
        json!(row.worker),
        json!(row.login),
        json!(Some(&row.probed_at).filter(|time| !time.is_empty())),
        labels,
    ]
}

struct Tables {
    table: Table,
    rows: usize,
    printed: bool,
}

/// The reason comes last: it is long and mostly absent, and there it does not shift other columns.
const TABLE_HEADER: [&str; 8] = [
    "TARGET", "STATUS", "RECEIVED", "MIN ms", "AVG ms", "MAX ms", "WORKER", "REASON",
];

impl Tables {
    fn new() -> Self {
        Self {
            table: table(&TABLE_HEADER),
            rows: 0,
            printed: false,
        }
    }

    fn print(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.table, table(&TABLE_HEADER));
        self.rows = 0;
        self.printed = true;
        writeln!(io::stdout(), "{}", full.trim_fmt())
    }

    fn row(&mut self, row: &ReportRow) -> io::Result<()> {
        let millis = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.3}"));
        let target = match &row.address {
            Some(address) if *address != row.target => format!("{} ({address})", row.target),
            _ => row.target.clone(),
        };
        self.table.add_row([
            escaped(&target).into_owned(),
            row.status.clone(),
            format!("{}/{}", row.received, row.sent),
            millis(row.rtt_ms[0]),
            millis(row.rtt_ms[1]),
            millis(row.rtt_ms[2]),
            escaped(row.worker.as_deref().unwrap_or_default()).into_owned(),
            escaped(row.reason.as_deref().unwrap_or_default()).into_owned(),
        ]);
        self.rows += 1;
        if self.rows == TABLE_ROWS {
            self.print()?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.rows == 0 && self.printed {
            return Ok(());
        }
        self.print()
    }
}

/// A table without borders. It is not fitted to the terminal's width, so that other programs can cut and sort the rows.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
