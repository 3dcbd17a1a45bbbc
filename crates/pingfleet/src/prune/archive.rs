//! The archive: a folder with a Parquet file for each run. Each file has the column `run`, so that any reader of Parquet
//! reads the folder as one table. Folders that name the run as Hive does (`run=3`) would not do: pyarrow refuses a column that
//! both the path and the file have, and a file without it would not stand alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pingfleet_settings::{Exit, Failure};
use pingfleet_store::{Reader, RunSummary};
use tokio_util::sync::CancellationToken;

use crate::export::{
    output::{make_folder, remove_unfinished},
    write_parquet_file,
};

/// The folder.
pub(super) struct Archive {
    /// Its absolute path, so that a message of later names it rightly.
    folder: PathBuf,
}

impl Archive {
    /// Makes the folder unless it is there.
    ///
    /// # Errors
    /// [`Exit::System`] when it cannot be made or written.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let open = || {
            make_folder(folder)?;
            // A file system that is full or may not be written is known before anything else is done.
            tempfile::tempfile_in(folder)?;
            fs::canonicalize(folder)
        };
        let folder = open().map_err(|error| cannot_write(folder, &error))?;
        Ok(Self { folder })
    }

    /// The file of a run in an archive folder. Its UUID lets several databases share a folder.
    pub(super) fn file_in(folder: &Path, summary: &RunSummary) -> PathBuf {
        folder.join(format!("run-{}-{}.parquet", summary.run, summary.run_id))
    }

    /// Writes all rows of a run, and reads them back. Replaces what an interrupted call left. Returns the file, or how many
    /// rows the run has when it counts another number: then there is no new file. The caller has the run's lock.
    ///
    /// # Errors
    /// [`Exit::System`] when the file cannot be written; [`Exit::Interrupted`].
    pub(super) fn write(
        &self,
        reader: Reader,
        summary: &RunSummary,
        stop: &CancellationToken,
    ) -> Result<Result<String, u64>, Failure> {
        let file = Self::file_in(&self.folder, summary);
        remove_unfinished(&file).map_err(|error| cannot_write(&file, &error))?;
        let rows = write_parquet_file(reader, summary, &file, stop)?;
        if rows as i64 != summary.settled() {
            return Ok(Err(rows));
        }
        Ok(Ok(file.display().to_string()))
    }

    /// Removes the file of a run that is not marked as pruned.
    ///
    /// # Errors
    /// [`Exit::System`].
    pub(super) fn remove(file: &str) -> Result<(), Failure> {
        fs::remove_file(file).map_err(|error| {
            Failure::new(Exit::System, format_args!("cannot remove {file}: {error}"))
        })
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::System,
        format_args!("cannot write {}: {error}", path.display()),
    )
}
