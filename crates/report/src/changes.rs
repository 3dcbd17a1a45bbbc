//! What `diff` says of the changes between two runs, for the terminal and for the page. No I/O.

use pingfleet_store::{ChangeKind, PlannedProbing, RunDiff, RunSummary, TargetChange};
use pingfleet_wire::Family;

use crate::words::{counted, grouped, wait};

/// A kind of change as a heading.
#[must_use]
pub fn title(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::StoppedAnswering => "Stopped answering",
        ChangeKind::AnswersAgain => "Answers again",
        ChangeKind::OtherStatus => "Other status",
        ChangeKind::Appeared => "Appeared",
        ChangeKind::Disappeared => "Disappeared",
        ChangeKind::OtherAddress => "Other address",
        ChangeKind::Slower => "RTT longer",
        ChangeKind::Faster => "RTT shorter",
    }
}

/// The same inside of a sentence.
#[must_use]
pub fn phrase(kind: ChangeKind) -> String {
    let title = title(kind);
    if title.starts_with("RTT") {
        title.to_owned()
    } else {
        title.to_lowercase()
    }
}

/// The sign of a kind, which stands before its words.
#[must_use]
pub fn sign(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::StoppedAnswering => "✕",
        ChangeKind::AnswersAgain => "●",
        ChangeKind::OtherStatus => "◐",
        ChangeKind::Appeared => "+",
        ChangeKind::Disappeared => "−",
        ChangeKind::OtherAddress => "≠",
        ChangeKind::Slower => "↑",
        ChangeKind::Faster => "↓",
    }
}

/// What was not compared.
pub fn left_out(diff: &RunDiff) -> impl Iterator<Item = String> + use<> {
    let unknown = match diff.unknown {
        0 => None,
        1 => Some("1 target is".to_owned()),
        count => Some(format!("{} targets are", grouped(count))),
    };
    let unknown = unknown.map(|who| {
        format!("{who} unknown in one of the runs, so no change is claimed there: the answer may have been lost where it was probed.")
    });
    let not_probed = (diff.not_probed > 0).then(|| {
        format!(
            "{} of one run may not have been probed in the other one, which is not complete: no change is claimed there.",
            counted(diff.not_probed, "target")
        )
    });
    unknown.into_iter().chain(not_probed)
}

/// Whether a change is listed by its target, and not by its subnet.
#[must_use]
pub fn is_listed(change: &TargetChange, kind: ChangeKind) -> bool {
    change.kind == kind && !change.is_whole_subnet
}

/// How many changes of a kind are listed by their targets.
#[must_use]
pub fn single(diff: &RunDiff, kind: ChangeKind) -> i64 {
    let whole = diff.whole_subnets.iter().filter(|whole| whole.kind == kind);
    diff.counts[kind as usize] - whole.map(|whole| whole.targets).sum::<i64>()
}

/// The source of both runs, or those of the first and the second one.
#[must_use]
pub fn sources(diff: &RunDiff) -> Vec<&str> {
    let mut sources = vec![diff.before.source.as_str(), &diff.after.source];
    sources.dedup();
    sources
}

/// That settings cannot be compared because those of a run cannot be read.
pub(crate) fn unread_settings(
    diff: &RunDiff,
    probing: &[Option<PlannedProbing>; 2],
) -> Option<String> {
    let (before, after) = (diff.before.run, diff.after.run);
    let who = match probing {
        [Some(_), Some(_)] => return None,
        [None, Some(_)] => format!("run {before}"),
        [Some(_), None] => format!("run {after}"),
        [None, None] => format!("runs {before} and {after}"),
    };
    Some(format!(
        "How the targets of {who} were probed cannot be read, because another version of pingfleet wrote it: these settings are not compared."
    ))
}

/// What differs in how the two runs were made: what it is, and its value in each of them.
pub(crate) fn settings(
    diff: &RunDiff,
    probing: &[Option<PlannedProbing>; 2],
) -> Vec<(&'static str, [String; 2])> {
    let mut values: Vec<(&'static str, [String; 2])> = Vec::new();
    let run = |value: fn(&RunSummary) -> String| [value(&diff.before), value(&diff.after)];
    values.push(("source", run(|run| run.source.clone())));
    values.push(("state", run(|run| run.state.name().to_owned())));
    values.push(("targets", run(|run| grouped(run.targets))));
    values.push(("transport", run(|run| run.transport.name().to_owned())));
    if let [Some(before), Some(after)] = probing {
        let (before, after) = (planned(before), planned(after));
        let both = before.into_iter().zip(after);
        values.extend(both.map(|((name, before), (_, after))| (name, [before, after])));
    }
    values.retain(|(_, [before, after])| before != after);
    values
}

/// The settings of a run with their units.
fn planned(planned: &PlannedProbing) -> [(&'static str, String); 13] {
    let probing = &planned.probing;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    [
        ("requests a target", probing.count.to_string()),
        ("time between requests", wait(probing.interval)),
        ("timeout", wait(probing.timeout)),
        ("retries", probing.retries.to_string()),
        (
            "factor of the timeout of a retry",
            (f64::from(probing.backoff_permille) / 1000.0).to_string(),
        ),
        ("wait for late replies", wait(probing.late_window)),
        ("bytes of payload", probing.size.to_string()),
        (
            "time to live",
            or_none(probing.ttl.map(|ttl| ttl.to_string())),
        ),
        (
            "source address",
            or_none(probing.source.map(|source| source.to_string())),
        ),
        ("interface", or_none(probing.interface.clone())),
        (
            "address family",
            match probing.family {
                Family::Any => "any",
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            }
            .to_owned(),
        ),
        (
            "requests/s a worker",
            probing
                .rate
                .map_or_else(|| "no limit".to_owned(), |rate| grouped(rate.get().into())),
        ),
        ("targets of a chunk", grouped(planned.chunk_size as i64)),
    ]
}
