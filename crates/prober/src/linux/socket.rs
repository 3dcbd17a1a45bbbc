//! Opens the sockets of the engine: surge-ping opens them, because it knows how to ask for each kind, and then they get the
//! options that the engine needs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Socket, Type};
use surge_ping::AsyncSocket;

use super::syscall;
use crate::socket::{Buffers, Egress, duplicate, next_identifier, receive_only};

/// An open socket.
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) kind: Type,
    pub(super) identifier: u16,
    pub(super) buffers: Buffers,
}

/// Opens a socket on the current runtime, of the kind `preferred` if possible, with large buffers, timestamps and the
/// error queue. `receive_buffer` replaces the size of the receive buffer.
pub(super) fn open(
    egress: &Egress,
    preferred: Type,
    receive_buffer: Option<usize>,
) -> io::Result<Opened> {
    let mut opened = open_plain(egress, preferred)?;
    opened.buffers = Buffers::enlarge(&opened.socket)?;
    if let Some(bytes) = receive_buffer {
        opened.socket.set_recv_buffer_size(bytes)?;
        opened.buffers.receive = opened.socket.recv_buffer_size()?;
    }
    syscall::enable_timestamps_and_errors(&opened.socket, egress.is_v6())?;
    // Read here as well, so that a kernel without these counters is noticed before anything is probed.
    syscall::memory(&opened.socket)?;
    Ok(opened)
}

/// Opens a socket that receives no ICMP errors and has buffers of the default size.
pub(super) fn open_plain(egress: &Egress, preferred: Type) -> io::Result<Opened> {
    let surge = AsyncSocket::new(&egress.config(preferred))?;
    let kind = surge.get_type();
    let socket = duplicate(&surge)?;
    // surge-ping's descriptor is registered for room to send, which would wake the runtime after every request.
    drop(surge);
    let identifier = if kind == Type::RAW {
        let identifier = next_identifier();
        // Errors come by the error queue.
        receive_only(&socket, identifier, egress.is_v6(), false)?;
        identifier
    } else {
        kernel_identifier(&socket, egress)?
    };
    Ok(Opened {
        buffers: Buffers::of(&socket)?,
        socket,
        kind,
        identifier,
    })
}

/// The identifier of a datagram socket, which the kernel assigns like a port.
fn kernel_identifier(socket: &Socket, egress: &Egress) -> io::Result<u16> {
    if egress.source().is_none() {
        let any = if egress.is_v6() {
            IpAddr::from(Ipv6Addr::UNSPECIFIED)
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
    }
    let own = socket.local_addr()?.as_socket();
    own.map(|own| own.port())
        .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}
