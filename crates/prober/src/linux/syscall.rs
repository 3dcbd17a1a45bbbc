//! The system calls of the engine: many messages in one call, the kernel's stamps, the error queue and the socket's
//! counter of drops. All unsafe code of the engine is here: registering a descriptor with the runtime, and
//! reading the counter.
//!
//! Source: Linux `sendmmsg(2)`, `recvmmsg(2)`, `ip(7)` and `ipv6(7)` on `IP_RECVERR`, `socket(7)`, `sock_diag(7)`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrStorage,
            recvmmsg, recvmsg, sendmmsg, setsockopt,
            sockopt::{Ipv4RecvErr, Ipv6RecvErr, ReceiveTimestampns},
        },
        time::TimeSpec,
    },
};
use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

/// The most messages in one call.
pub(super) const BATCH: usize = 64;

/// Bytes of a message that an ICMP error quotes and that are looked at.
const QUOTED: usize = 512;

/// Bytes that all buffers of received messages take together, where messages are so long that a whole batch would
/// take more.
const RECEIVE_BYTES: usize = 1 << 20;

/// `SO_MEMINFO` of Linux 4.12 (asm-generic/socket.h), which libc does not have.
const SO_MEMINFO: libc::c_int = 55;

/// Values of `SO_MEMINFO` (`linux/sock_diag.h`, `SK_MEMINFO_VARS`).
const MEMINFO_VALUES: usize = 9;

/// Watches a socket on the current runtime, for what arrives and for errors.
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    #[expect(
        unsafe_code,
        reason = "tokio has no safe call that registers a descriptor"
    )]
    // SAFETY: the descriptor is the socket's own, and nothing closes or changes it before the socket is dropped.
    let watched =
        unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::ERROR) };
    Ok(watched?)
}

/// Asks the kernel for a stamp with every message, and for ICMP errors in the error queue.
pub(super) fn enable_timestamps_and_errors(socket: &Socket, v6: bool) -> io::Result<()> {
    setsockopt(socket, ReceiveTimestampns, &true)?;
    if v6 {
        setsockopt(socket, Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// What a socket holds of the kernel's memory, and lost for want of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Messages that the receive buffer had no room for. Wraps around.
    pub(super) drops: u32,
    /// Whether the receive buffer may have no room for an ICMP error, whose loss the kernel does not count.
    pub(super) is_full: bool,
    /// Bytes of messages that were taken and have not left: they wait for a link, or for the address of a neighbour.
    pub(super) unsent: u32,
}

/// More than a waiting ICMP error takes of the receive buffer, unless it quotes a very large message.
const ERROR_BYTES: u32 = 4096;

/// Reads the socket's use of memory.
pub(super) fn memory(socket: &Socket) -> io::Result<Memory> {
    let mut values = [0_u32; MEMINFO_VALUES];
    let mut length = size_of_val(&values) as libc::socklen_t;
    #[expect(unsafe_code, reason = "no crate has this option")]
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `values`, and any bytes are integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    let [held, room, unsent, drops] = [
        libc::SK_MEMINFO_RMEM_ALLOC,
        libc::SK_MEMINFO_RCVBUF,
        libc::SK_MEMINFO_WMEM_ALLOC,
        libc::SK_MEMINFO_DROPS,
    ]
    .map(|value| values[value as usize]);
    Ok(Memory {
        drops,
        is_full: held > 0 && held.saturating_add(ERROR_BYTES) >= room,
        unsent,
    })
}

/// Whether the kernel took nothing for want of memory, and will take it later.
pub(super) fn is_back_pressure(error: Errno) -> bool {
    matches!(error, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Whether an ICMP error of an earlier message may be what a send returns (Linux: `icmp_err_convert` of
/// `net/ipv4/icmp.c`, `icmpv6_err_convert` of `net/ipv6/icmp.c`). Any other errno is of the message itself.
pub(super) fn may_be_of_another(error: Errno) -> bool {
    matches!(
        error,
        Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::ENOPROTOOPT
            | Errno::ECONNREFUSED
            | Errno::EMSGSIZE
            | Errno::EOPNOTSUPP
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EPROTO
            | Errno::EACCES
    )
}

/// Messages to send.
pub(super) struct Outgoing {
    headers: MultiHeaders<SockaddrStorage>,
    /// All messages, one behind the other.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    to: Vec<Option<SockaddrStorage>>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            bytes: Vec::new(),
            ends: Vec::with_capacity(BATCH),
            to: Vec::with_capacity(BATCH),
        }
    }

    /// Adds a message, which `write` appends to what is there. There is room for [`BATCH`].
    pub(super) fn push(&mut self, to: SocketAddr, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
        self.to.push(Some(to.into()));
    }

    /// Bytes of all messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.to.clear();
    }

    /// Hands the kernel the messages from number `first` on; returns how many it took, at least one.
    ///
    /// # Errors
    /// Why it did not take the first of them, or an error that waited on the socket and is of no message here.
    pub(super) fn send(&mut self, socket: &Socket, first: usize) -> Result<usize, Errno> {
        let mut slices = [[IoSlice::new(&[])]; BATCH];
        let mut start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
        let ends = &self.ends[first..];
        for (slice, end) in slices.iter_mut().zip(ends) {
            *slice = [IoSlice::new(&self.bytes[start..*end])];
            start = *end;
        }
        sendmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &slices[..ends.len()],
            &self.to[first..],
            [],
            MsgFlags::MSG_DONTWAIT,
        )
        .map(Iterator::count)
    }
}

/// A message as it was received.
pub(super) struct Received<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) from: SocketAddr,
    /// When it arrived, by the wall clock, since 1970.
    pub(super) stamp: Option<Duration>,
}

/// Room for messages to receive.
pub(super) struct Incoming {
    headers: MultiHeaders<SockaddrStorage>,
    bytes: Vec<u8>,
    longest: usize,
}

impl Incoming {
    /// Room for messages of up to `longest` bytes; what is longer is cut off.
    pub(super) fn new(longest: usize) -> Self {
        let messages = (RECEIVE_BYTES / longest).clamp(1, BATCH);
        Self {
            headers: Self::headers(),
            bytes: vec![0; messages * longest],
            longest,
        }
    }

    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    fn headers() -> MultiHeaders<SockaddrStorage> {
        MultiHeaders::preallocate(BATCH, Some(cmsg_space!(TimeSpec)))
    }

    /// Receives as many messages as there are room for, and gives each to `take`. Never waits.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] when there is none; any other is one that waited on the socket.
    pub(super) fn receive(
        &mut self,
        socket: &Socket,
        mut take: impl FnMut(Received<'_>),
    ) -> Result<usize, Errno> {
        let mut parts = self.bytes.chunks_exact_mut(self.longest);
        let messages = parts.len();
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(parts.next().unwrap_or_default())]);
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            slices[..messages].iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        let (mut count, mut unstamped) = (0, false);
        for message in received {
            count += 1;
            let stamp = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|control| match control {
                    ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                    _ => None,
                })
            });
            unstamped |= stamp.is_none();
            if let Some(from) = message.address.as_ref().and_then(address) {
                let bytes = message.iovs().next().unwrap_or_default();
                take(Received { bytes, from, stamp });
            }
        }
        if unstamped {
            // A header keeps the length of its last control message, and has no room for a stamp ever after.
            self.headers = Self::headers();
        }
        Ok(count)
    }
}

/// An ICMP error that quotes one of our messages.
pub(super) struct NetworkError<'a> {
    /// What is quoted, from the ICMP header on.
    pub(super) quoted: &'a [u8],
    /// The destination that is quoted.
    pub(super) to: SocketAddr,
    pub(super) icmp_type: u8,
    pub(super) code: u8,
    pub(super) reporter: SocketAddr,
}

/// Room for one error to read.
pub(super) struct ErrorQueue {
    bytes: Box<[u8]>,
    control: Vec<u8>,
}

impl ErrorQueue {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; QUOTED].into(),
            control: cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, TimeSpec),
        }
    }

    /// Reads one error off the queue and gives it to `take`, if it is one that came by ICMP. Never waits.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] when there is none.
    pub(super) fn read(
        &mut self,
        socket: &Socket,
        take: impl FnOnce(NetworkError<'_>),
    ) -> Result<(), Errno> {
        let mut slices = [IoSliceMut::new(&mut self.bytes)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut self.control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        )?;
        let quoted = message.iovs().next().unwrap_or_default();
        let to = message.address.as_ref().and_then(address);
        let error = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, from)
                    if error.ee_origin == libc::SO_EE_ORIGIN_ICMP =>
                {
                    let from = SockaddrIn::from(from?);
                    Some((error, SocketAddrV4::from(from).into()))
                }
                ControlMessageOwned::Ipv6RecvErr(error, from)
                    if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 =>
                {
                    let from = SockaddrIn6::from(from?);
                    Some((error, SocketAddrV6::from(from).into()))
                }
                _ => None,
            })
        });
        if let (Some(to), Some((error, reporter))) = (to, error) {
            take(NetworkError {
                quoted,
                to,
                icmp_type: error.ee_type,
                code: error.ee_code,
                reporter,
            });
        }
        Ok(())
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage
        .as_sockaddr_in()
        .map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| {
        storage
            .as_sockaddr_in6()
            .map(|v6| SocketAddrV6::from(*v6).into())
    })
}
