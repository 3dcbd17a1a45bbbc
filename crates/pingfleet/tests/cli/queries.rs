//! docs/queries.md: its queries give its answers.

#![cfg(feature = "parquet")]

use std::{env, fs, path::Path};

use anyhow::{Context, ensure};
use pingfleet_testbed::GeneratedRuns;

use crate::rig::{Finished, TestDir, built};

/// Runs all queries of the document. `UPDATE_SNAPSHOTS=1` writes the answers anew; look at what changed.
fn answers(dir: &TestDir) -> anyhow::Result<Finished> {
    let folder = built("pingfleet")?;
    let folder = folder.ancestors().nth(2).context("the build folder")?;
    let python = folder.join("test-python/bin/python");
    ensure!(
        python.exists(),
        "no {}: scripts/test makes it",
        python.display()
    );
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = crate_folder.join("tests/cli/queries.py");
    let document = crate_folder.join("../../docs/queries.md");
    dir.shell(&format!(
        "{} {} {}",
        python.display(),
        script.display(),
        document.display()
    ))
}

#[test]
fn every_query_of_the_document_gives_its_answer() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let runs = GeneratedRuns {
        targets: 400,
        runs: 4,
        seed: 7,
    };
    let database = dir.path("pingfleet.db");
    runs.write(&database)?;
    // The folder has both kinds of files: three runs that were pruned in a copy, and an export of the last one.
    fs::copy(&database, dir.path("copy.db"))?;
    let prune = [
        "prune",
        "--keep",
        "1",
        "--archive",
        "archive",
        "--db",
        "copy.db",
    ];
    dir.pingfleet(&prune)?.ends_with(0);
    for file in ["rows.parquet", "archive/run-4.parquet"] {
        dir.pingfleet(&["export", "-o", file])?.ends_with(0);
    }
    let answered = answers(&dir)?.ends_with(0);
    assert!(
        answered.stdout.contains("12 questions, 33 queries"),
        "{answered:#?}"
    );
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        return Ok(());
    }
    // Control: another database has other answers.
    dir.sqlite3(
        "pingfleet.db",
        "UPDATE results SET attempts = attempts + 1 WHERE run = 4",
    )?;
    let answered = answers(&dir)?.ends_with(1);
    assert!(answered.stderr.contains("## 10."), "{answered:#?}");
    Ok(())
}
