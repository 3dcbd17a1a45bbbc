//! The history of a target on a screen. No I/O.

use pingfleet_report::words::{Clock, counted, length, three_digits, why};
use pingfleet_store::{ReportRow, RunState, RunSummary, TargetRuns};
use pingfleet_wire::StatusKind;

use super::{
    level, pruned,
    spells::{Spell, micros, spells},
};
use crate::{
    hosts::labels,
    report::{
        layout::{Block, Line, Screen, cut, flow},
        push_status,
    },
};

/// Spells that are listed.
const LISTED: usize = 20;

/// From this width on the workers are shown.
const WIDE: usize = 100;

/// A shorter space shows no reason.
const MIN_REASON: usize = 10;

/// The history of a target: what it is now, its round-trip times, its spells of silence, and its rows.
pub(super) fn blocks(
    target: &str,
    found: &TargetRuns,
    summaries: &[RunSummary],
    screen: Screen,
) -> Vec<Block> {
    let clock = Clock::now();
    let spells = spells(found);
    let mut first = head(target, found, &clock, screen);
    first.extend(round_trips(found, screen));
    vec![
        first,
        spell_list(&spells, &clock, screen),
        runs(found, summaries, &clock, screen),
    ]
}

fn head(target: &str, found: &TargetRuns, clock: &Clock, screen: Screen) -> Block {
    let mut line = Line::default();
    let name = cut(target, screen.width / 2);
    line.push(&name, &name);
    line.push("  ", "  ");
    let newest = found
        .latest
        .as_ref()
        .map(|latest| &latest.row)
        .or(found.rows.first());
    if let Some(row) = newest {
        push_status(&mut line, &row.status, screen);
    }
    let mut items = Vec::new();
    if let Some(row) = newest {
        items.extend(row.address.clone().filter(|address| address != target));
        items.extend(row.labels.as_deref().map(labels));
    }
    if let Some(latest) = &found.latest {
        let since = latest.changed_at_us;
        items.push(format!(
            "{} since {} ({})",
            latest.row.status,
            clock.moment(since),
            clock.since(since)
        ));
        items.push(format!("first seen {}", clock.moment(latest.first_seen_us)));
        items.push(format!(
            "{} in 30 days",
            counted(latest.changes_30d, "change")
        ));
    }
    let answered = found.rows.iter().filter(|row| row.received > 0).count();
    items.push(format!(
        "answered in {answered} of {}",
        counted(found.rows.len() as i64, "run")
    ));
    if found.runs_without > 0 {
        items.push(format!(
            "{} without it",
            counted(found.runs_without as i64, "run")
        ));
    }
    items.extend(pruned(found.runs_pruned));
    let items: Vec<_> = items
        .into_iter()
        .map(|item| cut(&item, screen.width.saturating_sub(2)))
        .collect();
    let mut block = vec![line];
    if let Some(first) = items.first() {
        let indented = [vec![format!("  {first}")], items[1..].to_vec()].concat();
        block.extend(flow(&indented, 2, screen.width));
    }
    block
}

/// Round-trip times in figures, and on a terminal as a line of signs: one for each run, the newest at the right.
fn round_trips(found: &TargetRuns, screen: Screen) -> Block {
    let mut sorted: Vec<f64> = found.rows.iter().filter_map(|row| row.rtt_ms[1]).collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
        return Block::new();
    };
    let items = [
        "  RTT, ms".to_owned(),
        format!("min {}", three_digits(*least)),
        format!("median {}", three_digits(sorted[sorted.len() / 2])),
        format!("max {}", three_digits(*most)),
    ];
    let mut block = flow(&items, 12, screen.width);
    if screen.has_bars && found.rows.len() > 1 {
        let room = screen.width.saturating_sub(4);
        // Logarithms: one slow reply leaves the others apart.
        let (low, high) = (least.max(0.001).ln(), most.max(0.001).ln());
        let signs: String = found
            .rows
            .iter()
            .take(room)
            .rev()
            .map(
                |row| match (row.rtt_ms[1], StatusKind::from_name(&row.status)) {
                    (Some(rtt), _) => level(rtt.max(0.001).ln(), low, high),
                    (None, Some(StatusKind::Unknown)) => '?',
                    (None, _) => '✕',
                },
            )
            .collect();
        block.push(Line::new(&format!("  {signs}")));
    }
    block
}

fn spell_list(spells: &[Spell], clock: &Clock, screen: Screen) -> Block {
    if spells.is_empty() {
        return Block::new();
    }
    let title = if spells.len() > LISTED {
        format!("Not up (the last {LISTED} of {} spells)", spells.len())
    } else {
        format!("Not up ({})", counted(spells.len() as i64, "spell"))
    };
    let mut block = vec![Line::new(&title)];
    for spell in spells.iter().take(LISTED) {
        let mut line = Line::new("  ");
        push_status(&mut line, spell.status.name(), screen);
        let from = clock.moment(spell.from_us);
        let text = match spell.to_us {
            None => format!("since {from} ({})", clock.since(spell.from_us)),
            Some(to) => format!(
                "{from} to {} ({})",
                clock.minute(to),
                length(to - spell.from_us)
            ),
        };
        let text = cut(&text, screen.width.saturating_sub(line.width()));
        line.push(&text, &text);
        block.push(line);
    }
    block
}

/// One line for each run, the newest first.
fn runs(found: &TargetRuns, summaries: &[RunSummary], clock: &Clock, screen: Screen) -> Block {
    let is_wide = !screen.has_bars || screen.width >= WIDE;
    let cells: Vec<_> = found
        .rows
        .iter()
        .map(|row| cells(row, summaries, clock))
        .collect();
    let width = |at: usize, heading: &str| {
        let widths = cells.iter().map(|cells| cells[at].chars().count());
        widths.chain([heading.len()]).max().unwrap_or(0)
    };
    let headings = ["RUN", "PROBED", "RTT ms", "ANSWERED", "WORKER"];
    let widths = [0, 1, 2, 3, 4].map(|at| width(at, headings[at]));
    let line = |cells: &[String], status: Option<&str>| {
        let mut line = Line::default();
        let right = |line: &mut Line, at: usize| {
            let text = format!("{:>1$}  ", cells[at], widths[at]);
            line.push(&text, &text);
        };
        right(&mut line, 0);
        let time = format!("{:1$}  ", cells[1], widths[1]);
        line.push(&time, &time);
        let start = line.width();
        match status {
            Some(status) => push_status(&mut line, status, screen),
            None => line.push("STATUS", "STATUS"),
        }
        line.pad(start + 15);
        right(&mut line, 2);
        right(&mut line, 3);
        if is_wide {
            let worker = format!("{:1$}  ", cells[4], widths[4]);
            line.push(&worker, &worker);
        }
        let room = screen.width.saturating_sub(line.width());
        let why = match room {
            _ if !screen.has_bars => cells[5].clone(),
            ..MIN_REASON => String::new(),
            room => cut(&cells[5], room),
        };
        line.push(&why, &why);
        line
    };
    let heading: Vec<String> = headings
        .into_iter()
        .chain(["REASON"])
        .map(str::to_owned)
        .collect();
    let mut block = vec![line(&heading, None)];
    block.extend(
        found
            .rows
            .iter()
            .zip(&cells)
            .map(|(row, cells)| line(cells, Some(&row.status))),
    );
    block
}

fn cells(row: &ReportRow, summaries: &[RunSummary], clock: &Clock) -> [String; 6] {
    let run = summaries.iter().find(|summary| summary.run == row.run);
    let state = run.map_or(RunState::Complete, |summary| summary.state);
    let mut reason = if row.received > 0 {
        String::new()
    } else {
        why(&row.status, row.reason.as_deref(), row.sent)
    };
    if state != RunState::Complete {
        reason = format!("(run {}) {reason}", state.name());
    }
    [
        row.run.to_string(),
        micros(&row.probed_at).map_or_else(|| row.probed_at.clone(), |at| clock.moment(at)),
        row.rtt_ms[1].map_or("-".to_owned(), three_digits),
        format!("{}/{}", row.received, row.sent),
        cut(row.worker.as_deref().unwrap_or("-"), 24),
        reason,
    ]
}
