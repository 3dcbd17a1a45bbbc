//! The page of a run: what the template shows. No I/O.

use std::error::Error;

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pingfleet_store::{ReportRow, RunDetail, RunOverview, RunState, RunSummary};
use pingfleet_wire::StatusKind;
use sha2::{Digest as _, Sha256};

use crate::{
    map_section::MapSection,
    sections::{self, Chart, NotUpSection},
    sentences::{self, Advice},
    table::{Moment, StatusText, Table},
    words::{Clock, counted, duration, grouped, millis, percent},
};

/// The only script of the page.
pub(crate) const SCRIPT: &str = include_str!("../templates/script.js");

/// A page. Its `render` gives the HTML, which is well-formed XML as well.
#[derive(Template)]
#[template(path = "report.html")]
pub(crate) struct Page<'a> {
    run: i64,
    state: &'static str,
    state_status: StatusText,
    source: &'a str,
    started: Moment,
    took: String,
    seed: Option<u64>,
    /// The run whose targets it probes again.
    parent_run: Option<i64>,
    settings: Vec<String>,
    alerts: Vec<Alert>,
    figures: Vec<Figure>,
    statuses: Vec<StatusPart>,
    bar_text: String,
    to_do: Option<String>,
    changes: Option<String>,
    charts: Vec<Chart>,
    rtt: Vec<(&'static str, String)>,
    subnets: Option<Table>,
    subnets_note: String,
    slowest: Option<Table>,
    workers: Option<Table>,
    not_up: Option<NotUpSection>,
    /// All targets of a run of a few, in the place of everything else.
    few: Option<Table>,
    /// None for a run whose rows were pruned.
    map: Option<MapSection>,
    written: Moment,
    zone: String,
    version: &'static str,
    script: &'static str,
    script_hash: String,
}

/// A line on what is wrong, with the command that helps.
struct Alert {
    status: StatusText,
    advice: Advice,
}

/// A number in large letters.
struct Figure {
    value: String,
    caption: String,
}

/// A part of the bar of all targets.
pub(crate) struct StatusPart {
    pub(crate) status: StatusText,
    pub(crate) count: String,
    pub(crate) share: String,
    /// Of a bar that is 1000 wide.
    pub(crate) x: f64,
    pub(crate) width: f64,
}

impl<'a> Page<'a> {
    /// The page of a run. `few` are all of its rows, if they are a few. `flags` are those of the commands that it names.
    pub(crate) fn new(
        overview: &'a RunOverview,
        detail: &RunDetail,
        few: Option<&[ReportRow]>,
        flags: &str,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let summary = &overview.summary;
        let clock = Clock::now();
        let to_do = summary.targets - summary.settled();
        let subnets = sections::subnets(detail);
        let has_rows = summary.pruned.is_none();
        Ok(Self {
            run: summary.run,
            state: summary.state.name(),
            state_status: state_status(summary.state).into(),
            source: &summary.source,
            started: Moment::new(&summary.started_at, &clock),
            took: took(overview),
            seed: overview.seed,
            parent_run: summary.parent_run,
            settings: sentences::settings(overview),
            alerts: alerts(overview, &clock, flags),
            figures: figures(overview),
            statuses: statuses(summary),
            bar_text: bar_text(summary),
            to_do: (to_do > 0).then(|| grouped(to_do)),
            changes: sentences::changes(overview),
            charts: if has_rows {
                sections::charts(overview, detail)?
            } else {
                Vec::new()
            },
            rtt: round_trips(overview),
            subnets_note: sections::subnets_note(detail),
            subnets,
            slowest: sections::slowest(overview),
            workers: sections::workers(overview),
            not_up: sections::not_up(overview, &clock, flags),
            few: few.map(|rows| sections::few(rows, &clock)),
            map: has_rows.then(|| MapSection::new(detail)).transpose()?,
            written: Moment::new(&clock.now_utc(), &clock),
            zone: clock.zone(),
            version: env!("CARGO_PKG_VERSION"),
            script: SCRIPT,
            script_hash: STANDARD.encode(Sha256::digest(SCRIPT)),
        })
    }
}

/// What stands on the bar of all targets, for those who cannot see it.
pub(crate) fn bar_text(summary: &RunSummary) -> String {
    let counts = summary.counts.iter().filter(|(_, count)| *count > 0);
    let mut parts: Vec<_> = counts
        .map(|(status, count)| format!("{} {}", status.name(), grouped(count)))
        .collect();
    let to_do = summary.targets - summary.settled();
    if to_do > 0 {
        parts.push(format!("to do {}", grouped(to_do)));
    }
    if parts.is_empty() {
        // A run that is being planned.
        return "no target yet".to_owned();
    }
    parts.join(", ")
}

/// The status whose colour and sign a state has.
pub(crate) fn state_status(state: RunState) -> StatusKind {
    match state {
        RunState::Complete => StatusKind::Up,
        RunState::Planning | RunState::Running => StatusKind::Late,
        RunState::Incomplete => StatusKind::Unreachable,
        RunState::Cancelled => StatusKind::Unknown,
    }
}

fn took(overview: &RunOverview) -> String {
    let word = if overview.summary.finished_at.is_some() {
        "took"
    } else {
        "for"
    };
    format!("{word} {}", duration(overview.summary.elapsed_s))
}

/// What is wrong, or that nothing is.
fn alerts(overview: &RunOverview, clock: &Clock, flags: &str) -> Vec<Alert> {
    let counts = &overview.summary.counts;
    let mut alerts = Vec::new();
    let mut alert = |status: StatusKind, advice: Option<Advice>| {
        alerts.extend(advice.map(|advice| Alert {
            status: status.into(),
            advice,
        }));
    };
    alert(
        state_status(overview.summary.state),
        sentences::progress(overview, flags),
    );
    alert(StatusKind::Unknown, sentences::pruned(overview, clock));
    let cause = sentences::cause(overview, flags);
    let is_explained = cause.is_some();
    alert(StatusKind::Down, cause);
    // The rows of a pruned run cannot be listed.
    if !is_explained && overview.summary.pruned.is_none() {
        alert(StatusKind::Down, sentences::not_up(overview, flags));
        alert(StatusKind::Unknown, sentences::unknown(overview, flags));
    }
    if alerts.is_empty() && counts.total() > 0 {
        alerts.push(Alert {
            status: StatusKind::Up.into(),
            advice: sentences::all_answered(overview),
        });
    }
    alerts
}

fn figures(overview: &RunOverview) -> Vec<Figure> {
    let summary = &overview.summary;
    let settled = summary.settled();
    let answered = summary.counts.answered();
    let mut figures = vec![
        Figure {
            value: percent(answered, settled),
            caption: format!("answered: {} of {}", grouped(answered), grouped(settled)),
        },
        Figure {
            value: grouped(settled - answered),
            caption: "not up".to_owned(),
        },
    ];
    if let Some(rtt) = overview.rtt {
        figures.push(Figure {
            value: format!("{} ms", millis(rtt.p50_ns)),
            caption: format!("median RTT; 99 %: {} ms", millis(rtt.p99_ns)),
        });
    }
    if overview.requests > 0 {
        figures.push(Figure {
            value: percent(overview.requests - overview.replies, overview.requests),
            caption: format!("of {} lost", counted(overview.requests, "request")),
        });
    }
    figures.push(Figure {
        value: duration(summary.elapsed_s),
        caption: if summary.finished_at.is_some() {
            "from start to end".to_owned()
        } else {
            "since the start".to_owned()
        },
    });
    if let Some(changes) = overview.changes
        && changes.first_seen < settled
    {
        figures.push(Figure {
            value: grouped(changes.changed_not_up),
            caption: "changed and did not answer".to_owned(),
        });
    }
    figures
}

pub(crate) fn statuses(summary: &RunSummary) -> Vec<StatusPart> {
    let settled = summary.settled();
    let mut x = 0.0;
    let mut parts = Vec::new();
    for (status, count) in summary.counts.iter() {
        if count == 0 && !matches!(status, StatusKind::Up | StatusKind::Down) {
            continue;
        }
        let width = 1000.0 * count as f64 / summary.targets.max(1) as f64;
        parts.push(StatusPart {
            status: status.into(),
            count: grouped(count),
            share: percent(count, settled),
            x,
            width,
        });
        x += width;
    }
    parts
}

fn round_trips(overview: &RunOverview) -> Vec<(&'static str, String)> {
    let Some(rtt) = overview.rtt else {
        return Vec::new();
    };
    let times = [
        ("min", rtt.min_ns),
        ("median", rtt.p50_ns),
        ("95 %", rtt.p95_ns),
        ("99 %", rtt.p99_ns),
        ("max", rtt.max_ns),
    ];
    times.map(|(name, nanos)| (name, millis(nanos))).to_vec()
}
