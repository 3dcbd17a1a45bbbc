//! The layers of settings: file, environment, flags. Invariant: every problem is collected, none stops the reading.

use std::{collections::BTreeMap, fmt, path::Path};

use config::{Config, Environment, File, FileFormat, Value, ValueKind};
use thiserror::Error;

/// The file that is read when no other is named, if it is there.
const DEFAULT_FILE: &str = "pingfleet.toml";

/// All settings there are. One file serves all programs, so each knows them all.
const KNOWN: &[&str] = &[
    "broker.url",
    "broker.password_file",
    "broker.password",
    "broker.prefix",
    "store.path",
    "store.durability",
    "log.format",
    "worker.name",
    "worker.threads",
    "worker.rate",
    "worker.prefetch",
    "writer.batch_size",
    "writer.batch_interval",
    "probing.count",
    "probing.interval",
    "probing.timeout",
    "probing.retries",
    "probing.backoff",
    "probing.late_window",
    "probing.size",
    "probing.ttl",
    "probing.source",
    "probing.interface",
    "probing.rate",
    "probing.chunk_size",
];

/// Everything that is wrong with the settings.
#[derive(Debug, Error)]
pub struct SettingsError {
    /// One sentence each.
    pub problems: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problems.join("\n"))
    }
}

/// A value as text, with where it came from.
#[derive(Clone)]
struct Entry {
    text: String,
    origin: String,
}

/// The values of all layers, the strongest of each key, and the problems found so far.
pub struct Layers {
    entries: BTreeMap<String, Entry>,
    problems: Vec<String>,
}

impl Layers {
    /// Reads the file and the environment. A file that was named must be there; the default one may be missing.
    #[must_use]
    pub fn read(file: Option<&Path>) -> Self {
        let mut layers = Self {
            entries: BTreeMap::new(),
            problems: Vec::new(),
        };
        let name = file.unwrap_or(Path::new(DEFAULT_FILE));
        let from_file = Config::builder()
            .add_source(
                File::from(name)
                    .format(FileFormat::Toml)
                    .required(file.is_some()),
            )
            .build();
        layers.take(from_file, &format!("file {}", name.display()));
        let from_environment = Config::builder()
            .add_source(
                Environment::with_prefix("PINGFLEET")
                    .prefix_separator("_")
                    .separator("__")
                    .ignore_empty(true),
            )
            .build();
        layers.take(from_environment, "the environment");
        layers
    }

    fn take(&mut self, source: Result<Config, config::ConfigError>, origin: &str) {
        let in_environment = origin == "the environment";
        let source = match source {
            Ok(source) => source,
            Err(error) => {
                self.problems.push(format!("{origin}: {error}"));
                return;
            }
        };
        let ValueKind::Table(sections) = source.cache.kind else {
            return;
        };
        for (section, value) in sections {
            if let ValueKind::Table(values) = value.kind {
                for (key, value) in values {
                    self.take_value(format!("{section}.{key}"), value, origin);
                }
            } else if !in_environment {
                // Variables without a section, such as PINGFLEET_BIND, are for other programs.
                self.problems
                    .push(format!("{origin}: {section} is no section of settings"));
            }
        }
    }

    fn take_value(&mut self, key: String, value: Value, origin: &str) {
        if !KNOWN.contains(&key.as_str()) {
            self.problems.push(format!("{origin}: no setting {key}"));
            return;
        }
        match value.into_string() {
            Ok(text) => {
                let origin = origin.to_owned();
                self.entries.insert(key, Entry { text, origin });
            }
            Err(_) => self
                .problems
                .push(format!("{origin}: {key} is not one value")),
        }
    }

    /// Sets a value from a flag, if the flag was given.
    pub fn flag(&mut self, key: &str, flag: &str, text: Option<&str>) {
        debug_assert!(KNOWN.contains(&key), "{key}");
        if let Some(text) = text {
            let (text, origin) = (text.to_owned(), flag.to_owned());
            self.entries.insert(key.to_owned(), Entry { text, origin });
        }
    }

    /// The value of a key, or `default` when no layer sets it. What `parse` refuses becomes a problem that names the
    /// layer, and `default` stands in for it.
    pub fn get<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        debug_assert!(KNOWN.contains(&key), "{key}");
        let Some(entry) = self.entries.get(key) else {
            return default;
        };
        match parse(&entry.text) {
            Ok(value) => value,
            Err(why) => {
                self.problems
                    .push(format!("{}: {key}: {why}", entry.origin));
                default
            }
        }
    }

    /// Adds a problem that no single value shows.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems, if there are any.
    pub fn finish(self) -> Result<(), SettingsError> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(SettingsError {
                problems: self.problems,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_all_problems_are_told() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(
            file,
            "top = 1\n[probing]\ncount = 7\ntimeout = '5 bananas'\nbananas = 2\n"
        )
        .unwrap();
        let mut layers = Layers::read(Some(file.path()));
        layers.flag("probing.retries", "--retries", Some("many"));
        layers.flag("probing.count", "--count", Some("3"));
        assert_eq!(layers.get("probing.count", 1, crate::number(1, 10)), 3);
        layers.get("probing.timeout", std::time::Duration::ZERO, |text| {
            crate::duration(text)
        });
        assert_eq!(layers.get("probing.retries", 9, crate::number(0, 100)), 9);
        let problems = layers.finish().unwrap_err().problems;
        assert_eq!(problems.len(), 4, "{problems:?}");
        for part in ["top", "no setting probing.bananas", "--retries", "timeout"] {
            assert!(
                problems.iter().any(|problem| problem.contains(part)),
                "{part}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let problems = Layers::read(Some(Path::new("/nonexistent/pingfleet.toml")))
            .finish()
            .unwrap_err();
        assert!(problems.to_string().contains("/nonexistent/pingfleet.toml"));
    }
}
