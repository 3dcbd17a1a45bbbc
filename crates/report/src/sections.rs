//! The sections of the page: tables and charts. No I/O.

use std::error::Error;

use pingfleet_store::{NotUp, ReportRow, RunDetail, RunOverview, StatusCounts, TargetRtt};
use pingfleet_wire::StatusKind;

use crate::{
    charts,
    sentences::{all_not_up, since},
    table::{Cell, Moment, Table, number, text},
    words::{Clock, are_several, counted, duration, grouped, why, worker_name},
};

/// Rows of the table of subnets.
const MAX_SUBNETS: usize = 100;

/// A chart with its numbers.
pub(crate) struct Chart {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: String,
    /// What the lines mean.
    pub(crate) key: &'static str,
    pub(crate) svg: String,
    pub(crate) table: Table,
}

/// The charts of a run that has answers.
pub(crate) fn charts(
    overview: &RunOverview,
    detail: &RunDetail,
) -> Result<Vec<Chart>, Box<dyn Error + Send + Sync>> {
    let mut found = Vec::new();
    if let Some(rtt) = &overview.rtt {
        found.push(histogram(detail, rtt)?);
        found.push(Chart {
            id: "curve",
            title: "Answered within",
            unit: "milliseconds, logarithmic; percent of the targets that answered".to_owned(),
            key: "",
            svg: charts::cumulative(&detail.rtt)?,
            table: curve_table(detail),
        });
    }
    if overview.summary.settled() > 0 {
        found.push(timeline(detail, "by when their probing began")?);
    }
    Ok(found)
}

/// The targets by their round-trip time.
pub(crate) fn histogram(
    detail: &RunDetail,
    rtt: &TargetRtt,
) -> Result<Chart, Box<dyn Error + Send + Sync>> {
    Ok(Chart {
        id: "histogram",
        title: "Round-trip times",
        unit: "mean of each target in milliseconds, logarithmic; targets per bar".to_owned(),
        key: "",
        svg: charts::histogram(&detail.rtt, rtt)?,
        table: rtt_table(detail),
    })
}

/// How many targets were settled over time. `when` says which time of a target counts.
pub(crate) fn timeline(
    detail: &RunDetail,
    when: &str,
) -> Result<Chart, Box<dyn Error + Send + Sync>> {
    let end = detail.timeline.last();
    let end = end.map_or(0.0, |bin| bin.from_s + bin.length_s);
    Ok(Chart {
        id: "timeline",
        title: "Answers over time",
        unit: format!(
            "targets per second, {when}; {} since the start",
            charts::time_unit(end).0
        ),
        key: "line: answered · dashes: not up",
        svg: charts::timeline(&detail.timeline)?,
        table: time_table(detail),
    })
}

fn ms(nanos: i64) -> Cell {
    let value = nanos as f64 / 1_000_000.0;
    let text = format!("{value:.5}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    Cell::Number(text.to_owned(), value)
}

fn rtt_table(detail: &RunDetail) -> Table {
    let bins = detail.rtt.iter().filter(|bin| bin.targets > 0);
    Table {
        caption: "Targets by mean round-trip time",
        class: "",
        columns: vec![number("from, ms"), number("below, ms"), number("targets")],
        rows: bins
            .map(|bin| vec![ms(bin.from_ns), ms(bin.to_ns), Cell::count(bin.targets)])
            .collect(),
    }
}

fn curve_table(detail: &RunDetail) -> Table {
    let total: i64 = detail.rtt.iter().map(|bin| bin.targets).sum();
    let mut sum = 0;
    let mut rows = Vec::new();
    for bin in detail.rtt.iter().filter(|bin| bin.targets > 0) {
        sum += bin.targets;
        rows.push(vec![
            ms(bin.to_ns),
            Cell::count(sum),
            Cell::percent(sum, total),
        ]);
    }
    Table {
        caption: "Targets that answered within a time",
        class: "",
        columns: vec![number("within, ms"), number("targets"), number("share")],
        rows,
    }
}

fn time_table(detail: &RunDetail) -> Table {
    let row = |bin: &pingfleet_store::TimeBin| {
        vec![
            Cell::Number(duration(bin.from_s), bin.from_s),
            Cell::Number(duration(bin.length_s), bin.length_s),
            Cell::count(bin.answered),
            Cell::count(bin.not_up),
        ]
    };
    Table {
        caption: "Targets over time",
        class: "",
        columns: vec![
            number("after"),
            number("for"),
            number("answered"),
            number("not up"),
        ],
        rows: detail.timeline.iter().map(row).collect(),
    }
}

pub(crate) fn not_up_of(counts: &StatusCounts) -> i64 {
    counts.total() - counts.answered()
}

/// A count for each status that occurs among these, after what stands before it and the totals.
pub(crate) fn by_status<'a>(
    class: &'static str,
    caption: &'static str,
    name: &'static str,
    rows: impl Iterator<Item = (String, &'a StatusCounts)> + Clone,
) -> Table {
    let mut all = StatusCounts::default();
    for (_, counts) in rows.clone() {
        all += *counts;
    }
    let statuses: Vec<_> = all
        .iter()
        .filter(|(status, count)| *count > 0 && *status != StatusKind::Up)
        .map(|(status, _)| status)
        .collect();
    let mut columns = vec![
        text(name),
        number("targets"),
        number("not up"),
        number("share not up"),
    ];
    columns.extend(statuses.iter().map(|status| number(status.name())));
    let rows = rows.map(|(name, counts)| {
        let (total, not_up) = (counts.total(), not_up_of(counts));
        let mut row = vec![
            Cell::Target(name),
            Cell::count(total),
            Cell::count(not_up),
            Cell::percent(not_up, total),
        ];
        row.extend(statuses.iter().map(|status| Cell::count(counts[*status])));
        row
    });
    Table {
        caption,
        class,
        rows: rows.collect(),
        columns,
    }
}

/// The subnets with the largest share that is not up.
pub(crate) fn subnets(detail: &RunDetail) -> Option<Table> {
    let worst = detail.subnets.iter().take(MAX_SUBNETS);
    let rows = worst.map(|found| (found.subnet.to_string(), &found.counts));
    (!detail.subnets.is_empty()).then(|| by_status("sortable", "Status by subnet", "subnet", rows))
}

/// How many subnets there are, and how many are shown.
pub(crate) fn subnets_note(detail: &RunDetail) -> String {
    let all = detail.subnets.len();
    let shown = all.min(MAX_SUBNETS);
    let kind = "/24 and /64; worst first";
    if shown < all {
        format!("{shown} of {} ({kind})", grouped(all as i64))
    } else {
        format!("{shown} ({kind})")
    }
}

/// The targets with the longest round trips.
pub(crate) fn slowest(overview: &RunOverview) -> Option<Table> {
    let has_logins = have_logins(overview.slowest.iter());
    let rows = overview.slowest.iter().map(|row| {
        vec![
            Cell::Target(row.target.clone()),
            Cell::Status(kind(row).into()),
            Cell::measured(row.rtt_ms[1]),
            worker(row, has_logins),
        ]
    });
    (!overview.slowest.is_empty()).then(|| Table {
        caption: "Slowest targets",
        class: "sortable",
        columns: vec![
            text("target"),
            text("status"),
            number("mean RTT, ms"),
            text("worker"),
        ],
        rows: rows.collect(),
    })
}

/// The workers of the run.
pub(crate) fn workers(overview: &RunOverview) -> Option<Table> {
    let logins = overview.workers.iter().map(|one| one.login.as_deref());
    let has_logins = are_several(logins);
    let rows = overview.workers.iter().map(|worker| {
        let mut cells = vec![
            Cell::Text(worker.worker.clone().unwrap_or_else(|| "–".to_owned())),
            Cell::count(worker.targets),
            Cell::measured(worker.targets_per_s),
            Cell::count(worker.local_losses),
        ];
        if has_logins {
            let login = worker.login.clone();
            cells.insert(1, Cell::Text(login.unwrap_or_else(|| "–".to_owned())));
        }
        cells
    });
    let mut columns = vec![
        text("worker"),
        number("targets"),
        number("targets/s"),
        number("attempts lost on its machine"),
    ];
    if has_logins {
        columns.insert(1, text("login"));
    }
    (!overview.workers.is_empty()).then(|| Table {
        caption: "Workers",
        class: "sortable",
        columns,
        rows: rows.collect(),
    })
}

/// The targets that are not up.
pub(crate) struct NotUpSection {
    pub(crate) note: String,
    /// The command that lists all, if not all are here.
    pub(crate) command: Option<String>,
    pub(crate) table: Table,
}

/// The targets that are not up, at most [`RunDetail::MAX_NOT_UP`].
pub(crate) fn not_up(overview: &RunOverview, clock: &Clock, flags: &str) -> Option<NotUpSection> {
    let total = not_up_of(&overview.summary.counts);
    let shown = overview.not_up.len() as i64;
    let has_past = overview
        .changes
        .is_some_and(|changes| changes.first_seen < overview.summary.settled());
    let order = if has_past {
        ", newest change first"
    } else {
        ""
    };
    let mut columns = ROW_COLUMNS.map(text).to_vec();
    if has_past {
        columns.push(text("before"));
    }
    let has_logins = have_logins(overview.not_up.iter().map(|found| &found.row));
    let cells = |found: &NotUp| {
        let mut cells = row_cells(&found.row, clock, has_logins);
        if has_past {
            cells.push(Cell::Text(since(found.history, |us| clock.full_minute(us))));
        }
        cells
    };
    (shown > 0).then(|| NotUpSection {
        note: if shown < total {
            format!("the first {} of {}{order}", grouped(shown), grouped(total))
        } else {
            format!("{}{order}", counted(total, "target"))
        },
        command: (shown < total).then(|| all_not_up(overview, flags)),
        table: Table {
            caption: "Targets that are not up",
            class: "sortable searchable",
            columns,
            rows: overview.not_up.iter().map(cells).collect(),
        },
    })
}

pub(crate) const ROW_COLUMNS: [&str; 6] =
    ["target", "status", "reason", "labels", "worker", "probed"];

/// Whether rows are of workers with several logins.
pub(crate) fn have_logins<'r>(rows: impl Iterator<Item = &'r ReportRow>) -> bool {
    are_several(rows.map(|row| row.login.as_deref()))
}

/// The worker of a row.
fn worker(row: &ReportRow, has_logins: bool) -> Cell {
    let name = row.worker.as_deref().unwrap_or_default();
    let login = row.login.as_deref().filter(|_| has_logins);
    Cell::Text(worker_name(name, login))
}

pub(crate) fn row_cells(row: &ReportRow, clock: &Clock, has_logins: bool) -> Vec<Cell> {
    let target = match &row.address {
        Some(address) if *address != row.target => format!("{} ({address})", row.target),
        _ => row.target.clone(),
    };
    vec![
        Cell::Target(target),
        Cell::Status(kind(row).into()),
        Cell::Text(why(&row.status, row.reason.as_deref(), row.sent)),
        Cell::Text(labels(row)),
        worker(row, has_logins),
        Cell::Time(Moment::new(&row.probed_at, clock)),
    ]
}

/// The labels of a row as `key=value`.
fn labels(row: &ReportRow) -> String {
    let Some(text) = row.labels.as_deref() else {
        return String::new();
    };
    let Ok(serde_json::Value::Object(labels)) = serde_json::from_str(text) else {
        return text.to_owned();
    };
    let labels = labels.iter().map(|(key, value)| match value {
        serde_json::Value::String(value) => format!("{key}={value}"),
        value => format!("{key}={value}"),
    });
    labels.collect::<Vec<_>>().join(", ")
}

fn kind(row: &ReportRow) -> StatusKind {
    StatusKind::from_name(&row.status).unwrap_or(StatusKind::Unknown)
}

/// All targets of a run of a few.
pub(crate) fn few(rows: &[ReportRow], clock: &Clock) -> Table {
    let mut columns = ROW_COLUMNS.map(text).to_vec();
    columns.insert(2, number("mean RTT, ms"));
    columns.insert(3, number("answered"));
    columns.insert(4, number("requests"));
    let has_logins = have_logins(rows.iter());
    let cells = |row: &ReportRow| {
        let mut cells = row_cells(row, clock, has_logins);
        if row.received > 0 {
            cells[2] = Cell::Text(String::new());
        }
        cells.insert(2, Cell::measured(row.rtt_ms[1]));
        cells.insert(3, Cell::count(row.received));
        cells.insert(4, Cell::count(row.sent));
        cells
    };
    Table {
        caption: "Targets",
        class: "sortable",
        columns,
        rows: rows.iter().map(cells).collect(),
    }
}
