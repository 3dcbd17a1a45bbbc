//! Where an export goes: standard output, or a file that appears whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Stdout, Write},
    path::{Path, PathBuf},
};

use pingfleet_settings::{Exit, Failure};
use tempfile::NamedTempFile;

/// The ending of a file that is not finished.
const PART: &str = ".part";

/// Standard output or a file.
#[derive(Debug)]
pub(crate) struct Output {
    /// As the user gave it.
    path: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stdout(Stdout),
    /// A pipe or a device, which cannot be replaced.
    Device(File),
    /// A file beside the one that it becomes. It is removed when it is dropped.
    Temporary(NamedTempFile, PathBuf),
}

impl Output {
    /// Opens a path for writing; `-` is standard output.
    ///
    /// # Errors
    /// [`Exit::System`] when the file or its folder cannot be written.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let sink = Sink::open(path).map_err(|error| failure(path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            sink,
        })
    }

    /// Lets nobody read the file who may not read the database.
    ///
    /// # Errors
    /// [`Exit::System`].
    pub(crate) fn restrict_to_readers_of(&self, database: &Path) -> Result<(), Failure> {
        #[cfg(unix)]
        if let Sink::Temporary(file, _) = &self.sink {
            use std::os::unix::fs::PermissionsExt as _;
            let restricted = fs::metadata(database).and_then(|found| {
                let mode = found.permissions().mode() & 0o640;
                let permissions = fs::Permissions::from_mode(mode);
                file.as_file().set_permissions(permissions)
            });
            restricted.map_err(|error| self.failure(&error))?;
        }
        #[cfg(not(unix))]
        let _ = database;
        Ok(())
    }

    /// Brings all of a file to the disk, so that only its name is missing.
    ///
    /// # Errors
    /// [`Exit::System`].
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let synced = self.flush().and_then(|()| match &self.sink {
            Sink::Temporary(file, _) => file.as_file().sync_all(),
            Sink::Stdout(_) | Sink::Device(_) => Ok(()),
        });
        synced.map_err(|error| self.failure(&error))
    }

    /// Makes the file appear under its name, once all of it is on disk.
    ///
    /// # Errors
    /// [`Exit::System`]; then there is no new file.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let finished = self.flush().and_then(|()| match self.sink {
            Sink::Temporary(file, target) => persist(file, &target),
            Sink::Stdout(_) | Sink::Device(_) => Ok(()),
        });
        finished.map_err(|error| failure(&self.path, &error))
    }

    /// The message for a failed write.
    pub(crate) fn failure(&self, error: &io::Error) -> Failure {
        failure(&self.path, error)
    }
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        if super::is_stdout(path) {
            return Ok(Self::Stdout(io::stdout()));
        }
        // The file that a symbolic link leads to is replaced, and not the link.
        let target = match fs::canonicalize(path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        match fs::metadata(&target) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => {
                return Ok(Self::Device(File::options().write(true).open(&target)?));
            }
            Ok(_) | Err(_) => {}
        }
        Ok(Self::Temporary(temporary(&target)?, target))
    }
}

/// A hidden file in the folder of the target: a rename cannot cross file systems.
fn temporary(target: &Path) -> io::Result<NamedTempFile> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(PART);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // As the umask allows, like every other new file.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder(target))
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes what an interrupted process left of a file: hidden files beside it that it did not finish. Nobody else may
/// be writing the same file.
pub(crate) fn remove_unfinished(target: &Path) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    for entry in fs::read_dir(folder(target))? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with(&prefix) && found.ends_with(PART) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a folder, and the missing ones above it, so that their names are on disk.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder(path);
    make_folder(above)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(above)
}

/// Brings the names in a folder to the disk (Linux fsync(2)). Windows has no such call.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn persist(file: NamedTempFile, target: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(target).map_err(|failed| failed.error)?;
    // The new name is on disk only with its folder.
    sync_folder(folder(target))
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let to = if super::is_stdout(path) {
        "the output".to_owned()
    } else {
        path.display().to_string()
    };
    Failure::new(Exit::System, format_args!("cannot write {to}: {error}"))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Stdout(out) => out.write(bytes),
            Sink::Device(out) => out.write(bytes),
            Sink::Temporary(out, _) => out.as_file_mut().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout(out) => out.flush(),
            Sink::Device(_) | Sink::Temporary(..) => Ok(()),
        }
    }
}
