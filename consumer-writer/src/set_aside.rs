//! What is not applied, and what the log says about it: at most once a minute, with counts.

use std::time::Duration;

use pingfleet_store::{Applied, MAX_WORKERS_OF_LOGIN, RemovedChunks, Sender};
use tokio::time::Instant;

use crate::{foreign::ForeignMessages, warnings::Counts};

/// How often the writer repeats a warning about the broker.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// What is not applied, over all sessions of the writer, with what the log says about it.
pub(crate) struct SetAside {
    pub(crate) foreign: ForeignMessages,
    /// Messages that were set aside, by their database.
    pub(crate) for_others: Counts,
    /// Messages that were refused, by their reason.
    pub(crate) refused: Counts,
    /// Heartbeats that were refused, by their reason.
    pub(crate) refused_heartbeats: Counts,
    /// Results that differ from those stored before, by the workers of both.
    contradicting: Counts,
    stall_warned: Option<Instant>,
    policy_warned: Option<Instant>,
    rejection_warned: Option<Instant>,
}

impl SetAside {
    pub(crate) fn new(foreign: ForeignMessages) -> Self {
        Self {
            foreign,
            for_others: Counts::default(),
            refused: Counts::default(),
            refused_heartbeats: Counts::default(),
            contradicting: Counts::default(),
            stall_warned: None,
            policy_warned: None,
            rejection_warned: None,
        }
    }

    /// Counts what a batch did not apply, and warns of chunks that were removed from the queue of work.
    pub(crate) fn count(&mut self, applied: &Applied) {
        for ((reason, login), count) in &applied.reasons {
            self.refused.add(of_login(reason, login.as_deref()), *count);
        }
        if applied.heartbeats_of_too_many > 0 {
            let name = format!("of a login with more than {MAX_WORKERS_OF_LOGIN} workers");
            self.refused_heartbeats
                .add(name, applied.heartbeats_of_too_many);
        }
        for (found, count) in &applied.contradictions {
            let has_logins = found.later_from.login != found.stored_from.login;
            let named = |sender: &Sender| {
                let name = if has_logins {
                    sender.to_string()
                } else {
                    sender.worker.clone()
                };
                name.escape_debug().to_string()
            };
            let [later, stored] = [&found.later_from, &found.stored_from].map(named);
            let name = format!("of {later} after {stored} in run {}", found.run);
            self.contradicting.add(name, *count);
        }
        self.warn_of_removed(applied.removed);
    }

    /// Warns of what was counted since the last warning, at most once a minute and when the writer stops.
    pub(crate) fn warn(&mut self, ours: impl std::fmt::Display, is_stopping: bool) {
        if let Some(counts) = self.for_others.take_due(is_stopping) {
            tracing::warn!(
                messages = counts.total(),
                databases = %counts,
                %ours,
                "results for other databases are set aside in the queue `foreign`: `pingfleet broker foreign` lists them, \
                 and returns them with --return; if this writer was started on the wrong database, stop it first"
            );
        }
        if let Some(counts) = self.refused.take_due(is_stopping) {
            tracing::warn!(
                messages = counts.total(),
                reasons = %counts,
                "messages were refused: `pingfleet quarantine` lists them, and their chunks still wait for their results"
            );
        }
        if let Some(counts) = self.refused_heartbeats.take_due(is_stopping) {
            tracing::warn!(
                heartbeats = counts.total(),
                reasons = %counts,
                "heartbeats were refused: `pingfleet workers` does not list who sent them"
            );
        }
        if let Some(counts) = self.contradicting.take_due(is_stopping) {
            tracing::warn!(
                results = counts.total(),
                workers = %counts,
                "results differ from those stored before, which stay: a chunk that is delivered again is probed again, and a target \
                 can have another status then; if it goes on, compare what these workers reach"
            );
        }
        let stalled = self.foreign.stalled();
        if stalled > 0 && is_due(&mut self.stall_warned) {
            tracing::warn!(
                messages = stalled,
                "the broker confirms no result for another database, so they stay in their queues, and results of this database \
                 wait behind them: `pingfleet doctor` says whether the broker has an alarm"
            );
        }
    }

    /// Warns, at most once a minute, that chunks were removed from the queue of work.
    fn warn_of_removed(&mut self, removed: RemovedChunks) {
        if removed.by_rejection > 0 && is_due(&mut self.rejection_warned) {
            tracing::warn!(
                chunks = removed.by_rejection,
                "a consumer of the queue of work that is no ping-worker rejects chunks, and they are published again: `rabbitmqctl \
                 list_consumers` names its channel, and `pingfleet broker remove-worker` removes a login"
            );
        }
        if removed.by_policy > 0 && is_due(&mut self.policy_warned) {
            tracing::warn!(
                chunks = removed.by_policy,
                "a policy of the broker (message-ttl or max-length) removes chunks from the queue of work, and they are published \
                 again: `rabbitmqctl list_policies` names it"
            );
        }
    }
}

/// What is counted, with the login that sent it, which is text from the broker.
pub(crate) fn of_login(what: &str, login: Option<&str>) -> String {
    login.map_or_else(
        || what.to_owned(),
        |login| format!("{what} (login {})", login.escape_debug()),
    )
}

/// Whether a warning may be repeated. Then it counts as given now.
fn is_due(warned: &mut Option<Instant>) -> bool {
    let is_due = warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL);
    if is_due {
        *warned = Some(Instant::now());
    }
    is_due
}
