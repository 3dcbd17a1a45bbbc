//! Changes as JSON, one on a line. docs/changes.md has the fields.

use std::io::{self, BufWriter, Write as _};

use pingfleet_report::changes::left_out;
use pingfleet_settings::{Failure, printed};
use pingfleet_store::{FoundTarget, RunDiff, StoreError, TargetChange};
use serde_json::{Value, json};

use crate::report::write_json;

/// Prints the changes, and on standard error what was not compared.
pub(super) fn print(diff: &mut RunDiff, quiet: bool) -> Result<(), Failure> {
    if !quiet {
        for sentence in left_out(diff) {
            // If standard error is closed, nobody can read it.
            drop(writeln!(io::stderr(), "{sentence}"));
        }
    }
    let (before, after) = (diff.before.run, diff.after.run);
    let mut out = BufWriter::new(io::stdout().lock());
    for change in diff.changes().map_err(StoreError::from_sorted_rows)? {
        let change = change.map_err(StoreError::from_sorted_rows)?;
        if let Err(error) = write_json(&mut out, fields(&change, before, after)) {
            return printed(Err(error));
        }
    }
    printed(out.flush())
}

fn fields(
    change: &TargetChange,
    before: i64,
    after: i64,
) -> impl Iterator<Item = (&'static str, Value)> {
    [
        ("target", json!(change.target)),
        ("change", json!(change.kind.name())),
        (
            "subnet",
            json!(change.subnet.map(|subnet| subnet.to_string())),
        ),
        ("whole_subnet", json!(change.is_whole_subnet)),
        ("before", found(change.before.as_ref(), before)),
        ("after", found(change.after.as_ref(), after)),
    ]
    .into_iter()
}

fn found(found: Option<&FoundTarget>, run: i64) -> Value {
    found.map_or(Value::Null, |found| {
        json!({
            "run": run,
            "address": found.address,
            "status": found.status.name(),
            "reason": found.reason,
            "rtt_avg_ms": found.rtt_avg_ns.map(|nanos| nanos as f64 / 1_000_000.0),
        })
    })
}
