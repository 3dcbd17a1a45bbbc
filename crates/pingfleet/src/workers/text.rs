//! The table of workers on a screen. What is wrong stands above it. On a narrow screen the columns that matter less are
//! left out; off a terminal all are there, and nothing is cut.

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use pingfleet_report::words::{
    Clock, counted, grouped, length, loss_counts, three_digits, worker_name,
};
use pingfleet_settings::{Failure, printed};
use pingfleet_store::{Fleet, WorkerRow, WorkerState};
use pingfleet_wire::timing::HEARTBEAT_INTERVAL;
use terminal_size::{Height, terminal_size_of};
use unicode_width::UnicodeWidthStr as _;

use crate::report::layout::{self, Block, Line, Screen, cut, fitted, wrapped};

/// What an empty list means.
pub(super) const NO_WORKERS: &str = "no worker was seen in the last 7 days. Start one on this machine or another: ping-worker --broker URL. \
     (A worker shows up when a writer receives its heartbeat: consumer-writer)";

/// The columns: the heading, and whether it is aligned to the right.
const COLUMNS: [(&str, bool); 15] = [
    ("WORKER", false),
    ("LOGIN", false),
    ("STATE", false),
    ("SEEN", true),
    ("IN HAND", true),
    ("OLDEST", true),
    ("REQ/s", true),
    ("REQUESTS", true),
    ("REPLIES", true),
    ("GROUP", false),
    ("VERSION", false),
    ("THREADS", true),
    ("PREFETCH", true),
    ("CEILING/s", true),
    ("LOST HERE", false),
];

/// As [`fitted`] wants them.
const BY_IMPORTANCE: [(usize, usize, usize); 15] = [
    (0, 0, 0),
    (STATE, 0, 0),
    (LOGIN, 12, 40),
    (3, 0, 0),
    (4, 0, 0),
    (6, 0, 0),
    (14, 12, 30),
    (7, 0, 0),
    (8, 0, 0),
    (5, 0, 0),
    (9, 0, 0),
    (10, 0, 0),
    (13, 0, 0),
    (11, 0, 0),
    (12, 0, 0),
];

/// It is left out while all workers have the same one.
const LOGIN: usize = 1;

const STATE: usize = 2;

/// Sentences about single workers; the table has the others.
const MAX_SENTENCES: usize = 3;

/// Prints the table.
pub(super) fn print(fleet: &Fleet) -> Result<(), Failure> {
    layout::print(&blocks(fleet, Screen::of_stdout()))
}

/// Prints it in the place of what is on the terminal, without what does not fit.
pub(super) fn redraw(fleet: &Fleet) -> Result<(), Failure> {
    // ECMA-48: the cursor goes home, and what is behind it is erased.
    printed(write!(io::stdout(), "\x1b[H\x1b[2J"))?;
    let mut blocks = blocks(fleet, Screen::of_stdout());
    if fleet.workers.is_empty() {
        blocks.push(vec![Line::new(NO_WORKERS)]);
    }
    if let Some((_, Height(height))) = terminal_size_of(io::stdout()) {
        cut_to_height(&mut blocks, usize::from(height));
    }
    layout::print(&blocks)?;
    printed(io::stdout().flush())
}

/// Leaves out workers for which the terminal has no line. The cursor stands on its last line.
fn cut_to_height(blocks: &mut [Block], height: usize) {
    let Some((table, above)) = blocks.split_last_mut() else {
        return;
    };
    // Behind a block is an empty line.
    let above = above.iter().filter(|block| !block.is_empty());
    let above: usize = above.map(|block| block.len() + 1).sum();
    let room = height.saturating_sub(above + 1);
    if table.len() > room {
        // The heading stays.
        let shown = room.saturating_sub(1).max(1);
        let more = table.len() - shown;
        table.truncate(shown);
        let more = format!("{} more: pingfleet workers", grouped(more as i64));
        table.push(Line::new(&more));
    }
}

fn blocks(fleet: &Fleet, screen: Screen) -> Vec<Block> {
    vec![sentences(fleet, screen), table(fleet, screen)]
}

/// What is wrong, each with what to do.
fn sentences(fleet: &Fleet, screen: Screen) -> Block {
    let mut sentences = Vec::new();
    if let Some(away) = fleet.writer_away {
        let away = length(away.as_micros() as i64);
        sentences.push(if fleet.is_writer_running == Some(true) {
            format!(
                "The writer runs, but has stored nothing for {away}: it waits for the broker or for the database, as its log and \
                 its live page say. States and ages are as of then."
            )
        } else {
            format!(
                "No writer is running: the last one was seen {away} ago, and states and ages are as of then. Start it: \
                 consumer-writer"
            )
        });
    }
    for (name, logins) in fleet.shared_names().iter().take(MAX_SENTENCES) {
        sentences.push(format!(
            "The logins {} all have a worker of the name {name} at the same time. A worker chooses its name itself, and the broker \
             checks its login: give each another name (worker.name), and look for a worker that is not yours.",
            logins.join(", ")
        ));
    }
    let silent = silent_at_once(fleet);
    if !silent.is_empty() {
        sentences.push(format!(
            "{} fell silent at once, and no other is heard: the broker may have an alarm, in which it takes no messages, and they \
             go on after it (rabbitmq-diagnostics alarms). If it has none, do their machines run?",
            counted(silent.len() as i64, "worker")
        ));
    }
    let lost = fleet.workers.iter().filter(|worker| is_lost(worker));
    let lost: Vec<_> = lost
        .filter(|worker| {
            let key = (&worker.login, worker.instance);
            !silent
                .iter()
                .any(|other| (&other.login, other.instance) == key)
        })
        .collect();
    for worker in lost.iter().take(MAX_SENTENCES) {
        sentences.push(of_lost(worker, fleet.has_logins()));
    }
    if lost.len() > MAX_SENTENCES {
        sentences.push(format!(
            "{} more are lost.",
            grouped((lost.len() - MAX_SENTENCES) as i64)
        ));
    }
    let lines = sentences.iter();
    lines
        .flat_map(|sentence| wrapped(sentence, 2, screen.width))
        .collect()
}

/// Whether it is lost, and no other process of its name was heard since.
fn is_lost(worker: &WorkerRow) -> bool {
    worker.state == WorkerState::Lost && !worker.is_started_again
}

/// If no worker is heard, those whose last heartbeats lie within two of its intervals: one cause may have silenced them.
fn silent_at_once(fleet: &Fleet) -> Vec<&WorkerRow> {
    let is_silent = fleet
        .workers
        .iter()
        .all(|worker| worker.state == WorkerState::Lost);
    let newest = fleet.workers.iter().map(|worker| worker.age).min();
    let (true, Some(newest)) = (is_silent, newest) else {
        return Vec::new();
    };
    let lost = fleet.workers.iter().filter(|worker| is_lost(worker));
    let silent: Vec<_> = lost
        .filter(|worker| worker.age <= newest + HEARTBEAT_INTERVAL * 2)
        .collect();
    if silent.len() > 1 { silent } else { Vec::new() }
}

fn of_lost(worker: &WorkerRow, has_logins: bool) -> String {
    let login = worker.login.as_deref().filter(|_| has_logins);
    let silent = format!(
        "{}: no heartbeat for {} (since {}).",
        worker_name(&worker.worker, login),
        length(worker.age.as_micros() as i64),
        Clock::now().moment(worker.last_seen_us)
    );
    if worker.in_hand == 0 {
        return format!("{silent} It had no chunk in hand. Does its machine run?");
    }
    format!(
        "{silent} The broker gives the {} that it had in hand to other workers; none is lost. Does its machine run?",
        counted(worker.in_hand, "chunk")
    )
}

fn table(fleet: &Fleet, screen: Screen) -> Block {
    if fleet.workers.is_empty() {
        return Vec::new();
    }
    let heading: Vec<_> = COLUMNS
        .iter()
        .map(|(heading, _)| (*heading).to_owned())
        .collect();
    let rows = fleet.workers.iter();
    let rows: Vec<_> = rows.map(cells).collect();
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.width()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    if !fleet.has_logins() {
        widths[LOGIN] = 0;
    }
    if screen.has_bars {
        widths = fitted(&widths, &BY_IMPORTANCE, screen.width);
    }
    let rows = fleet.workers.iter().zip(&rows);
    let rows = rows.map(|(worker, row)| line(row, &widths, style(worker), screen));
    std::iter::once(line(&heading, &widths, Style::new(), screen))
        .chain(rows)
        .collect()
}

/// A row or the heading, with the style of its state.
fn line(row: &[String], widths: &[usize], state: Style, screen: Screen) -> Line {
    let mut line = Line::default();
    let mut start = 0;
    for (at, (cell, (_, right))) in row.iter().zip(COLUMNS).enumerate() {
        let width = widths[at];
        if width == 0 {
            continue;
        }
        let cell = cut(cell, width);
        let space = if right { width - cell.width() } else { 0 };
        line.pad(start + space);
        let painted = if at == STATE {
            screen.paint(state, &cell)
        } else {
            cell.clone()
        };
        line.push(&cell, &painted);
        start += width + 2;
    }
    line
}

fn style(worker: &WorkerRow) -> Style {
    match worker.state {
        WorkerState::Lost if worker.is_started_again => Style::new(),
        WorkerState::Lost => AnsiColor::Red.on_default().bold(),
        WorkerState::Live => AnsiColor::Green.on_default(),
        WorkerState::Starting | WorkerState::Draining => AnsiColor::Yellow.on_default(),
    }
}

fn cells(worker: &WorkerRow) -> Vec<String> {
    let none = || "-".to_owned();
    let again = if worker.is_started_again {
        ", started again"
    } else {
        ""
    };
    let age = |age: std::time::Duration| length(age.as_micros() as i64);
    vec![
        worker.worker.clone(),
        worker.login.clone().unwrap_or_else(none),
        format!("{} {}{again}", worker.state.sign(), worker.state.word()),
        age(worker.age),
        grouped(worker.in_hand),
        worker.oldest_in_hand.map_or_else(none, age),
        worker.requests_per_s.map_or_else(none, three_digits),
        grouped(worker.requests_sent),
        grouped(worker.replies),
        worker.group.clone(),
        worker.version.clone(),
        worker.threads.to_string(),
        worker.prefetch.to_string(),
        worker.rate.map_or_else(|| "unlimited".to_owned(), grouped),
        match loss_counts(&worker.local_losses) {
            losses if losses.is_empty() => none(),
            losses => losses,
        },
    ]
}
