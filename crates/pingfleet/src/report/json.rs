//! The summary as one JSON object. docs/report-json.md describes its fields.

use std::io;

use jiff::Timestamp;
use pingfleet_settings::{Failure, printed};
use pingfleet_store::{
    NotUp, PlannedProbing, REPORT_COLUMNS, ReportRow, RunChanges, RunOverview, RunWorker,
    StatusCounts, SubnetCounts, SubnetNotUp, TargetHistory, TargetRtt,
};
use pingfleet_wire::Family;
use serde_json::{Map, Value, json};

use super::targets::{values, write_json};

/// Prints the object and a newline.
pub(super) fn print(overview: &RunOverview) -> Result<(), Failure> {
    let RunOverview {
        summary,
        probing,
        seed,
        requests,
        replies,
        rtt,
        reasons,
        worst_subnets,
        slowest,
        workers,
        subnets_not_up,
        subnets_not_up_count,
        not_up,
        changes,
    } = overview;
    let loss = (*requests > 0).then(|| 100.0 * (requests - replies) as f64 / *requests as f64);
    let (pruned_at, archive) = match &summary.pruned {
        Some(pruned) => (Some(&pruned.pruned_at), pruned.archive.as_ref()),
        None => (None, None),
    };
    let fields = [
        ("run", json!(summary.run)),
        ("run_id", json!(summary.run_id.to_string())),
        ("state", json!(summary.state.name())),
        ("transport", json!(summary.transport.name())),
        ("source", json!(summary.source)),
        ("started_at", json!(summary.started_at)),
        ("finished_at", json!(summary.finished_at)),
        ("elapsed_s", json!(summary.elapsed_s)),
        ("seed", json!(seed)),
        ("probing", probing.as_ref().map_or(Value::Null, settings)),
        ("targets", json!(summary.targets)),
        ("settled", json!(summary.settled())),
        ("statuses", statuses(&summary.counts)),
        ("chunks", json!(summary.chunks)),
        ("chunks_done", json!(summary.chunks_done)),
        ("chunks_dead", json!(summary.chunks_dead)),
        ("duplicates", json!(summary.duplicates)),
        ("redelivered", json!(summary.redelivered)),
        ("republished", json!(summary.republished)),
        ("contradictions", json!(summary.contradictions)),
        ("parent_run", json!(summary.parent_run)),
        ("pruned_at", json!(pruned_at)),
        ("archive", json!(archive)),
        ("requests", json!(requests)),
        ("replies", json!(replies)),
        ("loss_pct", json!(loss)),
        ("rtt", rtt.as_ref().map_or(Value::Null, times)),
        ("reasons", reasons.iter().map(reason).collect()),
        (
            "subnets_not_up",
            subnets_not_up.iter().map(subnet_not_up).collect(),
        ),
        ("subnets_not_up_count", json!(subnets_not_up_count)),
        ("not_up", not_up.iter().map(silent).collect()),
        ("worst_subnets", worst_subnets.iter().map(subnet).collect()),
        ("slowest", slowest.iter().map(row_fields).collect()),
        ("workers", workers.iter().map(worker).collect()),
        (
            "changes",
            changes.as_ref().map_or(Value::Null, since_before),
        ),
    ];
    printed(write_json(&mut io::stdout().lock(), fields))
}

/// The count of each status.
fn statuses(counts: &StatusCounts) -> Value {
    let statuses = counts
        .iter()
        .map(|(status, count)| (status.name().to_owned(), json!(count)));
    Value::Object(statuses.collect())
}

fn reason((status, reason, targets): &(&'static str, Option<String>, i64)) -> Value {
    json!({"status": status, "reason": reason, "targets": targets})
}

fn since_before(changes: &RunChanges) -> Value {
    json!({
        "changed_not_up": changes.changed_not_up,
        "changed_up": changes.changed_up,
        "first_seen": changes.first_seen,
    })
}

/// How the targets of a run are probed.
pub(crate) fn settings(planned: &PlannedProbing) -> Value {
    let probing = &planned.probing;
    let family = match probing.family {
        Family::Any => "any",
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    let timeouts = (0..probing.most_requests()).map(|request| probing.wait(request).as_secs_f64());
    json!({
        "count": probing.count,
        "retries": probing.retries,
        "interval_s": probing.interval.as_secs_f64(),
        "timeouts_s": timeouts.skip(usize::from(probing.count) - 1).collect::<Vec<_>>(),
        "late_window_s": probing.late_window.as_secs_f64(),
        "size_bytes": probing.size,
        "ttl": probing.ttl,
        "source_address": probing.source,
        "interface": probing.interface,
        "family": family,
        "rate_per_s": probing.rate,
        "chunk_size": planned.chunk_size,
    })
}

fn times(rtt: &TargetRtt) -> Value {
    let ms = |nanos: i64| nanos as f64 / 1_000_000.0;
    json!({
        "min_ms": ms(rtt.min_ns),
        "p50_ms": ms(rtt.p50_ns),
        "p95_ms": ms(rtt.p95_ns),
        "p99_ms": ms(rtt.p99_ns),
        "max_ms": ms(rtt.max_ns),
    })
}

fn row_fields(row: &ReportRow) -> Map<String, Value> {
    REPORT_COLUMNS
        .into_iter()
        .map(str::to_owned)
        .zip(values(row))
        .collect()
}

fn silent(not_up: &NotUp) -> Value {
    let mut fields = row_fields(&not_up.row);
    fields.extend(times_of(not_up.history));
    fields.into()
}

fn subnet_not_up(found: &SubnetNotUp) -> Value {
    let same = found.same.as_ref();
    let mut fields = Map::new();
    fields.insert("subnet".to_owned(), json!(found.subnet.to_string()));
    fields.insert("targets".to_owned(), json!(found.counts.total()));
    fields.insert("statuses".to_owned(), statuses(&found.counts));
    fields.insert(
        "status".to_owned(),
        json!(same.map(|same| same.status.name())),
    );
    let reason = same.and_then(|same| same.reason.as_deref());
    fields.insert("reason".to_owned(), json!(reason));
    fields.extend(times_of(found.history));
    fields.into()
}

/// The times of a target or a subnet; null where they are not known.
fn times_of(history: Option<TargetHistory>) -> [(String, Value); 3] {
    let time = |pick: fn(&TargetHistory) -> Option<i64>| {
        let micros = history.as_ref().and_then(pick)?;
        let time = Timestamp::from_microsecond(micros).ok()?;
        Some(format!("{time:.3}"))
    };
    [
        ("first_seen", time(|history| Some(history.first_seen_us))),
        ("last_up", time(|history| history.last_up_us)),
        ("changed_at", time(|history| Some(history.changed_at_us))),
    ]
    .map(|(name, time)| (name.to_owned(), json!(time)))
}

fn subnet(counts: &SubnetCounts) -> Value {
    json!({
        "subnet": counts.subnet.to_string(),
        "targets": counts.targets,
        "not_up": counts.not_up,
        "not_up_pct": 100.0 * counts.not_up as f64 / counts.targets as f64,
    })
}

fn worker(worker: &RunWorker) -> Value {
    json!({
        "worker": worker.worker,
        "login": worker.login,
        "targets": worker.targets,
        "targets_per_s": worker.targets_per_s,
        "local_losses": worker.local_losses,
    })
}
