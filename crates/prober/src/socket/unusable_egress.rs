//! Why requests cannot leave this machine as a run asks for, in words.

use std::{io, net::IpAddr};

use pingfleet_wire::{Family, Probing};
use socket2::Type;
use surge_ping::AsyncSocket;
use thiserror::Error;

use super::{Egress, errno};

/// "No such device" (ENODEV) and "no such device or address" (ENXIO).
const NO_INTERFACE: [i32; 2] = [19, 6];

/// "Cannot assign requested address" (EADDRNOTAVAIL).
const NO_ADDRESS: i32 = if cfg!(windows) { 10049 } else { 99 };

/// "Too many open files" (EMFILE).
const NO_DESCRIPTOR: i32 = 24;

/// The errno of an address family or an option that this system does not have (EOPNOTSUPP).
pub(crate) const NOT_SUPPORTED: i32 = 95;

/// Why requests cannot leave as the settings of a run ask for.
#[derive(Debug, Error)]
pub enum UnusableEgress {
    /// There is no such interface.
    #[error("this machine has no network interface {0}")]
    NoInterface(String),
    /// The source address belongs to another machine, or to none.
    #[error("source address {0} is not an address of this machine")]
    NoAddress(IpAddr),
    /// Requests can be bound to an interface only on Linux.
    #[error("this system cannot send by a chosen network interface")]
    NoChoice,
    /// The process has too many files open.
    #[error("{0}: raise the limit of open files (`ulimit -n`, LimitNOFILE of a service)")]
    OpenFiles(io::Error),
    /// Anything else that the system refuses.
    #[error("{0}")]
    Refused(io::Error),
}

impl UnusableEgress {
    /// The reason behind the errno with which the system refused a socket or a request of a run.
    #[must_use]
    pub fn from_errno(errno: i32, probing: &Probing) -> Self {
        let error = io::Error::from_raw_os_error(errno);
        match (&probing.interface, probing.source) {
            (Some(name), _) if NO_INTERFACE.contains(&errno) => Self::NoInterface(name.clone()),
            (Some(_), _) if errno == NOT_SUPPORTED && !cfg!(target_os = "linux") => Self::NoChoice,
            (_, Some(source)) if errno == NO_ADDRESS => Self::NoAddress(source),
            _ if errno == NO_DESCRIPTOR && cfg!(unix) => Self::OpenFiles(error),
            _ => Self::Refused(error),
        }
    }
}

/// Checks whether this machine can send as the settings ask for: by their interface, from their source address. Must be
/// called within a tokio runtime.
///
/// # Errors
/// [`UnusableEgress`] when no address family can.
pub fn check_egress(probing: &Probing) -> Result<(), UnusableEgress> {
    if probing.source.is_none() && probing.interface.is_none() {
        return Ok(());
    }
    let families: &[bool] = match (probing.source, probing.family) {
        (Some(source), _) => &[source.is_ipv6()],
        (None, Family::V4) => &[false],
        (None, Family::V6) => &[true],
        (None, Family::Any) => &[false, true],
    };
    let mut refused = None;
    for v6 in families {
        match open_once(&Egress::of(probing, *v6)) {
            Ok(()) => return Ok(()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(()), |error| {
        Err(UnusableEgress::from_errno(errno(&error), probing))
    })
}

/// Opens a socket as a prober does, and closes it.
fn open_once(egress: &Egress) -> io::Result<()> {
    if egress.interface().is_some() && !cfg!(target_os = "linux") {
        return Err(io::Error::from_raw_os_error(NOT_SUPPORTED));
    }
    AsyncSocket::new(&egress.config(Type::DGRAM)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probing(interface: Option<&str>, source: Option<&str>) -> Probing {
        Probing {
            interface: interface.map(str::to_owned),
            source: source.map(|source| source.parse().unwrap()),
            ..Probing::default()
        }
    }

    #[test]
    fn an_errno_becomes_words_that_name_what_the_run_asks_for() {
        for (errno, interface, source, text) in [
            (19, Some("nope"), None, "no network interface nope"),
            (
                99,
                None,
                Some("192.0.2.1"),
                "192.0.2.1 is not an address of",
            ),
            (24, None, None, "ulimit -n"),
            (19, None, None, "No such device (os error 19)"),
            (101, Some("lo"), None, "Network is unreachable (os error"),
        ] {
            let reason = UnusableEgress::from_errno(errno, &probing(interface, source));
            assert!(reason.to_string().contains(text), "{reason}");
        }
    }
}
