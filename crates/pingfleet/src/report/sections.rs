//! The parts of the summary. No I/O.

use anstyle::{AnsiColor, Style};
use pingfleet_store::{RunOverview, RunState, RunSummary};
use pingfleet_wire::StatusKind;

use super::{
    layout::{Block, Line, Screen, columns, cut, flow, wrapped},
    words::{
        Clock, counted, duration, grouped, local_losses, millis, percent, three_digits, wait, why,
    },
};

/// Rows of each small table.
const SMALL_ROWS: usize = 5;

/// The longest bar, and the columns before it.
const MAX_BAR: usize = 50;
const BEFORE_BAR: usize = 40;

/// The column of a status with its sign, and the space behind it.
const STATUS_WIDTH: usize = 15;

/// The sign and the colour of a status. Only what needs attention has a colour.
fn sign(status: StatusKind) -> (&'static str, Style) {
    let colour = |colour: AnsiColor| colour.on_default();
    match status {
        StatusKind::Up => ("●", Style::new()),
        StatusKind::Late => ("◐", colour(AnsiColor::Yellow)),
        StatusKind::Unreachable => ("▲", colour(AnsiColor::Magenta)),
        StatusKind::DnsFailed => ("⌀", colour(AnsiColor::Cyan)),
        StatusKind::SendFailed => ("!", colour(AnsiColor::Yellow)),
        StatusKind::Unknown => ("?", colour(AnsiColor::Yellow)),
        StatusKind::Down => ("✕", colour(AnsiColor::Red)),
    }
}

/// Adds the sign and the name of a status, in a column of its own.
pub(crate) fn push_status(line: &mut Line, status: &str, screen: Screen) {
    let start = line.width();
    let (sign, style) = StatusKind::from_name(status).map_or(("", Style::new()), sign);
    let text = format!("{sign} {status}");
    line.push(&text, &screen.paint(style, &text));
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
    let mut how = Vec::new();
    if let Some(planned) = &overview.probing {
        let probing = &planned.probing;
        let first = u32::from(probing.count) - 1;
        let waits = (first..probing.most_requests()).map(|request| wait(probing.wait(request)));
        let retries = match probing.retries {
            0 => String::new(),
            1 => ", 1 retry".to_owned(),
            retries => format!(", {retries} retries"),
        };
        let waits = waits.collect::<Vec<_>>().join(", ");
        let requests = counted(probing.count.into(), "request");
        how.push(format!("{requests}{retries}, timeout {waits}"));
        how.push(probing.rate.map_or_else(
            || "no limit of the rate".to_owned(),
            |rate| format!("{} requests/s a worker", grouped(rate.get().into())),
        ));
    }
    if !overview.workers.is_empty() {
        how.push(counted(overview.workers.len() as i64, "worker"));
    }
    how.push(counted(summary.targets, "target"));
    let mut block = flow(&what, 2, screen.width);
    block.extend(flow(&how, 2, screen.width));
    block
}

/// For a run that is not complete: how far it is, and what to do.
pub(super) fn progress(overview: &RunOverview, flags: &str, width: usize) -> Block {
    let summary = &overview.summary;
    let RunSummary { run, targets, .. } = *summary;
    let settled = summary.settled();
    let far = format!(
        "{} of {} are settled ({})",
        grouped(settled),
        counted(targets, "target"),
        percent(settled, targets)
    );
    let sentence = match summary.state {
        RunState::Complete => return Block::new(),
        RunState::Planning => "Its targets are being planned; nothing is probed yet.".to_owned(),
        RunState::Running => format!("In progress: {far}. This is what is known so far."),
        RunState::Cancelled => format!("It was cancelled: {far}."),
        RunState::Incomplete => {
            let dead = summary.chunks_dead;
            let next = if dead > 0 {
                format!(
                    "{} came back from workers too often. Send again: pingfleet retry{flags} {run}",
                    counted(dead, "chunk")
                )
            } else {
                format!("Continue it: pingfleet resume{flags} {run}")
            };
            format!("It is incomplete: {far}. {next}")
        }
    };
    wrapped(&sentence, 2, width)
}

/// For a run whose rows were removed: where they are.
pub(super) fn pruned(overview: &RunOverview, clock: &Clock, width: usize) -> Block {
    let Some(pruned) = &overview.summary.pruned else {
        return Block::new();
    };
    let place = match &pruned.archive {
        Some(file) => format!("They are in {file}"),
        None => "They were not archived.".to_owned(),
    };
    let when = clock.second(&pruned.pruned_at);
    let sentence =
        format!("Its rows were pruned at {when}, so only its counts are known here. {place}");
    wrapped(&sentence, 2, width)
}

/// When no target is up: the likely cause on this machine, from the most frequent reason.
pub(super) fn cause(overview: &RunOverview, flags: &str, width: usize) -> Block {
    let settled = overview.summary.settled();
    let Some((status, reason, count)) = overview.reasons.first() else {
        return Block::new();
    };
    if overview.summary.counts.answered() > 0 {
        return Block::new();
    }
    let reason = reason.as_deref();
    let likely = match *status {
        "send_failed" => format!(
            "this machine cannot send to them: {}. Check its routes and its firewall, and run: pingfleet doctor{flags}",
            why(status, reason, 0)
        ),
        "unknown" => format!(
            "the replies were lost on the machine that probes: {}. Run there: pingfleet doctor{flags}",
            local_losses(reason.unwrap_or_default())
        ),
        "dns_failed" => format!(
            "name resolution: {}. Check the names and the name servers of the machine that probes.",
            why(status, reason, 0)
        ),
        "unreachable" => format!(
            "a router has no way to them: {}. Check the routes and the VPN of the machine that probes.",
            why(status, reason, 0)
        ),
        _ if reason == Some("no_arp") => {
            "they are on a network of this machine, and nobody there answers ARP. Check the cable, the VLAN and the addresses."
                .to_owned()
        }
        _ => format!(
            "a firewall on this machine or on the way drops ping, or this machine is not connected. Ping one of them by hand, and run: pingfleet doctor{flags}"
        ),
    };
    let share = if *count == settled {
        String::new()
    } else {
        format!(" ({} of {})", grouped(*count), grouped(settled))
    };
    wrapped(
        &format!("No target is up. Likely cause{share}: {likely}"),
        2,
        width,
    )
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
            line.push(&bar, &screen.paint(sign(status).1, &bar));
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
    block.extend(unknown(overview, flags, screen.width));
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

fn unknown(overview: &RunOverview, flags: &str, width: usize) -> Block {
    let count = overview.summary.counts[StatusKind::Unknown];
    let reasons = overview
        .reasons
        .iter()
        .filter(|(status, ..)| *status == "unknown");
    let causes: Vec<_> = reasons
        .map(|(_, reason, count)| {
            format!(
                "{} ({})",
                local_losses(reason.as_deref().unwrap_or_default()),
                grouped(*count)
            )
        })
        .collect();
    if count == 0 || causes.is_empty() {
        return Block::new();
    }
    let losing = overview
        .workers
        .iter()
        .filter(|worker| worker.local_losses > 0);
    let places: Vec<_> = losing
        .filter_map(|worker| worker.worker.as_deref())
        .collect();
    let place = match places.as_slice() {
        [] => "the machine that probed".to_owned(),
        [.., _] if places.len() <= 3 => places.join(", "),
        _ => counted(places.len() as i64, "worker"),
    };
    let sentence = format!(
        "Unknown: the replies may have been lost on {place}: {}. Run there: pingfleet doctor{flags}",
        causes.join(", ")
    );
    let mut block = vec![Line::default()];
    block.extend(wrapped(&sentence, 2, width));
    block
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
    let Some(changes) = overview.changes else {
        return Block::new();
    };
    if changes.first_seen == overview.summary.settled() {
        return Block::new();
    }
    let mut parts = vec![
        format!(
            "{} changed and did not answer",
            grouped(changes.changed_not_up)
        ),
        format!("{} changed and answered", grouped(changes.changed_up)),
    ];
    if changes.first_seen > 0 {
        parts.push(format!("{} are new", grouped(changes.first_seen)));
    }
    let sentence = format!(
        "Since the targets were probed before: {}.",
        parts.join(", ")
    );
    wrapped(&sentence, 2, width)
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
    let mut rows: Vec<_> = overview
        .workers
        .iter()
        .take(2 * SMALL_ROWS)
        .map(|worker| {
            vec![
                cut(worker.worker.as_deref().unwrap_or("-"), (width / 3).min(32)),
                grouped(worker.targets),
                worker.targets_per_s.map_or("-".to_owned(), three_digits),
                grouped(worker.local_losses),
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
        ]);
    }
    (!rows.is_empty()).then(|| {
        columns(
            &["Workers", "targets", "/s", "lost here"],
            &[false, true, true, true],
            &rows,
        )
    })
}
