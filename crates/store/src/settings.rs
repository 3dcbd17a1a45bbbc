//! What a program needs around the database: its settings, and the exit code of its errors.

use std::path::{Path, PathBuf};

use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, keys};

use crate::{Durability, OpenOptions, StoreError};

/// The resolved settings of the database.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// The database file.
    pub path: PathBuf,
    /// Which failures a commit survives.
    pub durability: Durability,
}

impl DatabaseSettings {
    /// Resolves the settings of the database; problems are collected in `layers`.
    pub fn resolve(args: &DatabaseArgs, layers: &mut Layers) -> Self {
        Self {
            path: args.path(layers),
            durability: layers.get_as(&keys::STORE_DURABILITY, |name| match name.as_str() {
                "full" => Ok(Durability::Full),
                "normal" => Ok(Durability::Normal),
                "off" => Ok(Durability::Off),
                _ => Err(format!("{name:?} is not a durability")),
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
            check,
        }
    }

    /// The flags that name this database, for a command that is shown to the user.
    #[must_use]
    pub fn as_flags(&self) -> String {
        if self.path == Path::new(keys::STORE_PATH.default.0) {
            String::new()
        } else {
            format!(" --db '{}'", self.path.display())
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::NoSuchRun { .. } | StoreError::AmbiguousRun { .. } => Exit::Usage,
            _ => Exit::System,
        };
        Self {
            exit,
            ..Self::system(&error)
        }
    }
}
