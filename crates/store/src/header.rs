//! Whose file it is, by its first 100 bytes, and the connection to it.
//!
//! Invariant: no descriptor of a database's file is closed while this process has that database open, but by SQLite.
//! Its locks are those of `fcntl`, of which a process loses all on a file with the first descriptor that it closes:
//! then the next program that closes the database takes itself for the last one, and removes the log under us.
//! Source: <https://www.sqlite.org/fileformat.html>; <https://www.sqlite.org/howtocorrupt.html>, section 2.2.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};

use crate::StoreError;

/// The databases that this process has open, each as often as it has.
static OPEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// An open database of this process. To be dropped after its connection.
#[derive(Debug)]
pub(crate) struct Opened(PathBuf);

impl Drop for Opened {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|path| *path == self.0) {
            open.swap_remove(at);
        }
    }
}

/// Connects to a file that `judge` does not refuse. A file that this process has open was judged before.
pub(crate) fn connect(
    path: &Path,
    judge: impl FnOnce(Header) -> Result<(), StoreError>,
) -> Result<(Connection, Opened), StoreError> {
    let cannot = |reason: String| StoreError::CannotOpen {
        path: path.to_owned(),
        reason,
    };
    // Held to the end: nobody may open the database while its header is read.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = fs::canonicalize(path).is_ok_and(|path| open.contains(&path));
    if !known {
        judge(Header::read(path).map_err(|error| cannot(error.to_string()))?)?;
    }
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|error| cannot(missing_folder(path).unwrap_or_else(|| error.to_string())))?;
    // SQLite falls back to reading, and would leave companions behind that it may not remove.
    if connection.is_readonly("main")? {
        return Err(cannot("no permission to write to it".to_owned()));
    }
    let opened = fs::canonicalize(path).map_err(|error| cannot(error.to_string()))?;
    open.push(opened.clone());
    Ok((connection, Opened(opened)))
}

/// Which file a path names: its device and its number there.
pub(crate) type Identity = (u64, u64);

/// Which file a path names now. Asks without opening it. Nothing where the system has no such numbers; an open file
/// cannot be deleted there.
#[cfg(unix)]
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(not(unix))]
pub(crate) fn identity(_: &Path) -> Option<Identity> {
    None
}

/// What to tell of a folder that is not there; SQLite only says that it cannot open the file.
fn missing_folder(path: &Path) -> Option<String> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())?;
    let folder = folder.display();
    (!path.parent()?.exists()).then(|| format!("there is no folder {folder}: mkdir -p {folder}"))
}

/// What the first 100 bytes of the file say. Reading them changes nothing, unlike opening it with SQLite.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Header {
    /// There is no file.
    Absent,
    /// The file has no bytes.
    Empty,
    /// Something else.
    NotSqlite,
    /// A database, of whatever program.
    Sqlite {
        /// `PRAGMA application_id`.
        application_id: i32,
        /// `PRAGMA user_version`.
        user_version: u32,
    },
}

impl Header {
    fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(error),
        };
        let mut header = Vec::new();
        file.take(100).read_to_end(&mut header)?;
        if header.is_empty() {
            return Ok(Self::Empty);
        }
        let Ok(header) = <[u8; 100]>::try_from(header) else {
            return Ok(Self::NotSqlite);
        };
        if !header.starts_with(b"SQLite format 3\0") {
            return Ok(Self::NotSqlite);
        }
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        Ok(Self::Sqlite {
            application_id: i32::from_be_bytes(word(68)),
            user_version: u32::from_be_bytes(word(60)),
        })
    }
}
