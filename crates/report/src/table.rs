//! A table of the page. All text is escaped by the template.

use askama::Template;
use pingfleet_wire::StatusKind;

use crate::words::{Clock, grouped, percent, sign, three_digits};

/// A table with a heading for each column. Two classes of it are known to the page: `sortable` and `searchable`.
#[derive(Debug, Clone, Template)]
#[template(path = "table.html")]
pub struct Table {
    /// What the table shows, for those who cannot see where it stands.
    pub caption: &'static str,
    /// Its classes in the style sheet and for the script.
    pub class: &'static str,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows: a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Whether it has numbers, which are at the right.
    pub is_number: bool,
}

/// A column of texts.
#[must_use]
pub const fn text(name: &'static str) -> Column {
    Column {
        name,
        is_number: false,
    }
}

/// A column of numbers.
#[must_use]
pub const fn number(name: &'static str) -> Column {
    Column {
        name,
        is_number: true,
    }
}

/// What stands in a cell.
#[derive(Debug, Clone)]
pub enum Cell {
    /// A text.
    Text(String),
    /// An address or a name.
    Target(String),
    /// A number as it is shown, and the value by which it is sorted.
    Number(String, f64),
    /// A status.
    Status(StatusText),
    /// A time.
    Time(Moment),
    /// A text, and the path on this server to which it leads.
    Link(String, String),
}

impl Cell {
    /// A whole number.
    #[must_use]
    pub fn count(count: i64) -> Self {
        Self::Number(grouped(count), count as f64)
    }

    /// A share in percent.
    #[must_use]
    pub fn percent(part: i64, whole: i64) -> Self {
        let share = part as f64 / whole.max(1) as f64;
        Self::Number(percent(part, whole), share)
    }

    /// A value with three digits; a dash for what was not measured.
    #[must_use]
    pub fn measured(value: Option<f64>) -> Self {
        value.map_or_else(
            || Self::Number("–".to_owned(), -1.0),
            |value| Self::Number(three_digits(value), value),
        )
    }
}

/// A status, or a kind of change, with its sign and its class in the style sheet.
#[derive(Debug, Clone, Copy)]
pub struct StatusText {
    /// Its sign.
    pub sign: &'static str,
    /// Its class in the style sheet: of a status, its name.
    pub name: &'static str,
    /// What is written: the name, or the word for a state that has the colour of this status.
    pub word: &'static str,
}

impl From<StatusKind> for StatusText {
    fn from(status: StatusKind) -> Self {
        Self {
            sign: sign(status),
            name: status.name(),
            word: status.name(),
        }
    }
}

/// A time in the time zone of this machine, and in UTC.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Date and clock.
    pub local: String,
    /// RFC 3339.
    pub utc: String,
}

impl Moment {
    /// Of a time in RFC 3339, UTC.
    #[must_use]
    pub fn new(utc: &str, clock: &Clock) -> Self {
        Self {
            local: clock.full(utc),
            utc: utc.to_owned(),
        }
    }
}
