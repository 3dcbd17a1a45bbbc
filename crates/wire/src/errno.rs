//! The texts of Linux's error numbers. A worker's number is read on the master, which may run another system.
//!
//! Source: Linux `errno(3)`, with the texts of `strerror(3)`; only those that opening and using a socket returns.

/// What an error number of Linux means.
pub(crate) fn errno_text(errno: i32) -> Option<&'static str> {
    Some(match errno {
        1 => "Operation not permitted",
        6 => "No such device or address",
        9 => "Bad file descriptor",
        11 => "Resource temporarily unavailable",
        12 => "Cannot allocate memory",
        13 => "Permission denied",
        14 => "Bad address",
        19 => "No such device",
        22 => "Invalid argument",
        23 => "Too many open files in system",
        24 => "Too many open files",
        71 => "Protocol error",
        90 => "Message too long",
        92 => "Protocol not available",
        93 => "Protocol not supported",
        95 => "Operation not supported",
        97 => "Address family not supported by protocol",
        98 => "Address already in use",
        99 => "Cannot assign requested address",
        100 => "Network is down",
        101 => "Network is unreachable",
        104 => "Connection reset by peer",
        105 => "No buffer space available",
        110 => "Connection timed out",
        111 => "Connection refused",
        112 => "Host is down",
        113 => "No route to host",
        _ => return None,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_texts_are_those_of_the_system() {
        let known = (0..200).filter_map(|errno| Some((errno, errno_text(errno)?)));
        for (errno, text) in known {
            let system = io::Error::from_raw_os_error(errno).to_string();
            assert_eq!(format!("{text} (os error {errno})"), system);
        }
    }
}
