//! The canary: an echo request to 127.0.0.1, sent at intervals. It uses no link and no router. If it is not answered, this
//! machine loses incoming messages, and may have lost other answers. Some machines never answer it, so a missing answer
//! counts only after a first one has come. The canary has an unbound socket of its own.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Socket, Type};
use tracing::debug;

use crate::{
    linux::{message::EchoFormat, socket::open_plain},
    socket::Egress,
};

/// Time between two echo requests; an answer must come within it.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of payload: room for a full cookie.
const PAYLOAD_SIZE: usize = 16;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The canary of one thread.
pub(super) struct Canary {
    socket: Option<(Socket, EchoFormat)>,
    /// Id of the newest request.
    newest: u32,
    sent_at: Option<Instant>,
    /// Whether the newest request is unanswered.
    is_unanswered: bool,
    was_answered: bool,
    lost: Option<Instant>,
}

impl Canary {
    /// Opens its socket, of the kind `preferred` if possible. Without a socket there is no canary.
    pub(super) fn new(preferred: Type) -> Self {
        // This socket receives no ICMP errors: an error of other targets would wait before the answer.
        let socket = open_plain(&Egress::plain(false), preferred)
            .map(|opened| {
                let echo = EchoFormat::new(false, opened.kind == Type::RAW, opened.identifier);
                (opened.socket, echo)
            })
            .inspect_err(|error| debug!(%error, "no socket for the canary"))
            .ok();
        Self {
            socket,
            newest: 0,
            sent_at: None,
            is_unanswered: false,
            was_answered: false,
            lost: None,
        }
    }

    /// Reads the answer to the newest request, and sends the next one when it is due.
    pub(super) fn check(&mut self, now: Instant) {
        let Some((socket, echo)) = &self.socket else {
            return;
        };
        let mut bytes = [0; 128];
        while let Ok(length) = (&mut &*socket).read(&mut bytes) {
            let reply = echo.reply(&bytes[..length]);
            if reply.is_some_and(|reply| {
                echo.is_answer(reply.payload, self.newest, LOOPBACK, PAYLOAD_SIZE)
            }) {
                self.was_answered = true;
                self.is_unanswered = false;
            }
        }
        if self.sent_at.is_some_and(|sent_at| now < sent_at + INTERVAL) {
            return;
        }
        if self.is_unanswered && self.was_answered {
            self.lost = Some(now);
        }
        self.sent_at = Some(now);
        let mut request = Vec::new();
        self.newest = self.newest.wrapping_add(1);
        echo.write(&mut request, self.newest, LOOPBACK, PAYLOAD_SIZE);
        let sent = socket.send_to(&request, &SocketAddr::new(LOOPBACK, 0).into());
        self.is_unanswered = sent
            .inspect_err(|error| debug!(%error, "the canary could not be sent"))
            .is_ok();
    }

    /// When an echo was last found to be lost.
    pub(super) fn last_lost(&self) -> Option<Instant> {
        self.lost
    }
}
