//! What both probers need of ICMP sockets: how they differ from each other, buffers, identifiers, a filter, errors, and
//! the messages that are logged once.

mod egress;
mod errors;
#[cfg(target_os = "linux")]
mod filter;
mod log_once;
mod unusable_egress;

use std::{
    io,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use socket2::{SockRef, Socket};
use surge_ping::AsyncSocket;

#[cfg(target_os = "linux")]
pub(crate) use self::filter::receive_only;
pub use self::unusable_egress::{UnusableEgress, check_egress};
pub(crate) use self::{
    egress::Egress,
    errors::{INVALID, errno, is_back_pressure},
    log_once::LogOnce,
    unusable_egress::NOT_SUPPORTED,
};

/// Receive buffer asked for, in bytes. The system's default holds a few hundred replies.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Send buffer asked for, in bytes. Requests that wait for ARP are charged to it.
const SEND_BUFFER: usize = 4 << 20;

/// The next identifier that this process chooses itself. They are counted up from a random start: no two sockets of this
/// process share one, and two processes on one machine hardly ever do.
static NEXT_IDENTIFIER: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));

/// An identifier for the requests of a new socket.
pub(crate) fn next_identifier() -> u16 {
    NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed)
}

/// Sizes of a socket's buffers, in bytes as the kernel counts them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

impl Buffers {
    /// The buffers that a socket has.
    pub(crate) fn of(socket: &Socket) -> io::Result<Self> {
        Ok(Self {
            receive: socket.recv_buffer_size()?,
            send: socket.send_buffer_size()?,
        })
    }

    /// Asks for large buffers. The kernel grants more than `net.core.rmem_max` and `wmem_max` only with `CAP_NET_ADMIN`.
    pub(crate) fn enlarge(socket: &Socket) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        let (receive_forced, send_forced) = (
            rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_ok(),
            rustix::net::sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_ok(),
        );
        #[cfg(not(target_os = "linux"))]
        let (receive_forced, send_forced) = (false, false);
        if !receive_forced {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        if !send_forced {
            socket.set_send_buffer_size(SEND_BUFFER)?;
        }
        Self::of(socket)
    }
}

/// A second descriptor of a surge-ping socket.
pub(crate) fn duplicate(socket: &AsyncSocket) -> io::Result<Socket> {
    let native = socket.get_native_sock();
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "surge-ping gives the descriptor of its socket as a number only"
    )]
    // SAFETY: `socket` owns the descriptor and outlives the borrow, which ends in this function.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(native) };
    #[cfg(windows)]
    #[expect(
        unsafe_code,
        reason = "surge-ping gives the handle of its socket as a number only"
    )]
    // SAFETY: `socket` owns the handle and outlives the borrow, which ends in this function.
    let borrowed = unsafe { std::os::windows::io::BorrowedSocket::borrow_raw(native) };
    SockRef::from(&borrowed).try_clone()
}
