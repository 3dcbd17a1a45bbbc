//! Operating-system locks in files beside the database: one writer, and one producer for each run.
//!
//! The file lies beside the canonical path of the database, so all symbolic links to a database lead to the same lock.
//! A lock ends with its process, even when that is killed. The file contains the holder's process id for messages. It
//! is removed with the lock. Source: `flock(2)`; `LockFileEx` on Windows.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    FileMode, StoreError,
    header::{mode_of, set_mode, undo_umask},
};

/// A lock that this process holds.
#[derive(Debug)]
pub struct FileLock {
    // Closing the file ends the lock.
    _file: File,
    path: PathBuf,
}

/// How often, and how far apart, a lock is tried: a [`crate::Reader`] that looks at it has it for a moment.
const TRIES: u32 = 5;
const TRY_INTERVAL: Duration = Duration::from_millis(10);

impl FileLock {
    /// Acquires the lock of the database's writer.
    ///
    /// # Errors
    /// [`StoreError::AlreadyLocked`] when another process has it.
    pub fn writer(database: &Path) -> Result<Self, StoreError> {
        Self::acquire(
            &lock_path(database, "-writer.lock")?,
            mode_of(database),
            "the writer's lock",
            TRIES,
        )
    }

    /// Acquires the lock of a run unless another process has it at this moment.
    ///
    /// # Errors
    /// [`StoreError::AlreadyLocked`] when another process has it, or only looks at it.
    pub(crate) fn try_run(database: &Path, run: i64) -> Result<Self, StoreError> {
        Self::acquire(
            &run_lock_path(database, run)?,
            mode_of(database),
            &format!("run {run}"),
            1,
        )
    }

    /// Acquires the lock of a run. Its holder is the producer of the run.
    ///
    /// # Errors
    /// [`StoreError::AlreadyLocked`] when another process has it.
    pub fn run(database: &Path, run: i64) -> Result<Self, StoreError> {
        Self::acquire(
            &run_lock_path(database, run)?,
            mode_of(database),
            &format!("run {run}"),
            TRIES,
        )
    }

    /// Whether some process has the lock of a run, so that it has a producer. Changes nothing. `None` when the system
    /// does not show it.
    pub(crate) fn is_run_locked(database: &Path, run: i64) -> Option<bool> {
        let path = run_lock_path(database, run).ok()?;
        match fs::exists(&path) {
            // The lock's holder removes the file when it leaves.
            Ok(false) => Some(false),
            _ => is_locked(&path),
        }
    }

    /// Whether some process has the writer's lock. Changes nothing. `None` when the system does not show it.
    pub(crate) fn is_writer_locked(database: &Path) -> Option<bool> {
        let path = lock_path(database, "-writer.lock").ok()?;
        match fs::exists(&path) {
            Ok(false) => Some(false),
            _ => is_locked(&path),
        }
    }

    /// The lock files of this database that nobody has locked: their holders did not end in order. Files that this user
    /// cannot see or open are left out. Changes nothing.
    pub(crate) fn abandoned(database: &Path) -> Vec<PathBuf> {
        let Ok(prefix) = lock_path(database, "-") else {
            return Vec::new();
        };
        let (Some(folder), Some(prefix)) = (prefix.parent(), prefix.file_name()) else {
            return Vec::new();
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(folder = %folder.display(), %error, "the folder cannot be searched for lock files");
                return Vec::new();
            }
        };
        entries
            .filter_map(Result::ok)
            .filter(|entry| {
                entry
                    .file_name()
                    .as_encoded_bytes()
                    .strip_prefix(prefix.as_encoded_bytes())
                    .is_some_and(is_lock_name)
            })
            .map(|entry| entry.path())
            .filter(|path| is_locked(path) == Some(false))
            .collect()
    }

    /// Removes a lock file unless somebody has locked it since.
    pub(crate) fn remove_abandoned(path: &Path) {
        if is_locked(path) == Some(false)
            && let Ok(lock) = Self::acquire(path, FileMode::User.bits(), "an abandoned lock", 1)
        {
            // Dropping the lock removes the file.
            drop(lock);
        }
    }

    fn acquire(path: &Path, mode: u32, what: &str, max_tries: u32) -> Result<Self, StoreError> {
        let cannot = |error: std::io::Error| StoreError::CannotOpen {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut tries = 0;
        loop {
            let mut file = open(path, Some(mode)).map_err(cannot)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    tries += 1;
                    if tries < max_tries {
                        std::thread::sleep(TRY_INTERVAL);
                        continue;
                    }
                    return Err(StoreError::AlreadyLocked {
                        what: what.to_owned(),
                        holder: holder(&mut file),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(cannot(error)),
            }
            // The last holder may have removed the file after we opened it and before we locked it.
            let ours = same_file::Handle::from_file(file.try_clone().map_err(cannot)?);
            let there = same_file::Handle::from_path(path);
            match (ours, there) {
                (Ok(ours), Ok(there)) if ours == there => {}
                _ => continue,
            }
            if file.metadata().is_ok_and(|found| found.len() == 0) {
                undo_umask(&file, mode).map_err(cannot)?;
            }
            file.set_len(0).map_err(cannot)?;
            write!(file, "pid {}", std::process::id()).map_err(cannot)?;
            return Ok(Self {
                _file: file,
                path: path.to_owned(),
            });
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays behind");
        }
    }
}

/// Opens a lock file for a look at it, or for a holder, which creates it with a mode. It is a regular file, as anybody who
/// may write to the folder could have made a link or a pipe of this name.
fn open(path: &Path, holder: Option<u32>) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    if let Some(mode) = holder {
        options.write(true).create(true).truncate(false);
        set_mode(&mut options, mode);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Opening a pipe would wait for its other end.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// Whether somebody has locked the file. `None` when it is gone or the system does not show it.
fn is_locked(path: &Path) -> Option<bool> {
    match open(path, None).ok()?.try_lock_shared() {
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Whether this is the end of a lock file's name, behind `DATABASE-`.
fn is_lock_name(name: &[u8]) -> bool {
    let run = name
        .strip_prefix(b"run-")
        .and_then(|rest| rest.strip_suffix(b".lock"));
    name == b"writer.lock"
        || run.is_some_and(|run| !run.is_empty() && run.iter().all(u8::is_ascii_digit))
}

/// The holder's process id for a message, or nothing. Windows refuses to read a locked file.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let read = file.take(200).read_to_string(&mut holder);
    let pid = read
        .ok()
        .and_then(|_| holder.strip_prefix("pid ")?.parse::<u32>().ok());
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

fn run_lock_path(database: &Path, run: i64) -> Result<PathBuf, StoreError> {
    lock_path(database, &format!("-run-{run}.lock"))
}

/// The path of a lock file: beside the file that all symbolic links to the database lead to. The database may not exist
/// yet.
fn lock_path(database: &Path, suffix: &str) -> Result<PathBuf, StoreError> {
    let canonical = match fs::canonicalize(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match (database.parent(), database.file_name()) {
                (Some(folder), Some(name)) => {
                    let folder = match folder {
                        folder if folder.as_os_str().is_empty() => Path::new("."),
                        folder => folder,
                    };
                    fs::canonicalize(folder).map(|folder| folder.join(name))
                }
                _ => Err(error),
            }
        }
        found => found,
    };
    let mut path = canonical
        .map_err(|error| StoreError::CannotOpen {
            path: database.to_owned(),
            reason: error.to_string(),
        })?
        .into_os_string();
    path.push(suffix);
    Ok(path.into())
}
