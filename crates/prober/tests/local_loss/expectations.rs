//! Checks of outcomes.

use std::collections::BTreeMap;

use anyhow::ensure;
use pingfleet_wire::{LocalLoss, Outcome, Status};

/// Whether a target is up, or unknown with `cause` among its causes.
pub(crate) fn up_or_unknown(status: Status, cause: LocalLoss) -> bool {
    matches!(status, Status::Up) || is_unknown(status, cause)
}

/// Whether a target is unknown with `cause` among its causes.
pub(crate) fn is_unknown(status: Status, cause: LocalLoss) -> bool {
    matches!(status, Status::Unknown(causes) if causes.and(cause) == causes)
}

/// Fails if `may_be` is false for an outcome: with the first such outcome, and the number of each kind.
pub(crate) fn all(outcomes: &[Outcome], may_be: impl Fn(&Outcome) -> bool) -> anyhow::Result<()> {
    let wrong = outcomes.iter().find(|outcome| !may_be(outcome));
    let tally = tally(outcomes);
    ensure!(wrong.is_none(), "{wrong:?} of {tally:?}");
    Ok(())
}

/// Fails if an outcome is not `down`. On a busy machine it may also be `unknown` because of a stall.
pub(crate) fn all_silent(outcomes: &[Outcome]) -> anyhow::Result<()> {
    all(outcomes, |outcome| {
        outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::STALLED)
    })
}

/// The number of outcomes of each status, reason and number of attempts.
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

/// How many targets were probed more than once.
pub(crate) fn repeated(outcomes: &[Outcome]) -> usize {
    let again = outcomes.iter().filter(|outcome| outcome.attempts > 1);
    again.count()
}
