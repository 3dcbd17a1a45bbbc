//! The layers of settings: file, environment, flags. All problems are collected; none stops the reading.

use std::{collections::BTreeMap, ffi::OsString, fmt, fs, io, path::Path};

use config::{Config, File, FileFormat, ValueKind};
use thiserror::Error;

/// The settings file that is read without `--config`, if it exists.
const DEFAULT_FILE: &str = "pingfleet.toml";

/// The prefix of our variables, in lower case. `section__key` follows.
const VARIABLE_PREFIX: &str = "pingfleet_";

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
    "probing.family",
    "probing.rate",
    "probing.chunk_size",
];

/// Everything that is wrong with the settings.
#[derive(Debug, Error)]
pub struct SettingsError {
    /// One sentence for each problem.
    pub problems: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.problems.as_slice() {
            return f.write_str(only);
        }
        write!(f, "{} problems in the settings:", self.problems.len())?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// A value as text, with the place that an error message names: a flag, a variable, or a file and a key.
#[derive(Clone)]
struct SettingText {
    text: String,
    place: String,
}

/// The value of each key from the highest layer that sets it, and the problems found so far.
#[derive(Default)]
pub struct Layers {
    values: BTreeMap<String, SettingText>,
    problems: Vec<String>,
}

impl Layers {
    /// Reads the file and the environment. A file that was named must be there; the default one may be missing.
    #[must_use]
    pub fn read(file: Option<&Path>) -> Self {
        let mut layers = Self::default();
        layers.take_file(file);
        layers.take_environment(std::env::vars_os());
        layers
    }

    fn take_file(&mut self, named: Option<&Path>) {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let name = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return,
            Err(error) => {
                self.problems.push(format!("settings file {name}: {error}"));
                return;
            }
        };
        // Windows editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let read = Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .build();
        let sections = match read.map(|config| config.cache.kind) {
            Ok(ValueKind::Table(sections)) => sections,
            Ok(_) => return,
            Err(error) => {
                let why = without_excerpt(&error.to_string());
                self.problems.push(format!("settings file {name}: {why}"));
                return;
            }
        };
        // Sorted, so that the order of the problems is always the same.
        for (section, value) in BTreeMap::from_iter(sections) {
            let ValueKind::Table(values) = value.kind else {
                self.problems.push(format!(
                    "{name}: {section} must be in a section, such as [probing]"
                ));
                continue;
            };
            for (key, value) in BTreeMap::from_iter(values) {
                let key = format!("{section}.{key}");
                let place = format!("{name}: {key}");
                match value.into_string() {
                    Ok(text) => self.take(key, text, place),
                    Err(_) => self.problems.push(format!("{place}: not a single value")),
                }
            }
        }
    }

    /// Variables without `__`, such as `PINGFLEET_BIND`, belong to other programs, unless a single `_` is a typing
    /// error.
    fn take_environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        let ours = variables.filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let key = name.to_ascii_lowercase();
            let key = key.strip_prefix(VARIABLE_PREFIX)?.to_owned();
            (!value.is_empty()).then_some((name, (key, value)))
        });
        for (name, (key, value)) in ours.collect::<BTreeMap<_, _>>() {
            let Some((section, key)) = key.split_once("__") else {
                let is_typo = |known: &&&str| known.replace('.', "_") == key;
                if let Some(meant) = KNOWN.iter().find(is_typo) {
                    let meant = meant.replace('.', "__").to_uppercase();
                    self.problems.push(format!(
                        "{name}: write it with two underscores, PINGFLEET_{meant}"
                    ));
                }
                continue;
            };
            // The value is not shown: it may be a password.
            match value.into_string() {
                Ok(text) => self.take(format!("{section}.{key}"), text, name),
                Err(_) => self.problems.push(format!("{name}: not Unicode")),
            }
        }
    }

    fn take(&mut self, key: String, text: String, place: String) {
        if KNOWN.contains(&key.as_str()) {
            self.values.insert(key, SettingText { text, place });
        } else {
            self.problems.push(format!("{place}: no such setting"));
        }
    }

    /// Sets a value from a flag, if the flag was given.
    pub fn flag(&mut self, key: &str, flag: &str, text: Option<&str>) {
        debug_assert!(KNOWN.contains(&key), "{key}");
        if let Some(text) = text {
            let (text, place) = (text.to_owned(), flag.to_owned());
            self.values
                .insert(key.to_owned(), SettingText { text, place });
        }
    }

    /// The value of a key, or `default` if no layer sets it. If `parse` fails, its message becomes a problem with the
    /// place of the value, and the result is `default`.
    pub fn get<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        debug_assert!(KNOWN.contains(&key), "{key}");
        let Some(value) = self.values.get(key) else {
            return default;
        };
        match parse(&value.text) {
            Ok(value) => value,
            Err(why) => {
                self.problems.push(format!("{}: {why}", value.place));
                default
            }
        }
    }

    /// Adds a problem that is not about a single value.
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

/// The message of a TOML error in one line. Between its first and its last line is an excerpt of the file, which may
/// show a password.
fn without_excerpt(error: &str) -> String {
    let mut lines = error.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(place), Some(why)) => format!("{place}: {why}"),
        (place, _) => place.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn environment(variables: &[(&str, &str)]) -> Layers {
        let mut layers = Layers::default();
        layers.take_environment(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        layers
    }

    #[test]
    fn flags_override_the_file_and_all_problems_are_reported() {
        let file =
            file("top = 1\n[probing]\ncount = 7\ntimeout = '5 bananas'\nbananas = 2\nttl = [1]\n");
        let mut layers = Layers::read(Some(file.path()));
        layers.flag("probing.retries", "--retries", Some("many"));
        layers.flag("probing.count", "--count", Some("3"));
        assert_eq!(layers.get("probing.count", 1, crate::number(1, 10)), 3);
        layers.get("probing.timeout", std::time::Duration::ZERO, |text| {
            crate::duration(text)
        });
        assert_eq!(layers.get("probing.retries", 9, crate::number(0, 100)), 9);
        let problems = layers.finish().unwrap_err().problems;
        assert_eq!(problems.len(), 5, "{problems:?}");
        for part in [
            "top must be in a section",
            "probing.bananas: no such setting",
            "probing.ttl: not a single value",
            "--retries: ",
            "probing.timeout: ",
        ] {
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

    #[test]
    fn a_toml_error_names_the_line_and_never_shows_its_text() {
        for text in [
            "[broker]\npassword = hunter2\n",
            "[broker]\npassword = \"hunter2\n",
            "[broker]\npassword \"hunter2\"\n",
            "[broker]\nurl = 1\npassword hunter2",
            "[broker]\npassword = \"hunter2\" hunter2\n",
            "[broker]\npassword = \"\\hunter2\"\n",
        ] {
            let file = file(text);
            let problems = Layers::read(Some(file.path())).finish().unwrap_err();
            let message = problems.to_string();
            assert!(message.contains("line "), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_are_ignored() {
        let file = file("\u{feff}[probing]\r\ncount = 7\r\n");
        let mut layers = Layers::read(Some(file.path()));
        assert_eq!(layers.get("probing.count", 1, crate::number(1, 10)), 7);
    }

    #[test]
    fn variables_of_other_programs_are_ignored_and_typing_errors_are_reported() {
        let layers = environment(&[
            ("PINGFLEET_BIND", "0.0.0.0"),
            ("PINGFLEET_BROKER_PORT", "tcp://10.0.0.1:5672"),
            ("PINGFLEET_STORE__PATH", ""),
            ("PATH", "/bin"),
        ]);
        assert!(layers.finish().is_ok());
        let layers = environment(&[
            ("PINGFLEET_BROKER_URL", "amqp://u:hunter2@h"),
            ("PINGFLEET_BROKER__URL__X", "hunter2"),
            ("PINGFLEET_PROBING__RETRYS", "3"),
        ]);
        let message = layers.finish().unwrap_err().to_string();
        assert!(message.contains("PINGFLEET_BROKER__URL"), "{message}");
        assert!(
            message.contains("PINGFLEET_PROBING__RETRYS: no such setting"),
            "{message}"
        );
        assert!(!message.contains("hunter2"), "{message}");
        assert_eq!(message.lines().count(), 4, "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_reported_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let mut layers = environment(&[]);
        let value = OsString::from_vec(b"amqp://u:hunter2\xff@h".to_vec());
        layers.take_environment(std::iter::once(("PINGFLEET_BROKER__URL".into(), value)));
        let message = layers.finish().unwrap_err().to_string();
        assert_eq!(message, "PINGFLEET_BROKER__URL: not Unicode");
    }
}
