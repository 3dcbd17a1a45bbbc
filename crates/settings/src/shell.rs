//! Quotes words of commands that are printed for the user, so that they can be typed as they stand: for the shells of
//! Unix, and for PowerShell on Windows.
//!
//! Source: POSIX.1-2024, Shell Command Language, section 2.2, which has `$'...'` for bytes that cannot be printed;
//! PowerShell's `about_Quoting_Rules`.

use std::{ffi::OsStr, fmt::Write as _};

/// A word as this system's shell reads it.
#[must_use]
pub fn shell_word(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    if cfg!(windows) {
        powershell_word(&word.to_string_lossy())
    } else {
        posix_word(word)
    }
}

/// A flag with its value, behind a space. A value that looks like a flag is only accepted behind `=`.
pub(crate) fn flag_with_value(flag: &str, value: impl AsRef<OsStr>) -> String {
    let value = value.as_ref();
    let separator = if value.as_encoded_bytes().starts_with(b"-") {
        '='
    } else {
        ' '
    };
    format!(" {flag}{separator}{}", shell_word(value))
}

fn posix_word(word: &OsStr) -> String {
    if let Some(text) = word.to_str()
        && !text.chars().any(char::is_control)
        && let Ok(quoted) = shlex::try_quote(text)
    {
        return quoted.into_owned();
    }
    let mut quoted = "$'".to_owned();
    for byte in word.as_encoded_bytes() {
        match byte {
            b'\'' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => quoted.push(char::from(*byte)),
            byte => {
                // Three digits: a shorter number would take in a digit that follows.
                write!(quoted, "\\{byte:03o}").expect("a string takes any text");
            }
        }
    }
    quoted.push('\'');
    quoted
}

/// A word for PowerShell. Within single quotes only the quote itself has a meaning; PowerShell accepts the typographic
/// ones (U+2018 to U+201B) as such as well.
fn powershell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "\\/:._-".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut quoted = "'".to_owned();
    for c in word.chars() {
        if matches!(c, '\'' | '\u{2018}'..='\u{201b}') {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powershell_doubles_quotes_and_needs_none_for_plain_paths() {
        for (word, quoted) in [
            (r"C:\sweeps\fleet.db", r"C:\sweeps\fleet.db"),
            (r"C:\my sweeps\it's.db", r"'C:\my sweeps\it''s.db'"),
            ("$env:x`n", "'$env:x`n'"),
            ("a\u{2019}b.db", "'a\u{2019}\u{2019}b.db'"),
            ("", "''"),
        ] {
            assert_eq!(powershell_word(word), quoted);
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_shell_reads_a_word_back_as_it_was() {
        use std::{
            os::unix::ffi::{OsStrExt, OsStringExt},
            process::Command,
        };
        let printable: Vec<u8> = (b' '..=b'~').collect();
        for word in [
            b"".as_slice(),
            b"fleet.db",
            b"it's.db",
            b"a \"b\" $(id) `id` \\ !x *.db",
            &printable,
            "gr\u{fc}n.db".as_bytes(),
            b"line\nbreak\x1b[31m'7",
            b"latin\xfc1 it's \\",
        ] {
            let quoted = posix_word(OsStr::from_bytes(word));
            assert!(!quoted.chars().any(char::is_control), "{quoted}");
            let script = format!("printf %s {quoted}");
            let read = Command::new("bash").args(["-c", &script]).output().unwrap();
            let word = std::ffi::OsString::from_vec(word.to_vec());
            assert_eq!(std::ffi::OsString::from_vec(read.stdout), word, "{quoted}");
        }
    }

    #[test]
    fn a_value_that_looks_like_a_flag_follows_an_equals_sign() {
        assert_eq!(flag_with_value("--db", "fleet.db"), " --db fleet.db");
        assert_eq!(flag_with_value("--db", "-x.db"), " --db=-x.db");
    }
}
