//! Fields of JSON objects, which `--json` prints and the API of the live page answers. No I/O.

use pingfleet_store::RunSummary;
use serde_json::{Value, json};

/// The fields of a run, as `pingfleet runs --json` prints them.
pub fn run_fields(summary: &RunSummary) -> impl Iterator<Item = (&'static str, Value)> {
    let counts = summary.counts.iter();
    let pruned = summary.pruned.as_ref();
    [
        ("run", json!(summary.run)),
        ("run_id", json!(summary.run_id.to_string())),
        ("state", json!(summary.state.name())),
        ("started_at", json!(summary.started_at)),
        ("finished_at", json!(summary.finished_at)),
        ("targets", json!(summary.targets)),
        ("chunks", json!(summary.chunks)),
        ("chunks_done", json!(summary.chunks_done)),
        ("chunks_dead", json!(summary.chunks_dead)),
    ]
    .into_iter()
    .chain(counts.map(|(status, count)| (status.name(), json!(count))))
    .chain([
        ("duplicates", json!(summary.duplicates)),
        ("redelivered", json!(summary.redelivered)),
        ("republished", json!(summary.republished)),
        ("contradictions", json!(summary.contradictions)),
        ("transport", json!(summary.transport.name())),
        ("source", json!(summary.source)),
        ("parent_run", json!(summary.parent_run)),
        ("pruned_at", json!(pruned.map(|pruned| &pruned.pruned_at))),
        ("archive", json!(pruned.map(|pruned| &pruned.archive))),
    ])
}
