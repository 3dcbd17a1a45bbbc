//! An echo request to this box itself, every now and then. It takes no link and no router, so when it is not answered
//! our own box loses what arrives, and may have lost more. Invariant: only an echo that this box is known to answer
//! means something by its silence: an unbound socket of its own, and nothing counts before the first answer.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Socket, Type};
use tracing::debug;

use super::{
    message::Echo,
    socket::{Egress, open_plain},
};

/// Time between two canaries, and how long each has for its way. Nothing but this box lies on it.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of payload, room for a whole cookie.
const PAYLOAD_SIZE: usize = 16;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The canary of one thread.
pub(super) struct Canary {
    loopback: Option<(Socket, Echo)>,
    /// The place of the newest one.
    newest: u32,
    sent_at: Option<Instant>,
    /// Whether the newest one is out.
    is_out: bool,
    was_answered: bool,
    lost: Option<Instant>,
}

impl Canary {
    /// Opens its socket, of the kind `hint` where that can be had. Without one, there is no canary.
    pub(super) fn new(hint: Type) -> Self {
        // An ICMP error about others would wait before the answer.
        let loopback = open_plain(&Egress::plain(false), hint)
            .map(|opened| {
                let echo = Echo::new(false, opened.kind == Type::RAW, opened.identifier);
                (opened.socket, echo)
            })
            .inspect_err(|error| debug!(%error, "no canary"))
            .ok();
        Self {
            loopback,
            newest: 0,
            sent_at: None,
            is_out: false,
            was_answered: false,
            lost: None,
        }
    }

    /// Looks for the answer to the newest canary, and lets the next one go when its time has come.
    pub(super) fn check(&mut self, now: Instant) {
        let Some((socket, echo)) = &self.loopback else {
            return;
        };
        let mut bytes = [0; 128];
        while let Ok(length) = (&mut &*socket).read(&mut bytes) {
            let reply = echo.reply(&bytes[..length]);
            if reply.is_some_and(|reply| {
                echo.is_full_payload(reply.payload, self.newest, LOOPBACK, PAYLOAD_SIZE)
            }) {
                self.was_answered = true;
                self.is_out = false;
            }
        }
        if self.sent_at.is_some_and(|sent_at| now < sent_at + INTERVAL) {
            return;
        }
        if self.is_out && self.was_answered {
            self.lost = Some(now);
        }
        self.sent_at = Some(now);
        let mut request = Vec::new();
        self.newest = self.newest.wrapping_add(1);
        echo.write(&mut request, self.newest, LOOPBACK, PAYLOAD_SIZE);
        let sent = socket.send_to(&request, &SocketAddr::new(LOOPBACK, 0).into());
        self.is_out = sent
            .inspect_err(|error| debug!(%error, "a canary could not be sent"))
            .is_ok();
    }

    /// When an echo of ours was last found to be lost.
    pub(super) fn last_lost(&self) -> Option<Instant> {
        self.lost
    }
}
