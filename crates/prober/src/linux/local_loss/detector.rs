//! Looks for local losses: what one thread knows about this machine, shared by all its sockets.

use std::{
    cell::{Ref, RefCell, RefMut},
    rc::Rc,
    time::Instant,
};

use pingfleet_wire::LocalLoss;
use socket2::Type;

use super::{
    LocalLossLog,
    canary::Canary,
    kernel_counter::{Counted, KernelCounter},
};
use crate::linux::network::Network;

/// What a socket needs to be watched for.
#[derive(Debug, Clone, Copy)]
pub(in crate::linux) struct Watched {
    /// Whether its messages are IPv6.
    pub(in crate::linux) v6: bool,
    /// Its kind.
    pub(in crate::linux) kind: Type,
    /// Whether its requests go by a gateway whose state is not watched.
    pub(in crate::linux) by_unknown_gateway: bool,
    /// Whether its requests leave by an interface, or from an address, that the plan names.
    pub(in crate::linux) is_bound: bool,
}

impl Watched {
    /// Whether the kernel does not report to it what it discards.
    pub(in crate::linux) fn may_discard(self) -> bool {
        self.v6 && self.kind == Type::DGRAM
    }
}

/// The sources of local losses that are not a socket's own.
pub(in crate::linux) struct LossDetector {
    network: RefCell<Network>,
    canary: RefCell<Canary>,
    discards: RefCell<KernelCounter>,
    reverse_path: RefCell<KernelCounter>,
    /// Of IPv4, and of IPv6.
    unresolved: [RefCell<KernelCounter>; 2],
}

impl LossDetector {
    /// Begins to watch, for the calling thread. `preferred` is the kind of the canary's socket.
    pub(in crate::linux) fn watch(preferred: Type) -> Rc<Self> {
        Rc::new(Self {
            network: RefCell::new(Network::watch()),
            canary: RefCell::new(Canary::new(preferred)),
            discards: RefCell::new(KernelCounter::watch(Counted::Ipv6Discards)),
            reverse_path: RefCell::new(KernelCounter::watch(Counted::ReversePathDrops)),
            unresolved: [false, true]
                .map(|v6| RefCell::new(KernelCounter::watch(Counted::UnresolvedDiscards { v6 }))),
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

    /// How many outgoing messages the kernel has discarded without a report since this began to watch.
    pub(in crate::linux) fn discarded(&self) -> u64 {
        self.discards.borrow().total()
    }

    /// Checks all sources and adds new losses to `losses`. Returns the moment up to which every loss is known.
    pub(in crate::linux) fn check(
        &self,
        now: Instant,
        watched: Watched,
        losses: &mut LocalLossLog,
    ) -> Instant {
        let mut network = self.network.borrow_mut();
        network.check(now);
        let mut known_until = network.known_until().map_or(now, |at| at.min(now));
        let mut canary = self.canary.borrow_mut();
        canary.check(now);
        if let Some(at) = canary.last_lost() {
            losses.lost(LocalLoss::CANARY, at);
        }
        // The counter also rises by other messages. A reply of ours can be among them only if it may come by another interface
        // than the one by which its sender is reached. The kernel has no such filter for IPv6.
        let replies_may_detour =
            !watched.v6 && (watched.is_bound || network.has_several_ways_back());
        let unresolved = &self.unresolved[usize::from(watched.v6)];
        let counters = [
            (watched.may_discard(), &self.discards, LocalLoss::SEND_PATH),
            (replies_may_detour, &self.reverse_path, LocalLoss::RP_FILTER),
            // A neighbour gets so few requests that its queue has room for them. The state of a known gateway says more.
            (
                watched.by_unknown_gateway,
                unresolved,
                LocalLoss::GATEWAY_NO_ARP,
            ),
        ];
        for (_, counter, cause) in counters.into_iter().filter(|(concerns, ..)| *concerns) {
            let mut counter = counter.borrow_mut();
            known_until = known_until.min(counter.check(now));
            if let Some(at) = counter.last_rise() {
                losses.lost(cause, at);
            }
        }
        known_until
    }
}
