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

    /// Whether one of them may be the source of a message to `to`: one of the same family, not of the loopback interface,
    /// and not link-local unless `to` is.
    pub(super) fn has_one_like(&self, to: IpAddr) -> bool {
        self.0.iter().any(|own| match (own, to) {
            (IpAddr::V4(own), IpAddr::V4(_)) => !own.is_loopback(),
            (IpAddr::V6(own), IpAddr::V6(to)) => {
                !own.is_loopback() && (to.is_unicast_link_local() || !own.is_unicast_link_local())
            }
            _ => false,
        })
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
