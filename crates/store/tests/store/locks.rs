//! A lock beside the database ends with its holder, and two processes never have it at once.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail, ensure};
use pingfleet_store::{FileLock, StoreError, Transport};
use tempfile::TempDir;

use crate::{
    child::{self, Process},
    sample::{options, plan},
};

fn database(folder: &TempDir) -> PathBuf {
    folder.path().join("fleet.db")
}

#[test]
fn a_second_process_learns_who_has_the_lock() -> Result<()> {
    let folder = TempDir::new()?;
    let path = database(&folder);
    let _held = FileLock::writer(&path)?;
    match FileLock::writer(&path) {
        Err(StoreError::AlreadyLocked { holder, .. }) => {
            ensure!(
                holder == format!(" (pid {})", std::process::id()),
                "{holder}"
            );
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

#[test]
fn locks_of_runs_and_of_the_writer_are_apart() -> Result<()> {
    let folder = TempDir::new()?;
    let path = database(&folder);
    let _locks = [
        FileLock::writer(&path)?,
        FileLock::run(&path, 1)?,
        FileLock::run(&path, 2)?,
        FileLock::run(&path, 12)?,
    ];
    ensure!(matches!(
        FileLock::run(&path, 2),
        Err(StoreError::AlreadyLocked { .. })
    ));
    Ok(())
}

#[test]
fn a_lock_leaves_no_file_behind() -> Result<()> {
    let folder = TempDir::new()?;
    let path = database(&folder);
    for _ in 0..3 {
        let held = FileLock::run(&path, 7)?;
        ensure!(fs::read_dir(folder.path())?.count() == 1);
        drop(held);
        ensure!(fs::read_dir(folder.path())?.count() == 0);
    }
    Ok(())
}

#[test]
fn a_killed_holder_leaves_the_lock_free() -> Result<()> {
    let folder = TempDir::new()?;
    let path = database(&folder);
    let mut holder = Process::start("locks::child_holds", &path)?;
    let id = holder.hear("held by ")?;
    match FileLock::writer(&path) {
        Err(StoreError::AlreadyLocked { holder: named, .. }) => {
            ensure!(named == format!(" (pid {id})"), "{named}");
        }
        other => bail!("{other:?}"),
    }
    holder.kill()?;
    ensure!(
        fs::read_dir(folder.path())?.count() == 1,
        "a killed process cannot have removed its file"
    );
    let held = FileLock::writer(&path)?;
    let named = fs::read_to_string(folder.path().join("fleet.db-writer.lock"))?;
    ensure!(named == format!("pid {}", std::process::id()), "{named}");
    drop(held);
    ensure!(fs::read_dir(folder.path())?.count() == 0);
    Ok(())
}

#[test]
#[ignore = "a process that another test starts"]
fn child_holds() -> Result<()> {
    let _held = FileLock::writer(&child::database()?)?;
    println!("held by {}", std::process::id());
    child::wait()?;
    Ok(())
}

/// A holder removes its file while others open it. They lock the removed file, and must notice that.
#[test]
fn removing_the_file_never_gives_the_lock_to_two() -> Result<()> {
    const TURNS: u32 = 3000;
    let folder = TempDir::new()?;
    let path = database(&folder);
    let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
    let take_turns = || -> Result<()> {
        while turns.load(Ordering::SeqCst) < TURNS {
            match FileLock::writer(&path) {
                Ok(held) => {
                    let others = inside.fetch_add(1, Ordering::SeqCst);
                    turns.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                    ensure!(others == 0, "{others} others hold the lock");
                }
                Err(StoreError::AlreadyLocked { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4).map(|_| scope.spawn(take_turns)).collect();
        takers
            .into_iter()
            .try_for_each(|taker| taker.join().expect("a taker does not panic"))
    })?;
    ensure!(fs::read_dir(folder.path())?.count() == 0);
    Ok(())
}

#[test]
fn a_lock_in_a_missing_folder_cannot_be_taken() -> Result<()> {
    let folder = TempDir::new()?;
    match FileLock::writer(&folder.path().join("nowhere").join("fleet.db")) {
        Err(StoreError::CannotOpen { .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// Two links lead to the database of [`database`]: one to the file, one to its folder.
#[cfg(unix)]
fn links(folder: &TempDir, other: &TempDir) -> Result<[PathBuf; 2]> {
    let to_file = other.path().join("link.db");
    std::os::unix::fs::symlink(database(folder), &to_file)?;
    let to_folder = other.path().join("folder");
    std::os::unix::fs::symlink(folder.path(), &to_folder)?;
    Ok([to_file, to_folder.join("fleet.db")])
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_leads_to_the_same_locks() -> Result<()> {
    let (folder, other) = (TempDir::new()?, TempDir::new()?);
    options(&database(&folder)).open()?.close()?;
    let held = [
        FileLock::writer(&database(&folder))?,
        FileLock::run(&database(&folder), 3)?,
    ];
    for link in links(&folder, &other)? {
        for taken in [FileLock::writer(&link), FileLock::run(&link, 3)] {
            ensure!(
                matches!(taken, Err(StoreError::AlreadyLocked { .. })),
                "{link:?}: {taken:?}"
            );
        }
        // The control: another database has other locks.
        drop(FileLock::writer(&other.path().join("another.db"))?);
    }
    drop(held);
    for link in links(&folder, &TempDir::new()?)? {
        drop(FileLock::writer(&link)?);
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_producer_through_a_link_does_not_remove_the_plan_of_a_living_one() -> Result<()> {
    let (folder, other) = (TempDir::new()?, TempDir::new()?);
    let mut store = options(&database(&folder)).open()?;
    let (planned, _works) = plan(&mut store, Transport::Broker, &[1])?;
    let links = links(&folder, &other)?;
    for link in &links {
        ensure!(options(link).open()?.remove_abandoned_plans()?.is_empty());
    }
    // The control: without its producer the plan is removed.
    let run = planned.run;
    drop(planned);
    ensure!(options(&links[0]).open()?.remove_abandoned_plans()? == [run]);
    Ok(())
}
