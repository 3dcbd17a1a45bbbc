//! The socket below a surge-ping client, as far as surge-ping hides it: its buffers, whether a send would be taken at
//! once, and whether something received is still unread.
//!
//! It holds a second descriptor of the same socket. All unsafe code of the prober is here: borrowing the first
//! descriptor to make the second, and registering that one with the runtime.

use std::{io, mem::MaybeUninit};

use socket2::{SockRef, Socket};
use surge_ping::AsyncSocket;
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

/// Receive buffer asked for, in bytes. The system's default holds a few hundred replies.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Send buffer asked for, in bytes. Requests that wait for ARP are charged to it.
const SEND_BUFFER: usize = 4 << 20;

/// What the kernel gave, in bytes as it counts them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

/// A second descriptor of the same socket.
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

/// Asks for large buffers, and says what the kernel gave: past `net.core.rmem_max` and `wmem_max` only with
/// `CAP_NET_ADMIN`.
pub(crate) fn enlarge(socket: &Socket) -> io::Result<Buffers> {
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
    Ok(Buffers {
        receive: socket.recv_buffer_size()?,
        send: socket.send_buffer_size()?,
    })
}

/// Lets a raw ICMP socket receive only echo replies to `identifier`, and errors. Without it every raw socket receives
/// all ICMP of the box.
#[cfg(target_os = "linux")]
pub(crate) fn only_replies_to(socket: &Socket, identifier: u16, v6: bool) -> io::Result<()> {
    use socket2::SockFilter;

    // Classic BPF (Linux: linux/filter.h). An IPv4 raw socket sees the IP header, an IPv6 one begins at ICMPv6.
    const LDX_IMM: u16 = 0x01;
    const LDX_MSH: u16 = 0xb1;
    const LDB_IND: u16 = 0x50;
    const LDH_IND: u16 = 0x48;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    let (header, request, reply) = if v6 {
        (LDX_IMM, 128, 129)
    } else {
        (LDX_MSH, 8, 0)
    };
    socket.attach_filter(&[
        SockFilter::new(header, 0, 0, 0),
        SockFilter::new(LDB_IND, 0, 0, 0),
        SockFilter::new(JEQ, 4, 0, request),
        SockFilter::new(JEQ, 0, 2, reply),
        SockFilter::new(LDH_IND, 0, 0, 4),
        SockFilter::new(JEQ, 0, 1, identifier.into()),
        SockFilter::new(RET, 0, 0, u32::MAX),
        SockFilter::new(RET, 0, 0, 0),
    ])
}

/// Whether something received waits to be read.
pub(crate) fn has_unread(socket: &Socket) -> bool {
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => true,
        // Any other error is about this look: on Windows that the message is longer than the buffer.
        Err(error) => cfg!(windows) && error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Knows whether the kernel will take the next request at once. It keeps a send of surge-ping from ever finding the
/// send buffer full: then the request that it is asked to send has left when it first yields.
pub(crate) struct SendRoom {
    #[cfg(target_os = "linux")]
    socket: AsyncFd<Socket>,
    #[cfg(not(target_os = "linux"))]
    socket: Socket,
    /// Bytes that are certain to fit since the last look.
    #[cfg(target_os = "linux")]
    certain: std::cell::Cell<usize>,
    #[cfg(target_os = "linux")]
    send_buffer: usize,
}

#[cfg(target_os = "linux")]
impl SendRoom {
    /// Watches the socket on the current runtime.
    pub(crate) fn new(socket: Socket, buffers: Buffers) -> io::Result<Self> {
        #[expect(
            unsafe_code,
            reason = "tokio has no safe call that watches a socket for room to send only"
        )]
        // SAFETY: the descriptor is the socket's own, and nothing closes or changes it before the socket is dropped.
        let socket =
            unsafe { AsyncFd::register_with_interest(socket, tokio::io::Interest::WRITABLE)? };
        Ok(Self {
            socket,
            certain: std::cell::Cell::new(0),
            send_buffer: buffers.send,
        })
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    /// Waits until a request of `size` bytes of payload fits the send buffer, and counts it as sent. Cancel-safe.
    pub(crate) async fn take(&self, size: usize) -> io::Result<()> {
        // More than the kernel charges for a request: its bookkeeping, and rounding up to a power of two.
        let cost = 2 * size + 2048;
        while self.certain.get() < cost {
            let mut ready = self.socket.writable().await?;
            if self.is_writable()? {
                // Writable means that less than half of the buffer is taken (`sock_writeable`).
                self.certain.set((self.send_buffer / 2).max(cost));
            } else {
                ready.clear_ready();
            }
        }
        self.certain.set(self.certain.get() - cost);
        Ok(())
    }

    fn is_writable(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let mut polled = [PollFd::new(self.socket.get_ref(), PollFlags::OUT)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&at_once))?;
        Ok(polled[0].revents().contains(PollFlags::OUT))
    }
}

#[cfg(not(target_os = "linux"))]
impl SendRoom {
    /// Elsewhere a send is taken at once or fails.
    pub(crate) fn new(socket: Socket, _buffers: Buffers) -> io::Result<Self> {
        Ok(Self { socket })
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) async fn take(&self, _size: usize) -> io::Result<()> {
        Ok(())
    }
}
