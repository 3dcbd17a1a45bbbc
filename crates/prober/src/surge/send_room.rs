//! A second descriptor of a surge-ping socket: whether a send would be accepted at once, and whether something received is
//! still unread.

use std::{io, mem::MaybeUninit};

use socket2::Socket;
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

use crate::socket::Buffers;

/// Whether something received is unread.
pub(super) fn has_unread(socket: &Socket) -> bool {
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => true,
        // On Windows the error may be that the message is longer than the buffer.
        Err(error) => cfg!(windows) && error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Waits until the kernel accepts the next request at once. So a send of surge-ping never finds the send buffer full, and
/// its request has left when its future first yields.
pub(super) struct SendRoom {
    #[cfg(target_os = "linux")]
    socket: AsyncFd<Socket>,
    #[cfg(not(target_os = "linux"))]
    socket: Socket,
    /// Bytes that certainly still fit.
    #[cfg(target_os = "linux")]
    certain: std::cell::Cell<usize>,
    #[cfg(target_os = "linux")]
    send_buffer: usize,
}

#[cfg(target_os = "linux")]
impl SendRoom {
    /// Registers the socket with the current runtime.
    pub(super) fn new(socket: Socket, buffers: Buffers) -> io::Result<Self> {
        #[expect(
            unsafe_code,
            reason = "tokio has no safe call that registers a socket for room to send only"
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

    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    /// Waits until a request of `size` bytes of payload fits the send buffer, and counts it as sent. Cancel-safe.
    pub(super) async fn take(&self, size: usize) -> io::Result<()> {
        // The kernel charges less for a request, with its bookkeeping and rounded up to a power of two.
        let cost = 2 * size + 2048;
        while self.certain.get() < cost {
            let mut ready = self.socket.writable().await?;
            if self.is_writable()? {
                // Writable means that less than half of the buffer is used (`sock_writeable`).
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
    /// On other systems a send is accepted at once or fails.
    pub(super) fn new(socket: Socket, _buffers: Buffers) -> io::Result<Self> {
        Ok(Self { socket })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) async fn take(&self, _size: usize) -> io::Result<()> {
        Ok(())
    }
}
