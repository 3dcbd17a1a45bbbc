//! The page of the difference of two runs: what the template shows. No I/O but the temporary files of the difference.

use std::{io, time::Duration};

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pingfleet_store::{ChangeKind, FoundTarget, PlannedProbing, RunDiff, RunSummary, TargetChange};
use pingfleet_wire::StatusKind;
use sha2::{Digest as _, Sha256};

use crate::{
    changes,
    page::{SCRIPT, state_status},
    table::{Cell, Moment, StatusText, Table, number, text},
    words::{Clock, counted, grouped, wait, why},
};

/// Changes in the list of targets, and whole subnets, at most.
const MAX_CHANGES: usize = 2000;
const MAX_SUBNETS: usize = 1000;

/// A page. Its `render` gives the HTML, which is well-formed XML as well.
#[derive(Template)]
#[template(path = "diff.html")]
pub(crate) struct DiffPage<'a> {
    runs: [RunHead; 2],
    /// That of both runs, or first that of the first one.
    sources: Vec<&'a str>,
    nothing: bool,
    left_out: Vec<String>,
    in_both: String,
    total: String,
    unknown: String,
    /// By how much a round-trip time must differ.
    rtt_factor: f64,
    rtt_min: String,
    kinds: Vec<KindCount>,
    settings: Option<Table>,
    /// Which settings are not compared.
    unread_settings: Option<String>,
    subnets: Option<Section>,
    changes: Option<Section>,
    written: Moment,
    zone: String,
    version: &'static str,
    script: &'static str,
    script_hash: String,
}

/// One of the two runs.
struct RunHead {
    run: i64,
    state: StatusText,
    started: Moment,
}

/// How many changes of a kind there are.
struct KindCount {
    change: StatusText,
    /// For the element with the number.
    id: &'static str,
    count: String,
}

/// A table that may show a part of its rows only.
struct Section {
    note: String,
    /// The command that lists all, if not all are here.
    command: Option<String>,
    table: Table,
}

impl<'a> DiffPage<'a> {
    /// The page. `command` lists all changes.
    pub(crate) fn new(
        diff: &'a mut RunDiff,
        probing: &[Option<PlannedProbing>; 2],
        command: &str,
    ) -> io::Result<Self> {
        let clock = Clock::now();
        let listed = first_changes(diff)?;
        let diff: &'a RunDiff = diff;
        let kinds = ChangeKind::ALL
            .into_iter()
            .filter(|kind| diff.counts[*kind as usize] > 0);
        Ok(Self {
            runs: [&diff.before, &diff.after].map(|run| RunHead::new(run, &clock)),
            sources: changes::sources(diff),
            nothing: diff.total() == 0,
            left_out: changes::left_out(diff).collect(),
            in_both: grouped(diff.in_both),
            total: grouped(diff.total()),
            unknown: grouped(diff.unknown),
            rtt_factor: diff.limits.rtt_factor,
            rtt_min: wait(Duration::from_nanos(diff.limits.rtt_min_ns.cast_unsigned())),
            kinds: kinds
                .map(|kind| KindCount {
                    change: kind.into(),
                    id: kind.name(),
                    count: grouped(diff.counts[kind as usize]),
                })
                .collect(),
            settings: settings(diff, probing),
            unread_settings: changes::unread_settings(diff, probing),
            subnets: subnets(diff, command),
            changes: targets(diff, &listed, command),
            written: Moment::new(&clock.now_utc(), &clock),
            zone: clock.zone(),
            version: env!("CARGO_PKG_VERSION"),
            script: SCRIPT,
            script_hash: STANDARD.encode(Sha256::digest(SCRIPT)),
        })
    }
}

impl RunHead {
    fn new(summary: &RunSummary, clock: &Clock) -> Self {
        Self {
            run: summary.run,
            state: StatusText {
                word: summary.state.name(),
                ..StatusText::from(state_status(summary.state))
            },
            started: Moment::new(&summary.started_at, clock),
        }
    }
}

/// The first changes that are listed by their target, kind by kind. Each kind has an equal share of the list, and what the
/// small ones leave goes to the large ones.
fn first_changes(diff: &mut RunDiff) -> io::Result<Vec<TargetChange>> {
    let shares = shares(ChangeKind::ALL.map(|kind| changes::single(diff, kind) as usize));
    let mut first = ChangeKind::ALL.map(|_| Vec::new());
    for change in diff.changes()? {
        let change = change?;
        let at = change.kind as usize;
        if first[at].len() < shares[at] && changes::is_listed(&change, change.kind) {
            first[at].push(change);
        }
    }
    Ok(first.into_iter().flatten().collect())
}

/// How many changes of each kind are listed, of so many that there are: at most [`MAX_CHANGES`] in all.
fn shares<const N: usize>(counts: [usize; N]) -> [usize; N] {
    let kinds = counts.iter().filter(|count| **count > 0).count();
    let share = MAX_CHANGES / kinds.max(1);
    let taken: usize = counts.iter().map(|count| (*count).min(share)).sum();
    let mut spare = MAX_CHANGES - taken;
    counts.map(|count| {
        let more = count.saturating_sub(share).min(spare);
        spare -= more;
        count.min(share) + more
    })
}

fn settings(diff: &RunDiff, probing: &[Option<PlannedProbing>; 2]) -> Option<Table> {
    let differing = changes::settings(diff, probing);
    let rows = differing.iter().map(|(name, [before, after])| {
        let name = Cell::Text((*name).to_owned());
        vec![name, Cell::Text(before.clone()), Cell::Text(after.clone())]
    });
    (!differing.is_empty()).then(|| Table {
        caption: "What differs in how the runs were made",
        class: "",
        columns: vec![text("setting"), text("first run"), text("second run")],
        rows: rows.collect(),
    })
}

/// A section with a part of `all` rows.
fn section(all: i64, noun: &str, command: &str, table: Table) -> Option<Section> {
    let shown = table.rows.len() as i64;
    let is_part = shown < all;
    (shown > 0).then(|| Section {
        note: if is_part {
            format!("{} of {}", grouped(shown), grouped(all))
        } else {
            counted(all, noun)
        },
        command: is_part.then(|| command.to_owned()),
        table,
    })
}

fn subnets(diff: &RunDiff, command: &str) -> Option<Section> {
    let rows = diff.whole_subnets.iter().take(MAX_SUBNETS).map(|whole| {
        vec![
            Cell::Target(whole.subnet.to_string()),
            Cell::Status(whole.kind.into()),
            Cell::count(whole.targets),
        ]
    });
    let table = Table {
        caption: "Subnets that changed as a whole",
        class: "sortable",
        columns: vec![text("subnet"), text("change"), number("targets")],
        rows: rows.collect(),
    };
    section(diff.whole_subnets.len() as i64, "subnet", command, table)
}

fn targets(diff: &RunDiff, listed: &[TargetChange], command: &str) -> Option<Section> {
    let all = ChangeKind::ALL.map(|kind| changes::single(diff, kind));
    let table = Table {
        caption: "Targets that changed",
        class: "sortable searchable",
        columns: vec![
            text("target"),
            text("change"),
            text("before"),
            text("after"),
            number("RTT before, ms"),
            number("RTT after, ms"),
            text("detail"),
        ],
        rows: listed.iter().map(cells).collect(),
    };
    section(all.iter().sum(), "change", command, table)
}

fn cells(change: &TargetChange) -> Vec<Cell> {
    let (before, after) = (change.before.as_ref(), change.after.as_ref());
    let status = |found: Option<&FoundTarget>| {
        found.map_or_else(
            || Cell::Text("–".to_owned()),
            |found| Cell::Status(found.status.into()),
        )
    };
    let rtt = |found: Option<&FoundTarget>| {
        let nanos = found.and_then(|found| found.rtt_avg_ns);
        Cell::measured(nanos.map(|nanos| nanos as f64 / 1_000_000.0))
    };
    let address = |found: Option<&FoundTarget>| found.and_then(|found| found.address.clone());
    let (old, new) = (address(before), address(after));
    let target = match (&old, &new) {
        (Some(old), Some(new)) if old != new => change.target.clone(),
        _ => match new.as_ref().or(old.as_ref()) {
            Some(address) if *address != change.target => format!("{} ({address})", change.target),
            _ => change.target.clone(),
        },
    };
    let silent = after.or(before).filter(|found| found.rtt_avg_ns.is_none());
    let detail = match (change.kind, silent) {
        (ChangeKind::OtherAddress, _) => {
            let text = |address: Option<String>| address.unwrap_or_else(|| "–".to_owned());
            format!("{} → {}", text(old), text(new))
        }
        (_, Some(found)) => why(found.status.name(), found.reason.as_deref(), 0),
        (_, None) => String::new(),
    };
    vec![
        Cell::Target(target),
        Cell::Status(change.kind.into()),
        status(before),
        status(after),
        rtt(before),
        rtt(after),
        Cell::Text(detail),
    ]
}

/// A kind of change with its sign, its words and the class of a status.
impl From<ChangeKind> for StatusText {
    fn from(kind: ChangeKind) -> Self {
        Self {
            sign: changes::sign(kind),
            word: changes::title(kind),
            name: match kind {
                ChangeKind::StoppedAnswering => StatusKind::Down.name(),
                ChangeKind::AnswersAgain => StatusKind::Up.name(),
                ChangeKind::OtherStatus | ChangeKind::OtherAddress => StatusKind::Late.name(),
                ChangeKind::Disappeared | ChangeKind::Slower => StatusKind::Unreachable.name(),
                ChangeKind::Appeared | ChangeKind::Faster => "",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_share_of_the_list() {
        assert_eq!(shares([20_000, 30_000, 10, 0]), [1324, 666, 10, 0]);
        assert_eq!(shares([0, 5000]), [0, MAX_CHANGES]);
        assert_eq!(shares([3, 4]), [3, 4]);
        assert_eq!(shares([0, 0]), [0, 0]);
    }
}
