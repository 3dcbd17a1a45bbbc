//! One socket on one thread, shared by all chunks with the same egress: its identifier, its sequence numbers, its window,
//! and how far its replies have been read.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use socket2::Type;
use surge_ping::{PingIdentifier, PingSequence, Pinger};
use tokio::sync::Notify;

use super::send_room::{SendRoom, has_unread};
use crate::{
    prober::Destination,
    schedule::{pacing::Pace, window::Window},
    socket::{Buffers, Egress, duplicate, next_identifier},
};

/// A socket that has had something unread for this long is not read in time.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// How far the replies of a socket have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadUntil {
    /// Everything that arrived before this moment is read. It is not before the moment asked for.
    Moment(Instant),
    /// Something is unread: its reader has to run first.
    NotYet,
    /// Something has been unread for so long that replies may be lost.
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
    /// Opens a socket on the current runtime, of the kind `preferred` if possible.
    pub(super) fn open(egress: &Egress, preferred: Type) -> io::Result<Self> {
        let ping = surge_ping::Client::new(&egress.config(preferred))?;
        let identifier = next_identifier();
        let socket = duplicate(&ping.get_socket())?;
        let buffers = Buffers::enlarge(&socket)?;
        #[cfg(target_os = "linux")]
        if ping.get_socket().get_type() == Type::RAW {
            crate::socket::receive_only(&socket, identifier, egress.is_v6(), true)?;
        }
        Ok(Self {
            // Registered with the runtime after surge-ping's own descriptor: when this one is known to be writable, so
            // is that one.
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

    /// Whether all replies that arrived before `moment` have been read. After a stall, timers and replies become ready
    /// together, so a timeout may be judged only when this holds. `now` must not be before `moment`.
    pub(super) fn read(&self, moment: Instant, now: Instant) -> ReadUntil {
        if self.read_until.get() >= moment {
            return ReadUntil::Moment(self.read_until.get());
        }
        if !has_unread(self.room.socket()) {
            self.read_until.set(now);
            self.unread_since.set(None);
            return ReadUntil::Moment(now);
        }
        let since = self.unread_since.get().unwrap_or(now);
        self.unread_since.set(Some(since));
        if now < since + STUCK_AFTER {
            ReadUntil::NotYet
        } else {
            ReadUntil::Stuck
        }
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.unread_since
            .get()
            .is_some_and(|since| now() >= since + STUCK_AFTER)
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

    async fn reserve(&self) {
        loop {
            let reserved = self.window.borrow_mut().try_reserve(now());
            match reserved {
                Ok(()) => break,
                Err(Some(at)) => tokio::select! {
                    () = self.freed.notified() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
                Err(None) => self.freed.notified().await,
            }
        }
        // Room for several requests may have been released with one notification.
        self.freed.notify_one();
    }
}

/// The requests of one chunk that are in flight on a client. Dropping it releases their room in the window.
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

    /// Waits until a request of `size` bytes of payload may leave: for the window, for room in the send buffer, and last
    /// for the pace, so that the request leaves when its token is taken. Even after an error the room in the window stays
    /// reserved.
    pub(super) async fn admit(&self, size: u16, pace: &Pace) -> io::Result<()> {
        self.client.reserve().await;
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
