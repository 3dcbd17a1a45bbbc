//! The database: whether it can be opened and written, or created.

use std::{io, path::Path};

use pingfleet_settings::{Failure, shell_word};
use pingfleet_store::{DatabaseSettings, Reader, StoreError};

use super::CheckResult;

pub(super) fn check(database: &DatabaseSettings) -> CheckResult {
    let (path, word) = (database.path.display(), shell_word(&database.path));
    let checked = match Reader::open(&database.path).and_then(|reader| reader.check()) {
        Err(StoreError::Missing { .. }) => return folder(&database.path),
        // What a writer upgrades or puts into the file is checked after that.
        Err(StoreError::Older { .. } | StoreError::CannotOpen { .. }) => write(database)
            .and_then(|()| Reader::open(&database.path))
            .and_then(|reader| reader.check()),
        checked => checked.and_then(|()| write(database)),
    };
    let error = match checked {
        Ok(()) => return CheckResult::Good(format!("{path} is sound and writable")),
        Err(error) => error,
    };
    CheckResult::Bad {
        fix: match &error {
            StoreError::Foreign { .. } | StoreError::Newer { .. } => {
                "pingfleet doctor --db ANOTHER.db".to_owned()
            }
            StoreError::Corrupt { .. } => {
                format!("sqlite3 {word} .recover | sqlite3 RECOVERED.db")
            }
            _ => format!(
                "sudo chown \"$USER\" {word}*; if that is not it, see: ls -ld . {word}*; df -h {word}"
            ),
        },
        found: Failure::system(&error).message,
    }
}

/// Commits a transaction. Upgrades an older schema.
fn write(database: &DatabaseSettings) -> Result<(), StoreError> {
    let mut store = database.options(false, false).open()?;
    store.try_commit()?;
    store.close()
}

/// There is no database yet: checks whether one can be created.
fn folder(path: &Path) -> CheckResult {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (shown, word) = (folder.display(), shell_word(folder));
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => CheckResult::Good(format!(
            "{} does not exist yet and can be created",
            path.display()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => CheckResult::Bad {
            found: format!("there is no folder {shown}"),
            fix: format!("mkdir -p {word}"),
        },
        Err(error) => CheckResult::Bad {
            // Only the kind of the error: its text names the temporary file of this check.
            found: format!(
                "folder {shown} cannot be written: {}",
                io::Error::from(error.kind())
            ),
            fix: format!("sudo chown \"$USER\" {word}; or --db ELSEWHERE"),
        },
    }
}
