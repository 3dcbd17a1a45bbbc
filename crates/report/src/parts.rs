//! Parts of the page of a run, for a page that follows it. No I/O.

use askama::Template;
use pingfleet_store::{ReportRow, RttBin, RunDetail, RunState, RunSummary, TargetRtt};

use crate::{
    PageError, charts,
    map_section::MapSection,
    page::{StatusPart, bar_text, state_status, statuses},
    sections::{self, Chart, ROW_COLUMNS, have_logins, row_cells},
    table::{Cell, StatusText, Table, number, text},
    words::{Clock, duration, grouped, three_digits},
};

/// The style sheet of all pages.
pub const STYLE: &str = include_str!("../templates/style.css");

/// Parts as HTML. One that has nothing to show is empty.
#[derive(Debug, Default)]
pub struct RunParts {
    /// Settled targets over time.
    pub timeline: String,
    /// Targets by round-trip time.
    pub histogram: String,
    /// Subnets with the largest share that is not up, with how many there are.
    pub subnets: Option<(String, Table)>,
    /// The map.
    pub map: String,
}

#[derive(Template)]
#[template(path = "statuses.html")]
struct StatusesPart {
    statuses: Vec<StatusPart>,
    bar_text: String,
    to_do: Option<String>,
}

#[derive(Template)]
#[template(path = "chart.html")]
struct ChartPart {
    chart: Chart,
    rtt: Vec<(&'static str, String)>,
}

#[derive(Template)]
#[template(path = "map.html")]
struct MapPart {
    map: MapSection,
}

/// The bar of all targets of a run by status, with its legend.
///
/// # Errors
/// [`PageError::Draw`].
pub fn statuses_part(summary: &RunSummary) -> Result<String, PageError> {
    let to_do = summary.targets - summary.settled();
    render(&StatusesPart {
        statuses: statuses(summary),
        bar_text: bar_text(summary),
        to_do: (to_do > 0).then(|| grouped(to_do)),
    })
}

/// What is drawn of a run from the counters of its progress.
///
/// # Errors
/// [`PageError::Draw`].
pub fn run_parts(detail: &RunDetail) -> Result<RunParts, PageError> {
    let chart = |chart| {
        let rtt = Vec::new();
        render(&ChartPart { chart, rtt })
    };
    let mut parts = RunParts::default();
    if !detail.timeline.is_empty() {
        let timeline = sections::timeline(detail, "by when their results were stored");
        parts.timeline = chart(timeline.map_err(PageError::Draw)?)?;
    }
    if let Some(rtt) = rough_times(&detail.rtt) {
        let histogram = sections::histogram(detail, &rtt);
        parts.histogram = chart(histogram.map_err(PageError::Draw)?)?;
    }
    let note = sections::subnets_note(detail);
    parts.subnets = sections::subnets(detail).map(|table| (note, table));
    if !detail.subnets.is_empty() {
        let map = MapSection::new(detail).map_err(PageError::Draw)?;
        parts.map = render(&MapPart { map })?;
    }
    Ok(parts)
}

fn render(part: &impl Template) -> Result<String, PageError> {
    part.render().map_err(|error| PageError::Draw(error.into()))
}

/// Percentiles as far as the bins of a histogram know them: the upper end of the bin in which each is.
#[must_use]
pub fn rough_times(bins: &[RttBin]) -> Option<TargetRtt> {
    let total: i64 = bins.iter().map(|bin| bin.targets).sum();
    let (first, last) = (bins.first()?, bins.last()?);
    let at = |percent: i64| {
        let mut left = (total * percent + 99) / 100;
        let mut bins = bins.iter();
        let bin = bins.find(|bin| {
            left -= bin.targets;
            left <= 0
        });
        bin.unwrap_or(last).to_ns
    };
    (total > 0).then(|| TargetRtt {
        min_ns: first.from_ns,
        p50_ns: at(50),
        p95_ns: at(95),
        p99_ns: at(99),
        max_ns: last.to_ns,
    })
}

/// The status whose colour and sign a state has.
#[must_use]
pub fn status_of(state: RunState) -> StatusText {
    state_status(state).into()
}

/// A table of targets that are not up, with their reasons.
#[must_use]
pub fn rows_table(rows: &[ReportRow], clock: &Clock) -> Table {
    let has_logins = have_logins(rows.iter());
    Table {
        caption: "Targets that are not up",
        class: "sortable",
        columns: ROW_COLUMNS.map(text).to_vec(),
        rows: rows
            .iter()
            .map(|row| row_cells(row, clock, has_logins))
            .collect(),
    }
}

/// Rates over time as a chart with its table.
#[derive(Debug)]
pub struct Rates<'a> {
    /// The heading.
    pub title: &'static str,
    /// What the numbers are.
    pub unit: String,
    /// What the lines mean.
    pub key: &'static str,
    /// The names of the series. The first one is filled.
    pub names: &'a [&'static str],
    /// Seconds since any moment, and a value for each series. The last point is now.
    pub points: &'a [(f64, Vec<Option<f64>>)],
}

impl Rates<'_> {
    /// The chart as HTML.
    ///
    /// # Errors
    /// [`PageError::Draw`].
    pub fn part(self) -> Result<String, PageError> {
        let mut columns = vec![number("time")];
        columns.extend(self.names.iter().map(|name| number(name)));
        let end = self.points.last().map_or(0.0, |(at, _)| *at);
        let rows = self.points.iter().map(|(at, values)| {
            let ago = Cell::Number(format!("\u{2212}{}", duration(end - at)), *at - end);
            let mut row = vec![ago];
            row.extend(values.iter().map(|value| match value {
                Some(value) => Cell::Number(three_digits(*value), *value),
                None => Cell::Number("\u{2013}".to_owned(), -1.0),
            }));
            row
        });
        let table = Table {
            caption: self.title,
            class: "",
            columns,
            rows: rows.collect(),
        };
        let svg = charts::rates(self.points);
        render(&ChartPart {
            chart: Chart {
                id: "rates",
                title: self.title,
                unit: self.unit,
                key: self.key,
                svg: svg.map_err(|error| PageError::Draw(error.into()))?,
                table,
            },
            rtt: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rough_percentiles_are_the_ends_of_their_bins() {
        let bin = |from_ns, targets| RttBin {
            from_ns,
            to_ns: from_ns + 100,
            targets,
        };
        let times = rough_times(&[bin(100, 50), bin(200, 45), bin(300, 0), bin(400, 5)]).unwrap();
        assert_eq!(
            [
                times.min_ns,
                times.p50_ns,
                times.p95_ns,
                times.p99_ns,
                times.max_ns
            ],
            [100, 200, 300, 500, 500]
        );
        assert_eq!(rough_times(&[]), None);
    }
}
