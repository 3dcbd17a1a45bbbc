//! The parts of the summary. No I/O.

use anstyle::{AnsiColor, Style};
use pingfleet_report::{
    sentences::{self, Advice},
    words::{Clock, are_several, duration, grouped, millis, percent, sign, three_digits},
};
use pingfleet_store::RunOverview;
use pingfleet_wire::StatusKind;

use super::layout::{Block, Line, Screen, columns, cut, flow, wrapped};

/// Rows of each small table.
const SMALL_ROWS: usize = 5;

/// The longest bar, and the columns before it.
const MAX_BAR: usize = 50;
const BEFORE_BAR: usize = 40;

/// The column of a status with its sign, and the space behind it.
pub(super) const STATUS_WIDTH: usize = 15;

/// The colour of a status on a terminal. Only what needs attention has one.
fn style(status: StatusKind) -> Style {
    let colour = match status {
        StatusKind::Up => return Style::new(),
        StatusKind::Late | StatusKind::SendFailed | StatusKind::Unknown => AnsiColor::Yellow,
        StatusKind::Unreachable => AnsiColor::Magenta,
        StatusKind::DnsFailed => AnsiColor::Cyan,
        StatusKind::Down => AnsiColor::Red,
    };
    colour.on_default()
}

/// Adds the sign and the name of a status, in a column of its own.
pub(crate) fn push_status(line: &mut Line, status: &str, screen: Screen) {
    let start = line.width();
    let kind = StatusKind::from_name(status);
    let text = format!("{} {status}", kind.map_or("", sign));
    line.push(
        &text,
        &screen.paint(kind.map_or_else(Style::new, style), &text),
    );
    line.pad(start + STATUS_WIDTH);
}

/// What the run is: its number and state, its targets, its times, and its settings.
pub(super) fn head(overview: &RunOverview, clock: &Clock, screen: Screen) -> Block {
    let summary = &overview.summary;
    let took = if summary.finished_at.is_some() {
        "took"
    } else {
        "for"
    };
    let mut what = vec![
        format!("Run {}  {}", summary.run, summary.state.name()),
        cut(&summary.source, screen.width.saturating_sub(4)),
        format!(
            "{}, {took} {}",
            clock.second(&summary.started_at),
            duration(summary.elapsed_s)
        ),
    ];
    what.extend(
        summary
            .parent_run
            .map(|parent| format!("retry of run {parent}")),
    );
    what.extend(overview.seed.map(|seed| format!("seed {seed}")));
    let how = sentences::settings(overview);
    let mut block = flow(&what, 2, screen.width);
    block.extend(flow(&how, 2, screen.width));
    block
}

/// A sentence of [`sentences`], wrapped.
pub(super) fn advice(advice: Option<&Advice>, width: usize) -> Block {
    advice.map_or_else(Block::new, |advice| wrapped(&advice.to_string(), 2, width))
}

/// The targets with each status, and why some are `unknown`.
pub(super) fn totals(overview: &RunOverview, flags: &str, screen: Screen) -> Block {
    let summary = &overview.summary;
    let settled = summary.settled();
    let digits = grouped(summary.targets).len().max(6);
    let mut block = Block::new();
    for (status, count) in summary.counts.iter() {
        if count == 0 && !matches!(status, StatusKind::Up | StatusKind::Down) {
            continue;
        }
        let mut line = Line::new("  ");
        push_status(&mut line, status.name(), screen);
        let number = format!(
            "{:>digits$}  {:>8}",
            grouped(count),
            percent(count, settled)
        );
        line.push(&number, &number);
        if screen.has_bars {
            let bar = bar(count, settled, screen.width.saturating_sub(BEFORE_BAR));
            line.push("  ", "  ");
            line.push(&bar, &screen.paint(style(status), &bar));
        }
        block.push(line);
    }
    let to_do = summary.targets - settled;
    if to_do > 0 {
        block.push(Line::new(&format!(
            "  {:STATUS_WIDTH$}{:>digits$}",
            "□ to do",
            grouped(to_do)
        )));
    }
    if let Some(unknown) = sentences::unknown(overview, flags) {
        block.push(Line::default());
        block.extend(wrapped(&unknown.to_string(), 2, screen.width));
    }
    block
}

/// A bar of eighths of a column.
fn bar(count: i64, whole: i64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let most = 8.0 * width.min(MAX_BAR) as f64;
    let length = most * count as f64 / whole.max(1) as f64;
    let length = (length.round() as usize).max(usize::from(count > 0));
    "█".repeat(length / 8) + EIGHTHS[length % 8]
}

/// Round-trip times, and how many requests were lost.
pub(super) fn round_trips(overview: &RunOverview, width: usize) -> Block {
    let mut items = Vec::new();
    if let Some(rtt) = overview.rtt {
        items.push("  RTT, ms".to_owned());
        for (name, nanos) in [
            ("min", rtt.min_ns),
            ("median", rtt.p50_ns),
            ("95 %", rtt.p95_ns),
            ("99 %", rtt.p99_ns),
            ("max", rtt.max_ns),
        ] {
            items.push(format!("{name} {}", millis(nanos)));
        }
    }
    if overview.requests > 0 {
        let indent = if items.is_empty() { "  " } else { "" };
        let lost = overview.requests - overview.replies;
        items.push(format!(
            "{indent}requests lost {}",
            percent(lost, overview.requests)
        ));
    }
    flow(&items, 12, width)
}

/// What changed since the targets were probed before.
pub(super) fn changes(overview: &RunOverview, width: usize) -> Block {
    sentences::changes(overview).map_or_else(Block::new, |sentence| wrapped(&sentence, 2, width))
}

/// Worst subnets, slowest targets, and workers.
pub(super) fn small_tables(overview: &RunOverview, width: usize) -> Vec<Block> {
    let mut tables = Vec::new();
    let subnets: Vec<_> = overview
        .worst_subnets
        .iter()
        .take(SMALL_ROWS)
        .map(|counts| {
            let share = format!("{} of {}", grouped(counts.not_up), grouped(counts.targets));
            vec![counts.subnet.to_string(), share]
        })
        .collect();
    if !subnets.is_empty() {
        tables.push(columns(
            &["Worst subnets", "not up"],
            &[false, true],
            &subnets,
        ));
    }
    let slowest: Vec<_> = overview
        .slowest
        .iter()
        .take(SMALL_ROWS)
        .map(|row| {
            let mean = row.rtt_ms[1].map_or("-".to_owned(), three_digits);
            vec![cut(&row.target, (width / 3).min(32)), mean]
        })
        .collect();
    if !slowest.is_empty() {
        tables.push(columns(&["Slowest", "RTT, ms"], &[false, true], &slowest));
    }
    tables.extend(workers(overview, width));
    tables
}

fn workers(overview: &RunOverview, width: usize) -> Option<Block> {
    let logins = overview.workers.iter().map(|one| one.login.as_deref());
    let has_logins = are_several(logins);
    let name = |text: Option<&str>| cut(text.unwrap_or("-"), (width / 3).min(32));
    let mut rows: Vec<_> = overview
        .workers
        .iter()
        .take(2 * SMALL_ROWS)
        .map(|worker| {
            vec![
                name(worker.worker.as_deref()),
                grouped(worker.targets),
                worker.targets_per_s.map_or("-".to_owned(), three_digits),
                grouped(worker.local_losses),
                name(worker.login.as_deref()),
            ]
        })
        .collect();
    let others = overview.workers.iter().skip(2 * SMALL_ROWS);
    let (count, targets, losses) = others.fold((0, 0, 0), |(count, targets, losses), worker| {
        (
            count + 1,
            targets + worker.targets,
            losses + worker.local_losses,
        )
    });
    if count > 0 {
        rows.push(vec![
            format!("{} more", grouped(count)),
            grouped(targets),
            String::new(),
            grouped(losses),
            String::new(),
        ]);
    }
    let mut heading = vec!["Workers", "targets", "/s", "lost here", "login"];
    if !has_logins {
        heading.pop();
        for row in &mut rows {
            row.truncate(heading.len());
        }
    }
    let right = [false, true, true, true, false];
    (!rows.is_empty()).then(|| columns(&heading, &right[..heading.len()], &rows))
}
