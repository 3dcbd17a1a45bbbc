//! A file that is no pingfleet database, or cannot be used as one, is refused and not changed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use pingfleet_store::{OpenOptions, StoreError, Transport, Writer};
use pingfleet_wire::Status;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{delivery, options, result, start};

const PAGE: usize = 4096;

/// All files of a folder: a refused file must not change, and no -wal or -shm file may appear.
fn contents(folder: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            let bytes = if entry.file_type()?.is_dir() {
                Vec::new()
            } else {
                fs::read(entry.path())?
            };
            Ok((entry.file_name(), bytes))
        })
        .collect()
}

/// Opens in all ways, each refused without a trace; the errors.
fn refused(path: &Path, ways: &[(bool, bool)]) -> Result<Vec<StoreError>> {
    let folder = path.parent().context("a folder")?;
    let before = contents(folder)?;
    let mut errors = Vec::new();
    for &(create, check) in ways {
        let way = OpenOptions {
            create,
            check,
            ..options(path)
        };
        match way.open() {
            Ok(_) => bail!("opened with create {create}, check {check}"),
            Err(error) => errors.push(error),
        }
        ensure!(
            contents(folder)? == before,
            "create {create}, check {check} changed the folder"
        );
    }
    Ok(errors)
}

const EVERY_WAY: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

/// A database with two pages of rows and more, closed.
fn filled(folder: &TempDir) -> Result<PathBuf> {
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (_planned, works) = start(&mut store, Transport::Sweep, &[500; 4])?;
    for work in &works {
        store.apply(Transport::Sweep, &[delivery(result(work, &[Status::Up]))])?;
    }
    store.close()?;
    Ok(path)
}

#[test]
fn a_missing_or_empty_file_is_missing_unless_it_may_be_created() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    for error in refused(&path, &[(false, true), (false, false)])? {
        ensure!(matches!(error, StoreError::Missing { .. }), "{error}");
    }
    fs::write(&path, b"")?;
    for error in refused(&path, &[(false, true), (false, false)])? {
        ensure!(matches!(error, StoreError::Missing { .. }), "{error}");
    }
    options(&path).open()?.close()?;
    Ok(())
}

#[test]
fn a_file_that_is_no_database_is_foreign() -> Result<()> {
    let long = "10.0.0.1 is not a header\n".repeat(1000);
    for text in ["x", "10.0.0.1\n10.0.0.2\n", "SQLite format 3\0", &long] {
        let folder = TempDir::new()?;
        let path = folder.path().join("hosts.txt");
        fs::write(&path, text)?;
        for error in refused(&path, &EVERY_WAY)? {
            ensure!(matches!(error, StoreError::Foreign { .. }), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_database_of_another_program_is_foreign() -> Result<()> {
    for mode in ["DELETE", "WAL"] {
        let folder = TempDir::new()?;
        let path = folder.path().join("other.db");
        let other = Connection::open(&path)?;
        other.execute_batch(&format!(
            "PRAGMA journal_mode = {mode}; CREATE TABLE runs (run INTEGER PRIMARY KEY); PRAGMA user_version = 1"
        ))?;
        drop(other);
        for error in refused(&path, &EVERY_WAY)? {
            ensure!(matches!(error, StoreError::Foreign { .. }), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_newer_schema_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = filled(&folder)?;
    let newer = Connection::open(&path)?;
    newer.execute_batch("PRAGMA user_version = 7")?;
    drop(newer);
    for error in refused(&path, &EVERY_WAY)? {
        ensure!(
            matches!(
                error,
                StoreError::Newer {
                    found: 7,
                    known: 6,
                    ..
                }
            ),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_newer_schema_that_only_the_log_knows_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = filled(&folder)?;
    let newer = Connection::open(&path)?;
    newer.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA user_version = 7")?;
    match options(&path).open() {
        Err(StoreError::Newer { found: 7, .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

#[test]
fn a_damaged_file_is_corrupt() -> Result<()> {
    let folder = TempDir::new()?;
    let path = filled(&folder)?;
    let whole = fs::read(&path)?;
    let pages = whole.len() / PAGE;
    ensure!(pages > 8, "{pages} pages");
    let mut damaged = whole.clone();
    let middle = pages / 2 * PAGE;
    damaged[middle..middle + 64]
        .iter_mut()
        .for_each(|byte| *byte = !*byte);
    fs::write(&path, &damaged)?;
    for error in refused(&path, &[(true, true), (false, true)])? {
        ensure!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
    // The control: the check finds this damage, opening alone does not.
    drop(
        OpenOptions {
            check: false,
            ..options(&path)
        }
        .open()?,
    );
    fs::write(&path, &whole[..middle])?;
    for error in refused(&path, &[(true, true), (false, true)])? {
        ensure!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
    // The root of the schema, without which nothing can be read at all.
    let mut damaged = whole;
    damaged[100..164].fill(0xff);
    fs::write(&path, &damaged)?;
    for error in refused(&path, &EVERY_WAY)? {
        ensure!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn a_directory_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    fs::create_dir(&path)?;
    for error in refused(&path, &EVERY_WAY)? {
        ensure!(matches!(error, StoreError::CannotOpen { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn a_file_in_a_missing_folder_cannot_be_created() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("nowhere").join("fleet.db");
    match options(&path).open() {
        Err(StoreError::CannotOpen { .. }) => Ok(()),
        other => bail!("{other:?}"),
    }
}

#[test]
fn what_is_not_refused_can_be_written() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store: Writer = OpenOptions {
        check: true,
        create: false,
        ..options(&filled(&folder)?)
    }
    .open()?;
    store.try_commit()?;
    Ok(())
}

/// Root may write everywhere, so these tests open the file as another user.
#[cfg(unix)]
mod permissions {
    use std::os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    };

    use super::{
        EVERY_WAY, Path, Result, StoreError, TempDir, contents, ensure, filled, fs, refused,
    };
    use crate::child::{self, Process};

    /// The user and group `nobody`.
    const NOBODY: u32 = 65534;

    fn allow(path: &Path, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    }

    /// Opens as an unprivileged user, which must fail as [`child_may_not_write`] says.
    fn refused_for_others(path: &Path, folder: &Path) -> Result<()> {
        let before = contents(folder)?;
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let child = Process::start_with(
            "refusals::permissions::child_may_not_write",
            path,
            |command| {
                if root {
                    command.uid(NOBODY).gid(NOBODY);
                }
            },
        )?;
        child.join()?;
        ensure!(contents(folder)? == before, "the folder was changed");
        // Who is not root could not remove it otherwise.
        allow(folder, 0o755)
    }

    #[test]
    #[ignore = "a process that other tests start"]
    fn child_may_not_write() -> Result<()> {
        for error in refused(&child::database()?, &EVERY_WAY)? {
            let is_expected = matches!(
                error,
                StoreError::CannotOpen { .. } | StoreError::Missing { .. }
            );
            ensure!(is_expected, "{error:?}");
        }
        Ok(())
    }

    #[test]
    fn a_read_only_folder_is_refused() -> Result<()> {
        let folder = TempDir::new()?;
        allow(folder.path(), 0o555)?;
        refused_for_others(&folder.path().join("fleet.db"), folder.path())
    }

    #[test]
    fn a_database_in_a_read_only_folder_is_refused() -> Result<()> {
        let folder = TempDir::new()?;
        let path = filled(&folder)?;
        allow(&path, 0o666)?;
        allow(folder.path(), 0o555)?;
        refused_for_others(&path, folder.path())
    }

    #[test]
    fn a_read_only_database_is_refused() -> Result<()> {
        let folder = TempDir::new()?;
        let path = filled(&folder)?;
        allow(&path, 0o444)?;
        allow(folder.path(), 0o777)?;
        refused_for_others(&path, folder.path())
    }

    #[test]
    fn an_unreadable_database_is_refused() -> Result<()> {
        let folder = TempDir::new()?;
        let path = filled(&folder)?;
        // Its owner reads it for the comparison; the child is somebody else, or owner without the right.
        allow(&path, 0o444)?;
        let before = fs::read(&path)?;
        allow(&path, 0o000)?;
        allow(folder.path(), 0o777)?;
        let root = fs::metadata("/proc/self")?.uid() == 0;
        Process::start_with(
            "refusals::permissions::child_may_not_read",
            &path,
            |command| {
                if root {
                    command.uid(NOBODY).gid(NOBODY);
                }
            },
        )?
        .join()?;
        allow(&path, 0o444)?;
        ensure!(fs::read(&path)? == before, "the file was changed");
        Ok(())
    }

    #[test]
    #[ignore = "a process that another test starts"]
    fn child_may_not_read() -> Result<()> {
        match crate::sample::options(&child::database()?).open() {
            Err(StoreError::CannotOpen { .. }) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    }
}
