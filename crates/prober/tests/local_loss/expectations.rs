//! What may be said of targets, and what was said.

use std::collections::BTreeMap;

use anyhow::ensure;
use pingfleet_wire::{LocalLoss, Outcome, Status};

/// Whether a target is up, or unknown for a cause of which `cause` is one.
pub(crate) fn up_or_unknown(status: Status, cause: LocalLoss) -> bool {
    matches!(status, Status::Up) || is_unknown(status, cause)
}

/// Whether a target is unknown for a cause of which `cause` is one.
pub(crate) fn is_unknown(status: Status, cause: LocalLoss) -> bool {
    matches!(status, Status::Unknown(causes) if causes.and(cause) == causes)
}

/// Fails with the first outcome that is not as it may be, and with how many there are of each.
pub(crate) fn all(outcomes: &[Outcome], may_be: impl Fn(&Outcome) -> bool) -> anyhow::Result<()> {
    let wrong = outcomes.iter().find(|outcome| !may_be(outcome));
    let tally = tally(outcomes);
    ensure!(wrong.is_none(), "{wrong:?} of {tally:?}");
    Ok(())
}

/// Fails with the first that is not `down`. A busy machine may stop the prober for so long that it says so.
pub(crate) fn all_silent(outcomes: &[Outcome]) -> anyhow::Result<()> {
    all(outcomes, |outcome| {
        outcome.status == Status::Down { no_arp: false }
            || is_unknown(outcome.status, LocalLoss::STALLED)
    })
}

/// How many outcomes there are of each status, reason and number of passes.
pub(crate) fn tally(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for outcome in outcomes {
        let Outcome {
            status, attempts, ..
        } = outcome;
        let reason = status.reason().unwrap_or_default();
        let key = format!("{} {reason} x{attempts}", status.name());
        *tally.entry(key).or_default() += 1;
    }
    tally
}

/// How many were probed more than once.
pub(crate) fn repeated(outcomes: &[Outcome]) -> usize {
    let again = outcomes.iter().filter(|outcome| outcome.attempts > 1);
    again.count()
}
