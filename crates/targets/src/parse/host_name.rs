//! Whether a text can be a host name. No I/O.
//!
//! Source: RFC 1035 section 2.3.4 for the lengths, RFC 1123 section 2.1 for the characters; underscores are allowed,
//! because networks have them.

use std::net::Ipv4Addr;

use pingfleet_wire::MAX_NAME_BYTES;

use crate::{bad_targets::shown, parse::BadTargetReason};

/// The longest label, in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// Checks a host name. It may end with one dot, which keeps search domains away from it.
pub(crate) fn check(name: &str) -> Result<(), BadTargetReason> {
    if !name.is_ascii() {
        return Err(BadTargetReason::NotAscii);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if let Some(character) = name.chars().find(|c| !allowed(*c)) {
        return Err(BadTargetReason::Character { character });
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(BadTargetReason::LongName { length: name.len() });
    }
    let labels = || name.strip_suffix('.').unwrap_or(name).split('.');
    for label in labels() {
        if label.is_empty() {
            return Err(BadTargetReason::EmptyLabel);
        }
        if label.len() > MAX_LABEL_BYTES {
            return Err(BadTargetReason::LongLabel {
                length: label.len(),
            });
        }
        if label.starts_with('-') {
            return Err(BadTargetReason::Hyphen);
        }
    }
    if labels().all(is_number) {
        return Err(failed_address(name, &labels().collect::<Vec<_>>()));
    }
    // No top-level domain is a number (RFC 3696, section 2), so this is an address that went wrong.
    let is_numeric = |label| is_number(label) || is_hexadecimal(label);
    if labels().next_back().is_some_and(is_numeric) {
        return Err(BadTargetReason::NumericName);
    }
    Ok(())
}

fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
}

/// As some programs read an address: `0x7f000001` is 127.0.0.1 for `inet_aton`.
fn is_hexadecimal(label: &str) -> bool {
    let digits = label.strip_prefix("0x").or(label.strip_prefix("0X"));
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Why a text of digits and dots is not an IPv4 address.
fn failed_address(text: &str, octets: &[&str]) -> BadTargetReason {
    if octets.len() != 4 {
        return BadTargetReason::Octets {
            found: octets.len(),
        };
    }
    let mut meant = [0; 4];
    for (value, octet) in meant.iter_mut().zip(octets) {
        match octet.parse() {
            Ok(parsed) => *value = parsed,
            Err(_) => {
                return BadTargetReason::LargeOctet {
                    octet: shown(octet),
                };
            }
        }
    }
    let meant = Ipv4Addr::from(meant);
    if text.ends_with('.') && text.trim_end_matches('.') == meant.to_string() {
        BadTargetReason::FinalDot { meant }
    } else {
        BadTargetReason::LeadingZeros { meant }
    }
}
