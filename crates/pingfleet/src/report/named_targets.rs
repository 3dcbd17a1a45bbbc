//! The targets that the summary names, with what was found. No I/O.

use pingfleet_report::{
    sentences::{all_not_up, since},
    words::{Clock, counted, grouped, three_digits, why},
};
use pingfleet_store::{NotUp, ReportRow, RunOverview};

use super::{
    layout::{Block, Line, Screen, cut, flow},
    sections::push_status,
};

/// From this width on a target that did not answer takes one line, otherwise two.
const WIDE: usize = 80;

/// The first targets that did not answer, with their reasons, and the command that shows all.
pub(super) fn not_up(overview: &RunOverview, clock: &Clock, flags: &str, screen: Screen) -> Block {
    let counts = &overview.summary.counts;
    let total = counts.total() - counts.answered();
    let shown = overview.not_up.len() as i64;
    if shown == 0 {
        return Block::new();
    }
    // Where all targets are new, nothing is said of the time before.
    let settled = counts.total();
    let has_past = overview
        .changes
        .is_some_and(|changes| changes.first_seen < settled);
    let order = if has_past {
        ", newest change first"
    } else {
        ""
    };
    let mut title = vec![if total > shown {
        format!("Not up ({shown} of {}{order})", grouped(total))
    } else {
        format!("Not up ({shown}{order})")
    }];
    if total > shown {
        title.push(format!("all: {}", all_not_up(overview, flags)));
    }
    let mut block = flow(&title, 2, screen.width);
    block.extend(not_up_rows(
        &overview.not_up,
        has_past.then_some(clock),
        screen,
    ));
    block
}

/// A line for each target, or two where the screen is narrow. `clock` writes since when, if that is to be shown.
fn not_up_rows(not_up: &[NotUp], clock: Option<&Clock>, screen: Screen) -> Block {
    let targets: Vec<_> = not_up
        .iter()
        .map(|found| found.row.target.as_str())
        .collect();
    let widest = name_width(&targets, screen.width);
    let texts: Vec<_> = not_up
        .iter()
        .map(|found| {
            let row = &found.row;
            let since = clock.map_or_else(String::new, |clock| since(found, |us| clock.minute(us)));
            (why(&row.status, row.reason.as_deref(), row.sent), since)
        })
        .collect();
    let longest = |pick: fn(&(String, String)) -> &String| {
        let lengths = texts.iter().map(|text| pick(text).chars().count());
        lengths.max().unwrap_or(0)
    };
    let (phrase_width, since_width) = (longest(|text| &text.0), longest(|text| &text.1));
    let mut block = Block::new();
    for (found, (phrase, since)) in not_up.iter().zip(&texts) {
        let mut line = Line::new("  ");
        push_name(&mut line, &found.row.target, widest);
        push_status(&mut line, &found.row.status, screen);
        if screen.width >= WIDE {
            let start = line.width();
            let room = screen
                .width
                .saturating_sub(start + 2 + since_width)
                .min(phrase_width);
            let phrase = cut(phrase, room);
            line.push(&phrase, &phrase);
            line.pad(start + room + 2);
            line.push(since, since);
            block.push(line);
        } else {
            block.push(line);
            let items = [cut(&format!("    {phrase}"), screen.width), since.clone()];
            block.extend(flow(&items, 4, screen.width));
        }
    }
    block
}

/// The table of a run of few targets.
pub(super) fn targets(rows: &[ReportRow], screen: Screen) -> Block {
    let names: Vec<_> = rows.iter().map(|row| row.target.as_str()).collect();
    let widest = name_width(&names, screen.width);
    let mut block = Block::new();
    for row in rows {
        let mut line = Line::new("  ");
        push_name(&mut line, &row.target, widest);
        push_status(&mut line, &row.status, screen);
        let what = match row.rtt_ms[1] {
            Some(mean) => format!(
                "RTT {} ms, {} of {} answered",
                three_digits(mean),
                row.received,
                counted(row.sent, "request")
            ),
            None => why(&row.status, row.reason.as_deref(), row.sent),
        };
        let start = line.width();
        let what = cut(&what, screen.width.saturating_sub(start));
        line.push(&what, &what);
        block.push(line);
    }
    block
}

/// The width of a column of targets: of the longest one, and at most a third of the screen.
fn name_width(targets: &[&str], width: usize) -> usize {
    let longest = targets.iter().map(|target| target.chars().count()).max();
    longest.unwrap_or(0).min((width / 3).max(18))
}

fn push_name(line: &mut Line, target: &str, width: usize) {
    let start = line.width();
    let target = cut(target, width);
    line.push(&target, &target);
    line.pad(start + width + 2);
}
