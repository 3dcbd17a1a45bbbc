//! The history of a subnet on a screen and as JSON. No I/O.

use ipnet::IpNet;
use pingfleet_report::words::{Clock, counted, grouped, percent};
use pingfleet_store::{RunState, StatusCounts, SubnetRun, SubnetRuns};
use pingfleet_wire::StatusKind;
use serde_json::{Value, json};

use super::{counts, level, pruned};
use crate::report::layout::{Block, Line, Screen, columns, cut, flow};

/// The fields of a run.
pub(super) fn fields(run: &SubnetRun) -> impl Iterator<Item = (&'static str, Value)> {
    let (answered, total) = (run.counts.answered(), run.counts.total());
    [
        ("run", json!(run.summary.run)),
        ("run_id", json!(run.summary.run_id.to_string())),
        ("state", json!(run.summary.state.name())),
        ("started_at", json!(run.summary.started_at)),
        ("targets", json!(total)),
        (
            "up_pct",
            json!(share(&run.counts).map(|share| 100.0 * share)),
        ),
        ("answered", json!(answered)),
        ("statuses", counts(&run.counts)),
    ]
    .into_iter()
}

/// The share that answered, of the targets that are not `unknown`.
fn share(counts: &StatusCounts) -> Option<f64> {
    let known = counts.total() - counts[StatusKind::Unknown];
    (known > 0).then(|| counts.answered() as f64 / known as f64)
}

/// The share that is up in each run, the newest first.
pub(super) fn blocks(network: IpNet, found: &SubnetRuns, screen: Screen) -> Vec<Block> {
    let runs = &found.runs;
    let clock = Clock::now();
    let mut items = vec![network.to_string()];
    if let Some(newest) = runs.first() {
        items.push(format!(
            "{} in run {}",
            counted(newest.counts.total(), "target"),
            newest.summary.run
        ));
        items.push(format!("up {}", up(&newest.counts)));
    }
    items.extend(pruned(found.runs_pruned));
    let mut head = flow(&items, 2, screen.width);
    if screen.has_bars && runs.len() > 1 {
        let shares = runs.iter().take(screen.width.saturating_sub(4)).rev();
        let signs: String = shares
            .map(|run| share(&run.counts).map_or('?', |share| level(share, 0.0, 1.0)))
            .collect();
        head.push(Line::new(&format!("  {signs}")));
    }
    let rows: Vec<_> = runs
        .iter()
        .map(|run| {
            vec![
                run.summary.run.to_string(),
                clock.second(&run.summary.started_at),
                grouped(run.counts.total()),
                up(&run.counts),
                others(run),
            ]
        })
        .collect();
    let headings = ["Run", "Started", "targets", "up", "not up"];
    let mut table = columns(&headings, &[false, false, true, true, false], &rows);
    if screen.has_bars {
        table = table
            .into_iter()
            .map(|line| Line::new(&cut(line.text(), screen.width)))
            .collect();
    }
    vec![head, table]
}

fn up(counts: &StatusCounts) -> String {
    percent(
        counts.answered(),
        counts.total() - counts[StatusKind::Unknown],
    )
}

/// How many targets have each status that is no answer.
fn others(run: &SubnetRun) -> String {
    let silent = run.counts.iter().filter(|(status, count)| {
        *count > 0 && !matches!(status, StatusKind::Up | StatusKind::Late)
    });
    let mut parts: Vec<_> = silent
        .map(|(status, count)| format!("{} {}", grouped(count), status.name()))
        .collect();
    if run.summary.state != RunState::Complete {
        parts.push(format!("(run {})", run.summary.state.name()));
    }
    parts.join(", ")
}
