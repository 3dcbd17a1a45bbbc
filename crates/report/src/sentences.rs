//! What the screen and the page say of a run in sentences. No I/O.

use std::fmt;

use pingfleet_store::{RunOverview, RunState, RunSummary, SubnetNotUp, TargetHistory};
use pingfleet_wire::StatusKind;

use crate::words::{Clock, counted, grouped, local_losses, percent, wait, why};

/// A sentence, and the command that helps.
#[derive(Debug)]
pub struct Advice {
    /// The sentence.
    pub text: String,
    /// The command, as it can be typed.
    pub command: Option<String>,
}

impl Advice {
    fn new(text: String) -> Self {
        Self {
            text,
            command: None,
        }
    }

    fn run(text: String, command: String) -> Self {
        Self {
            text,
            command: Some(command),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.command {
            Some(command) => write!(f, " {command}"),
            None => Ok(()),
        }
    }
}

/// How the targets are probed, and how many they are.
#[must_use]
pub fn settings(overview: &RunOverview) -> Vec<String> {
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
    how.push(counted(overview.summary.targets, "target"));
    how
}

/// For a run that is not complete: how far it is, and what to do.
#[must_use]
pub fn progress(overview: &RunOverview, flags: &str) -> Option<Advice> {
    let summary = &overview.summary;
    let RunSummary { run, targets, .. } = *summary;
    let settled = summary.settled();
    let far = format!(
        "{} of {} are settled ({})",
        grouped(settled),
        counted(targets, "target"),
        percent(settled, targets)
    );
    let advice = match summary.state {
        RunState::Complete => return None,
        RunState::Planning => {
            Advice::new("Its targets are being planned; nothing is probed yet.".to_owned())
        }
        RunState::Running => {
            Advice::new(format!("In progress: {far}. This is what is known so far."))
        }
        RunState::Cancelled => Advice::new(format!("It was cancelled: {far}.")),
        // No command sends its chunks again.
        RunState::Incomplete if summary.pruned.is_some() => {
            Advice::new(format!("It is incomplete: {far}."))
        }
        RunState::Incomplete if summary.chunks_dead > 0 => Advice::run(
            format!(
                "It is incomplete: {far}. {} came back from workers too often. Send again:",
                counted(summary.chunks_dead, "chunk")
            ),
            format!("pingfleet retry{flags} {run}"),
        ),
        RunState::Incomplete => Advice::run(
            format!("It is incomplete: {far}. Continue it:"),
            format!("pingfleet resume{flags} {run}"),
        ),
    };
    Some(advice)
}

/// For a run whose rows were removed: where they are.
#[must_use]
pub fn pruned(overview: &RunOverview, clock: &Clock) -> Option<Advice> {
    let pruned = overview.summary.pruned.as_ref()?;
    let place = match &pruned.archive {
        Some(file) => format!("They are in {file}"),
        None => "They were not archived.".to_owned(),
    };
    let when = clock.second(&pruned.pruned_at);
    Some(Advice::new(format!(
        "Its rows were pruned at {when}, so only its counts are known here. {place}"
    )))
}

/// When no target is up: the likely cause on this machine, from the most frequent reason.
#[must_use]
pub fn cause(overview: &RunOverview, flags: &str) -> Option<Advice> {
    let settled = overview.summary.settled();
    let (status, reason, count) = overview.reasons.first()?;
    if overview.summary.counts.answered() > 0 {
        return None;
    }
    let reason = reason.as_deref();
    let share = if *count == settled {
        String::new()
    } else {
        format!(" ({} of {})", grouped(*count), grouped(settled))
    };
    let (likely, needs_doctor) = likely_cause(status, reason);
    let text = format!("No target is up. Likely cause{share}: {likely}");
    Some(if needs_doctor {
        Advice::run(text, format!("pingfleet doctor{flags}"))
    } else {
        Advice::new(text)
    })
}

/// The likely cause, and whether its sentence ends with the command `doctor`.
fn likely_cause(status: &str, reason: Option<&str>) -> (String, bool) {
    match status {
        "send_failed" => (
            format!(
                "this machine cannot send to them: {}. Check its routes and its firewall, and run:",
                why(status, reason, 0)
            ),
            true,
        ),
        "unknown" => (
            format!(
                "the replies were lost on the machine that probes: {}. Run there:",
                local_losses(reason.unwrap_or_default())
            ),
            true,
        ),
        "dns_failed" => (
            format!(
                "name resolution: {}. Check the names and the name servers of the machine that probes.",
                why(status, reason, 0)
            ),
            false,
        ),
        "unreachable" => (
            format!(
                "a router has no way to them: {}. Check the routes and the VPN of the machine that probes.",
                why(status, reason, 0)
            ),
            false,
        ),
        _ if reason == Some("no_arp") => (
            "they are on a network of this machine, and nobody there answers ARP. Check the cable, the VLAN and the addresses."
                .to_owned(),
            false,
        ),
        _ => (
            "a firewall on this machine or on the way drops ping, or this machine is not connected. Ping one of them by hand, and run:"
                .to_owned(),
            true,
        ),
    }
}

/// Why targets are `unknown`, and where.
#[must_use]
pub fn unknown(overview: &RunOverview, flags: &str) -> Option<Advice> {
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
        return None;
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
    Some(Advice::run(
        format!(
            "Unknown: the replies may have been lost on {place}: {}. Run there:",
            causes.join(", ")
        ),
        format!("pingfleet doctor{flags}"),
    ))
}

/// How many targets are not up, and where most of a subnet is not.
#[must_use]
pub fn not_up(overview: &RunOverview, flags: &str) -> Option<Advice> {
    let counts = &overview.summary.counts;
    let not_up = counts.total() - counts.answered();
    if not_up == 0 {
        return None;
    }
    let worst = overview
        .worst_subnets
        .first()
        .map_or_else(String::new, |worst| {
            format!(
                " The worst subnet is {}: {} of {}.",
                worst.subnet,
                grouped(worst.not_up),
                grouped(worst.targets)
            )
        });
    let verb = if not_up == 1 { "is" } else { "are" };
    Some(Advice::run(
        format!(
            "{} of {} {verb} not up.{worst} List them:",
            grouped(not_up),
            counted(counts.total(), "target")
        ),
        all_not_up(overview, flags),
    ))
}

/// The command that lists all targets that are not up.
#[must_use]
pub fn all_not_up(overview: &RunOverview, flags: &str) -> String {
    let run = overview.summary.run;
    format!("pingfleet report{flags} {run} --where 'received = 0'")
}

/// What changed since the targets were probed before.
#[must_use]
pub fn changes(overview: &RunOverview) -> Option<String> {
    let changes = overview.changes?;
    if changes.first_seen == overview.summary.settled() {
        return None;
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
    Some(format!(
        "Since the targets were probed before: {}.",
        parts.join(", ")
    ))
}

/// How the targets of a subnet in which none answered did not answer.
#[must_use]
pub fn subnet_not_up(found: &SubnetNotUp) -> String {
    let counts = found.counts.iter().filter(|(_, count)| *count > 0);
    let counts = counts.map(|(status, count)| format!("{} {}", grouped(count), status.name()));
    let what = found.same.as_ref().map_or_else(
        || counts.collect::<Vec<_>>().join(", "),
        |same| why(same.status.name(), same.reason.as_deref(), same.sent),
    );
    format!("all {}: {what}", counted(found.counts.total(), "target"))
}

/// That nothing is wrong.
#[must_use]
pub fn all_answered(overview: &RunOverview) -> Advice {
    let counts = &overview.summary.counts;
    Advice::new(match (counts.total(), counts[StatusKind::Late]) {
        (1, 0) => "The target answered in time.".to_owned(),
        (total, 0) => format!("All {} answered in time.", counted(total, "target")),
        (total, late) => format!(
            "All {} answered, {} of them late.",
            counted(total, "target"),
            grouped(late)
        ),
    })
}

/// Since when a target or a subnet does not answer. `time` writes microseconds since 1970-01-01 UTC.
#[must_use]
pub fn since(history: Option<TargetHistory>, time: impl Fn(i64) -> String) -> String {
    let Some(history) = history else {
        return String::new();
    };
    let TargetHistory {
        probed_at_us,
        last_up_us,
        first_seen_us,
        ..
    } = history;
    match last_up_us {
        Some(last_up) => format!("up until {}", time(last_up)),
        None if first_seen_us == probed_at_us => "new".to_owned(),
        None => format!("never up since {}", time(first_seen_us)),
    }
}
