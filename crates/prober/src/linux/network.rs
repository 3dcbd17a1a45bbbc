//! What the engine knows about this machine's network: where a message goes first, which link outages may have cost an
//! answer, and which addresses are our own. All of it concerns the network namespace of the calling thread.

#[cfg(any(test, fuzzing))]
pub(super) mod any_bytes;
mod gateways;
mod interface;
mod link_watch;
mod links;
mod neighbours;
mod netlink;
mod next_hops;
mod outages;
mod own_addresses;
mod route_files;
mod routes;
mod watch;
pub(super) mod way_out;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use pingfleet_wire::LocalLoss;
use tracing::warn;

use self::{
    gateways::Gateways,
    neighbours::NeighbourTables,
    next_hops::NextHops,
    watch::{LINKS_INTERVAL, NetworkWatch, Published},
};
pub(super) use self::{neighbours::NeighbourState, next_hops::NextHop};
use crate::prober::Destination;

/// A refused request is put down to an outage that was observed within this time before.
const OUTAGE_AGE: Duration = Duration::from_millis(500);

/// What is missing without the neighbour tables.
const NO_NEIGHBOURS: &str =
    "cannot read the neighbour tables: a neighbour that answers ARP only is down without a reason";

/// The network of the calling thread. What takes long to read is read by the threads of `watch`.
#[derive(Debug)]
pub(super) struct Network {
    /// `None`: outages of links and routes are not detected.
    watch: Option<Arc<NetworkWatch>>,
    /// What was known at the last check.
    known: Published,
    next_hops: NextHops,
    gateways: Gateways,
    /// `None` after an error: then no neighbour counts as having answered.
    neighbours: Option<NeighbourTables>,
    /// When the gateways were last checked, and a check of the links was asked for.
    last_asked: Option<Instant>,
}

impl Network {
    /// Reads the current state, and receives changes from now on.
    pub(super) fn watch() -> Self {
        let watch = NetworkWatch::of_this_thread()
            .inspect_err(|error| warn!(%error, "link outages are not detected"))
            .ok();
        let neighbours = NeighbourTables::open()
            .inspect_err(|error| warn!(%error, "{NO_NEIGHBOURS}"))
            .ok();
        let mut network = Self {
            watch,
            known: Published::nothing(),
            next_hops: NextHops::default(),
            gateways: Gateways::watch(),
            neighbours,
            last_asked: None,
        };
        network.check(Instant::now());
        network
    }

    /// Every outage before this is known.
    pub(super) fn known_until(&self) -> Option<Instant> {
        let links = match self.watch {
            Some(_) => self.known.links.known_until,
            None => self.last_asked,
        };
        let known = links.min(self.last_asked);
        // An outage counts for the routes of its interface: while these are not known, nor is what it has cost.
        let routes = Some(self.known.routes_known_until);
        if self.watch.is_some() && routes < self.known.links.outages.last_observed() {
            known.min(routes)
        } else {
            known
        }
    }

    /// Up to when changes of routes are known; `None` if they are not watched.
    pub(super) fn routes_known_until(&self) -> Option<Instant> {
        self.watch.as_ref().map(|_| self.known.routes_known_until)
    }

    /// Takes in what is known of links and routes. Checks the gateways and asks for a check of the links, unless that was
    /// done just before. Waits for nothing.
    pub(super) fn check(&mut self, now: Instant) {
        if let Some(watch) = &self.watch {
            self.known = watch.published();
        }
        let asked = self.last_asked.map(|asked| asked + LINKS_INTERVAL);
        if asked.is_some_and(|until| now < until) {
            return;
        }
        self.last_asked = Some(now);
        if let Some(watch) = &self.watch {
            watch.ask();
        }
        self.gateways.check(self.next_hops.gateways(), now);
    }

    /// The causes of the outages of links since `first` that may have cost a request to `to`, or its answer. That of an
    /// interface counts for `grace` longer. With `interface`, requests leave by it.
    pub(super) fn may_have_lost(
        &self,
        to: IpAddr,
        interface: Option<&str>,
        first: Instant,
        grace: impl Fn(&str) -> Duration,
    ) -> LocalLoss {
        let Published { links, routes, .. } = &self.known;
        links
            .outages
            .may_have_lost(to, interface, first, grace, routes)
    }

    /// Each interface that did not work, and until when. With `interface`, only that one; otherwise without those that never
    /// worked or have been down for long.
    pub(super) fn recent_outages(
        &self,
        interface: Option<&str>,
        now: Instant,
    ) -> impl Iterator<Item = (&str, Instant)> {
        self.known.links.outages.recent(interface, now)
    }

    /// The interface by which messages to `to` leave.
    pub(super) fn interface_to(&self, to: IpAddr) -> Option<&str> {
        let route = self.known.routes.best(to, None);
        route.map(|route| route.interface.as_ref())
    }

    /// Whether replies over IPv4 may come by another interface than the one by which the requests leave.
    pub(super) fn has_several_ways_back(&self) -> bool {
        self.known.routes.has_several_ways_back()
    }

    /// Why the kernel refused a request to `to` with `errno` at `now`, as far as is known by then. With `interface`, requests
    /// leave by it.
    pub(super) fn refusal_cause(
        &mut self,
        errno: Errno,
        to: IpAddr,
        interface: Option<&str>,
        now: Instant,
    ) -> LocalLoss {
        match errno {
            Errno::EPERM => return LocalLoss::LOCAL_FIREWALL,
            Errno::ENETDOWN | Errno::ENODEV | Errno::ENXIO => return LocalLoss::LINK_DOWN,
            Errno::EADDRNOTAVAIL => return LocalLoss::NO_ADDRESS,
            _ => {}
        }
        self.check(now);
        if self.known.links.outages.is_down_for(to, interface) {
            return LocalLoss::LINK_DOWN;
        }
        let outage = self.may_have_lost(to, interface, now, |_| OUTAGE_AGE);
        for cause in [LocalLoss::LINK_DOWN, LocalLoss::NO_ADDRESS] {
            if outage.has(cause) {
                return cause;
            }
        }
        if self.known.links.own_addresses.has_one_like(to) {
            LocalLoss::NO_ROUTE
        } else {
            LocalLoss::NO_ADDRESS
        }
    }

    /// Whether there was ever a route to `to` since the prober began.
    pub(super) fn had_route(&self, to: IpAddr) -> bool {
        self.known.routes.had_route(to)
    }

    /// Whether a route refuses now what is sent to `to`.
    pub(super) fn route_refuses(&self, to: IpAddr) -> bool {
        self.known.routes.refuses(to)
    }

    /// The gateway of a number, with its interface; `None` if it is unknown, or if several gateways share the number.
    pub(super) fn gateway(&self, v6: bool, next_hop: NextHop) -> Option<(String, IpAddr)> {
        match next_hop {
            NextHop::Gateway(number) => self.next_hops.gateway(v6, number),
            NextHop::OnLink | NextHop::Other => None,
        }
    }

    /// The gateway of a message to `to`, with its interface. With `interface`, it leaves by that one.
    pub(super) fn gateway_to(
        &self,
        to: IpAddr,
        interface: Option<&str>,
    ) -> Option<(String, IpAddr)> {
        self.known.routes.gateway_to(to, interface)
    }

    /// Whether requests with this next hop go by a gateway. Of a routing table that is too large it is not known.
    pub(super) fn is_by_gateway(&self, v6: bool, next_hop: NextHop) -> bool {
        match next_hop {
            NextHop::Gateway(number) => self.next_hops.is_gateway(v6, number),
            NextHop::OnLink | NextHop::Other => false,
        }
    }

    /// Whether a request by this gateway that left at `first` may be lost, because the gateway's link address is or was
    /// unknown.
    pub(super) fn gateway_may_have_lost(&self, gateway: &(String, IpAddr), first: Instant) -> bool {
        self.gateways.may_have_lost(gateway, first)
    }

    /// When requests by this gateway were last known to be lost.
    pub(super) fn gateway_last_lost(
        &self,
        gateway: &(String, IpAddr),
        now: Instant,
    ) -> Option<Instant> {
        self.gateways.last_lost(gateway, now)
    }

    /// What is known of a target on a link since `first`. With `interface`, requests leave by it. Costs a few system calls.
    pub(super) fn neighbour_since(
        &mut self,
        to: Destination,
        interface: Option<&str>,
        first: Instant,
    ) -> NeighbourState {
        let route = self.known.routes.best(to.address, interface);
        let name = interface.or(route.map(|route| &*route.interface));
        let index = match to.scope_id {
            // Without such an interface nothing is known of what is on its link.
            0 => name.and_then(|name| if_nametoindex(name).ok()),
            named => Some(named),
        };
        let (Some(tables), Some(index)) = (&self.neighbours, index) else {
            return NeighbourState::Unknown;
        };
        tables
            .state_since(to.address, index, first)
            .unwrap_or_else(|error| {
                warn!(%error, "{NO_NEIGHBOURS}");
                self.neighbours = None;
                NeighbourState::Unknown
            })
    }

    /// Whether an address is one of this machine.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.known.links.own_addresses.contains(address)
    }

    /// Where a message to `to` goes first. With `interface`, it leaves by that one.
    pub(super) fn next_hop(&mut self, to: IpAddr, interface: Option<&str>) -> NextHop {
        let Published { links, routes, .. } = &self.known;
        self.next_hops.of(to, interface, routes, &links.interfaces)
    }
}
