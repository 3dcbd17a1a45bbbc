//! Looks for local losses: what one thread knows about this machine, shared by all its sockets.

use std::{
    cell::{Ref, RefCell, RefMut},
    rc::Rc,
    time::Instant,
};

use socket2::Type;

use super::{LocalLossLog, canary::Canary, discards::Discards};
use crate::linux::network::Network;

/// The sources of local losses that are not a socket's own.
pub(in crate::linux) struct LossDetector {
    network: RefCell<Network>,
    canary: RefCell<Canary>,
    discards: RefCell<Discards>,
}

impl LossDetector {
    /// Begins to watch, for the calling thread. `preferred` is the kind of the canary's socket.
    pub(in crate::linux) fn watch(preferred: Type) -> Rc<Self> {
        Rc::new(Self {
            network: RefCell::new(Network::watch()),
            canary: RefCell::new(Canary::new(preferred)),
            discards: RefCell::new(Discards::watch()),
        })
    }

    /// The network.
    pub(in crate::linux) fn network(&self) -> Ref<'_, Network> {
        self.network.borrow()
    }

    /// The network, to check it or to look up a next hop.
    pub(in crate::linux) fn network_mut(&self) -> RefMut<'_, Network> {
        self.network.borrow_mut()
    }

    /// Checks all sources and adds new losses to `losses`. `must_read_discards` is set for a socket to which the kernel does
    /// not report what it discards. Returns the moment up to which every loss is known.
    pub(in crate::linux) fn check(
        &self,
        now: Instant,
        must_read_discards: bool,
        losses: &mut LocalLossLog,
    ) -> Instant {
        let mut network = self.network.borrow_mut();
        network.check(now);
        let mut known_until = network.last_checked().map_or(now, |at| at.min(now));
        let mut canary = self.canary.borrow_mut();
        canary.check(now);
        if let Some(at) = canary.last_lost() {
            losses.canary_lost(at);
        }
        if must_read_discards {
            let mut discards = self.discards.borrow_mut();
            discards.check(now);
            known_until = known_until.min(discards.last_checked().unwrap_or(now));
            if let Some(at) = discards.last_rise() {
                losses.send_path_failed(at);
            }
        }
        known_until
    }
}
