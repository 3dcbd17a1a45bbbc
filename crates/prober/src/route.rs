//! Whether this machine has a route to an address. It asks the kernel, and sends nothing.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6},
};

use socket2::{Domain, Socket, Type};

use crate::prober::Destination;

/// Any port: nothing is sent to it.
const PORT: u16 = 9;

/// The errno of an address family that this system does not have (EAFNOSUPPORT, WSAEAFNOSUPPORT).
const NO_SUCH_FAMILY: i32 = if cfg!(windows) { 10_047 } else { 97 };

/// Checks whether the kernel has a route to a destination: it looks for one when a datagram socket is connected, as RFC
/// 6724, section 6, rule 1 needs it. With `interface`, the route is by that one. Also `Ok` when it cannot be found out,
/// because there is no socket or no such interface. Cheap: three system calls.
///
/// # Errors
/// Why the kernel cannot send there, such as `Network is unreachable`.
pub fn check_route(to: Destination, interface: Option<&str>) -> io::Result<()> {
    let address = match SocketAddr::new(to.address, PORT) {
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), PORT, 0, to.scope_id).into(),
        v4 @ SocketAddr::V4(_) => v4,
    };
    let socket = match Socket::new(Domain::for_address(address), Type::DGRAM, None) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(NO_SUCH_FAMILY) => return Err(error),
        Err(_) => return Ok(()),
    };
    if let Some(name) = interface
        && bind(&socket, name).is_err()
    {
        return Ok(());
    }
    match socket.connect(&address.into()) {
        // No free port for the socket, or no memory: this says nothing about the route.
        Err(error) if is_about_the_route(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the error of a connect is the answer to the question. A blackhole route is an invalid argument for Linux, a
/// prohibiting one a lack of permission, and a family without an address of this machine has no address to send from.
fn is_about_the_route(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::AddrNotAvailable
            | Kind::InvalidInput
            | Kind::PermissionDenied
    )
}

#[cfg(target_os = "linux")]
fn bind(socket: &Socket, interface: &str) -> io::Result<()> {
    socket.bind_device(Some(interface.as_bytes()))
}

#[cfg(not(target_os = "linux"))]
fn bind(_: &Socket, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn loopback_has_a_route_and_a_link_local_address_without_a_zone_has_none() {
        let checked = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            check_route(address.into(), None).map_err(|error| error.kind())
        };
        assert_eq!(checked("127.0.0.1"), Ok(()));
        // The kernel asks for the zone; without any IPv6 it has no route or no socket.
        assert!(checked("fe80::1").is_err());
    }

    #[test]
    fn an_interface_that_does_not_exist_says_nothing() {
        let to = IpAddr::from([127, 0, 0, 1]).into();
        assert!(check_route(to, Some("no-such-if")).is_ok());
    }
}
