//! A table of the page. All text is escaped by the template.

use askama::Template;
use pingfleet_wire::StatusKind;

use crate::words::{Clock, grouped, percent, sign, three_digits};

/// A table with a heading for each column. Two classes of it are known to the page: `sortable` and `searchable`.
#[derive(Debug, Template)]
#[template(path = "table.html")]
pub(crate) struct Table {
    /// What the table shows, for those who cannot see where it stands.
    pub(crate) caption: &'static str,
    pub(crate) class: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) is_number: bool,
}

/// A column of texts.
pub(crate) const fn text(name: &'static str) -> Column {
    Column {
        name,
        is_number: false,
    }
}

/// A column of numbers.
pub(crate) const fn number(name: &'static str) -> Column {
    Column {
        name,
        is_number: true,
    }
}

/// What stands in a cell.
#[derive(Debug)]
pub(crate) enum Cell {
    Text(String),
    /// An address or a name.
    Target(String),
    /// A number as it is shown, and the value by which it is sorted.
    Number(String, f64),
    Status(StatusText),
    Time(Moment),
}

impl Cell {
    pub(crate) fn count(count: i64) -> Self {
        Self::Number(grouped(count), count as f64)
    }

    pub(crate) fn percent(part: i64, whole: i64) -> Self {
        let share = part as f64 / whole.max(1) as f64;
        Self::Number(percent(part, whole), share)
    }

    /// A value with three digits; a dash for what was not measured.
    pub(crate) fn measured(value: Option<f64>) -> Self {
        value.map_or_else(
            || Self::Number("–".to_owned(), -1.0),
            |value| Self::Number(three_digits(value), value),
        )
    }
}

/// A status, or a kind of change, with its sign and its class in the style sheet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StatusText {
    pub(crate) sign: &'static str,
    pub(crate) name: &'static str,
    pub(crate) class: &'static str,
}

impl From<StatusKind> for StatusText {
    fn from(status: StatusKind) -> Self {
        Self {
            sign: sign(status),
            name: status.name(),
            class: status.name(),
        }
    }
}

/// A time in the time zone of this machine, and in UTC.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) local: String,
    pub(crate) utc: String,
}

impl Moment {
    /// Of a time in RFC 3339, UTC.
    pub(crate) fn new(utc: &str, clock: &Clock) -> Self {
        Self {
            local: clock.full(utc),
            utc: utc.to_owned(),
        }
    }
}
