//! Parsers of single values: numbers in a range, durations with a unit, rates.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// Requests per second; `None` is unlimited.
pub type Rate = Option<NonZeroU32>;

/// Parses a number from `least` to `most`.
pub fn number<T: FromStr + PartialOrd + Display>(
    least: T,
    most: T,
) -> impl FnOnce(&str) -> Result<T, String> {
    move |text| match text.trim().parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ => Err(format!("{text:?} is not a number from {least} to {most}")),
    }
}

/// Parses a duration with its unit, such as `200ms`, `1s` or `1.5s`; at most an hour.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn duration(text: &str) -> Result<Duration, String> {
    let read = humantime::parse_duration(text.trim()).or_else(|error| {
        // humantime does not parse fractions, but "1.5s" is common.
        text.trim()
            .strip_suffix('s')
            .and_then(|seconds| seconds.parse::<f64>().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or(error)
    });
    match read {
        Ok(value) if text.trim() != "0" && value <= Duration::from_hours(1) => Ok(value),
        _ => Err(format!(
            "{text:?} is not a duration of at most 1h with a unit, such as 200ms or 2s"
        )),
    }
}

/// Parses a rate: requests per second, or `unlimited`.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn rate(text: &str) -> Result<Rate, String> {
    match text.trim() {
        "unlimited" => Ok(None),
        other => other
            .parse::<NonZeroU32>()
            .ok()
            .filter(|rate| rate.get() <= 10_000_000)
            .map(Some)
            .ok_or_else(|| {
                format!("{text:?} is not a rate: 1 to 10000000 requests per second, or `unlimited`")
            }),
    }
}

/// Any text.
#[expect(clippy::unnecessary_wraps, reason = "the signature of a parser")]
pub(crate) fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Any path.
#[expect(clippy::unnecessary_wraps, reason = "the signature of a parser")]
pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// Parses the path of the database.
pub(crate) fn database_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    check_database_path(&path).map(|()| path)
}

/// Refuses what SQLite takes for something else than a path (<https://www.sqlite.org/uri.html>, `sqlite3_open`): it
/// would open another file, or none.
pub(crate) fn check_database_path(path: &Path) -> Result<(), String> {
    let name = path.display();
    match path.as_os_str().as_encoded_bytes() {
        b"" => Err("the path of the database is empty".to_owned()),
        b":memory:" => Err(format!(
            "{name} would be lost with its process: give the path of a file, or ./{name} if it has that name"
        )),
        text if text.starts_with(b"file:") => Err(format!(
            "{name} is a URI: give the path of the file alone, or ./{name} if it has that name"
        )),
        _ => Ok(()),
    }
}

/// Parses a source address.
pub(crate) fn source_address(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        // A link-local address is only unique together with its interface, and here no interface can be given with it.
        Ok(IpAddr::V6(local)) if local.is_unicast_link_local() => Err(format!(
            "{local} is a link-local address: use one of a wider scope, or only name the interface with -I"
        )),
        Ok(address) => Ok(address),
        Err(_) => Err(format!("{text:?} is not an address")),
    }
}

/// Parses an address to listen on with its port, or `off`.
pub(crate) fn listen_address(text: &str) -> Result<Option<SocketAddr>, String> {
    match text.trim() {
        "off" => Ok(None),
        other => other.parse().map(Some).map_err(|_| {
            format!("{text:?} is neither an address with a port, such as 127.0.0.1:8787, nor off")
        }),
    }
}

/// Parses the name of a host (RFC 1123, section 2.1).
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let is_plain = |part: &str| {
        let mut bytes = part.bytes();
        !part.is_empty()
            && part.len() <= 63
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 253 && text.split('.').all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not the name of a host"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_a_unit() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["5", "0", "", "1 banana", "-1s", "nans", "infs", "2h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_to_listen_on_has_a_port() {
        assert_eq!(listen_address("off"), Ok(None));
        assert_eq!(
            listen_address("127.0.0.1:8787"),
            Ok(Some(([127, 0, 0, 1], 8787).into()))
        );
        for bad in ["", "on", "127.0.0.1", "8787", "localhost:8787", ":8787"] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
        assert!(host_name("fleet.example").is_ok() && host_name("a b").is_err());
    }

    #[test]
    fn rates() {
        assert_eq!(rate("unlimited"), Ok(None));
        assert_eq!(rate("1000"), Ok(NonZeroU32::new(1000)));
        for bad in ["0", "-1", "1e3", "", "many", "99999999"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
