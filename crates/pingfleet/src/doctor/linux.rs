//! What large sweeps need of a Linux kernel. Everything is read from `/proc` and `/sys` or tried on a socket of the
//! moment, and nothing is changed. What a file says is judged by pure functions; what it does not say is not guessed.

mod icmp;
mod limits;
mod neighbours;

use std::{fmt, fs, io};

use super::{Check, Finding, OPEN_FILES};

/// Requests a second of a sweep that asks for no other rate.
const DEFAULT_RATE: u64 = 1_000;

/// All checks, in the order in which a sweep meets them.
pub(super) fn checks() -> Vec<Check> {
    let [v4, v6] = icmp::both();
    vec![
        ("ICMP IPv4", v4),
        ("ICMP IPv6", v6),
        ("receive buffer", limits::receive_buffer()),
        ("send buffer", limits::send_buffer()),
        ("neighbours IPv4", neighbours::check(false)),
        ("neighbours IPv6", neighbours::check(true)),
        ("conntrack", limits::conntrack()),
        (OPEN_FILES, limits::open_files()),
    ]
}

/// A file of the kernel, and what reading it gave.
struct Reading {
    /// As the user knows it: a setting of `sysctl`, or a path.
    name: String,
    content: io::Result<String>,
}

/// Why a [`Reading`] does not say what it is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Silent {
    /// This kernel, or this network namespace, does not have the file.
    NotThere { name: String },
    /// It has it, and does not let this process read it.
    Unreadable { name: String, error: String },
    /// It has another form than is known here.
    Senseless { name: String, beginning: String },
}

impl Reading {
    /// Reads a setting of `sysctl`.
    fn setting(name: &str) -> Self {
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

    /// What `parse` makes of the text.
    fn parsed<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Silent> {
        let name = self.name.clone();
        match &self.content {
            Ok(text) => parse(text).ok_or_else(|| Silent::Senseless {
                name,
                beginning: text.trim().chars().take(16).collect(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Silent::NotThere { name }),
            Err(error) => Err(Silent::Unreadable {
                name,
                error: error.to_string(),
            }),
        }
    }

    /// The one number in it. The kernel's settings have 32 bits.
    fn number(&self) -> Result<u64, Silent> {
        self.parsed(|text| text.trim().parse::<u32>().ok().map(u64::from))
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere { name } => write!(f, "{name} is not there"),
            Self::Unreadable { name, error } => write!(f, "{name}: {error}"),
            Self::Senseless { name, beginning } => write!(f, "{name} reads {beginning:?}"),
        }
    }
}

impl From<Silent> for Finding {
    fn from(silent: Silent) -> Self {
        Self::Untold(silent.to_string())
    }
}

/// The line that sets a setting until the next start of the box.
fn set(name: &str, value: impl fmt::Display) -> String {
    format!("sudo sysctl -w {name}={value}")
}

/// A number with its thousands apart: `262,144`.
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

    impl Reading {
        /// As if a file had this text.
        pub(super) fn of(name: &str, text: &str) -> Self {
            Self {
                name: name.to_owned(),
                content: Ok(text.to_owned()),
            }
        }

        /// As if reading it had failed so.
        pub(super) fn failed(name: &str, kind: io::ErrorKind) -> Self {
            Self {
                name: name.to_owned(),
                content: Err(kind.into()),
            }
        }
    }

    #[test]
    fn only_a_number_is_read_as_one() {
        let read = |text: &str| Reading::of("a.b", text).number().ok();
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
    fn what_cannot_be_read_is_told_with_its_reason_on_one_short_line() {
        let told = |reading: &Reading| Finding::from(reading.number().unwrap_err());
        for (reading, text) in [
            (
                Reading::failed("a.b", io::ErrorKind::NotFound),
                "a.b is not there",
            ),
            (
                Reading::failed("a.b", io::ErrorKind::PermissionDenied),
                "a.b: permission denied",
            ),
            (Reading::of("a.b", ""), "a.b reads \"\""),
            (
                Reading::of("a.b", &"x\u{1b}[31m\n".repeat(1_000)),
                "a.b reads \"x\\u{1b}[31m\\nx\\u{1b}[31m\\nx\\u{1b}\"",
            ),
        ] {
            assert_eq!(told(&reading), Finding::Untold(text.to_owned()));
        }
    }

    #[test]
    fn a_setting_that_no_kernel_has_is_not_there() {
        let name = "net.ipv4.no_such_setting_of_pingfleet";
        let silent = Reading::setting(name).number();
        let name = name.to_owned();
        assert_eq!(silent, Err(Silent::NotThere { name }));
    }

    #[test]
    fn thousands_stand_apart() {
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
