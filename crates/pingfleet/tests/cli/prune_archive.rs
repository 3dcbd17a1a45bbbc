//! `prune --archive`: the file has every row; killed at any moment, no row is lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use pingfleet_store::{Durability, FileMode, OpenOptions, Reader};
use pingfleet_testbed::SmallDisk;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::{
    prune::{rows_left, with_targets_of_an_older_run},
    rig::{Finished, TestDir, built},
    screens::generated,
};

const PRUNE: [&str; 5] = ["prune", "--keep", "1", "--archive", "archive"];

/// Runs archives.py: every row of `before` is once in the archive or the database of each folder.
pub(crate) fn check(dir: &TestDir, before: &Path, folders: &[&Path]) -> anyhow::Result<Finished> {
    let folder = built("pingfleet")?;
    let folder = folder.ancestors().nth(2).context("the build folder")?;
    let python = folder.join("test-python/bin/python");
    ensure!(
        python.exists(),
        "no {}: scripts/test makes it",
        python.display()
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/archives.py");
    let names: Vec<_> = [before]
        .iter()
        .chain(folders)
        .map(|path| path.display().to_string())
        .collect();
    let line = format!("{} {script} {}", python.display(), names.join(" "));
    dir.shell(&line)
}

/// A copy of a database in a folder of its own.
pub(crate) fn copy(before: &Path, dir: &TestDir, name: &str) -> anyhow::Result<PathBuf> {
    let folder = dir.path(name);
    fs::create_dir(&folder)?;
    fs::copy(before, folder.join("pingfleet.db"))?;
    Ok(folder)
}

#[test]
fn an_archive_is_one_table_for_duckdb_and_pandas_and_has_every_value() -> anyhow::Result<()> {
    let dir = with_targets_of_an_older_run(600, 3)?;
    let before = dir.path("before.db");
    fs::copy(dir.path("pingfleet.db"), &before)?;
    let pruned = dir.pingfleet(&PRUNE)?.ends_with(0);
    let file = "archive/run-1-";
    assert!(pruned.stdout.contains(file), "{pruned:#?}");
    for entry in fs::read_dir(dir.path("archive"))? {
        // As the database, which nobody else may read.
        let mode = entry?.metadata()?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let checked = check(&dir, &before, &[&dir.path(".")])?.ends_with(0);
    assert!(
        checked
            .stdout
            .contains("1200 rows archived, 600 in the database"),
        "{checked:#?}"
    );
    // Every command that lacks the rows names the file.
    let exported = dir
        .pingfleet(&["export", "1"])?
        .fails(3, &["they are in /", file]);
    let name = exported
        .stderr
        .trim_end()
        .rsplit(' ')
        .next()
        .context("a word")?;
    assert!(Path::new(name).is_file(), "{exported:#?}");
    let report = dir
        .pingfleet(&["report", "1", "--json"])?
        .ends_with(0)
        .json()?;
    assert_eq!(report[0]["archive"], json!(name));
    // Control: a row that is missing, twice or different is found.
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    for (change, message) in [
        (
            "DELETE FROM results WHERE run = 3 AND chunk = 1 AND position = 7",
            "1 rows are missing",
        ),
        (
            "UPDATE results SET sent = sent + 1 WHERE run = 3 AND chunk = 1 AND position = 8",
            "or differ",
        ),
    ] {
        connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {change}"))?;
        let checked = check(&dir, &before, &[&dir.path(".")])?.ends_with(1);
        assert!(checked.stderr.contains(message), "{checked:#?}");
    }
    Ok(())
}

/// What an onlooker sees of a `prune` that is at work on a run.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// The file of the run.
    File,
    /// The run is marked as pruned.
    Mark,
    /// The rows of its second chunk are gone.
    Removal,
}

impl Seen {
    const ALL: [Self; 3] = [Self::File, Self::Mark, Self::Removal];

    /// Waits until it is seen, or the process ends.
    fn wait_for(self, folder: &Path, run: u32, child: &mut Child) -> anyhow::Result<()> {
        // It only reads: what the process leaves behind is for the next one.
        let database = Connection::open_with_flags(
            folder.join("pingfleet.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY,
        )?;
        let holds = |sql: &str| database.query_row(sql, [run], |row| row.get::<_, bool>(0));
        loop {
            let is_seen = match self {
                Self::File => has_file(&folder.join("archive"), run),
                Self::Mark => holds("SELECT EXISTS (SELECT 1 FROM pruned_runs WHERE run = ?1)")?,
                Self::Removal => {
                    holds("SELECT NOT EXISTS (SELECT 1 FROM results WHERE run = ?1 AND chunk = 1)")?
                }
            };
            if is_seen || child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// A trigger with which `prune` stays where this was seen, and what comes next is not: it joins all rows for ever.
    fn stall(self, run: u32) -> String {
        let at = match self {
            Self::File => format!("INSERT ON pruned_runs WHEN new.run = {run}"),
            Self::Mark => format!("DELETE ON results WHEN old.run = {run} AND old.chunk = 1"),
            Self::Removal => format!("DELETE ON results WHEN old.run = {run} AND old.chunk = 5"),
        };
        format!(
            "CREATE TRIGGER stall BEFORE {at} BEGIN
                SELECT count(*) FROM results a, results b, results c, results d, results e WHERE a.sent + e.sent < 0; END"
        )
    }
}

/// Whether an archive has the file of a run.
fn has_file(archive: &Path, run: u32) -> bool {
    let names = fs::read_dir(archive).into_iter().flatten().flatten();
    let prefix = format!("run-{run}-");
    names
        .map(|file| file.file_name())
        .any(|name| name.to_string_lossy().starts_with(&prefix))
}

pub(crate) fn start(folder: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(built("pingfleet")?);
    command.args(PRUNE).current_dir(folder).env_clear();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

/// Repeats `prune` in each folder. Then every row of `before` is once in the archive or the database.
pub(crate) fn repeated_it_completes(
    dir: &TestDir,
    before: &Path,
    folders: &[PathBuf],
) -> anyhow::Result<()> {
    for folder in folders {
        ensure!(start(folder)?.wait()?.success(), "{}", folder.display());
        let left = fs::read_dir(folder.join("archive"))?.count();
        ensure!(left == 3, "{} has {left} files", folder.display());
    }
    let folders: Vec<_> = folders.iter().map(PathBuf::as_path).collect();
    let checked = check(dir, before, &folders)?.ends_with(0);
    let right = checked
        .stdout
        .matches("4500 rows archived, 1500 in the database");
    assert_eq!(right.count(), folders.len(), "{checked:#?}");
    Ok(())
}

#[test]
fn killed_in_each_step_and_repeated_every_row_is_there_once() -> anyhow::Result<()> {
    // So many that the rows of a run are removed in several transactions.
    let dir = with_targets_of_an_older_run(1500, 4)?;
    let before = dir.path("before.db");
    fs::rename(dir.path("pingfleet.db"), &before)?;
    let mut folders = Vec::new();
    for (run, seen) in (1..=3).flat_map(|run| Seen::ALL.map(|seen| (run, seen))) {
        let folder = copy(&before, &dir, &format!("{seen:?}-{run}"))?;
        let database = folder.join("pingfleet.db");
        Connection::open(&database)?.execute_batch(&seen.stall(run))?;
        let mut child = start(&folder)?;
        seen.wait_for(&folder, run, &mut child)?;
        child.kill()?;
        let ended = child.wait()?;
        ensure!(ended.code().is_none(), "{seen:?} {run}: {ended}");
        let is_pruned = Reader::open(&database)?
            .summary(run.into())?
            .pruned
            .is_some();
        ensure!(is_pruned != matches!(seen, Seen::File), "{seen:?} {run}");
        Connection::open(&database)?.execute_batch("DROP TRIGGER stall")?;
        folders.push(folder);
    }
    repeated_it_completes(&dir, &before, &folders)
}

#[test]
fn rows_that_are_removed_before_they_are_archived_are_missed() -> anyhow::Result<()> {
    // The control of the test above: another order of the same steps, ended in between.
    let dir = generated(600, 3)?;
    let before = dir.path("before.db");
    fs::copy(dir.path("pingfleet.db"), &before)?;
    let path = dir.path("pingfleet.db");
    let mut store = OpenOptions {
        path: path.clone(),
        durability: Durability::Off,
        create: false,
        mode: FileMode::User,
        check: false,
    }
    .open()?;
    let summary = Reader::open(&path)?.summary(1)?;
    ensure!(store.mark_pruned(&summary, None)?);
    store.remove_pruned_rows(1, &tokio_util::sync::CancellationToken::new())?;
    drop(store);
    dir.pingfleet(&PRUNE)?.ends_with(0);
    let checked = check(&dir, &before, &[&dir.path(".")])?.ends_with(1);
    assert!(
        checked.stderr.contains("600 rows are missing"),
        "{checked:#?}"
    );
    Ok(())
}

#[test]
fn an_interrupted_prune_says_how_it_continues() -> anyhow::Result<()> {
    let dir = generated(600, 3)?;
    let before = dir.path("before.db");
    fs::copy(dir.path("pingfleet.db"), &before)?;
    let path = dir.path("pingfleet.db");
    // Nobody can write: the first run is archived, and cannot be marked as pruned.
    let mut lock = Connection::open(&path)?;
    let transaction = lock.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut child = Command::new(built("pingfleet")?)
        .args(PRUNE)
        .current_dir(dir.path("."))
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()?;
    let archive = dir.path("archive");
    while !has_file(&archive, 1) {
        ensure!(child.try_wait()?.is_none(), "it ended before");
        thread::sleep(Duration::from_micros(200));
    }
    let pid = child.id().to_string();
    ensure!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()?
            .success()
    );
    // It ends when it has waited for the lock.
    let ended = child.wait_with_output()?;
    drop(transaction);
    let message = String::from_utf8(ended.stderr)?;
    assert_eq!(ended.status.code(), Some(130), "{message}");
    assert!(message.contains("The same command continues"), "{message}");
    dir.pingfleet(&PRUNE)?.ends_with(0);
    check(&dir, &before, &[&dir.path(".")])?.ends_with(0);
    Ok(())
}

#[test]
fn an_archive_that_cannot_be_written_costs_no_row() -> anyhow::Result<()> {
    let dir = generated(6000, 3)?;
    dir.write("file", "")?;
    let before = dir.files()?;
    for (archive, part) in [
        ("file", "directory"),
        ("file/below", "directory"),
        ("/proc/x", "cannot write"),
    ] {
        dir.pingfleet(&["prune", "--keep", "1", "--archive", archive])?
            .fails(4, &["cannot write", archive, part]);
    }
    let disk = SmallDisk::new(256)?;
    disk.fill(16 * 1024)?;
    let archive = disk.path().to_str().context("a plain name")?;
    dir.pingfleet(&["prune", "--keep", "1", "--archive", archive])?
        .fails(4, &["cannot write", archive, "No space left"]);
    // Only what filled it.
    let left: Vec<_> = fs::read_dir(disk.path())?.collect::<Result<_, _>>()?;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn a_run_without_the_rows_that_it_counts_stays_and_the_others_go() -> anyhow::Result<()> {
    let dir = generated(600, 3)?;
    dir.sqlite3("pingfleet.db", "UPDATE runs SET up = up + 1 WHERE run = 1")?;
    let pruned = dir.pingfleet(&PRUNE)?.ends_with(4);
    for part in ["run 1 counts 601 rows and has 600", "pingfleet verify 1"] {
        assert!(pruned.stderr.contains(part), "{pruned:#?}");
    }
    assert!(
        pruned.stdout.contains("1 run pruned, 600 rows removed"),
        "{pruned:#?}"
    );
    assert_eq!(rows_left(&dir, "results")?, "1:600 3:600");
    let files = fs::read_dir(dir.path("archive"))?.count();
    assert_eq!(files, 1);
    assert!(has_file(&dir.path("archive"), 2));
    // A vacuum that is refused does not hide it.
    let lock = pingfleet_store::FileLock::writer(&dir.path("pingfleet.db"))?;
    let both = ["run 1 counts 601 rows", "--vacuum would stop"];
    let with_vacuum = [PRUNE.as_slice(), &["--vacuum"]].concat();
    let refused = dir.pingfleet(&with_vacuum)?.fails(4, &both);
    drop((lock, refused));
    // Repeated, there is only the message.
    dir.pingfleet(&PRUNE)?.fails(4, &["run 1 counts 601 rows"]);
    Ok(())
}
