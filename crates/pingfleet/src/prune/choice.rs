//! Which runs are pruned. No I/O.

use std::time::{Duration, SystemTime};

use pingfleet_report::words::counted;
use pingfleet_store::{RunState, RunSummary};

/// What makes a run old.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// So many newer runs.
    Keep(usize),
    /// It ended longer ago than this.
    OlderThan(Duration),
}

/// The old runs.
pub(super) struct Choice {
    /// Those that are pruned, the oldest first.
    pub(super) runs: Vec<RunSummary>,
    /// Those that are kept because they have no final state, or can be retried.
    open: Vec<RunSummary>,
    /// All runs, and those that were pruned before.
    all: usize,
    pruned_before: usize,
}

impl Choice {
    /// Chooses among all runs, the oldest first.
    pub(super) fn of(summaries: &[RunSummary], rule: Rule) -> Self {
        let now = SystemTime::now();
        let is_old = |at: usize, summary: &RunSummary| match rule {
            Rule::Keep(keep) => at + keep < summaries.len(),
            Rule::OlderThan(age) => {
                let last = summary.finished_at.as_ref().unwrap_or(&summary.started_at);
                let ended = humantime::parse_rfc3339(last);
                // A time in the future is not old.
                ended.is_ok_and(|ended| now.duration_since(ended).is_ok_and(|since| since > age))
            }
        };
        let old = summaries
            .iter()
            .enumerate()
            .filter(|(at, summary)| is_old(*at, summary) && summary.pruned.is_none())
            .map(|(_, summary)| summary.clone());
        let (runs, open) = old.partition(|summary| {
            summary.finished_at.is_some()
                && !matches!(summary.state, RunState::Planning | RunState::Running)
                && !can_be_retried(summary)
        });
        let pruned = summaries.iter().filter(|summary| summary.pruned.is_some());
        Self {
            runs,
            open,
            all: summaries.len(),
            pruned_before: pruned.count(),
        }
    }

    /// A line for each old run that is kept. `flags` are those of the commands that it names.
    pub(super) fn notes(&self, flags: &str) -> Vec<String> {
        let note = |summary: &RunSummary| {
            let run = summary.run;
            match summary.state {
                RunState::Planning | RunState::Running => {
                    format!("run {run} is in progress: it is kept")
                }
                RunState::Cancelled => format!(
                    "run {run} was cancelled, and `latest` does not have its rows yet: it is kept until `pingfleet cancel{flags} {run}` ends that"
                ),
                _ if can_be_retried(summary) => format!(
                    "run {run} has {} that can be sent again: it is kept until `pingfleet retry{flags} {run}` or `pingfleet cancel{flags} {run}`",
                    counted(summary.chunks_dead, "dead chunk")
                ),
                _ => format!(
                    "run {run} can still be resumed: it is kept until `pingfleet resume{flags} {run}` or `pingfleet cancel{flags} {run}`"
                ),
            }
        };
        self.open.iter().map(note).collect()
    }

    /// Why no run is chosen.
    pub(super) fn why_nothing(&self, rule: Rule) -> String {
        let all = counted(self.all as i64, "run");
        let before = match self.pruned_before {
            0 => String::new(),
            before => format!(", {before} of them pruned before"),
        };
        let age = match rule {
            Rule::OlderThan(age) => {
                format!(
                    ", none with rows ended over {} ago",
                    humantime::format_duration(age)
                )
            }
            Rule::Keep(_) => String::new(),
        };
        format!("the database has {all}{before}{age}")
    }
}

/// Whether `retry` can send chunks of the run again.
fn can_be_retried(summary: &RunSummary) -> bool {
    summary.chunks_dead > 0 && summary.state != RunState::Cancelled
}
