//! One run in the JSON API: its fields in the list of runs, and what the page shows of it. docs/live-page.md describes the
//! fields.

use pingfleet_report::{json::run_fields, parts::rough_times};
use pingfleet_store::{
    Reader, ReportRow, RttBin, RunProgress, RunState, RunSummary, StatusCounts, StoreError,
    SubnetStatuses, TargetRtt, TimeBin,
};
use serde_json::{Map, Value, json};

use super::rates::Pace;

/// The most subnets in an answer: those with the largest share that is not up.
const MAX_SUBNETS: usize = 100;

/// What is known of a run. Its cost does not grow with the run: it reads the counters that the writer keeps.
///
/// # Errors
/// [`StoreError::NoSuchRun`], [`StoreError::Sqlite`].
pub(super) fn read(
    reader: &Reader,
    run: i64,
) -> Result<(RunSummary, Option<RunProgress>), StoreError> {
    let summary = reader.summary(run)?;
    let progress = match reader.progress(run) {
        // The writer removes them with its next commit.
        Err(StoreError::BadProgress { .. }) => None,
        found => found?,
    };
    Ok((summary, progress))
}

/// The run as an object. `pace` is how fast its targets are settled, if that is known.
pub(super) fn run_object(
    summary: &RunSummary,
    progress: Option<&RunProgress>,
    pace: Option<Pace>,
) -> Value {
    let pace = pace.filter(|_| summary.state == RunState::Running);
    let left = pace
        .filter(|pace| pace.settled_per_s > 0.0)
        .map(|pace| (summary.targets - summary.settled()) as f64 / pace.settled_per_s);
    let detail = progress.map(|progress| &progress.detail);
    let rtt = detail.and_then(|detail| rough_times(&detail.rtt));
    let list = |found: Option<Vec<Value>>| found.map_or(Value::Null, Value::from);
    let more = [
        ("elapsed_s", json!(summary.elapsed_s)),
        ("settled", json!(summary.settled())),
        ("statuses", statuses(&summary.counts)),
        ("settled_per_s", json!(pace.map(|pace| pace.settled_per_s))),
        ("left_s", json!(left)),
        (
            "publish_window",
            json!(
                summary
                    .window
                    .map(|window| json!({ "size": window.size, "in_use": window.in_use }))
            ),
        ),
        ("rtt_at_most", json!(rtt.as_ref().map(times))),
        (
            "rtt_histogram",
            list(detail.map(|detail| detail.rtt.iter().map(rtt_bin).collect())),
        ),
        (
            "timeline",
            list(detail.map(|detail| detail.timeline.iter().map(time_bin).collect())),
        ),
        (
            "subnets",
            list(detail.map(|detail| {
                detail
                    .subnets
                    .iter()
                    .take(MAX_SUBNETS)
                    .map(subnet)
                    .collect()
            })),
        ),
        (
            "subnets_count",
            json!(detail.map(|detail| detail.subnets.len())),
        ),
        (
            "last_not_up",
            list(progress.map(|progress| progress.last_not_up.iter().map(not_up).collect())),
        ),
    ];
    let fields: Map<String, Value> = run_fields(summary)
        .chain(more)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    fields.into()
}

fn ms(nanos: i64) -> f64 {
    nanos as f64 / 1_000_000.0
}

fn statuses(counts: &StatusCounts) -> Value {
    let counts = counts.iter();
    let counts = counts.map(|(status, count)| (status.name().to_owned(), json!(count)));
    Value::Object(counts.collect())
}

fn times(rtt: &TargetRtt) -> Value {
    json!({ "p50_ms": ms(rtt.p50_ns), "p95_ms": ms(rtt.p95_ns), "p99_ms": ms(rtt.p99_ns) })
}

fn rtt_bin(bin: &RttBin) -> Value {
    json!({ "from_ms": ms(bin.from_ns), "to_ms": ms(bin.to_ns), "targets": bin.targets })
}

fn time_bin(bin: &TimeBin) -> Value {
    json!({
        "from_s": bin.from_s,
        "length_s": bin.length_s,
        "answered": bin.answered,
        "not_up": bin.not_up,
    })
}

fn subnet(found: &SubnetStatuses) -> Value {
    let targets = found.counts.total();
    json!({
        "subnet": found.subnet.to_string(),
        "targets": targets,
        "not_up": targets - found.counts.answered(),
        "statuses": statuses(&found.counts),
    })
}

fn not_up(row: &ReportRow) -> Value {
    json!({
        "target": row.target,
        "address": row.address,
        "status": row.status,
        "reason": row.reason,
        "sent": row.sent,
        "received": row.received,
        "worker": row.worker,
        "login": row.login,
        "probed_at": row.probed_at,
    })
}
