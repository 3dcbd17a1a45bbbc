//! The IP addresses of this machine.

use std::{collections::HashSet, net::IpAddr};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use tracing::debug;

/// All addresses of the calling thread's network namespace.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses(HashSet<IpAddr>);

impl OwnAddresses {
    /// The addresses now; none when they cannot be read.
    pub(super) fn read() -> Self {
        let read = getifaddrs()
            .inspect_err(|error| debug!(%error, "cannot read the addresses of this machine"));
        let entries = read.into_iter().flatten();
        Self(
            entries
                .filter_map(|entry| ip_address(entry.address.as_ref()?))
                .collect(),
        )
    }

    /// Whether `address` is one of them.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
