//! The JSON API, version 1. docs/live-page.md describes its fields.

use pingfleet_report::json::run_fields;
use pingfleet_store::{RunSummary, WorkerRow, WorkerState};
use serde_json::{Map, Value, json};

use super::{facts::Facts, queues::Alarm, rates::Pace, workers};

/// The most runs in one answer.
const MAX_RUNS: usize = 1000;

/// The runs of an answer, if it names no number.
const DEFAULT_RUNS: usize = 100;

/// What the API answers from.
#[derive(Debug)]
pub(super) struct ApiFacts {
    runs: Vec<RunSummary>,
    /// How fast the targets of the current run are settled.
    pace: Option<(i64, Pace)>,
    workers: Value,
    queues: Value,
}

impl ApiFacts {
    pub(super) fn new(facts: &Facts) -> Self {
        let current = facts.current.iter();
        let others = facts.runs.iter().filter(|run| {
            let current = facts.current.as_ref();
            current.is_none_or(|current| current.run != run.run)
        });
        let mut runs: Vec<_> = current.chain(others).cloned().collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.run));
        let current = facts.current.as_ref();
        Self {
            runs,
            pace: current.and_then(|run| Some((run.run, facts.pace?))),
            workers: facts.workers.iter().map(|row| worker(row, facts)).collect(),
            queues: queues(facts),
        }
    }

    /// The runs before `before`, the newest first.
    pub(super) fn runs(&self, query: &str) -> Result<Value, String> {
        let mut limit = DEFAULT_RUNS;
        let mut before = i64::MAX;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let number = |text: &str| {
                let number = text.parse::<u32>().ok().filter(|number| *number > 0);
                number.ok_or_else(|| format!("{pair} is not a number from 1"))
            };
            match pair.split_once('=') {
                Some(("limit", text)) => limit = (number(text)? as usize).min(MAX_RUNS),
                Some(("before", text)) => before = number(text)?.into(),
                _ => return Err(format!("{pair} is neither limit=N nor before=RUN")),
            }
        }
        let runs = self.runs.iter().filter(|run| run.run < before);
        Ok(runs.take(limit).map(run).collect())
    }

    /// How fast the targets of a run are settled, if that is known.
    pub(super) fn pace(&self, run: i64) -> Option<Pace> {
        let (current, pace) = self.pace?;
        (current == run).then_some(pace)
    }

    /// The workers.
    pub(super) fn workers(&self) -> &Value {
        &self.workers
    }

    /// The queues and the writer.
    pub(super) fn queues(&self) -> &Value {
        &self.queues
    }
}

fn run(summary: &RunSummary) -> Value {
    let fields = run_fields(summary).map(|(name, value)| (name.to_owned(), value));
    Value::Object(fields.collect())
}

fn worker(row: &WorkerRow, facts: &Facts) -> Value {
    let losses = row.local_losses.named();
    let losses: Map<String, Value> = losses
        .map(|(cause, count)| (cause.to_owned(), json!(count)))
        .collect();
    let state = match workers::state(row, facts.heard) {
        Some(WorkerState::Starting) => "starting",
        Some(WorkerState::Live) => "live",
        Some(WorkerState::Draining) => "draining",
        Some(WorkerState::Lost) => "lost",
        None => "not_heard",
    };
    json!({
        "worker": row.worker,
        "login": row.login,
        "pid": row.pid,
        "version": row.version,
        "group": row.group,
        "state": state,
        "started_again": row.is_started_again,
        "heartbeat_age_s": row.age.as_secs_f64(),
        "in_hand": row.in_hand,
        "oldest_in_hand_s": row.oldest_in_hand.map(|age| age.as_secs_f64()),
        "requests_per_s": row.requests_per_s,
        "requests": row.requests_sent,
        "replies": row.replies,
        "chunks_done": row.chunks_done,
        "targets_done": row.targets_done,
        "threads": row.threads,
        "prefetch": row.prefetch,
        "rate_limit_per_s": row.rate,
        "local_losses": losses,
    })
}

fn queues(facts: &Facts) -> Value {
    let depths = facts.queues.depths.iter().map(|(kind, depth)| {
        json!({ "queue": kind.name(), "ready": depth.ready, "consumers": depth.consumers })
    });
    let writer = &facts.writer;
    json!({
        "queues": depths.collect::<Vec<_>>(),
        "broker_error": facts.queues.problem.as_ref().map(|problem| &problem.text),
        "broker_alarm": facts.queues.alarm.reason(),
        "broker_alarm_known": !matches!(facts.queues.alarm, Alarm::NotKnown(_)),
        "writer": {
            "state": writer.state.name(),
            "rows": writer.rows,
            "applied": writer.applied,
            "duplicates": writer.duplicates,
            "quarantined": writer.quarantined,
            "last_commit_rows": writer.last_commit.rows,
            "last_commit_s": writer.last_commit.duration.as_secs_f64(),
            "lag_s": writer.lag(tokio::time::Instant::now()).as_secs_f64(),
        },
        "quarantine": facts.quarantine.total,
        "dead_chunks": facts.dead.total,
    })
}
