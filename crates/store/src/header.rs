//! Reads the file header (the first 100 bytes) to see which program's file it is, and connects to it.
//!
//! Invariant: while this process has a database open, only SQLite closes descriptors of its file. SQLite locks with
//! `fcntl`, and a process loses all its `fcntl` locks on a file when it closes any descriptor of that file. Then the next
//! program that closes the database believes that it is the last one, and removes the log that we still use.
//! Source: <https://www.sqlite.org/fileformat.html>; <https://www.sqlite.org/howtocorrupt.html>, section 2.2.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use pingfleet_settings::{OPEN_FILES_ADVICE, shell_word};
use rusqlite::{Connection, OpenFlags};

use crate::{
    FileMode, StoreError,
    schema::{APPLICATION_ID, SCHEMA_VERSION},
};

/// The databases that this process has open, with one entry for each connection.
static OPEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// An entry in [`OPEN`]. Must be dropped after its connection.
#[derive(Debug)]
pub(crate) struct OpenFile(PathBuf);

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|path| *path == self.0) {
            open.swap_remove(at);
        }
    }
}

/// How a connection uses the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads and writes. A file that does not exist is created with this mode, which SQLite gives to the files beside it.
    Write(FileMode),
    /// Only reads. Uses the `-wal` and `-shm` files of the database, which must exist.
    Read,
    /// Only reads, without locks and without `-wal` and `-shm`. Correct only while nobody writes.
    ReadImmutable,
}

/// Connects to a file unless `check` refuses its header. A file that this process has open already is not checked again:
/// reading its header would close a descriptor.
pub(crate) fn connect(
    path: &Path,
    access: Access,
    check: impl FnOnce(FileHeader) -> Result<(), StoreError>,
) -> Result<(Connection, OpenFile), StoreError> {
    let cannot = |reason: String| StoreError::CannotOpen {
        path: path.to_owned(),
        reason,
    };
    // Locked to the end of the function: no other thread may open the database while its header is read.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_open = fs::canonicalize(path).is_ok_and(|path| open.contains(&path));
    let is_writer = matches!(access, Access::Write(_));
    if is_writer && let Some(reason) = planted_here(path) {
        return Err(cannot(reason));
    }
    if !is_open {
        let found = FileHeader::read(path).map_err(|error| cannot(error.to_string()))?;
        check(found)?;
        if let (Access::Write(mode), FileHeader::Absent) = (access, found) {
            create(path, mode).map_err(|error| {
                cannot(missing_folder(path).unwrap_or_else(|| error.to_string()))
            })?;
            // Another user may have been faster.
            if let Some(reason) = planted_here(path) {
                return Err(cannot(reason));
            }
        }
    }
    let connection = match access {
        Access::Write(_) => Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        ),
        Access::Read | Access::ReadImmutable => Connection::open_with_flags(
            uri(path, access == Access::ReadImmutable)
                .map_err(|error| cannot(error.to_string()))?,
            OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_URI
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        ),
    }
    .map_err(|error| {
        let known = missing_folder(path).or_else(too_few_files);
        cannot(known.unwrap_or_else(|| error.to_string()))
    })?;
    // SQLite would fall back to read-only, and leave -wal and -shm files behind that it may not remove.
    if is_writer && connection.is_readonly("main")? {
        let reason = too_few_files();
        return Err(cannot(
            reason.unwrap_or_else(|| "no permission to write to it".to_owned()),
        ));
    }
    let opened = fs::canonicalize(path).map_err(|error| cannot(error.to_string()))?;
    open.push(opened.clone());
    Ok((connection, OpenFile(opened)))
}

/// Creates an empty database. Another process may do the same.
fn create(path: &Path, mode: FileMode) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    set_mode(&mut options, mode.bits());
    match options.open(path) {
        Ok(file) => undo_umask(&file, mode.bits()),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // SQLite would create what the link names, for all to read.
        Err(_) if !path.exists() => Err(io::Error::other(
            "it is a symbolic link to a file that does not exist: name that file",
        )),
        Err(_) => Ok(()),
    }
}

/// Gives a file that was just created the permissions that were asked for, also those that the umask forbids: a setting
/// goes before it. SQLite does the same for the files beside the database.
pub(crate) fn undo_umask(file: &File, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(fs::Permissions::from_mode(mode))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, mode);
        Ok(())
    }
}

/// Has new files opened with this mode. Windows gives them the permissions of their folder.
pub(crate) fn set_mode(options: &mut fs::OpenOptions, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(mode);
    }
    #[cfg(not(unix))]
    let _ = (options, mode);
}

/// Who may read and write a database, for the files beside it; its user if there is none.
pub(crate) fn mode_of(path: &Path) -> u32 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if let Ok(file) = fs::metadata(path) {
            return file.mode() & 0o666;
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    FileMode::User.bits()
}

/// Why a database, or a file that SQLite reads with it, may be another user's trap.
fn planted_here(path: &Path) -> Option<String> {
    planted(path).or_else(|| {
        ["-wal", "-shm", "-journal"].iter().find_map(|suffix| {
            let reason = planted(&companion(path, suffix))?;
            Some(format!("its file {suffix} may be a trap: {reason}"))
        })
    })
}

/// Why a file may be another user's trap: it is in a folder that every user may write to, and is a link or somebody else's.
#[cfg(unix)]
pub(crate) fn planted(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    const ALL_MAY_WRITE: u32 = 0o002;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::metadata(folder.unwrap_or(Path::new("."))).ok()?;
    let found = fs::symlink_metadata(path).ok()?;
    if folder.mode() & ALL_MAY_WRITE == 0 {
        return None;
    }
    let advice = "in a folder that every user may write to; use a folder of your own";
    let owner = found.uid();
    let is_ours = owner == rustix::process::geteuid().as_raw();
    if found.is_symlink() {
        Some(format!("it is a symbolic link {advice}"))
    } else if !is_ours && owner != 0 {
        Some(format!(
            "it belongs to the user with the id {owner}, {advice}"
        ))
    } else {
        None
    }
}

#[cfg(not(unix))]
pub(crate) fn planted(_: &Path) -> Option<String> {
    None
}

/// The URI of a file (<https://www.sqlite.org/uri.html>).
fn uri(path: &Path, immutable: bool) -> io::Result<String> {
    let path = std::path::absolute(path)?;
    let path = path.as_os_str().as_encoded_bytes();
    let mut uri = "file://".to_owned();
    if cfg!(windows) {
        push_encoded(&mut uri, &from_windows(path));
    } else {
        push_encoded(&mut uri, path);
    }
    if immutable {
        uri.push_str("?immutable=1");
    }
    Ok(uri)
}

/// An absolute path of Windows as the path of a URI: `/C:/a.db`, or `//server/share/a.db`.
fn from_windows(path: &[u8]) -> Vec<u8> {
    let path: Vec<u8> = path
        .iter()
        .map(|byte| if *byte == b'\\' { b'/' } else { *byte })
        .collect();
    // The prefix of long paths, which SQLite adds itself.
    if let Some(share) = path.strip_prefix(b"//?/UNC/") {
        return [b"//", share].concat();
    }
    let path = path.strip_prefix(b"//?/").unwrap_or(&path);
    if path.starts_with(b"/") {
        path.to_vec()
    } else {
        [b"/", path].concat()
    }
}

fn push_encoded(uri: &mut String, path: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in path {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b':' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => {
                uri.push('%');
                uri.push(char::from(DIGITS[usize::from(byte >> 4)]));
                uri.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

/// A file of SQLite's beside the database: `-wal`, `-shm` or `-journal`.
pub(crate) fn companion(path: &Path, suffix: &str) -> PathBuf {
    // SQLite names them after the file that a symbolic link leads to.
    let mut name = fs::canonicalize(path)
        .unwrap_or_else(|_| path.to_owned())
        .into_os_string();
    name.push(suffix);
    name.into()
}

/// Device and inode of a file.
pub(crate) type Identity = (u64, u64);

/// Device and inode of the file that a path names now, without opening it. None on Windows, where an open file cannot be
/// deleted.
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

/// The message for a missing folder. SQLite only reports that it cannot open the file.
fn missing_folder(path: &Path) -> Option<String> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())?;
    let (name, word) = (folder.display(), shell_word(folder));
    (!folder.exists()).then(|| format!("there is no folder {name}: mkdir -p {word}"))
}

/// The message for a process that may not open as many files as one connection needs: the database, its log, its shared
/// memory and its folder. SQLite reports a missing file instead, or a database that is read-only.
fn too_few_files() -> Option<String> {
    let files: io::Result<Vec<File>> = (0..4)
        .map(|_| File::open(std::env::current_exe()?))
        .collect();
    let error = files.err().filter(|error| {
        // EMFILE, ENFILE
        cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
    })?;
    Some(format!("{error}: {OPEN_FILES_ADVICE}"))
}

/// What the first 100 bytes of a file show. Reading them changes nothing, unlike opening the file with SQLite.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FileHeader {
    /// There is no file.
    Absent,
    /// The file has no bytes.
    Empty,
    /// The file is no SQLite database.
    NotSqlite,
    /// A SQLite database of any program.
    Sqlite {
        /// `PRAGMA application_id`.
        application_id: i32,
        /// `PRAGMA user_version`.
        user_version: u32,
    },
}

impl FileHeader {
    /// Refuses a file that is missing, unless `create` is set, and a file of another program or a newer version.
    pub(crate) fn check(self, path: &Path, create: bool) -> Result<(), StoreError> {
        let foreign = |found: String| StoreError::Foreign {
            path: path.to_owned(),
            found,
        };
        match self {
            Self::Absent | Self::Empty if !create => Err(StoreError::Missing {
                path: path.to_owned(),
            }),
            Self::Absent | Self::Empty => Ok(()),
            Self::NotSqlite => Err(foreign("no SQLite file".to_owned())),
            Self::Sqlite { application_id, .. } if application_id != APPLICATION_ID => {
                Err(foreign(format!(
                    "a SQLite database with application id {application_id}"
                )))
            }
            Self::Sqlite { user_version, .. } => refuse_newer(path, user_version.into()),
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        // Before it is opened: opening a pipe waits for its other end.
        match fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => return Err(io::Error::other("it is no regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(error),
        }
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

/// Refuses a database whose schema is newer than this program.
pub(crate) fn refuse_newer(path: &Path, found: i64) -> Result<(), StoreError> {
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    Ok(())
}

/// Translates SQLite's errors for a damaged or protected file.
pub(crate) fn explain(path: &Path, error: StoreError) -> StoreError {
    let StoreError::Sqlite(source) = &error else {
        return error;
    };
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            StoreError::Corrupt {
                path: path.to_owned(),
                detail: source.to_string(),
            }
        }
        Some(
            rusqlite::ErrorCode::ReadOnly
            | rusqlite::ErrorCode::CannotOpen
            | rusqlite::ErrorCode::PermissionDenied,
        ) => StoreError::CannotOpen {
            path: path.to_owned(),
            reason: too_few_files().unwrap_or_else(|| source.to_string()),
        },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_windows_becomes_the_path_of_a_uri() {
        for (path, uri) in [
            (r"C:\sweeps\fleet.db", "/C:/sweeps/fleet.db"),
            (r"\\server\share\fleet.db", "//server/share/fleet.db"),
            (r"\\?\C:\sweeps\fleet.db", "/C:/sweeps/fleet.db"),
            (r"\\?\UNC\server\share\fleet.db", "//server/share/fleet.db"),
        ] {
            let found = from_windows(path.as_bytes());
            assert_eq!(String::from_utf8_lossy(&found), uri, "{path}");
        }
    }

    #[test]
    fn a_uri_keeps_no_character_that_has_a_meaning_in_it() {
        let mut uri = String::new();
        push_encoded(&mut uri, "/a b?c#d%e\u{fc}.db".as_bytes());
        assert_eq!(uri, "/a%20b%3Fc%23d%25e%C3%BC.db");
    }
}
