//! TCP ports for servers that are started, stopped and started again on the same port.

use std::{
    fs::{self, File, TryLockError},
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
};

use anyhow::{Context, bail};

/// Below the ports that Linux gives to outgoing connections (`net.ipv4.ip_local_port_range`, from 32768): one of those
/// could have the port while its server is not listening.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A port that no other test has, in any process, until it is dropped.
#[derive(Debug)]
pub(crate) struct ReservedPort {
    number: u16,
    // Closing the file ends its lock.
    _lock: File,
}

impl ReservedPort {
    /// Reserves a port on which nobody listens.
    pub(crate) fn new() -> anyhow::Result<Self> {
        // Each user has files of its own.
        let user = rustix::process::geteuid().as_raw();
        let folder = std::env::temp_dir().join(format!("pingfleet-test-ports-{user}"));
        fs::create_dir_all(&folder)?;
        let count = PORTS.end - PORTS.start;
        let first = fastrand::u16(..count);
        for step in 0..count {
            let number = PORTS.start + (first + step) % count;
            let path = folder.join(number.to_string());
            let lock = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if is_free(number) {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("no port between {} and {} is free", PORTS.start, PORTS.end)
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Whether nobody listens on the port. A machine without IPv6 has only the first address.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && (TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
            || TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_reserved_once() -> anyhow::Result<()> {
        let ports = (0..50)
            .map(|_| ReservedPort::new())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut numbers: Vec<_> = ports.iter().map(ReservedPort::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
        Ok(())
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_not_free() -> anyhow::Result<()> {
        let port = ReservedPort::new()?;
        assert!(is_free(port.number()));
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()))?;
        assert!(!is_free(port.number()));
        Ok(())
    }
}
