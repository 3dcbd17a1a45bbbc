//! The fragments of the page: each is the content of one section, and goes to all tabs when it changed. No I/O.

use std::collections::HashMap;

use askama::Template;
use pingfleet_report::{
    PageError,
    parts::{Rates, rough_times, rows_table, status_of, statuses_part},
    table::{Cell, Moment, StatusText, Table, number, text},
    words::{
        Clock, are_several, counted, duration, grouped, length, loss_counts, millis, percent,
        three_digits,
    },
};
use pingfleet_store::{RunState, RunSummary, WorkerState};
use pingfleet_wire::StatusKind;

use super::{
    alerts::{Alert, alerts},
    facts::Facts,
    pipeline::{dead, pipeline, quarantine, runs},
    rates::MAX_SINGLE_WORKERS,
    workers,
};

/// Stands for a number that is not known.
pub(super) const UNKNOWN: &str = "\u{2013}";

/// One section.
#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) id: &'static str,
    pub(super) class: &'static str,
    /// Empty when there is nothing to show.
    pub(super) html: String,
}

/// The page with all fragments.
#[derive(Template)]
#[template(path = "page.html")]
pub(super) struct LivePage<'a> {
    pub(super) title: &'a str,
    pub(super) fragments: &'a [Fragment],
}

#[derive(Template)]
#[template(path = "alerts.html")]
struct AlertsPart {
    alerts: Vec<(StatusText, Alert)>,
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPart<'a> {
    run: &'a RunSummary,
    state: StatusText,
    started: Moment,
    took: String,
    report: bool,
    figures: Vec<(String, String)>,
    statuses: String,
}

#[derive(Template)]
#[template(path = "empty.html")]
struct EmptyPart<'a> {
    flags: &'a str,
    has_broker: bool,
    needs_worker: bool,
}

/// A heading with a table.
#[derive(Template)]
#[template(path = "list.html")]
pub(super) struct ListPart {
    pub(super) title: &'static str,
    pub(super) note: String,
    pub(super) is_tall: bool,
    pub(super) is_filtered: bool,
    pub(super) table: Table,
}

#[derive(Template)]
#[template(path = "stamp.html")]
struct StampPart {
    now: Moment,
}

/// The title of the tab, and all fragments.
pub(super) fn fragments(facts: &Facts) -> (String, Vec<Fragment>) {
    let clock = Clock::now();
    let fragment = |id, class, html: Result<String, PageError>| Fragment {
        id,
        class,
        html: html.unwrap_or_else(|error| {
            tracing::error!(%error, section = id, "a section of the live page cannot be drawn");
            "This section cannot be drawn; the log of the writer has the reason.".to_owned()
        }),
    };
    let parts = &facts.run.parts;
    let ready = |html: &String| Ok(html.clone());
    let fragments = vec![
        fragment("stamp", "dim s12", stamp(facts, &clock)),
        fragment("alerts", "s12", draw_alerts(facts)),
        fragment("run", "card s12", run(facts, &clock)),
        fragment("timeline", "card chart", ready(&parts.timeline)),
        fragment("histogram", "card chart", ready(&parts.histogram)),
        fragment("map", "card", ready(&parts.map)),
        fragment("subnets", "card", subnets(facts)),
        fragment("changes", "card s12", changes(facts, &clock)),
        fragment("not-up", "card s12", not_up(facts, &clock)),
        fragment("workers", "card s12", worker_list(facts)),
        fragment("rates", "card chart s12", rates(facts)),
        fragment("pipeline", "card s12", pipeline(facts)),
        fragment("quarantine", "card", quarantine(facts, &clock)),
        fragment("dead", "card", dead(facts, &clock)),
        fragment("runs", "card s12", runs(facts, &clock)),
    ];
    (title(facts), fragments)
}

pub(super) fn draw(part: &impl Template) -> Result<String, PageError> {
    part.render().map_err(|error| PageError::Draw(error.into()))
}

/// Few words, for a tab among others.
fn title(facts: &Facts) -> String {
    match &facts.current {
        Some(run) if run.state == RunState::Running => {
            let far = percent(run.settled(), run.targets);
            format!("{far} \u{b7} run {} \u{b7} pingfleet", run.run)
        }
        Some(run) => format!("run {} {} \u{b7} pingfleet", run.run, run.state.name()),
        None => "pingfleet".to_owned(),
    }
}

/// The time of the facts. None were read at first if the database cannot be read.
fn stamp(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    if facts.now_us == 0 {
        return Ok(String::new());
    }
    let utc = Clock::utc(facts.now_us);
    let now = Moment {
        local: clock.second(&utc),
        utc,
    };
    draw(&StampPart { now })
}

fn draw_alerts(facts: &Facts) -> Result<String, PageError> {
    let alerts = alerts(facts).into_iter();
    let alerts: Vec<_> = alerts.map(|alert| (alert.status.into(), alert)).collect();
    if alerts.is_empty() {
        return Ok(String::new());
    }
    draw(&AlertsPart { alerts })
}

fn run(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    let Some(run) = &facts.current else {
        if facts.error.is_some() {
            return Ok(String::new());
        }
        let has_broker = facts.transport == Some(pingfleet_store::Transport::Broker);
        let is_live = |worker| workers::state(worker, facts.heard) == Some(WorkerState::Live);
        return draw(&EmptyPart {
            flags: &facts.flags,
            has_broker,
            needs_worker: has_broker && !facts.workers.iter().any(is_live),
        });
    };
    let elapsed = duration(run.elapsed_s);
    let took = match run.state {
        RunState::Planning | RunState::Running => format!("for {elapsed}"),
        _ if run.finished_at.is_some() => format!("took {elapsed}"),
        // Nothing is stored of when its producer ended.
        _ => format!("{elapsed} ago"),
    };
    draw(&RunPart {
        run,
        state: status_of(run.state),
        started: Moment {
            local: clock.second(&run.started_at),
            utc: run.started_at.clone(),
        },
        took,
        report: run.settled() > 0,
        figures: figures(facts, run),
        statuses: statuses_part(run)?,
    })
}

/// The numbers in large letters, each with what it is.
fn figures(facts: &Facts, run: &RunSummary) -> Vec<(String, String)> {
    let (settled, answered) = (run.settled(), run.counts.answered());
    let mut figures = vec![(
        percent(settled, run.targets),
        format!(
            "done: {} of {}",
            grouped(settled),
            counted(run.targets, "target")
        ),
    )];
    if run.state == RunState::Running {
        let left = run.targets - settled;
        let (time, rate) = match facts.pace {
            Some(pace) if pace.settled_per_s > 0.0 => (
                (
                    duration(left as f64 / pace.settled_per_s),
                    "left, at this rate".to_owned(),
                ),
                (
                    three_digits(pace.settled_per_s),
                    format!("targets/s, in the last {} s", pace.over.as_secs()),
                ),
            ),
            Some(pace) => (
                (UNKNOWN.to_owned(), "left: nothing is settled".to_owned()),
                (
                    "0".to_owned(),
                    format!("targets/s: nothing settled for {} s", pace.over.as_secs()),
                ),
            ),
            None => (
                (
                    UNKNOWN.to_owned(),
                    "left: the rate is not known yet".to_owned(),
                ),
                (UNKNOWN.to_owned(), "targets/s".to_owned()),
            ),
        };
        figures.extend([time, rate]);
    }
    figures.push((
        percent(answered, settled),
        format!("answered: {} of {}", grouped(answered), grouped(settled)),
    ));
    figures.push((grouped(settled - answered), "not up".to_owned()));
    if let Some(rtt) = rough_times(&facts.run.rtt) {
        figures.push((
            format!("\u{2264} {} ms", millis(rtt.p50_ns)),
            format!("median RTT; 99 %: \u{2264} {} ms", millis(rtt.p99_ns)),
        ));
    }
    figures
}

fn subnets(facts: &Facts) -> Result<String, PageError> {
    let Some((note, table)) = &facts.run.parts.subnets else {
        return Ok(String::new());
    };
    draw(&ListPart {
        title: "Subnets",
        note: note.clone(),
        is_tall: true,
        is_filtered: false,
        table: table.clone(),
    })
}

fn not_up(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    let rows = &facts.run.last_not_up;
    let (Some(run), false) = (&facts.current, rows.is_empty()) else {
        return Ok(String::new());
    };
    let all = run.settled() - run.counts.answered();
    draw(&ListPart {
        title: "Not up in this run",
        note: format!(
            "the last {} of {}; all: pingfleet report{} {} --where 'received = 0'",
            grouped(rows.len() as i64),
            grouped(all),
            facts.flags,
            run.run
        ),
        is_tall: true,
        is_filtered: false,
        table: rows_table(rows, clock),
    })
}

/// What is not up now, the newest changes first.
fn changes(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    if facts.changes.is_empty() {
        return Ok(String::new());
    }
    let rows = facts.changes.iter().map(|found| {
        let row = &found.host.row;
        let since = found.host.changed_at_us;
        let status = StatusKind::from_name(&row.status);
        let before = found.host.last_up_us.map_or_else(
            || "never up".to_owned(),
            |up| format!("up until {}", clock.moment(up)),
        );
        vec![
            Cell::Target(row.target.clone()),
            status.map_or_else(
                || Cell::Text(row.status.clone()),
                |status| Cell::Status(status.into()),
            ),
            Cell::Text(pingfleet_report::words::why(
                &row.status,
                row.reason.as_deref(),
                row.sent,
            )),
            Cell::Time(Moment {
                local: clock.moment(since),
                utc: Clock::utc(since),
            }),
            Cell::Text(before),
        ]
    });
    draw(&ListPart {
        title: "Not up now",
        note: format!(
            "newest changes first; all: pingfleet hosts{} --sort changed",
            facts.flags
        ),
        is_tall: true,
        is_filtered: false,
        table: Table {
            caption: "Targets that are not up now",
            class: "sortable",
            columns: ["target", "status", "reason", "since", "before"]
                .map(text)
                .to_vec(),
            rows: rows.collect(),
        },
    })
}

fn worker_list(facts: &Facts) -> Result<String, PageError> {
    if facts.listed.is_empty() {
        return Ok(String::new());
    }
    let lost = facts.workers.iter().filter(|row| {
        !row.is_started_again && workers::state(row, facts.heard) == Some(WorkerState::Lost)
    });
    let lost = lost.count();
    let all = facts.workers.len();
    let which = if facts.listed.len() < all {
        let shown = grouped(facts.listed.len() as i64);
        format!("; {shown} are shown, all: pingfleet workers{}", facts.flags)
    } else {
        String::new()
    };
    let mut processes = HashMap::<_, u32>::new();
    for (row, _) in &facts.listed {
        *processes.entry((&row.worker, &row.login)).or_default() += 1;
    }
    let has_logins = are_several(facts.listed.iter().map(|(row, _)| row.login.as_deref()));
    let rows = facts.listed.iter().map(|(row, state)| {
        let name = if processes[&(&row.worker, &row.login)] > 1 {
            format!("{} (pid {})", row.worker, row.pid)
        } else {
            row.worker.clone()
        };
        let seconds = |age: std::time::Duration| {
            Cell::Number(length(age.as_micros() as i64), age.as_secs_f64())
        };
        let oldest = row
            .oldest_in_hand
            .map_or_else(|| Cell::measured(None), seconds);
        let mut cells = vec![
            Cell::Text(name),
            Cell::Status(workers::text(*state, row.is_started_again)),
            seconds(row.age),
            Cell::count(row.in_hand),
            oldest,
            Cell::measured(row.requests_per_s),
            Cell::count(row.requests_sent),
            Cell::count(row.replies),
            Cell::Text(loss_counts(&row.local_losses)),
            Cell::Text(row.group.clone()),
            Cell::Text(row.version.clone()),
        ];
        if has_logins {
            let login = row.login.clone();
            cells.insert(1, Cell::Text(login.unwrap_or_else(|| "–".to_owned())));
        }
        cells
    });
    let mut columns = vec![
        text("worker"),
        text("state"),
        number("last heartbeat"),
        number("chunks in hand"),
        number("oldest"),
        number("requests/s"),
        number("requests"),
        number("replies"),
        text("lost on its machine"),
        text("group"),
        text("version"),
    ];
    if has_logins {
        columns.insert(1, text("login"));
    }
    draw(&ListPart {
        title: "Workers",
        note: format!(
            "{}, {lost} lost{which}; rates between the last two heartbeats",
            counted(all as i64, "worker")
        ),
        is_tall: facts.listed.len() > MAX_SINGLE_WORKERS,
        is_filtered: facts.listed.len() > 10,
        table: Table {
            caption: "Workers",
            class: "sortable",
            columns,
            rows: rows.collect(),
        },
    })
}

fn rates(facts: &Facts) -> Result<String, PageError> {
    let is_many = facts.workers.len() > MAX_SINGLE_WORKERS;
    let points = facts.rates.points(is_many);
    let is_known = points
        .iter()
        .any(|(_, values)| values.iter().any(Option::is_some));
    if !is_known {
        return Ok(String::new());
    }
    let (title, key, names): (_, _, &[&str]) = if is_many {
        (
            "Requests per second of a worker",
            "line: median \u{b7} dashes: 10th and 90th percentile of the workers",
            &["median", "10 %", "90 %"],
        )
    } else {
        ("Requests per second", "", &["requests/s"])
    };
    let whose = if is_many {
        "the workers"
    } else {
        "all workers together"
    };
    Rates {
        title,
        unit: format!("{whose}, the last ten minutes; seconds"),
        key,
        names,
        points: &points,
    }
    .part()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::alerts::tests::{lost, well},
        *,
    };

    #[test]
    fn processes_of_one_name_have_their_numbers() -> Result<(), PageError> {
        let mut facts = well();
        let mut first = lost("berlin-2", Duration::from_mins(1));
        first.is_started_again = true;
        facts.listed.push((first, Some(WorkerState::Lost)));
        let alone = worker_list(&facts)?;
        assert!(
            alone.contains("berlin-2") && !alone.contains("pid"),
            "{alone}"
        );
        let mut second = lost("berlin-2", Duration::ZERO);
        second.pid = 2;
        facts.listed.push((second, Some(WorkerState::Live)));
        let both = worker_list(&facts)?;
        for text in [
            "berlin-2 (pid 1)",
            "LOST, started again",
            "berlin-2 (pid 2)",
            "live",
        ] {
            assert!(both.contains(text), "{text}: {both}");
        }
        Ok(())
    }
}
