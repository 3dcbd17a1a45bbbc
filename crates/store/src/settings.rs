//! What a program needs around the database: its settings, and the exit code of its errors.

use std::path::PathBuf;

use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, keys};

use crate::{Durability, FileMode, OpenOptions, StoreError};

/// What to do about SQLite's "database or disk is full".
const DISK_FULL_ADVICE: &str = ": free space on the disk of the database or of temporary files";

/// The resolved settings of the database.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// The database file.
    pub path: PathBuf,
    /// Which failures a commit survives.
    pub durability: Durability,
    /// Who may read the files that are created.
    pub mode: FileMode,
    /// See [`Self::as_flags`].
    flags: String,
}

impl DatabaseSettings {
    /// Resolves the settings of the database; problems are collected in `layers`.
    pub fn resolve(args: &DatabaseArgs, layers: &mut Layers) -> Self {
        let path = args.path(layers);
        Self {
            flags: args.as_flags(&path, layers),
            path,
            durability: layers.get_as(&keys::STORE_DURABILITY, |name| match name.as_str() {
                "full" => Ok(Durability::Full),
                "normal" => Ok(Durability::Normal),
                "off" => Ok(Durability::Off),
                _ => Err(format!("{name:?} is not a durability")),
            }),
            mode: layers.get_as(&keys::STORE_READABLE_BY, |who| match who.as_str() {
                "user" => Ok(FileMode::User),
                "group" => Ok(FileMode::Group),
                _ => Err(format!("{who:?} is neither user nor group")),
            }),
        }
    }

    /// How this program opens the database.
    #[must_use]
    pub fn options(&self, create: bool, check: bool) -> OpenOptions {
        OpenOptions {
            path: self.path.clone(),
            durability: self.durability,
            create,
            mode: self.mode,
            check,
        }
    }

    /// The flags that name the settings file and this database, each behind a space, for a command that is printed.
    #[must_use]
    pub fn as_flags(&self) -> &str {
        &self.flags
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::NoSuchRun { .. }
            | StoreError::AmbiguousRun { .. }
            | StoreError::Pruned { .. }
            | StoreError::BadCondition { .. } => Exit::Usage,
            StoreError::Interrupted => Exit::Interrupted,
            _ => Exit::System,
        };
        let mut message = Self::system(&error).message;
        if error.is_disk_full() {
            message.push_str(DISK_FULL_ADVICE);
        }
        Self { exit, message }
    }
}
