//! What an echo reply counts as. A reply that does not count leaves its reason with the target, which may be `down`.
//! Nothing that can be forged without seeing our requests makes a target `up`, hides a genuine reply, or names another
//! address. No I/O.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use pingfleet_wire::DownReason;
use tracing::trace;

use super::{MIN_RTT, Probes, sequence::InFlight};
use crate::{linux::message::Echoed, prober::Destination, schedule::target_state::Credit};

impl Probes {
    /// The request with this address and sequence number.
    pub(super) fn find(&self, address: SocketAddr, sequence: u16) -> Option<(u32, InFlight)> {
        self.sequence
            .candidates(sequence)
            .find(|(_, in_flight)| is_from(address, self.table.target(in_flight.target).to))
    }

    /// A message arrived. It counts if it is a reply to a request of ours.
    pub(in crate::linux) fn answered(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        arrived: impl FnOnce() -> Instant,
    ) {
        let Some(echoed) = self.echo.reply(bytes) else {
            return;
        };
        let Some((request_id, in_flight)) = self.find(from, echoed.sequence) else {
            self.answered_by_another(from.ip(), echoed);
            return;
        };
        let size = self.table.payload_size(in_flight.target);
        let target = self.table.target_mut(in_flight.target);
        let to = target.to.address;
        let request = usize::from(in_flight.request);
        let Some(sent) = target.state.left_at(request) else {
            return;
        };
        if !self.echo.is_answer(echoed.payload, request_id, to, size) {
            trace!(%from, "a reply with another payload");
            // Its sender may be asked with the same sequence number, and answer for another target.
            if !self.answered_by_another(from.ip(), echoed) {
                let target = self.table.target_mut(in_flight.target);
                target.state.down_because(DownReason::PayloadChanged);
            }
            return;
        }
        let arrived = arrived();
        let rtt = arrived.saturating_duration_since(sent).max(MIN_RTT);
        match target.state.answered(request, rtt) {
            Credit::InFlight => {
                self.window.answered(sent, arrived);
                self.path.answered(to, sent, &self.detector);
            }
            Credit::Expired => self.window.traffic_seen(arrived),
            Credit::None => return,
        }
        self.update(in_flight.target);
    }

    /// Whether a reply answers a request that was sent to another address, such as a router's anycast address (RFC 4291,
    /// section 2.6.1). Only the cookie proves that, so nobody can plant an address who has not seen the request.
    fn answered_by_another(&mut self, from: IpAddr, echoed: Echoed<'_>) -> bool {
        let asked = self
            .sequence
            .candidates(echoed.sequence)
            .find(|(request_id, in_flight)| {
                let to = self.table.target(in_flight.target).to.address;
                let size = self.table.payload_size(in_flight.target);
                to != from && self.echo.has_cookie(echoed.payload, *request_id, to, size)
            });
        let Some((_, in_flight)) = asked else {
            return false;
        };
        let target = self.table.target_mut(in_flight.target);
        target.state.down_because(DownReason::AnsweredBy(from));
        true
    }
}

/// Whether a message comes from a destination, or an error is about it.
fn is_from(address: SocketAddr, to: Destination) -> bool {
    address.ip() == to.address
        && match address {
            SocketAddr::V4(_) => true,
            SocketAddr::V6(v6) => to.scope_id == 0 || v6.scope_id() == to.scope_id,
        }
}
