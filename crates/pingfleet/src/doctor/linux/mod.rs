//! What large sweeps need from a Linux kernel. Values are read from `/proc` and `/sys`, or found out with a temporary
//! socket; nothing is changed. Pure functions judge the values. A missing value is reported, never guessed.

mod icmp;
mod limits;
mod neighbours;
mod reverse_path;

use std::{fmt, fs, io};

use super::{Check, CheckResult, OPEN_FILES};

/// Requests per second of a sweep with default settings.
const DEFAULT_RATE: u64 = 1_000;

/// All checks, in the order in which a sweep needs what they check.
pub(super) fn checks() -> Vec<Check> {
    let [v4, v6] = icmp::both();
    vec![
        ("ICMP IPv4", v4),
        ("ICMP IPv6", v6),
        ("receive buffer", limits::receive_buffer()),
        ("send buffer", limits::send_buffer()),
        ("neighbours IPv4", neighbours::check(false)),
        ("neighbours IPv6", neighbours::check(true)),
        ("reverse path", reverse_path::check()),
        ("conntrack", limits::conntrack()),
        (OPEN_FILES, limits::open_files()),
    ]
}

/// A file below `/proc` or `/sys`, and the result of reading it.
struct KernelFile {
    /// The name shown to the user: that of a `sysctl` setting, or a path.
    name: String,
    content: io::Result<String>,
}

/// Why a value could not be read from a [`KernelFile`].
#[derive(Debug, PartialEq, Eq)]
enum Unavailable {
    /// This kernel or this network namespace does not have the file.
    Missing { name: String },
    /// The file exists, but this process may not read it.
    Unreadable { name: String, error: String },
    /// The content has an unknown format.
    Unexpected { name: String, beginning: String },
}

impl KernelFile {
    /// Reads a `sysctl` setting.
    fn sysctl(name: &str) -> Self {
        let content = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
        Self {
            name: name.to_owned(),
            content,
        }
    }

    /// Reads a file.
    fn file(path: &str) -> Self {
        Self {
            name: path.to_owned(),
            content: fs::read_to_string(path),
        }
    }

    /// The value that `parse` finds in the text.
    fn parsed<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Unavailable> {
        let name = self.name.clone();
        match &self.content {
            Ok(text) => parse(text).ok_or_else(|| Unavailable::Unexpected {
                name,
                beginning: text.trim().chars().take(16).collect(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Unavailable::Missing { name })
            }
            Err(error) => Err(Unavailable::Unreadable {
                name,
                error: error.to_string(),
            }),
        }
    }

    /// The only number in the text. `sysctl` settings have 32 bits.
    fn number(&self) -> Result<u64, Unavailable> {
        self.parsed(|text| text.trim().parse::<u32>().ok().map(u64::from))
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "{name} does not exist"),
            Self::Unreadable { name, error } => write!(f, "{name}: {error}"),
            Self::Unexpected { name, beginning } => write!(f, "{name} reads {beginning:?}"),
        }
    }
}

impl From<Unavailable> for CheckResult {
    fn from(unavailable: Unavailable) -> Self {
        Self::NotShown(unavailable.to_string())
    }
}

/// The command that changes a `sysctl` setting until the next reboot.
fn sysctl_command(name: &str, value: impl fmt::Display) -> String {
    format!("sudo sysctl -w {name}={value}")
}

/// A number with thousands separators: `262,144`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    impl KernelFile {
        /// A file with this text.
        pub(super) fn of(name: &str, text: &str) -> Self {
            Self {
                name: name.to_owned(),
                content: Ok(text.to_owned()),
            }
        }

        /// A file that could not be read.
        pub(super) fn failed(name: &str, kind: io::ErrorKind) -> Self {
            Self {
                name: name.to_owned(),
                content: Err(kind.into()),
            }
        }
    }

    #[test]
    fn only_a_number_is_read_as_a_number() {
        let read = |text: &str| KernelFile::of("a.b", text).number().ok();
        assert_eq!(read("212992\n"), Some(212_992));
        assert_eq!(read("4294967295"), Some(u64::from(u32::MAX)));
        for text in [
            "",
            "\n",
            "-1",
            "4294967296",
            "99999999999999999999999999",
            "1 2",
            "0x10",
            "12\0",
            "many",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_unreadable_file_is_reported_with_its_reason_on_one_short_line() {
        let result = |reading: &KernelFile| CheckResult::from(reading.number().unwrap_err());
        for (reading, text) in [
            (
                KernelFile::failed("a.b", io::ErrorKind::NotFound),
                "a.b does not exist",
            ),
            (
                KernelFile::failed("a.b", io::ErrorKind::PermissionDenied),
                "a.b: permission denied",
            ),
            (KernelFile::of("a.b", ""), "a.b reads \"\""),
            (
                KernelFile::of("a.b", &"x\u{1b}[31m\n".repeat(1_000)),
                "a.b reads \"x\\u{1b}[31m\\nx\\u{1b}[31m\\nx\\u{1b}\"",
            ),
        ] {
            assert_eq!(result(&reading), CheckResult::NotShown(text.to_owned()));
        }
    }

    #[test]
    fn an_unknown_sysctl_setting_is_missing() {
        let name = "net.ipv4.no_such_setting_of_pingfleet";
        let unavailable = KernelFile::sysctl(name).number();
        let name = name.to_owned();
        assert_eq!(unavailable, Err(Unavailable::Missing { name }));
    }

    #[test]
    fn numbers_have_thousands_separators() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
