//! Locks of the operating system beside the database: one writer, one producer a run.
//!
//! A lock ends with its process, however that ends. The file names its holder for messages, and is removed with the
//! lock. Source: `flock(2)`; `LockFileEx` on Windows.

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

/// A held lock.
#[derive(Debug)]
pub struct FileLock {
    // Held for its lock, which ends when the file is closed.
    _file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock of the database's writer.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another process has it.
    pub fn writer(database: &Path) -> Result<Self, StoreError> {
        Self::take(&beside(database, "-writer.lock"), "the writer's lock")
    }

    /// Takes the lock of a run: who holds it produces the run.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another process has it.
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
                    // Windows refuses to read a locked file: then the message names nobody.
                    let named = Read::by_ref(&mut file)
                        .take(200)
                        .read_to_string(&mut holder)
                        .is_ok();
                    let holder = if named && !holder.is_empty() {
                        format!(" ({})", holder.trim())
                    } else {
                        String::new()
                    };
                    return Err(StoreError::Held {
                        what: what.to_owned(),
                        holder,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(cannot(error)),
            }
            // The last holder may have removed the file between our opening and our locking of it.
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
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
