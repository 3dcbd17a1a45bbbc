//! One socket on one thread, shared by the chunks that leave by the same way: its identifier, its sequence numbers,
//! its window, and how far its replies have been read.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use pingfleet_wire::Probing;
use socket2::Type;
use surge_ping::{Config, ICMP, PingIdentifier, PingSequence, Pinger};
use tokio::sync::Notify;

use crate::{
    prober::Destination,
    schedule::pacing::Pace,
    schedule::window::Window,
    socket::{Buffers, SendRoom, duplicate, enlarge, has_unread},
};

/// A socket that had something unread for this long has nobody who reads it in time.
const STUCK: Duration = Duration::from_secs(1);

/// What makes one socket differ from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Egress {
    v6: bool,
    source: Option<IpAddr>,
    pub(super) interface: Option<String>,
    ttl: Option<u8>,
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.v6 { "IPv6" } else { "IPv4" })?;
        if let Some(source) = self.source {
            write!(f, " from source address {source}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " by interface {interface}")?;
        }
        Ok(())
    }
}

impl Egress {
    /// The system's own choice of everything.
    pub(super) fn plain(v6: bool) -> Self {
        Self {
            v6,
            source: None,
            interface: None,
            ttl: None,
        }
    }

    /// As a plan wants it.
    pub(super) fn of(probing: &Probing, v6: bool) -> Self {
        Self {
            v6,
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

/// Identifiers are handed out one by one from a random start: no two sockets of this process share one, and two
/// processes on one box hardly ever do.
static NEXT_IDENTIFIER: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));

/// How far the replies of a socket have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// All that had arrived by this moment, which is not before the one in question.
    Until(Instant),
    /// Something is unread: let the reader go on first.
    NotYet,
    /// Something has been unread for so long that nobody can say what was lost.
    Stuck,
}

pub(super) struct Client {
    ping: surge_ping::Client,
    identifier: PingIdentifier,
    /// One counter for all destinations: an address meets a number again only after 65,536 requests.
    sequence: Cell<u16>,
    room: SendRoom,
    buffers: Buffers,
    window: RefCell<Window>,
    freed: Notify,
    read_until: Cell<Instant>,
    unread_since: Cell<Option<Instant>>,
}

impl Client {
    /// Opens a socket on the current runtime, of the kind `hint` or else of the other one.
    pub(super) fn open(egress: &Egress, hint: Type) -> io::Result<Self> {
        let ping = surge_ping::Client::new(&egress.config(hint))?;
        let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        let socket = duplicate(&ping.get_socket())?;
        let buffers = enlarge(&socket)?;
        #[cfg(target_os = "linux")]
        if ping.get_socket().get_type() == Type::RAW {
            crate::socket::only_replies_to(&socket, identifier, egress.v6)?;
        }
        Ok(Self {
            // Registered with the runtime after surge-ping's own descriptor: when this one is known to be writable,
            // that one is, too.
            room: SendRoom::new(socket, buffers)?,
            buffers,
            ping,
            identifier: PingIdentifier(identifier),
            sequence: Cell::new(fastrand::u16(..)),
            window: RefCell::default(),
            freed: Notify::new(),
            read_until: Cell::new(now()),
            unread_since: Cell::new(None),
        })
    }

    pub(super) fn kind(&self) -> Type {
        self.ping.get_socket().get_type()
    }

    pub(super) fn buffers(&self) -> Buffers {
        self.buffers
    }

    pub(super) fn next_sequence(&self) -> PingSequence {
        PingSequence(self.sequence.replace(self.sequence.get().wrapping_add(1)))
    }

    pub(super) async fn pinger(&self, to: Destination, life: Duration) -> Pinger {
        let mut pinger = self.ping.pinger(to.address, self.identifier).await;
        pinger.scope_id(to.scope_id).timeout(life);
        pinger
    }

    /// Whether all replies that had arrived by `moment` have been read. Timers and replies become ready together after
    /// a stall, so a timeout is judged only then. `now` must not be before `moment`.
    pub(super) fn read(&self, moment: Instant, now: Instant) -> Read {
        if self.read_until.get() >= moment {
            return Read::Until(self.read_until.get());
        }
        if !has_unread(self.room.socket()) {
            self.read_until.set(now);
            self.unread_since.set(None);
            return Read::Until(now);
        }
        let since = self.unread_since.get().unwrap_or(now);
        self.unread_since.set(Some(since));
        if now < since + STUCK {
            Read::NotYet
        } else {
            Read::Stuck
        }
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.unread_since
            .get()
            .is_some_and(|since| now() >= since + STUCK)
            && has_unread(self.room.socket())
    }

    #[cfg(test)]
    pub(super) fn identifier(&self) -> u16 {
        self.identifier.0
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.window.borrow().in_flight()
    }

    async fn enter(&self) {
        loop {
            let entered = self.window.borrow_mut().try_reserve(now());
            match entered {
                Ok(()) => break,
                Err(Some(at)) => tokio::select! {
                    () = self.freed.notified() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
                Err(None) => self.freed.notified().await,
            }
        }
        // Several places may have come free at once, with one notice.
        self.freed.notify_one();
    }
}

/// What one chunk has in flight on a client. It is given back when the chunk ends, however it ends.
pub(super) struct Share {
    pub(super) client: Rc<Client>,
    in_flight: Cell<usize>,
}

impl Share {
    pub(super) fn of(client: Rc<Client>) -> Self {
        Self {
            client,
            in_flight: Cell::new(0),
        }
    }

    /// Waits until a request of `size` bytes of payload may leave: for a place in the window, for room in the send
    /// buffer, and last for the pace, so that the request leaves when the pace says so. The place in the window is
    /// taken in any case.
    pub(super) async fn admit(&self, size: u16, pace: &Pace) -> io::Result<()> {
        self.client.enter().await;
        self.in_flight.set(self.in_flight.get() + 1);
        self.client.room.take(usize::from(size)).await?;
        pace.acquire().await;
        Ok(())
    }

    pub(super) fn answered(&self, rtt: Duration) {
        self.in_flight.set(self.in_flight.get() - 1);
        let now = now();
        let sent = now.checked_sub(rtt).unwrap_or(now);
        self.client.window.borrow_mut().answered(sent, now);
        self.client.freed.notify_one();
    }

    pub(super) fn traffic_seen(&self) {
        self.client.window.borrow_mut().traffic_seen(now());
    }

    pub(super) fn release(&self, requests: usize) {
        if requests > 0 {
            self.in_flight.set(self.in_flight.get() - requests);
            self.client.window.borrow_mut().release(requests);
            self.client.freed.notify_one();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release(self.in_flight.get());
    }
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
