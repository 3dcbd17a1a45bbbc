//! `--vacuum`: makes the file smaller, after a look at the free space.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use pingfleet_settings::{Exit, Failure};
use pingfleet_store::{FileLock, StoreError, Writer};

/// Rewrites the file. Returns a sentence with its size before and after.
///
/// # Errors
/// [`Exit::System`] when a writer is working, when there is not enough space, or when SQLite fails.
pub(super) fn vacuum(writer: &mut Writer) -> Result<String, Failure> {
    let path = writer.path().to_owned();
    let _lock = FileLock::writer(&path).map_err(|error| match error {
        StoreError::AlreadyLocked { .. } => Failure::new(
            Exit::System,
            format_args!(
                "{error}, which --vacuum would stop: repeat it when no sweep and no writer runs"
            ),
        ),
        error => error.into(),
    })?;
    check_space(&path, writer.used_bytes()?)?;
    let before = size(&path)?;
    writer.vacuum()?;
    Ok(format!(
        "{} has {} now, and had {}",
        path.display(),
        megabytes(size(&path)?),
        megabytes(before)
    ))
}

/// `VACUUM` copies what is in use twice: into a temporary file, and into the log beside the database.
fn check_space(database: &Path, used: u64) -> Result<(), Failure> {
    let beside = match database.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let temporary = temporary_folder();
    let needs = if same_disk(&beside, &temporary) {
        vec![(beside, 2 * used)]
    } else {
        vec![(beside, used), (temporary, used)]
    };
    for (folder, needed) in needs {
        let free = fs4::available_space(&folder).map_err(|error| Failure::system(&error))?;
        if free < needed {
            return Err(Failure::new(
                Exit::System,
                format_args!(
                    "--vacuum needs {} of free space in {}, and {} is free: the file keeps its size, and later runs use the room in it",
                    megabytes(needed),
                    folder.display(),
                    megabytes(free)
                ),
            ));
        }
    }
    Ok(())
}

/// Where SQLite makes temporary files (<https://www.sqlite.org/tempfiles.html>, section 5).
fn temporary_folder() -> PathBuf {
    let named = ["SQLITE_TMPDIR", "TMPDIR"]
        .into_iter()
        .filter_map(env::var_os);
    let usual = ["/var/tmp", "/usr/tmp", "/tmp"].into_iter().map(Into::into);
    let mut folders = named.chain(usual).map(PathBuf::from);
    if cfg!(unix) {
        folders
            .find(|folder| folder.is_dir())
            .unwrap_or_else(|| PathBuf::from("."))
    } else {
        env::temp_dir()
    }
}

/// Whether both folders are on the same file system; true where the system does not show it.
fn same_disk(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        match (device(one), device(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => true,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (one, other);
        true
    }
}

fn size(path: &Path) -> Result<u64, Failure> {
    let found = fs::metadata(path).map_err(|error| Failure::system(&error))?;
    Ok(found.len())
}

/// A size with one decimal, in the unit that tools for disks use.
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1_000_000.0)
}
