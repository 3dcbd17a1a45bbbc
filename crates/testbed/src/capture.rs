//! A capture of the echo messages that pass a namespace's link, with the kernel's timestamps. It reads nothing before it is
//! stopped, so it takes no processor from what is measured.

use std::{
    collections::HashMap,
    io::IoSliceMut,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, ensure};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg},
        time::TimeSpec,
    },
};

use crate::simnet::{inside, open_packet_socket};

/// Bytes of a packet that are read: the headers.
const SNAPSHOT: usize = 128;

/// ICMP types (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// A running capture of IPv4 echo messages.
#[derive(Debug)]
pub struct Capture(OwnedFd);

/// An echo message on the link.
struct Echo {
    is_request: bool,
    /// Who is asked or answers.
    peer: Ipv4Addr,
    /// Identifier and sequence number.
    number: [u8; 4],
    /// By the kernel's wall clock, since 1970.
    at: Duration,
}

impl Capture {
    /// Begins to capture in the namespace `namespace`. The kernel keeps up to 256 MB, which are about 200,000 messages.
    ///
    /// # Errors
    /// When the packet socket cannot be opened, mostly because the program does not run as root.
    pub(crate) fn start(namespace: &str) -> anyhow::Result<Self> {
        let packets = inside(namespace, || {
            open_packet_socket().context("no packet socket")
        });
        Ok(Self(packets?))
    }

    /// Ends the capture. Returns the round trips of each address: from a request on the link to its first reply.
    ///
    /// # Errors
    /// When a packet cannot be read, or the wall clock was set back during a round trip.
    pub fn round_trips(self) -> anyhow::Result<HashMap<Ipv4Addr, Vec<Duration>>> {
        let mut asked = HashMap::new();
        let mut round_trips: HashMap<_, Vec<_>> = HashMap::new();
        loop {
            let echo = match self.next() {
                Ok(Some(echo)) => echo,
                Ok(None) => continue,
                Err(Errno::EAGAIN) => return Ok(round_trips),
                Err(error) => return Err(error).context("cannot read the capture"),
            };
            let key = (echo.peer, echo.number);
            if echo.is_request {
                let earlier = asked.insert(key, echo.at);
                ensure!(earlier.is_none(), "{} was asked twice alike", echo.peer);
            } else if let Some(at) = asked.remove(&key) {
                let took = echo.at.checked_sub(at).context("the clock was set back")?;
                round_trips.entry(echo.peer).or_default().push(took);
            }
        }
    }

    /// The next packet; `None` if it is no echo message.
    fn next(&self) -> nix::Result<Option<Echo>> {
        let mut bytes = [0; SNAPSHOT];
        let mut control = cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<LinkAddr>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        let length = message.bytes;
        Ok(stamp.and_then(|at| Echo::read(&bytes[..length], at)))
    }
}

impl Echo {
    /// Reads an IPv4 packet (RFC 791, RFC 792).
    fn read(packet: &[u8], at: Duration) -> Option<Self> {
        let first = *packet.first()?;
        let is_icmp = first >> 4 == 4 && *packet.get(9)? == 1;
        let icmp = packet.get(usize::from(first & 15) * 4..)?;
        let is_request = match *icmp.first()? {
            ECHO_REQUEST => true,
            ECHO_REPLY => false,
            _ => return None,
        };
        let peer = if is_request { 16..20 } else { 12..16 };
        let peer: [u8; 4] = packet.get(peer)?.try_into().ok()?;
        let peer = Ipv4Addr::from(peer);
        let number = icmp.get(4..8)?.try_into().ok()?;
        // What a program sends to its own machine passes no link, and a packet socket has it twice.
        (is_icmp && !peer.is_loopback()).then_some(Self {
            is_request,
            peer,
            number,
            at,
        })
    }
}
