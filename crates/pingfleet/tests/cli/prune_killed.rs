//! `prune --archive` that is killed at 50 random moments and repeated: archive and database have every row exactly once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};

use crate::{
    prune::with_targets_of_an_older_run,
    prune_archive::{check, copy, repeated_it_completes, start},
    rig::TestDir,
};

/// Moments at which a call was killed in the middle of its work, at least.
const MOMENTS: usize = 50;

/// Calls that are started for that, at most: some end before their moment, and some are killed before they change
/// anything.
const MAX_CALLS: usize = 600;

/// How far a call was when it was killed, by what it left on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The rows of a run were being written: the file has no name yet.
    Writing,
    /// The file of a run has its name, and the run is not marked as pruned.
    Archived,
    /// The run is marked, and all its rows are there.
    Marked,
    /// Some of its rows are gone, and some that have to go are there.
    Removing,
    /// Between two runs: all rows of the marked ones are gone.
    Between,
}

impl Phase {
    const ALL: [Self; 5] = [
        Self::Writing,
        Self::Archived,
        Self::Marked,
        Self::Removing,
        Self::Between,
    ];

    /// None if nothing was changed yet.
    fn left_in(folder: &Path) -> Result<Option<Self>> {
        let names = names(&folder.join("archive"));
        let database = Connection::open_with_flags(
            folder.join("pingfleet.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY,
        )?;
        // For each marked run, how many rows have to go, and how many of them are there.
        let sql = "SELECT p.run,
                n.up + n.late + n.unreachable + n.dns_failed + n.send_failed + n.unknown + n.down - k.kept,
                (SELECT count(*) FROM results r WHERE r.run = p.run) - k.kept
            FROM pruned_runs p JOIN runs n ON n.run = p.run
            JOIN (SELECT p.run, (SELECT count(*) FROM latest_rows l WHERE l.run = p.run) AS kept FROM pruned_runs p) k
                ON k.run = p.run ORDER BY p.run";
        let mut statement = database.prepare(sql)?;
        let marked = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let marked: Vec<(i64, i64, i64)> = marked.collect::<Result<_, _>>()?;
        let is_unfinished = |name: &String| {
            Path::new(name)
                .extension()
                .is_some_and(|ending| ending == "part")
        };
        if names.iter().any(is_unfinished) {
            return Ok(Some(Self::Writing));
        }
        if names.len() > marked.len() {
            return Ok(Some(Self::Archived));
        }
        let Some((_, to_go, left)) = marked.last() else {
            return Ok(None);
        };
        Ok(Some(match left {
            0 => Self::Between,
            left if left == to_go => Self::Marked,
            _ => Self::Removing,
        }))
    }
}

/// The names in a folder. None if it is not there.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Kills a process after a time. Whether it was still running.
fn kill_after(child: &mut Child, time: Duration) -> Result<bool> {
    thread::sleep(time);
    child.kill()?;
    Ok(child.wait()?.code().is_none())
}

/// Folders in which a call was killed at a random moment, with how far it was.
struct Killed<'d> {
    dir: &'d TestDir,
    before: &'d Path,
    random: fastrand::Rng,
    /// How long a whole call takes, as far as is known.
    whole: Duration,
    phases: BTreeMap<Phase, usize>,
    folders: Vec<PathBuf>,
}

impl<'d> Killed<'d> {
    fn new(dir: &'d TestDir, before: &'d Path) -> Result<Self> {
        let folder = copy(before, dir, "whole")?;
        let began = Instant::now();
        ensure!(start(&folder)?.wait()?.success());
        Ok(Self {
            dir,
            before,
            random: fastrand::Rng::with_seed(1),
            whole: began.elapsed(),
            phases: BTreeMap::new(),
            folders: Vec::new(),
        })
    }

    /// Some time of a whole call.
    fn moment(&mut self) -> Duration {
        self.whole.mul_f64(self.random.f64())
    }

    /// Kills a call in a new folder, and the next one there as well. Returns how far the first one was, and the folder,
    /// if it was in the middle of its work.
    fn kill(&mut self, call: usize) -> Result<Option<(Phase, PathBuf)>> {
        let folder = copy(self.before, self.dir, &format!("call-{call}"))?;
        let moment = self.moment();
        let was_running = kill_after(&mut start(&folder)?, moment)?;
        let phase = Phase::left_in(&folder)?.filter(|_| was_running);
        let Some(phase) = phase else {
            fs::remove_dir_all(folder)?;
            return Ok(None);
        };
        *self.phases.entry(phase).or_default() += 1;
        Ok(Some((phase, folder)))
    }

    fn is_enough(&self) -> bool {
        self.folders.len() >= MOMENTS
            && Phase::ALL
                .iter()
                .all(|phase| self.phases.contains_key(phase))
    }
}

#[test]
fn killed_at_50_random_moments_and_repeated_every_row_is_there_once() -> Result<()> {
    // So many that the rows of a run are removed in several transactions.
    let dir = with_targets_of_an_older_run(1500, 4)?;
    let before = dir.path("before.db");
    fs::rename(dir.path("pingfleet.db"), &before)?;
    let mut killed = Killed::new(&dir, &before)?;
    let mut half_done = None;
    for call in 0..MAX_CALLS {
        if killed.is_enough() {
            break;
        }
        let Some((phase, folder)) = killed.kill(call)? else {
            continue;
        };
        if phase == Phase::Removing && half_done.is_none() {
            half_done = Some(copy_of(&folder, &dir.path("half-done"))?);
        }
        // The call that repeats it is killed as well, wherever that is.
        let moment = killed.moment();
        kill_after(&mut start(&folder)?, moment)?;
        killed.folders.push(folder);
    }
    let phases = &killed.phases;
    ensure!(killed.is_enough(), "{phases:?}");
    println!("{} moments: {phases:?}", killed.folders.len());
    repeated_it_completes(&dir, &before, &killed.folders)?;
    // The control: without the repetition, rows are in both.
    let half_done = half_done.context("a call that was killed while it removed rows")?;
    let checked = check(&dir, &before, &[&half_done])?.ends_with(1);
    let message = "a row is in the archive and in the database";
    ensure!(checked.stderr.contains(message), "{checked:#?}");
    // And a file that is lost, or there twice, is noticed.
    let archive = killed.folders[0].join("archive");
    let file = names(&archive).into_iter().next().context("a file")?;
    fs::copy(archive.join(&file), archive.join("again.parquet"))?;
    let checked = check(&dir, &before, &[&killed.folders[0]])?.ends_with(1);
    ensure!(
        checked.stderr.contains("1500 are there twice"),
        "{checked:#?}"
    );
    for name in [file.as_str(), "again.parquet"] {
        fs::remove_file(archive.join(name))?;
    }
    let checked = check(&dir, &before, &[&killed.folders[0]])?.ends_with(1);
    ensure!(
        checked.stderr.contains("1500 rows are missing"),
        "{checked:#?}"
    );
    Ok(())
}

/// A copy of a folder with its archive.
fn copy_of(folder: &Path, copy: &Path) -> Result<PathBuf> {
    for (from, to) in [
        (folder.to_owned(), copy.to_owned()),
        (folder.join("archive"), copy.join("archive")),
    ] {
        fs::create_dir(&to)?;
        for name in names(&from) {
            if from.join(&name).is_file() {
                fs::copy(from.join(&name), to.join(&name))?;
            }
        }
    }
    Ok(copy.to_owned())
}
