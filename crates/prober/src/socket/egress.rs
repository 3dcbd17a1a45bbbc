//! How requests leave: the settings of a plan that belong to a socket.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use pingfleet_wire::Probing;
use socket2::Type;
use surge_ping::{Config, ICMP};

/// How the requests of one socket leave. Requests that leave differently need different sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Egress {
    v6: bool,
    source: Option<IpAddr>,
    interface: Option<String>,
    ttl: Option<u8>,
}

impl Egress {
    /// The system chooses source address, interface and TTL.
    pub(crate) fn plain(v6: bool) -> Self {
        Self {
            v6,
            source: None,
            interface: None,
            ttl: None,
        }
    }

    /// With the settings of a plan.
    pub(crate) fn of(probing: &Probing, v6: bool) -> Self {
        Self {
            v6,
            source: probing.source.map(|source| source.to_canonical()),
            interface: probing.interface.clone(),
            ttl: probing.ttl,
        }
    }

    /// Whether they are IPv6.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_v6(&self) -> bool {
        self.v6
    }

    /// The source address, if the plan names one.
    #[cfg(target_os = "linux")]
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// The interface, if the plan names one.
    pub(crate) fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// surge-ping's settings for such a socket, of the kind `kind` if possible.
    pub(crate) fn config(&self, kind: Type) -> Config {
        Config {
            sock_type_hint: kind,
            kind: if self.v6 { ICMP::V6 } else { ICMP::V4 },
            bind: self.source.map(|source| SocketAddr::new(source, 0).into()),
            interface: self.interface.clone(),
            interface_index: None,
            ttl: self.ttl.map(u32::from),
            fib: None,
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.v6 { "IPv6" } else { "IPv4" })?;
        if let Some(source) = self.source {
            write!(f, " from source address {source}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " by interface {interface}")?;
        }
        Ok(())
    }
}
