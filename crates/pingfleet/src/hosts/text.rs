//! The list of targets on a screen. On a narrow one the columns that matter less are left out; off a terminal all are
//! there, and nothing is cut.

use std::io::{self, BufWriter, Write};

use pingfleet_report::words::{Clock, grouped, three_digits, why};
use pingfleet_settings::{Failure, printed};
use pingfleet_store::HostRow;

use super::HostPages;
use crate::report::{
    layout::{Line, Screen, cut, escaped, fitted, width},
    push_status,
};

/// Rows whose columns have the same widths.
const TABLE_ROWS: usize = 5000;

/// The columns: the heading, and whether it is aligned to the right.
const COLUMNS: [(&str, bool); 9] = [
    ("TARGET", false),
    ("STATUS", false),
    ("RTT ms", true),
    ("SINCE", false),
    ("LAST UP", false),
    ("CHANGES", true),
    ("FIRST SEEN", false),
    ("LABELS", false),
    ("REASON", false),
];

/// The columns in the order in which they get their place on a terminal, with the least and the most of it; 0 is as
/// wide as the widest cell.
const BY_IMPORTANCE: [(usize, usize, usize); 9] = [
    (0, 0, 0),
    (STATUS, 0, 0),
    (2, 0, 0),
    (SINCE, 0, 0),
    (8, 10, 24),
    (4, 0, 0),
    (5, 0, 0),
    (7, 12, 30),
    (6, 0, 0),
];

/// From this width on a terminal shows since when, and not only for how long.
const WIDE: usize = 100;

const STATUS: usize = 1;
const SINCE: usize = 3;

/// The longest status with its sign: `▲ unreachable`.
const STATUS_WIDTH: usize = 13;

/// Prints the rows, and returns how many there are.
pub(super) fn print(pages: HostPages<'_>) -> Result<usize, Failure> {
    let table = HostTable {
        screen: Screen::of_stdout(),
        clock: Clock::now(),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut listed = 0;
    let mut rows = Vec::new();
    for page in pages {
        let page = page?;
        listed += page.len();
        // A page may have few rows of the filter.
        for host in page.hosts() {
            rows.push(host);
            if rows.len() == TABLE_ROWS {
                let written = table.write(&mut out, &rows);
                if written.is_err() {
                    printed(written)?;
                    return Ok(listed);
                }
                rows.clear();
            }
        }
    }
    if !rows.is_empty() {
        printed(table.write(&mut out, &rows))?;
    }
    printed(out.flush())?;
    Ok(listed)
}

struct HostTable {
    screen: Screen,
    clock: Clock,
}

impl HostTable {
    fn write(&self, out: &mut impl Write, hosts: &[HostRow]) -> io::Result<()> {
        let mut heading = COLUMNS.map(|(heading, _)| heading.to_owned());
        if !self.shows_since() {
            "FOR".clone_into(&mut heading[SINCE]);
        }
        let rows: Vec<_> = hosts.iter().map(|host| self.cells(host)).collect();
        let mut widths = vec![0; COLUMNS.len()];
        for row in rows.iter().chain([&heading]) {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = width(cell).max(*widest);
            }
        }
        widths[STATUS] = STATUS_WIDTH;
        if self.screen.has_bars {
            widths = fitted(&widths, &BY_IMPORTANCE, self.screen.width);
        }
        writeln!(out, "{}", self.line(&heading, &widths, true).text())?;
        rows.iter()
            .try_for_each(|row| writeln!(out, "{}", self.line(row, &widths, false).text()))
    }

    /// Whether since when is shown, and not only for how long.
    fn shows_since(&self) -> bool {
        !self.screen.has_bars || self.screen.width >= WIDE
    }

    fn line(&self, row: &[String; COLUMNS.len()], widths: &[usize], is_heading: bool) -> Line {
        let mut line = Line::default();
        let mut start = 0;
        for (at, (cell, (_, right))) in row.iter().zip(COLUMNS).enumerate() {
            let column = widths[at];
            if column == 0 {
                continue;
            }
            let cell = cut(cell, column);
            let space = if right { column - width(&cell) } else { 0 };
            line.pad(start + space);
            if at == STATUS && !is_heading {
                push_status(&mut line, &cell, self.screen);
            } else {
                line.push(&cell, &cell);
            }
            start += column + 2;
        }
        line
    }

    fn cells(&self, host: &HostRow) -> [String; COLUMNS.len()] {
        let row = &host.row;
        let target = match &row.address {
            Some(address) if *address != row.target => format!("{} ({address})", row.target),
            _ => row.target.clone(),
        };
        [
            target,
            row.status.clone(),
            row.rtt_ms[1].map_or("-".to_owned(), three_digits),
            self.since(host.changed_at_us),
            host.last_up_us
                .map_or("never".to_owned(), |last_up| self.clock.minute(last_up)),
            grouped(host.changes_30d),
            self.clock.minute(host.first_seen_us),
            row.labels.as_deref().map_or_else(String::new, labels),
            if row.received > 0 {
                String::new()
            } else {
                why(&row.status, row.reason.as_deref(), row.sent)
            },
        ]
    }

    /// When, and how long ago.
    fn since(&self, micros: i64) -> String {
        let age = self.clock.since(micros);
        if self.shows_since() {
            format!("{} ({age})", self.clock.minute(micros))
        } else {
            age
        }
    }
}

/// A JSON object of labels as `site=berlin rack=r3`.
pub(crate) fn labels(json: &str) -> String {
    let Ok(labels) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json)
    else {
        return escaped(json).into_owned();
    };
    let labels = labels.iter().map(|(key, value)| match value.as_str() {
        Some(value) => format!("{key}={value}"),
        None => format!("{key}={value}"),
    });
    escaped(&labels.collect::<Vec<_>>().join(" ")).into_owned()
}
