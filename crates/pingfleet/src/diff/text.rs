//! The changes on a screen: how many of each kind, whole subnets, and the targets.

use std::{
    io::{self, BufWriter, Write as _},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use pingfleet_report::{
    changes::{is_listed, left_out, phrase, sign, single, sources, title},
    words::{Clock, counted, grouped, millis, wait, why},
};
use pingfleet_settings::{Failure, printed};
use pingfleet_store::{
    ChangeKind, DiffLimits, FoundTarget, RunDiff, RunState, RunSummary, StoreError, TargetChange,
};

use super::{RTT_FACTOR, RTT_MIN};
use crate::report::{
    layout::{Block, Line, Screen, cut, flow, wrapped},
    push_status,
};

/// Changes of a kind, and whole subnets, that are listed without `--all`.
const LISTED: usize = 20;

/// The column of a kind with its sign, and the space behind it.
const KIND_WIDTH: usize = 21;

/// The longest name of a status: `unreachable`.
const LONGEST_STATUS: usize = 11;

/// A shorter space shows no reason.
const MIN_DETAIL: usize = 10;

/// Prints the difference. `flags` are those of the commands that it names.
pub(super) fn print(diff: &mut RunDiff, all: bool, flags: &str) -> Result<(), Failure> {
    let screen = Screen::of_stdout();
    let mut out = BufWriter::new(io::stdout().lock());
    let clock = Clock::now();
    let mut blocks = vec![head(diff, &clock, screen), totals(diff, screen)];
    blocks.extend(left_out(diff).map(|sentence| wrapped(&sentence, 2, screen.width)));
    blocks.push(whole_subnets(diff, all, flags, screen));
    for (at, block) in blocks.iter().filter(|block| !block.is_empty()).enumerate() {
        if let Err(error) = write(&mut out, at > 0, block) {
            return printed(Err(error));
        }
    }
    let written = if all {
        ChangeKind::ALL.into_iter().try_for_each(|kind| {
            // In the order of the targets, one kind after the other: the sorted rows are read once for each.
            let title = [Line::new(&format!(
                "{} ({})",
                title(kind),
                grouped(single(diff, kind))
            ))];
            if single(diff, kind) == 0 {
                return Ok(());
            }
            write(&mut out, true, &title)?;
            for change in diff.changes()? {
                let change = change?;
                if is_listed(&change, kind) {
                    write(&mut out, false, &[row(&change, LONGEST_STATUS, screen)])?;
                }
            }
            Ok(())
        })
    } else {
        first_changes(diff)
            .map_err(StoreError::from_sorted_rows)?
            .iter()
            .filter(|(_, changes)| !changes.is_empty())
            .try_for_each(|(kind, changes)| {
                let mut block = heading(diff, *kind, flags, screen);
                let names = changes.iter().filter_map(|change| change.before.as_ref());
                let before = names.map(|found| found.status.name().len()).max();
                let rows = changes
                    .iter()
                    .map(|change| row(change, before.unwrap_or(0), screen));
                block.extend(rows);
                write(&mut out, true, &block)
            })
    };
    printed(written.and_then(|()| out.flush()))
}

/// The first changes of each kind.
fn first_changes(diff: &mut RunDiff) -> io::Result<Vec<(ChangeKind, Vec<TargetChange>)>> {
    let mut first: Vec<_> = ChangeKind::ALL.map(|kind| (kind, Vec::new())).into();
    for change in diff.changes()? {
        let change = change?;
        let (kind, changes) = &mut first[change.kind as usize];
        if changes.len() < LISTED && is_listed(&change, *kind) {
            changes.push(change);
        }
    }
    Ok(first)
}

fn heading(diff: &RunDiff, kind: ChangeKind, flags: &str, screen: Screen) -> Block {
    let (title, total) = (title(kind), single(diff, kind));
    let items = if total as usize > LISTED {
        vec![
            format!("{title} ({LISTED} of {})", grouped(total)),
            format!("all: {}", command(diff, flags)),
        ]
    } else {
        vec![format!("{title} ({})", grouped(total))]
    };
    flow(&items, 2, screen.width)
}

fn write(out: &mut impl io::Write, has_gap: bool, block: &[Line]) -> io::Result<()> {
    if has_gap {
        writeln!(out)?;
    }
    block
        .iter()
        .try_for_each(|line| writeln!(out, "{}", line.text()))
}

/// The command that lists all of the same changes.
pub(super) fn command(diff: &RunDiff, flags: &str) -> String {
    format!(
        "pingfleet diff{flags} {} {} --all{}",
        diff.before.run,
        diff.after.run,
        limit_flags(diff.limits)
    )
}

/// The limits as flags, as far as they are not the defaults.
fn limit_flags(limits: DiffLimits) -> String {
    let factor = limits.rtt_factor.to_string();
    let min = Duration::from_nanos(limits.rtt_min_ns.cast_unsigned());
    let min = humantime::format_duration(min).to_string().replace(' ', "");
    let given = [
        (factor != RTT_FACTOR).then(|| format!(" --rtt-factor {factor}")),
        (min != RTT_MIN).then(|| format!(" --rtt-min {min}")),
    ];
    given.into_iter().flatten().collect()
}

/// The two runs, and how much they have in common.
fn head(diff: &RunDiff, clock: &Clock, screen: Screen) -> Block {
    let run = |summary: &RunSummary| {
        let state = match summary.state {
            RunState::Complete => String::new(),
            state => format!(" {}", state.name()),
        };
        format!(
            "run {}{state} ({})",
            summary.run,
            clock.second(&summary.started_at)
        )
    };
    let source = sources(diff).join(", then ");
    let mut items = vec![
        format!("From {}", run(&diff.before)),
        format!("to {}", run(&diff.after)),
        cut(&source, screen.width.saturating_sub(4)),
    ];
    items.push(format!("{} in both", counted(diff.in_both, "target")));
    flow(&items, 2, screen.width)
}

/// The number of changes of each kind.
fn totals(diff: &RunDiff, screen: Screen) -> Block {
    if diff.total() == 0 {
        return wrapped("Nothing changed.", 2, screen.width);
    }
    let digits = diff
        .counts
        .iter()
        .map(|count| grouped(*count).len())
        .max()
        .unwrap_or(0);
    let kinds = ChangeKind::ALL.into_iter().zip(diff.counts);
    kinds
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| {
            let mut line = Line::new("  ");
            push_kind(&mut line, kind, screen);
            let count = format!("{:>digits$}", grouped(count));
            line.push(&count, &count);
            if matches!(kind, ChangeKind::Slower | ChangeKind::Faster) {
                let limit = format!(
                    "  by a factor over {} and over {}",
                    diff.limits.rtt_factor,
                    wait(Duration::from_nanos(diff.limits.rtt_min_ns.cast_unsigned()))
                );
                line.push(&limit, &limit);
            }
            line
        })
        .collect()
}

fn whole_subnets(diff: &RunDiff, all: bool, flags: &str, screen: Screen) -> Block {
    let count = diff.whole_subnets.len();
    let limit = if all { count } else { LISTED };
    if count == 0 {
        return Block::new();
    }
    let mut title = vec![format!("Whole subnets ({})", grouped(count as i64))];
    if count > limit {
        title[0] = format!("Whole subnets ({limit} of {})", grouped(count as i64));
        title.push(format!("all: {}", command(diff, flags)));
    }
    let mut block = flow(&title, 2, screen.width);
    let shown = &diff.whole_subnets[..count.min(limit)];
    let names: Vec<_> = shown.iter().map(|whole| whole.subnet.to_string()).collect();
    let widest = names.iter().map(String::len).max().unwrap_or(0);
    for (whole, name) in shown.iter().zip(&names) {
        let mut line = Line::new("  ");
        line.push(name, name);
        line.pad(2 + widest + 2);
        push_kind(&mut line, whole.kind, screen);
        let targets = counted(whole.targets, "target");
        line.push(&targets, &targets);
        block.push(line);
    }
    block
}

/// A change of one target, on one line. `before_width` is the width of the column of the status before.
fn row(change: &TargetChange, before_width: usize, screen: Screen) -> Line {
    let is_cut = screen.has_bars;
    let widest = (screen.width / 3).clamp(18, 40);
    let target = if is_cut {
        cut(&change.target, widest)
    } else {
        change.target.clone()
    };
    let mut line = Line::new("  ");
    line.push(&target, &target);
    line.pad(2 + widest);
    line.push("  ", "  ");
    let (before, after) = (change.before.as_ref(), change.after.as_ref());
    let text = match (change.kind, before, after) {
        (ChangeKind::Slower | ChangeKind::Faster, Some(before), Some(after)) => {
            format!("RTT {} → {} ms", rtt(before), rtt(after))
        }
        (ChangeKind::OtherAddress, Some(before), Some(after)) => {
            format!("{} → {}", address(before), address(after))
        }
        (_, before, after) => {
            if let (Some(before), Some(_)) = (before, after) {
                let arrow = format!("{:before_width$} → ", before.status.name());
                line.push(&arrow, &arrow);
            }
            let Some(found) = after.or(before) else {
                return line;
            };
            push_status(&mut line, found.status.name(), screen);
            match found.rtt_avg_ns {
                Some(_) => format!("RTT {} ms", rtt(found)),
                None => why(found.status.name(), found.reason.as_deref(), 0),
            }
        }
    };
    let text = match screen.width.saturating_sub(line.width()) {
        _ if !is_cut => text,
        ..MIN_DETAIL => return line,
        room => cut(&text, room),
    };
    line.push(&text, &text);
    line
}

fn rtt(found: &FoundTarget) -> String {
    found.rtt_avg_ns.map_or("-".to_owned(), millis)
}

fn address(found: &FoundTarget) -> &str {
    found.address.as_deref().unwrap_or("-")
}

/// Adds the sign and the words of a kind, in a column of its own.
fn push_kind(line: &mut Line, kind: ChangeKind, screen: Screen) {
    let start = line.width();
    let colour = |colour: AnsiColor| colour.on_default();
    let style = match kind {
        ChangeKind::StoppedAnswering => colour(AnsiColor::Red),
        ChangeKind::AnswersAgain => colour(AnsiColor::Green),
        ChangeKind::OtherStatus | ChangeKind::Disappeared | ChangeKind::Slower => {
            colour(AnsiColor::Yellow)
        }
        ChangeKind::OtherAddress => colour(AnsiColor::Cyan),
        ChangeKind::Appeared | ChangeKind::Faster => Style::new(),
    };
    let text = format!("{} {}", sign(kind), phrase(kind));
    line.push(&text, &screen.paint(style, &text));
    line.pad(start + KIND_WIDTH);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_all_has_the_limits_that_are_not_the_defaults() {
        for (rtt_factor, rtt_min_ns, flags) in [
            (2.0, 5_000_000, ""),
            (1.5, 5_000_000, " --rtt-factor 1.5"),
            (2.0, 0, " --rtt-min 0s"),
            (3.0, 1_020_000_000, " --rtt-factor 3 --rtt-min 1s20ms"),
        ] {
            let limits = DiffLimits {
                rtt_factor,
                rtt_min_ns,
            };
            assert_eq!(limit_flags(limits), flags);
            let min = flags.split_once("--rtt-min ").map_or("5ms", |(_, min)| min);
            let min = humantime::parse_duration(min).unwrap();
            assert_eq!(min.as_nanos(), u128::from(rtt_min_ns.cast_unsigned()));
        }
    }
}
