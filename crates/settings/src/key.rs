//! One setting: its name, flag, default, type, help, and the programs that use it. The table of all is in
//! [`crate::keys`].

use std::fmt;

/// A setting whose value has the type `T`. `D` is its default: [`Fixed`], or [`Unset`] if it has no value by default.
pub struct Key<T: 'static, D = Fixed> {
    /// `section.key`, as in the settings file.
    pub name: &'static str,
    /// The flag that sets it, if there is one.
    pub flag: Option<Flag>,
    /// The default.
    pub default: D,
    /// What it is, for `--help`.
    pub help: &'static str,
    /// The programs that use it.
    pub programs: &'static [Program],
    /// Parses a value. An error says what is allowed.
    pub parse: fn(&str) -> Result<T, String>,
}

/// A default value, as a user would write it.
#[derive(Debug, Clone, Copy)]
pub struct Fixed(pub &'static str);

/// No default value, and a description of what happens without one.
#[derive(Debug, Clone, Copy)]
pub struct Unset(pub Option<&'static str>);

/// A flag of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// The name without dashes.
    pub long: &'static str,
    /// The letter, if there is one.
    pub short: Option<char>,
    /// The name of its value in `--help`.
    pub value: &'static str,
}

impl Flag {
    /// A flag without a letter.
    pub(crate) const fn new(long: &'static str, value: &'static str) -> Self {
        Self {
            long,
            short: None,
            value,
        }
    }

    /// The same flag with a letter.
    pub(crate) const fn with_short(self, short: char) -> Self {
        Self {
            short: Some(short),
            ..self
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.long)
    }
}

/// A program that reads settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `pingfleet`, with all its commands.
    Pingfleet,
    /// `producer`.
    Producer,
    /// `ping-worker`.
    PingWorker,
    /// `consumer-writer`.
    ConsumerWriter,
}

impl Program {
    /// The name of the program's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pingfleet => "pingfleet",
            Self::Producer => "producer",
            Self::PingWorker => "ping-worker",
            Self::ConsumerWriter => "consumer-writer",
        }
    }
}

/// The default of a key.
pub trait DefaultValue: fmt::Debug + Sync {
    /// The default as text, if it is a value.
    fn value(&self) -> Option<&'static str>;
    /// How `--help` describes it, if there is something to say.
    fn shown(&self) -> Option<&'static str>;
}

impl DefaultValue for Fixed {
    fn value(&self) -> Option<&'static str> {
        Some(self.0)
    }

    fn shown(&self) -> Option<&'static str> {
        Some(self.0)
    }
}

impl DefaultValue for Unset {
    fn value(&self) -> Option<&'static str> {
        None
    }

    fn shown(&self) -> Option<&'static str> {
        self.0
    }
}

/// A [`Key`] of any type.
pub trait AnyKey: Sync {
    /// `section.key`.
    fn name(&self) -> &'static str;
    /// The flag that sets it.
    fn flag(&self) -> Option<Flag>;
    /// The default.
    fn default(&self) -> &dyn DefaultValue;
    /// What it is, without its default.
    fn description(&self) -> &'static str;
    /// The programs that use it.
    fn programs(&self) -> &'static [Program];
    /// Checks a value.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    fn check(&self, text: &str) -> Result<(), String>;

    /// The text for `--help`, with the default.
    fn help(&self) -> String {
        let description = self.description();
        match self.default().shown() {
            Some(default) => format!("{description} [default: {default}]"),
            None => description.to_owned(),
        }
    }

    /// The environment variable: `PINGFLEET_<SECTION>__<KEY>`.
    fn variable(&self) -> String {
        variable(self.name())
    }
}

impl<T, D: DefaultValue> AnyKey for Key<T, D> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn flag(&self) -> Option<Flag> {
        self.flag
    }

    fn default(&self) -> &dyn DefaultValue {
        &self.default
    }

    fn description(&self) -> &'static str {
        self.help
    }

    fn programs(&self) -> &'static [Program] {
        self.programs
    }

    fn check(&self, text: &str) -> Result<(), String> {
        (self.parse)(text).map(drop)
    }
}

/// The environment variable of a key by its name.
pub(crate) fn variable(name: &str) -> String {
    format!("PINGFLEET_{}", name.replace('.', "__").to_uppercase())
}
