//! The targets that the summary names, with what was found. No I/O.

use pingfleet_report::{
    sentences::{all_not_up, since, subnet_not_up},
    words::{Clock, counted, grouped, three_digits, why},
};
use pingfleet_store::{ReportRow, RunOverview, TargetHistory};

use super::{
    layout::{Block, Line, Screen, cut, flow},
    sections::{STATUS_WIDTH, push_status},
};

/// From this width on a target that did not answer takes one line, otherwise two.
const WIDE: usize = 80;

/// Subnets that are listed.
const LISTED_SUBNETS: usize = 10;

/// What did not answer: a target or a subnet.
struct NotUpRow {
    name: String,
    /// Name of the status.
    status: String,
    phrase: String,
    since: String,
}

/// Writes since when something does not answer, where the run says it. Where all targets are new, nothing is said of the
/// time before.
fn clock_of_changes<'c>(overview: &RunOverview, clock: &'c Clock) -> Option<&'c Clock> {
    let settled = overview.summary.counts.total();
    let changes = overview.changes?;
    (changes.first_seen < settled).then_some(clock)
}

/// The subnets in which no target answered.
pub(super) fn subnets_not_up(overview: &RunOverview, clock: &Clock, screen: Screen) -> Block {
    let clock = clock_of_changes(overview, clock);
    let shown = overview.subnets_not_up.iter().take(LISTED_SUBNETS);
    let rows: Vec<_> = shown
        .map(|found| {
            let most = found.counts.iter().max_by_key(|(_, count)| *count);
            NotUpRow {
                name: found.subnet.to_string(),
                status: most.map_or("", |(status, _)| status.name()).to_owned(),
                phrase: subnet_not_up(found),
                since: written(found.history, clock),
            }
        })
        .collect();
    if rows.is_empty() {
        return Block::new();
    }
    let total = overview.subnets_not_up_count;
    let title = if total as usize > rows.len() {
        format!("Subnets not up ({} of {})", rows.len(), grouped(total))
    } else {
        format!("Subnets not up ({total})")
    };
    let mut block = vec![Line::new(&title)];
    block.extend(not_up_rows(&rows, screen, true));
    block
}

fn written(history: Option<TargetHistory>, clock: Option<&Clock>) -> String {
    clock.map_or_else(String::new, |clock| since(history, |us| clock.minute(us)))
}

/// The first targets that did not answer and are in none of these subnets, with their reasons, and the command that shows
/// all.
pub(super) fn not_up(overview: &RunOverview, clock: &Clock, flags: &str, screen: Screen) -> Block {
    let counts = &overview.summary.counts;
    let total = counts.total() - counts.answered();
    let shown = overview.not_up.len() as i64;
    let has_subnets = overview.subnets_not_up_count > 0;
    if shown == 0 && !has_subnets {
        return Block::new();
    }
    let clock = clock_of_changes(overview, clock);
    let order = if clock.is_some() && shown > 0 {
        ", newest change first"
    } else {
        ""
    };
    let mut title = vec![match (has_subnets, shown) {
        (true, 0) => "Other targets not up: none".to_owned(),
        // How many there are is not known: two targets can have the same address.
        (true, _) => format!("Other targets not up ({shown}{order})"),
        (false, _) if total > shown => {
            format!("Not up ({shown} of {}{order})", grouped(total))
        }
        (false, _) => format!("Not up ({shown}{order})"),
    }];
    if total > shown {
        title.push(format!("all: {}", all_not_up(overview, flags)));
    }
    let mut block = flow(&title, 2, screen.width);
    let rows = overview.not_up.iter().map(|found| {
        let row = &found.row;
        NotUpRow {
            name: row.target.clone(),
            status: row.status.clone(),
            phrase: why(&row.status, row.reason.as_deref(), row.sent),
            since: written(found.history, clock),
        }
    });
    block.extend(not_up_rows(&rows.collect::<Vec<_>>(), screen, false));
    block
}

/// A line for each row, or two where the screen is narrow, or where phrases are not to be cut.
fn not_up_rows(rows: &[NotUpRow], screen: Screen, are_phrases_whole: bool) -> Block {
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    let widest = name_width(&names, screen.width);
    let longest = |pick: fn(&NotUpRow) -> &String| {
        let lengths = rows.iter().map(|row| pick(row).chars().count());
        lengths.max().unwrap_or(0)
    };
    let (phrase_width, since_width) = (longest(|row| &row.phrase), longest(|row| &row.since));
    let whole = 2 + widest + 2 + STATUS_WIDTH + phrase_width + 2 + since_width;
    let is_wide = screen.width >= WIDE && (!are_phrases_whole || screen.width >= whole);
    let mut block = Block::new();
    for row in rows {
        let mut line = Line::new("  ");
        push_name(&mut line, &row.name, widest);
        push_status(&mut line, &row.status, screen);
        if is_wide {
            let start = line.width();
            let room = screen
                .width
                .saturating_sub(start + 2 + since_width)
                .min(phrase_width);
            let phrase = cut(&row.phrase, room);
            line.push(&phrase, &phrase);
            line.pad(start + room + 2);
            line.push(&row.since, &row.since);
            block.push(line);
        } else {
            block.push(line);
            let phrase = format!("    {}", row.phrase);
            let items = [cut(&phrase, screen.width), row.since.clone()];
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
