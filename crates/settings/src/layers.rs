//! The layers of settings: file, environment, flags. Invariant: every problem is collected, none stops the reading.

use std::{collections::BTreeMap, ffi::OsString, fmt, fs, io, path::Path};

use config::{Config, File, FileFormat, ValueKind};
use thiserror::Error;

/// The file that is read when no other is named, if it is there.
const DEFAULT_FILE: &str = "pingfleet.toml";

/// What our variables begin with, in lower case; then `section__key`.
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
    /// One sentence each.
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

/// A value as text, with the place that an error names: a flag, a variable, or a file and a key.
#[derive(Clone)]
struct Entry {
    text: String,
    place: String,
}

/// The values of all layers, the strongest of each key, and the problems found so far.
#[derive(Default)]
pub struct Layers {
    entries: BTreeMap<String, Entry>,
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
        // In the order of the keys, so that the same file is told in the same words.
        for (section, value) in BTreeMap::from_iter(sections) {
            let ValueKind::Table(values) = value.kind else {
                self.problems.push(format!(
                    "{name}: {section} stands in no section, such as [probing]"
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

    /// Variables without `__`, such as `PINGFLEET_BIND`, are for other programs, unless they are a slip.
    fn take_environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        let ours = variables.filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let key = name.to_ascii_lowercase();
            let key = key.strip_prefix(VARIABLE_PREFIX)?.to_owned();
            (!value.is_empty()).then_some((name, (key, value)))
        });
        for (name, (key, value)) in ours.collect::<BTreeMap<_, _>>() {
            let Some((section, key)) = key.split_once("__") else {
                let slip = |known: &&&str| known.replace('.', "_") == key;
                if let Some(meant) = KNOWN.iter().find(slip) {
                    let meant = meant.replace('.', "__").to_uppercase();
                    self.problems.push(format!(
                        "{name}: with two underscores it is PINGFLEET_{meant}"
                    ));
                }
                continue;
            };
            // A value that cannot be read is not shown: it may be a password.
            match value.into_string() {
                Ok(text) => self.take(format!("{section}.{key}"), text, name),
                Err(_) => self.problems.push(format!("{name}: not Unicode")),
            }
        }
    }

    fn take(&mut self, key: String, text: String, place: String) {
        if KNOWN.contains(&key.as_str()) {
            self.entries.insert(key, Entry { text, place });
        } else {
            self.problems.push(format!("{place}: no such setting"));
        }
    }

    /// Sets a value from a flag, if the flag was given.
    pub fn flag(&mut self, key: &str, flag: &str, text: Option<&str>) {
        debug_assert!(KNOWN.contains(&key), "{key}");
        if let Some(text) = text {
            let (text, place) = (text.to_owned(), flag.to_owned());
            self.entries.insert(key.to_owned(), Entry { text, place });
        }
    }

    /// The value of a key, or `default` when no layer sets it. What `parse` refuses becomes a problem that names its
    /// place, and `default` stands in for it.
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
                self.problems.push(format!("{}: {why}", entry.place));
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

/// What a TOML error says, in one line. The excerpt between its first and its last line may show a password.
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
    fn flags_win_over_the_file_and_all_problems_are_told() {
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
            "top stands in no section",
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
    fn a_file_that_is_no_toml_is_told_by_its_line_and_never_shown() {
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
            let told = problems.to_string();
            assert!(told.contains("line "), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_are_no_part_of_the_settings() {
        let file = file("\u{feff}[probing]\r\ncount = 7\r\n");
        let mut layers = Layers::read(Some(file.path()));
        assert_eq!(layers.get("probing.count", 1, crate::number(1, 10)), 7);
    }

    #[test]
    fn variables_of_other_programs_are_left_alone_and_slips_are_told() {
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
        let told = layers.finish().unwrap_err().to_string();
        assert!(told.contains("PINGFLEET_BROKER__URL"), "{told}");
        assert!(
            told.contains("PINGFLEET_PROBING__RETRYS: no such setting"),
            "{told}"
        );
        assert!(!told.contains("hunter2"), "{told}");
        assert_eq!(told.lines().count(), 4, "{told}");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_told_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let mut layers = environment(&[]);
        let value = OsString::from_vec(b"amqp://u:hunter2\xff@h".to_vec());
        layers.take_environment(std::iter::once(("PINGFLEET_BROKER__URL".into(), value)));
        let told = layers.finish().unwrap_err().to_string();
        assert_eq!(told, "PINGFLEET_BROKER__URL: not Unicode");
    }
}
