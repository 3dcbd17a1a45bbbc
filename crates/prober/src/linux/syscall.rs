//! The system calls of the engine: many messages in one call, the kernel's timestamps, the error queue, and the
//! socket's memory counters. All unsafe code of the engine is here: registering a descriptor with the runtime, and reading
//! the counters.
//!
//! Source: Linux `sendmmsg(2)`, `recvmmsg(2)`, `ip(7)` and `ipv6(7)` on `IP_RECVERR`, `socket(7)`, `sock_diag(7)`,
//! Documentation/networking/timestamping.rst.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    ops::Range,
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
            TimestampingFlag, recvmmsg, recvmsg, sendmmsg, setsockopt,
            sockopt::{Ipv4RecvErr, Ipv6RecvErr, ReceiveTimestampns, Timestamping},
        },
        time::TimeSpec,
    },
};
use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

/// The most messages in one call.
pub(super) const MAX_BATCH: usize = 64;

/// Bytes that are read of the message that an ICMP error quotes.
const MAX_QUOTED_BYTES: usize = 512;

/// The most bytes for received messages. Of long messages fewer than a batch are received at once.
const MAX_RECEIVE_BYTES: usize = 1 << 20;

/// `SO_MEMINFO` of Linux 4.12 (asm-generic/socket.h), which libc does not have.
const SO_MEMINFO: libc::c_int = 55;

/// Values of `SO_MEMINFO` (`linux/sock_diag.h`, `SK_MEMINFO_VARS`).
const MEMINFO_VALUES: usize = 9;

/// The kind of a stamp that was taken when the driver got the message (`linux/errqueue.h`), which libc does not have.
pub(super) const SCM_TSTAMP_SND: u32 = 0;

/// Registers a socket with the current runtime, for incoming messages and errors.
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

/// Lets the kernel add a timestamp to every message, and put ICMP errors into the error queue.
pub(super) fn enable_timestamps_and_errors(socket: &Socket, v6: bool) -> io::Result<()> {
    setsockopt(socket, ReceiveTimestampns, &true)?;
    if v6 {
        setsockopt(socket, Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Whether the kernel stamps requests when they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendStamps {
    /// Each request from now on gets a stamp, which comes by the error queue with a key: the stamped requests of the socket
    /// are counted from 0.
    On,
    /// No request gets a stamp. The count goes on with the next stamped request.
    Paused,
    /// No request gets a stamp. The count starts again with the next stamped request.
    Off,
}

/// Lets the kernel stamp requests, or not. Stamps have the form of the receive timestamps. `SOF_TIMESTAMPING_SOFTWARE`
/// stays off: it would add a second timestamp to each received message.
pub(super) fn set_send_stamps(socket: &Socket, stamps: SendStamps) -> Result<(), Errno> {
    let with_keys =
        TimestampingFlag::SOF_TIMESTAMPING_OPT_ID | TimestampingFlag::SOF_TIMESTAMPING_OPT_TSONLY;
    let flags = match stamps {
        SendStamps::On => TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE | with_keys,
        SendStamps::Paused => with_keys,
        SendStamps::Off => TimestampingFlag::empty(),
    };
    setsockopt(socket, Timestamping, &flags)
}

/// The kernel memory that a socket uses, and what it lost for lack of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Messages for which the receive buffer had no room. Wraps around.
    pub(super) drops: u32,
    /// Whether the receive buffer may have no room for an ICMP error. The kernel does not count errors that it drops.
    pub(super) is_full: bool,
    /// Bytes of messages that the kernel accepted and that have not left: they wait for a link, or for a link address.
    pub(super) unsent: u32,
}

/// An ICMP error takes less of the receive buffer than this, unless it quotes a very long message.
const ERROR_BYTES: u32 = 4096;

/// Reads the socket's memory counters.
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

/// Whether the kernel has no memory for the message now, and will accept it later.
pub(super) fn is_back_pressure(error: Errno) -> bool {
    matches!(error, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Whether this errno of a send may be the ICMP error of an earlier message (Linux: `icmp_err_convert` of
/// `net/ipv4/icmp.c`, `icmpv6_err_convert` of `net/ipv6/icmp.c`). Any other errno concerns the message itself.
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
            headers: MultiHeaders::preallocate(MAX_BATCH, None),
            bytes: Vec::new(),
            ends: Vec::with_capacity(MAX_BATCH),
            to: Vec::with_capacity(MAX_BATCH),
        }
    }

    /// Adds a message, which `write` appends to the bytes. There is room for [`MAX_BATCH`].
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

    /// Sends the messages with these numbers, in one call. Returns how many the kernel accepted, at least one.
    ///
    /// # Errors
    /// Why the kernel refused the first of them, or an error of an earlier message that was pending on the socket.
    pub(super) fn send(&mut self, socket: &Socket, numbers: Range<usize>) -> Result<usize, Errno> {
        let mut slices = [[IoSlice::new(&[])]; MAX_BATCH];
        let before = numbers.start.checked_sub(1);
        let mut start = before.map_or(0, |before| self.ends[before]);
        let ends = &self.ends[numbers.clone()];
        for (slice, end) in slices.iter_mut().zip(ends) {
            *slice = [IoSlice::new(&self.bytes[start..*end])];
            start = *end;
        }
        sendmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &slices[..ends.len()],
            &self.to[numbers],
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
    pub(super) arrived: Option<Duration>,
}

/// Buffers for messages to receive.
pub(super) struct Incoming {
    headers: MultiHeaders<SockaddrStorage>,
    bytes: Vec<u8>,
    longest: usize,
}

impl Incoming {
    /// Buffers for messages of up to `longest` bytes; longer ones are cut off.
    pub(super) fn new(longest: usize) -> Self {
        let messages = (MAX_RECEIVE_BYTES / longest).clamp(1, MAX_BATCH);
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
        MultiHeaders::preallocate(MAX_BATCH, Some(cmsg_space!(TimeSpec)))
    }

    /// Receives up to a batch of messages, and passes each to `take`. Never waits.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] when there is none; any other error was pending on the socket.
    pub(super) fn receive(
        &mut self,
        socket: &Socket,
        mut take: impl FnMut(Received<'_>),
    ) -> Result<usize, Errno> {
        let mut parts = self.bytes.chunks_exact_mut(self.longest);
        let messages = parts.len();
        let mut slices: [_; MAX_BATCH] =
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
            let arrived = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|control| match control {
                    ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                    _ => None,
                })
            });
            unstamped |= arrived.is_none();
            if let Some(from) = message.address.as_ref().and_then(address) {
                let bytes = message.iovs().next().unwrap_or_default();
                take(Received {
                    bytes,
                    from,
                    arrived,
                });
            }
        }
        if unstamped {
            // A header keeps the length of its last control message, and would never have room for a timestamp again.
            self.headers = Self::headers();
        }
        Ok(count)
    }
}

/// An ICMP error that quotes one of our messages.
pub(super) struct NetworkError<'a> {
    /// The quoted message, from its ICMP header on.
    pub(super) quoted: &'a [u8],
    /// Destination of the quoted message.
    pub(super) to: SocketAddr,
    pub(super) icmp_type: u8,
    pub(super) code: u8,
    pub(super) reporter: SocketAddr,
}

/// What was in the error queue.
pub(super) enum Queued<'a> {
    Error(NetworkError<'a>),
    Stamp(SendStamp),
}

/// When a request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendStamp {
    /// How many requests of the socket were stamped before.
    pub(super) key: u32,
    /// By the wall clock, since 1970.
    pub(super) left: Duration,
}

/// Buffers for one entry of the error queue.
pub(super) struct ErrorQueue {
    bytes: Box<[u8]>,
    control: Vec<u8>,
}

impl ErrorQueue {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; MAX_QUOTED_BYTES].into(),
            control: cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, TimeSpec),
        }
    }

    /// Removes one entry from the queue, and passes it to `take` if it came by ICMP or is a stamp. Never waits.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] when there is none.
    pub(super) fn read(
        &mut self,
        socket: &Socket,
        take: impl FnOnce(Queued<'_>),
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
        let controls = message.cmsgs().into_iter().flatten();
        if let Some(queued) = Queued::from_controls(quoted, to, controls) {
            take(queued);
        }
        Ok(())
    }
}

impl<'a> Queued<'a> {
    /// What an entry of the error queue says: its control messages, the message that it quotes, and the destination of that.
    /// `None` for anything else than an error that came by ICMP, or a stamp.
    pub(super) fn from_controls(
        quoted: &'a [u8],
        to: Option<SocketAddr>,
        controls: impl Iterator<Item = ControlMessageOwned>,
    ) -> Option<Self> {
        let (mut error, mut stamp, mut key) = (None, None, None);
        for control in controls {
            let (entry, reporter) = match control {
                ControlMessageOwned::ScmTimestampns(at) => {
                    stamp = Some(Duration::from(at));
                    continue;
                }
                ControlMessageOwned::Ipv4RecvErr(entry, from) => {
                    let from = from.map(|from| SocketAddrV4::from(SockaddrIn::from(from)).into());
                    (entry, from)
                }
                ControlMessageOwned::Ipv6RecvErr(entry, from) => {
                    let from = from.map(|from| SocketAddrV6::from(SockaddrIn6::from(from)).into());
                    (entry, from)
                }
                _ => continue,
            };
            match entry.ee_origin {
                libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => {
                    error = reporter.map(|reporter: SocketAddr| (entry, reporter));
                }
                libc::SO_EE_ORIGIN_TIMESTAMPING if entry.ee_info == SCM_TSTAMP_SND => {
                    key = Some(entry.ee_data);
                }
                _ => {}
            }
        }
        if let (Some(to), Some((error, reporter))) = (to, error) {
            return Some(Self::Error(NetworkError {
                quoted,
                to,
                icmp_type: error.ee_type,
                code: error.ee_code,
                reporter,
            }));
        }
        let (key, left) = key.zip(stamp)?;
        Some(Self::Stamp(SendStamp { key, left }))
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

#[cfg(test)]
mod tests;
