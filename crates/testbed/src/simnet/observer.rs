//! The thread that records every request as it leaves for the device, with the kernel's timestamp: the time is right even
//! when responder or test are busy. It reads a packet socket, which sees the requests before the device's queue.

use std::{
    io::IoSliceMut,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol,
            SockType, recvmsg, setsockopt, socket, sockopt,
        },
        time::TimeSpec,
    },
};

use super::{IpVersion, address, echo::EchoRequest};

/// Holds what arrives while the observer does not run, in bytes.
const RECEIVE_BUFFER: usize = 256 << 20;

/// What the socket calls a packet that leaves (Linux: `PACKET_OUTGOING` of `linux/if_packet.h`).
const OUTGOING: u8 = 4;

/// One echo request as it left the prober.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedRequest {
    /// When, by the kernel's wall clock, in nanoseconds since 1970-01-01 UTC.
    pub at_ns: u64,
    /// To which host.
    pub host: u32,
    /// From which address.
    pub from: IpAddr,
    /// By which version of IP.
    pub family: IpVersion,
    /// How many hops it may take: TTL or hop limit.
    pub hops: u8,
    /// Its identifier.
    pub identifier: u16,
    /// Its sequence number.
    pub sequence: u16,
    /// Bytes of its payload.
    pub size: u16,
}

/// The requests so far.
#[derive(Debug, Default)]
pub(super) struct RequestLog {
    requests: Mutex<Vec<ObservedRequest>>,
    more: Condvar,
}

impl RequestLog {
    fn lock(&self) -> MutexGuard<'_, Vec<ObservedRequest>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there are `count` requests, and returns false when there are fewer after `timeout`.
    pub(super) fn wait(&self, count: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut requests = self.lock();
        while requests.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            requests = self
                .more
                .wait_timeout(requests, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    pub(super) fn take(&self) -> Vec<ObservedRequest> {
        std::mem::take(&mut self.lock())
    }
}

/// Opens the socket in the network namespace of the calling thread.
pub(crate) fn open() -> nix::Result<OwnedFd> {
    let packets = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&packets, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&packets, sockopt::ReceiveTimestampns, &true)?;
    Ok(packets)
}

/// Records requests until the other end of `stop` is closed and everything before that is recorded.
pub(super) fn run(packets: &OwnedFd, log: &RequestLog, stop: &impl AsFd) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut polled = [
            PollFd::new(packets.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for packets"),
        }
        let [some, stop] = polled.map(|polled| polled.revents().unwrap_or(PollFlags::empty()));
        loop {
            match receive(packets, &mut buffer) {
                Ok(Some(request)) => {
                    log.lock().push(request);
                    log.more.notify_all();
                }
                // A device that goes down reports this once on its packet sockets.
                Ok(None) | Err(nix::Error::ENETDOWN | nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(error) => return Err(error).context("cannot read packets"),
            }
        }
        if !stop.is_empty() && !some.contains(PollFlags::POLLIN) {
            return Ok(());
        }
    }
}

/// One packet; `None` when it is no request to a host.
fn receive(packets: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Option<ObservedRequest>> {
    let mut control = cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<LinkAddr>(
        packets.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let leaves = message
        .address
        .is_some_and(|address| address.pkttype() == OUTGOING);
    let stamp = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let length = message.bytes;
    let Some(stamp) = stamp.filter(|_| leaves) else {
        return Ok(None);
    };
    Ok(EchoRequest::read(&buffer[..length]).and_then(|echo| {
        Some(ObservedRequest {
            at_ns: stamp.as_nanos() as u64,
            host: address::host(echo.to)?,
            from: echo.from,
            family: IpVersion::of(echo.to),
            hops: EchoRequest::hops(&buffer[..length])?,
            identifier: echo.identifier,
            sequence: echo.sequence,
            size: echo.payload.len() as u16,
        })
    }))
}
