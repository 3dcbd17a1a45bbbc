//! Opening the socket of one way out: by surge-ping, which knows how to ask for each kind, and then as the engine
//! needs it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use pingfleet_wire::Probing;
use socket2::{SockFilter, Socket, Type};
use surge_ping::{AsyncSocket, Config, ICMP};

use super::{routes::NextHop, syscall};
use crate::socket::{Buffers, duplicate, enlarge};

/// What makes one socket differ from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Egress {
    pub(super) v6: bool,
    /// Each next hop has a socket of its own: requests that wait for one link address must not delay the others.
    pub(super) next_hop: NextHop,
    source: Option<IpAddr>,
    pub(super) interface: Option<String>,
    ttl: Option<u8>,
}

impl Egress {
    /// The system's own choice of everything.
    pub(super) fn plain(v6: bool) -> Self {
        Self {
            v6,
            next_hop: NextHop::Other,
            source: None,
            interface: None,
            ttl: None,
        }
    }

    /// As a plan wants it.
    pub(super) fn of(probing: &Probing, v6: bool, next_hop: NextHop) -> Self {
        Self {
            v6,
            next_hop,
            source: probing.source,
            interface: probing.interface.clone(),
            ttl: probing.ttl,
        }
    }

    fn config(&self, hint: Type) -> Config {
        Config {
            sock_type_hint: hint,
            kind: if self.v6 { ICMP::V6 } else { ICMP::V4 },
            bind: self.source.map(|source| SocketAddr::new(source, 0).into()),
            interface: self.interface.clone(),
            interface_index: None,
            ttl: self.ttl.map(u32::from),
            fib: None,
        }
    }
}

/// An open socket.
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) kind: Type,
    pub(super) identifier: u16,
    pub(super) buffers: Buffers,
}

/// Identifiers of raw sockets are handed out one by one from a random start: no two sockets of this process share one,
/// and two processes on one box hardly ever do.
static NEXT_IDENTIFIER: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));

/// Opens a socket on the current runtime, of the kind `hint` or else of the other one, with large buffers and with all
/// that the kernel tells. `receive_buffer` takes the place of the large one.
pub(super) fn open(
    egress: &Egress,
    hint: Type,
    receive_buffer: Option<usize>,
) -> io::Result<Opened> {
    let mut opened = open_plain(egress, hint)?;
    opened.buffers = enlarge(&opened.socket)?;
    if let Some(bytes) = receive_buffer {
        opened.socket.set_recv_buffer_size(bytes)?;
        opened.buffers.receive = opened.socket.recv_buffer_size()?;
    }
    syscall::enable_timestamps_and_errors(&opened.socket, egress.v6)?;
    Ok(opened)
}

/// Opens a socket that is told of no ICMP error, and has the buffers that every socket has.
pub(super) fn open_plain(egress: &Egress, hint: Type) -> io::Result<Opened> {
    let surge = AsyncSocket::new(&egress.config(hint))?;
    let kind = surge.get_type();
    let socket = duplicate(&surge)?;
    // Its descriptor is watched for room to send, which would wake the runtime after every request.
    drop(surge);
    let identifier = if kind == Type::RAW {
        let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        only_replies_to(&socket, identifier, egress.v6)?;
        identifier
    } else {
        own_identifier(&socket, egress)?
    };
    Ok(Opened {
        buffers: Buffers {
            receive: socket.recv_buffer_size()?,
            send: socket.send_buffer_size()?,
        },
        socket,
        kind,
        identifier,
    })
}

/// The identifier of a datagram socket, which the kernel hands out as it does ports.
fn own_identifier(socket: &Socket, egress: &Egress) -> io::Result<u16> {
    if egress.source.is_none() {
        let any = if egress.v6 {
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

/// Lets a raw socket receive only echo replies to `identifier`. Without it every raw socket receives all ICMP of the
/// box. Errors come by the error queue, which no filter concerns.
fn only_replies_to(socket: &Socket, identifier: u16, v6: bool) -> io::Result<()> {
    // Classic BPF (Linux: linux/filter.h). An IPv4 raw socket sees the IP header, an IPv6 one begins at ICMPv6.
    const LDX_IMM: u16 = 0x01;
    const LDX_MSH: u16 = 0xb1;
    const LDB_IND: u16 = 0x50;
    const LDH_IND: u16 = 0x48;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    let (header, reply) = if v6 { (LDX_IMM, 129) } else { (LDX_MSH, 0) };
    socket.attach_filter(&[
        SockFilter::new(header, 0, 0, 0),
        SockFilter::new(LDB_IND, 0, 0, 0),
        SockFilter::new(JEQ, 0, 3, reply),
        SockFilter::new(LDH_IND, 0, 0, 4),
        SockFilter::new(JEQ, 0, 1, identifier.into()),
        SockFilter::new(RET, 0, 0, u32::MAX),
        SockFilter::new(RET, 0, 0, 0),
    ])
}
