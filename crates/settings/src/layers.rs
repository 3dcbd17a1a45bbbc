//! The layers of settings, built by the crate `config`: defaults, file, environment, flags. All problems are collected;
//! none stops the reading.
//!
//! Three things are done here and not by `config`. The file is read here, because `config` decodes bytes that are not
//! UTF-8 without an error, also tries other file names, and does not say why a file cannot be read. Variables that are
//! not Unicode are sorted out here, because `config` stops at the first one and shows its value, which may be a
//! password. Values are parsed here, because `Config::try_deserialize` stops at the first problem.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use config::{
    Config, ConfigBuilder, Environment, File, FileFormat, Value, ValueKind, builder::DefaultState,
};

use crate::{
    flags::Flags,
    key::{AnyKey, Fixed, Key, Unset, variable},
    keys,
    problems::{SettingsError, one_line},
    shell::flag_with_value,
    text::{read_text, warn_if_exposed},
};

/// The settings file that is read without `--config`, if it exists.
const DEFAULT_FILE: &str = "pingfleet.toml";

/// The prefix of our variables, in lower case. `section__key` follows.
const VARIABLE_PREFIX: &str = "pingfleet_";

/// The origin that `config` gives to values of the environment.
const ENVIRONMENT: &str = "the environment";

/// The layers of settings, and the problems found so far.
pub struct Layers {
    builder: ConfigBuilder<DefaultState>,
    /// What the builder builds.
    merged: Config,
    /// The name of the settings file.
    file: String,
    /// The settings file, if it was named.
    named_file: Option<PathBuf>,
    /// The settings file, if it has the broker's password.
    file_with_password: Option<PathBuf>,
    problems: Vec<String>,
}

/// Only defaults.
impl Default for Layers {
    fn default() -> Self {
        let defaults = keys::all().filter_map(|key| Some((key.name(), key.default().value()?)));
        let builder = defaults.fold(Config::builder(), |builder, (name, text)| {
            builder
                .set_default(name, text)
                .expect("keys are valid paths")
        });
        let mut layers = Self {
            builder,
            merged: Config::default(),
            file: DEFAULT_FILE.to_owned(),
            named_file: None,
            file_with_password: None,
            problems: Vec::new(),
        };
        layers.build();
        layers
    }
}

impl Layers {
    /// Reads the file and the environment. A file that was named must exist; the default one may be missing.
    #[must_use]
    pub fn read(file: Option<&Path>) -> Self {
        Self::from_sources(file, std::env::vars_os())
    }

    fn from_sources(
        file: Option<&Path>,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut layers = Self {
            named_file: file.map(Path::to_owned),
            ..Self::default()
        };
        let file = layers.read_file(file);
        let environment = layers.read_environment(variables);
        layers.builder = layers.builder.add_source(file).add_source(environment);
        layers.build();
        layers
    }

    /// Only defaults and this text of a settings file called `name`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(name: &str, text: &str) -> Self {
        let mut layers = Self {
            file: name.to_owned(),
            ..Self::default()
        };
        let file = layers.file_layer(text);
        layers.builder = layers.builder.add_source(file);
        layers.build();
        layers
    }

    /// The flag that names the settings file, behind a space; empty if none was named.
    pub(crate) fn config_flag(&self) -> String {
        let named = self.named_file.as_ref();
        named.map_or_else(String::new, |file| flag_with_value("--config", file))
    }

    fn build(&mut self) {
        self.merged = self
            .builder
            .build_cloned()
            .expect("all sources are read already");
    }

    /// The file as a layer. Empty if it cannot be used.
    fn read_file(&mut self, named: Option<&Path>) -> Config {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        self.file = path.display().to_string();
        let name = self.file.clone();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Config::default();
            }
            Err(error) => {
                self.problem(&format!("settings file {name}: {error}"));
                return Config::default();
            }
        };
        let layer = self.file_layer(&text);
        self.file_with_password = has_password(&layer).then(|| path.to_owned());
        layer
    }

    /// The text of the file as a layer. Empty if it is no TOML.
    fn file_layer(&mut self, text: &str) -> Config {
        let name = self.file.clone();
        let file = File::from_str(text, FileFormat::Toml);
        match Config::builder().add_source(file).build() {
            Ok(config) => {
                self.check_names(&config, |key| format!("{name}: {key}"));
                config
            }
            Err(error) => {
                let why = without_excerpt(&error.to_string());
                self.problem(&format!("settings file {name}: {why}"));
                Config::default()
            }
        }
    }

    /// The environment as a layer.
    ///
    /// Variables without `__`, such as `PINGFLEET_BIND`, belong to other programs, unless a single `_` is a typing error.
    fn read_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Config {
        let ours = variables.filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let rest = name.to_ascii_lowercase();
            let rest = rest.strip_prefix(VARIABLE_PREFIX)?.to_owned();
            (!value.is_empty()).then_some((name, (rest, value)))
        });
        let mut texts = HashMap::new();
        // Sorted, so that the order of the problems is always the same.
        for (name, (rest, value)) in ours.collect::<BTreeMap<_, _>>() {
            if !rest.contains("__") {
                let is_typo = |key: &&dyn AnyKey| key.name().replace('.', "_") == rest;
                if let Some(meant) = keys::all().find(is_typo) {
                    let meant = meant.variable();
                    self.problem(&format!("{name}: write it with two underscores, {meant}"));
                }
                continue;
            }
            match value.into_string() {
                Ok(text) => {
                    texts.insert(name, text);
                }
                Err(_) => self.problem(&format!("{name}: not Unicode")),
            }
        }
        let environment = Environment::with_prefix("pingfleet")
            .prefix_separator("_")
            .separator("__")
            .source(Some(texts));
        let config = Config::builder()
            .add_source(environment)
            .build()
            .expect("all variables are Unicode");
        self.check_names(&config, variable);
        config
    }

    /// Reports unknown names, and values that are not single ones.
    fn check_names(&mut self, layer: &Config, place: impl Fn(&str) -> String) {
        let mut values = BTreeMap::new();
        flatten("", &layer.cache, &mut values);
        for (name, value) in values {
            let place = place(&name);
            let is_known = keys::find(&name).is_some();
            if !name.contains('.') {
                self.problem(&format!("{place} must be in a section, such as [probing]"));
            } else if !is_known {
                self.problem(&format!("{place}: no such setting"));
            } else if value.clone().into_string().is_err() {
                self.problem(&format!("{place}: not a single value"));
            }
        }
    }

    /// Sets the flags that were given.
    pub fn set_flags<G>(&mut self, flags: &Flags<G>) {
        for (key, text) in flags.given() {
            let flag = key.flag().map(|flag| flag.to_string());
            self.set(*key, &flag.unwrap_or_default(), text);
        }
    }

    /// Sets a value above all other layers. `place` is its name in an error message, such as a flag.
    ///
    /// # Panics
    /// When the name of the key is no `section.key`.
    pub fn set(&mut self, key: &dyn AnyKey, place: &str, text: &str) {
        let value = Value::new(Some(&place.to_owned()), text);
        let builder = std::mem::take(&mut self.builder);
        self.builder = builder
            .set_override(key.name(), value)
            .expect("keys are valid paths");
        self.build();
    }

    /// The value of a key. If the value is wrong, this becomes a problem, and the result is the default.
    pub fn get<T>(&mut self, key: &Key<T>) -> T {
        self.get_as(key, Ok)
    }

    /// The value of a key as another type, for keys whose type another crate knows.
    ///
    /// # Panics
    /// When the default of the key is not valid, or `convert` refuses it.
    pub fn get_as<T, U>(
        &mut self,
        key: &Key<T, Fixed>,
        convert: impl Fn(T) -> Result<U, String>,
    ) -> U {
        let parse = |text: &str| convert((key.parse)(text)?);
        self.parsed(key, parse)
            .unwrap_or_else(|| parse(key.default.0).expect("the default of a key is a valid value"))
    }

    /// The value of a key that has none by default. A wrong value becomes a problem.
    pub fn optional<T>(&mut self, key: &Key<T, Unset>) -> Option<T> {
        self.optional_as(key, Ok)
    }

    /// The value of a key that has none by default, as another type.
    pub fn optional_as<T, U>(
        &mut self,
        key: &Key<T, Unset>,
        convert: impl Fn(T) -> Result<U, String>,
    ) -> Option<U> {
        self.parsed(key, |text| convert((key.parse)(text)?))
    }

    pub(crate) fn parsed<U>(
        &mut self,
        key: &dyn AnyKey,
        parse: impl Fn(&str) -> Result<U, String>,
    ) -> Option<U> {
        let (text, place) = self.text(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.problem(&format!("{place}: {why}"));
                None
            }
        }
    }

    /// The text of a key from the highest layer that sets it, and the place of that text.
    fn text(&self, key: &dyn AnyKey) -> Option<(String, String)> {
        let name = key.name();
        // Not `Config::get`, which loses the origin of a value.
        let mut value = &self.merged.cache;
        for part in name.split('.') {
            let ValueKind::Table(table) = &value.kind else {
                return None;
            };
            value = table.get(part)?;
        }
        let place = match value.origin() {
            Some(ENVIRONMENT) => key.variable(),
            Some(flag) => flag.to_owned(),
            // Or it is a default, which is always valid.
            None => format!("{}: {name}", self.file),
        };
        // A list or a table is a problem already.
        let text = value.clone().into_string().ok()?;
        Some((text, place))
    }

    /// Adds a problem that is not about a single value.
    pub fn problem(&mut self, problem: &str) {
        self.problems.push(one_line(problem));
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems, if there are any.
    pub fn finish(self) -> Result<(), SettingsError> {
        // Now, because the log was not ready when the file was read.
        if let Some(path) = &self.file_with_password {
            warn_if_exposed(path, "the broker's password");
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(SettingsError {
                problems: self.problems,
            })
        }
    }
}

/// Whether the layer has the broker's password, as a value of its own or in the broker's URL.
fn has_password(layer: &Config) -> bool {
    let is_in_url = |url: String| {
        let login = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('@'));
        login.is_some_and(|(login, _)| login.contains(':'))
    };
    layer.get_string("broker.password").is_ok()
        || layer.get_string("broker.url").is_ok_and(is_in_url)
}

/// All values of a layer that are no tables, by name.
fn flatten<'a>(name: &str, value: &'a Value, found: &mut BTreeMap<String, &'a Value>) {
    match &value.kind {
        // An empty section has no values; an empty table in a section is a wrong value.
        ValueKind::Table(table) if !table.is_empty() || !name.contains('.') => {
            for (part, value) in table {
                let name = if name.is_empty() {
                    part.clone()
                } else {
                    format!("{name}.{part}")
                };
                flatten(&name, value, found);
            }
        }
        _ => {
            found.insert(name.to_owned(), value);
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

    /// The layers of this file and these variables.
    fn layers(file: &tempfile::NamedTempFile, variables: &[(&str, &str)]) -> Layers {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Layers::from_sources(Some(file.path()), variables)
    }

    fn environment(variables: &[(&str, &str)]) -> Layers {
        layers(&file(""), variables)
    }

    #[test]
    fn each_layer_overrides_the_ones_below() {
        let empty = file("");
        let full = file("[probing]\ncount = 2\n[broker]\nurl = 'amqp://file'\n");
        let variable = ("PINGFLEET_PROBING__COUNT", "3");
        assert_eq!(layers(&empty, &[]).get(&keys::PROBING_COUNT), 1);
        assert_eq!(layers(&full, &[]).get(&keys::PROBING_COUNT), 2);
        let mut all = layers(&full, &[variable]);
        assert_eq!(all.get(&keys::PROBING_COUNT), 3);
        all.set(&keys::PROBING_COUNT, "--count", "4");
        assert_eq!(all.get(&keys::PROBING_COUNT), 4);
        // Other keys keep the value of a lower layer.
        assert_eq!(all.get(&keys::BROKER_URL), "amqp://file");
        assert_eq!(all.get(&keys::PROBING_RETRIES), 2);
        assert!(all.finish().is_ok());
    }

    #[test]
    fn every_wrong_value_is_reported_with_the_place_of_its_layer() {
        let file = file("[probing]\ncount = 0\n");
        let name = file.path().display().to_string();
        let mut all = layers(&file, &[("PINGFLEET_PROBING__SIZE", "-1")]);
        all.set(&keys::PROBING_RETRIES, "--retries", "many");
        assert_eq!(all.get(&keys::PROBING_COUNT), 1);
        assert_eq!(all.get(&keys::PROBING_SIZE), 56);
        assert_eq!(all.get(&keys::PROBING_RETRIES), 2);
        let problems = all.finish().unwrap_err().problems;
        assert_eq!(
            problems,
            [
                format!("{name}: probing.count: \"0\" is not a number from 1 to 1000"),
                "PINGFLEET_PROBING__SIZE: \"-1\" is not a number from 0 to 65507".to_owned(),
                "--retries: \"many\" is not a number from 0 to 100".to_owned(),
            ]
        );
    }

    #[test]
    fn all_problems_of_a_file_are_reported() {
        let file = file(
            "top = 1\n[probing]\ncount = 7\ntimeout = '5 bananas'\nbananas = 2\nttl = [1]\nsize = {}\nrate.x = 1\n",
        );
        let mut layers = layers(&file, &[]);
        layers.set(&keys::PROBING_COUNT, "--count", "3");
        assert_eq!(layers.get(&keys::PROBING_COUNT), 3);
        layers.get(&keys::PROBING_TIMEOUT);
        assert_eq!(layers.get(&keys::PROBING_SIZE), 56);
        assert_eq!(layers.optional(&keys::PROBING_TTL), None);
        let problems = layers.finish().unwrap_err().problems;
        assert_eq!(problems.len(), 6, "{problems:?}");
        for part in [
            "top must be in a section",
            "probing.bananas: no such setting",
            "probing.rate.x: no such setting",
            "probing.ttl: not a single value",
            "probing.size: not a single value",
            "probing.timeout: ",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(part)),
                "{part}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_mistake_in_the_file_is_reported_even_if_the_environment_overrides_it() {
        let file = file("probing = 5\n");
        let mut layers = layers(&file, &[("PINGFLEET_PROBING__COUNT", "3")]);
        assert_eq!(layers.get(&keys::PROBING_COUNT), 3);
        let message = layers.finish().unwrap_err().to_string();
        assert!(
            message.contains("probing must be in a section"),
            "{message}"
        );
    }

    #[test]
    fn a_named_file_must_exist_and_be_text() {
        let problems = Layers::read(Some(Path::new("/nonexistent/pingfleet.toml")))
            .finish()
            .unwrap_err();
        assert!(problems.to_string().contains("/nonexistent/pingfleet.toml"));
        let mut file = file("");
        file.write_all(b"[broker]\npassword = 'hunter2\xff'\n")
            .unwrap();
        let message = layers(&file, &[]).finish().unwrap_err().to_string();
        assert!(message.contains("UTF-8"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
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
        assert_eq!(layers(&file, &[]).get(&keys::PROBING_COUNT), 7);
    }

    #[test]
    fn variables_of_other_programs_are_ignored_and_typing_errors_are_reported() {
        let layers = environment(&[
            ("PINGFLEET_BIND", "0.0.0.0"),
            ("PINGFLEET_BROKER", "x"),
            ("PINGFLEET_BROKER_PORT", "tcp://10.0.0.1:5672"),
            ("PINGFLEET_STORE__PATH", ""),
            ("PATH", "/bin"),
        ]);
        assert!(layers.finish().is_ok());
        let layers = environment(&[
            ("PINGFLEET_BROKER_URL", "amqp://u:hunter2@h"),
            ("PINGFLEET_BROKER__URL__X", "hunter2"),
            ("PINGFLEET_PROBING__RETRYS", "3"),
            ("PINGFLEET___X", "3"),
        ]);
        let message = layers.finish().unwrap_err().to_string();
        for part in [
            "PINGFLEET_BROKER_URL: write it with two underscores, PINGFLEET_BROKER__URL",
            "PINGFLEET_BROKER__URL__X: no such setting",
            "PINGFLEET_PROBING__RETRYS: no such setting",
            "PINGFLEET___X: no such setting",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("hunter2"), "{message}");
        assert_eq!(message.lines().count(), 5, "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_reported_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;
        let value = OsString::from_vec(b"amqp://u:hunter2\xff@h".to_vec());
        let variables = [("PINGFLEET_BROKER__URL".into(), value)];
        let layers = Layers::from_sources(Some(file("").path()), variables.into_iter());
        let message = layers.finish().unwrap_err().to_string();
        assert_eq!(message, "PINGFLEET_BROKER__URL: not Unicode");
    }

    #[test]
    fn the_debug_text_of_flags_shows_no_value() {
        let matches = <crate::BrokerArgs as clap::Args>::augment_args(clap::Command::new("x"))
            .try_get_matches_from(["x", "--broker", "amqp://u:hunter2@h"])
            .unwrap();
        let flags =
            <crate::BrokerArgs as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        assert_eq!(format!("{flags:?}"), "{\"broker.url\"}");
        let mut layers = environment(&[]);
        layers.set_flags(&flags);
        assert_eq!(layers.get(&keys::BROKER_URL), "amqp://u:hunter2@h");
    }
}
