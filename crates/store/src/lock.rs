//! Operating-system locks in files beside the database: one writer, and one producer for each run.
//!
//! A lock ends with its process, even when that is killed. The file contains the holder's process id for messages. It
//! is removed with the lock. Source: `flock(2)`; `LockFileEx` on Windows.
//!
//! Invariant: a database has one lock of each kind, by whatever symbolic links it is opened. So the files stand beside the
//! canonical path.

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

/// A lock that this process holds.
#[derive(Debug)]
pub struct FileLock {
    // Closing the file ends the lock.
    _file: File,
    path: PathBuf,
}

impl FileLock {
    /// Acquires the lock of the database's writer.
    ///
    /// # Errors
    /// [`StoreError::AlreadyLocked`] when another process has it.
    pub fn writer(database: &Path) -> Result<Self, StoreError> {
        Self::take(&beside(database, "-writer.lock"), "the writer's lock")
    }

    /// Acquires the lock of a run. Its holder is the producer of the run.
    ///
    /// # Errors
    /// [`StoreError::AlreadyLocked`] when another process has it.
    pub fn run(database: &Path, run: i64) -> Result<Self, StoreError> {
        let path = beside(database, &format!("-run-{run}.lock"));
        Self::take(&path, &format!("run {run}"))
    }

    fn take(path: &Path, what: &str) -> Result<Self, StoreError> {
        let cannot = |error: std::io::Error| StoreError::CannotOpen {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(cannot)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // Windows refuses to read a locked file. Then the message names no holder.
                    let named = Read::by_ref(&mut file)
                        .take(200)
                        .read_to_string(&mut holder)
                        .is_ok();
                    let holder = if named && !holder.is_empty() {
                        format!(" ({})", holder.trim())
                    } else {
                        String::new()
                    };
                    return Err(StoreError::AlreadyLocked {
                        what: what.to_owned(),
                        holder,
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
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays behind");
        }
    }
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = canonical(database).into_os_string();
    path.push(suffix);
    path.into()
}

/// The path without symbolic links. A file that does not exist yet is named by its folder's canonical path; what cannot be
/// resolved stays as given, and opening the lock file reports why.
fn canonical(database: &Path) -> PathBuf {
    if let Ok(path) = database.canonicalize() {
        return path;
    }
    let folder = match database.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), database.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => database.to_owned(),
    }
}
