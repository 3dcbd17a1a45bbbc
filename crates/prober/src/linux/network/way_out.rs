//! Whether the kernel has a way out for an address now. A datagram socket is connected to it, which looks up the route and
//! the source address and sends nothing.
//!
//! Source: Linux `ip4_datagram_connect`, `ip6_datagram_connect` (`net/ipv4/datagram.c`, `net/ipv6/datagram.c`).

use std::net::{SocketAddr, SocketAddrV6};

use socket2::{Domain, Socket, Type};

use crate::{prober::Destination, socket::Egress};

/// Any port: nothing is sent to it.
const DISCARD_PORT: u16 = 9;

/// Whether there is a way out to `to` with these settings; `None` if that cannot be found out.
pub(in crate::linux) fn is_open(to: Destination, egress: &Egress) -> Option<bool> {
    let domain = if egress.is_v6() {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = Socket::new(domain, Type::DGRAM, None).ok()?;
    if let Some(interface) = egress.interface() {
        socket.bind_device(Some(interface.as_bytes())).ok()?;
    }
    if let Some(source) = egress.source()
        && socket.bind(&SocketAddr::new(source, 0).into()).is_err()
    {
        // The source address is gone.
        return Some(false);
    }
    let to: SocketAddr = match to.address {
        std::net::IpAddr::V4(v4) => (v4, DISCARD_PORT).into(),
        std::net::IpAddr::V6(v6) => SocketAddrV6::new(v6, DISCARD_PORT, 0, to.scope_id).into(),
    };
    Some(socket.connect(&to.into()).is_ok())
}
