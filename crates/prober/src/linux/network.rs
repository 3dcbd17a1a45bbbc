//! What the engine knows about this machine's network: where a message goes first, which link outages may have cost an
//! answer, and which addresses are our own. All of it concerns the network namespace of the calling thread.

mod gateways;
mod interface;
mod links;
mod neighbours;
mod outages;
mod own_addresses;
mod routes;
pub(super) mod way_out;

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::{errno::Errno, net::if_::if_nametoindex};
use pingfleet_wire::LocalLoss;
use tracing::warn;

use self::{
    gateways::Gateways,
    interface::Interfaces,
    links::{Link, LinkMonitor},
    neighbours::NeighbourTables,
    outages::Outages,
    own_addresses::OwnAddresses,
    routes::RouteTable,
};
pub(super) use self::{neighbours::NeighbourState, routes::NextHop};
use crate::prober::Destination;

/// The shortest time between two checks of the links.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A refused request is put down to an outage that was observed within this time before.
const OUTAGE_AGE: Duration = Duration::from_millis(500);

/// What is missing without the neighbour tables.
const NO_NEIGHBOURS: &str =
    "cannot read the neighbour tables: a neighbour that answers ARP only is down without a reason";

/// The network of the calling thread.
#[derive(Debug)]
pub(super) struct Network {
    monitor: Option<LinkMonitor>,
    interfaces: Interfaces,
    routes: RouteTable,
    outages: Outages,
    own_addresses: OwnAddresses,
    gateways: Gateways,
    /// `None` after an error: then no neighbour counts as having answered.
    neighbours: Option<NeighbourTables>,
    last_checked: Option<Instant>,
}

impl Network {
    /// Reads the current state, and receives changes from now on.
    pub(super) fn watch() -> Self {
        let monitor = LinkMonitor::listen()
            .inspect_err(|error| warn!(%error, "link outages are not detected"))
            .ok();
        let neighbours = NeighbourTables::open()
            .inspect_err(|error| warn!(%error, "{NO_NEIGHBOURS}"))
            .ok();
        let now = Instant::now();
        let mut network = Self {
            monitor,
            interfaces: Interfaces::default(),
            routes: RouteTable::default(),
            outages: Outages::default(),
            own_addresses: OwnAddresses::read(),
            gateways: Gateways::watch(),
            neighbours,
            last_checked: None,
        };
        // Before the links: an interface that is down now still has its routes.
        network.routes.refresh(&network.interfaces, now);
        network.check(now);
        network
    }

    /// Reads the routes again if they are old.
    pub(super) fn refresh_routes(&mut self, now: Instant) {
        if self.routes.are_old(now) {
            self.check(now);
            self.routes.refresh(&self.interfaces, now);
        }
    }

    /// When the links were last checked.
    pub(super) fn last_checked(&self) -> Option<Instant> {
        self.last_checked
    }

    /// Checks the links, unless that was done just before.
    pub(super) fn check(&mut self, now: Instant) {
        if self
            .last_checked
            .is_some_and(|checked| now < checked + CHECK_INTERVAL)
        {
            return;
        }
        self.last_checked = Some(now);
        self.gateways.check(self.routes.gateways(), now);
        let Some(events) = self.monitor.as_ref().map(LinkMonitor::read) else {
            return;
        };
        // The events name the link of an address by its index, and list every link.
        let links_of = |indices: &[u32]| -> HashSet<_> {
            let links = events.links.iter();
            let links = links.filter(|link| indices.contains(&link.index));
            links.map(|link| link.name.clone()).collect()
        };
        let lost_address = links_of(&events.lost_address);
        let got_address = links_of(&events.got_address);
        for link in events.links {
            self.link_changed(link, now);
        }
        // An answer to an address that was removed is lost here.
        for name in &lost_address {
            self.outages
                .mark_down(name, LocalLoss::NO_ADDRESS, &self.routes, now);
        }
        for name in &got_address {
            self.outages.got_address(name, now);
        }
        for name in &events.removed {
            self.interfaces.remove(name);
            self.outages
                .mark_down(name, LocalLoss::LINK_DOWN, &self.routes, now);
            self.outages.removed(name);
        }
        if events.overrun {
            for name in self.interfaces.names() {
                self.outages
                    .mark_down(&name, LocalLoss::SEND_PATH, &self.routes, now);
            }
        }
        if events.addresses_changed || events.overrun {
            self.own_addresses = OwnAddresses::read();
            self.routes.mark_old();
        }
    }

    /// Takes in the state of one link.
    fn link_changed(&mut self, link: Link, now: Instant) {
        let name = link.name.clone();
        let state = link.state();
        let before = self.interfaces.replace(link.name, state);
        self.outages
            .link_changed(&name, before, state, &self.routes, now);
        if before != Some(state) {
            // The kernel drops the routes of an interface that is set down.
            self.routes.mark_old();
        }
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
        self.outages
            .may_have_lost(to, interface, first, grace, &self.routes)
    }

    /// Each interface that did not work, and until when. With `interface`, only that one; otherwise without those that never
    /// worked or have been down for long.
    pub(super) fn recent_outages(
        &self,
        interface: Option<&str>,
        now: Instant,
    ) -> impl Iterator<Item = (&str, Instant)> {
        self.outages.recent(interface, now)
    }

    /// The interface by which messages to `to` leave.
    pub(super) fn interface_to(&self, to: IpAddr) -> Option<&str> {
        let route = self.routes.best(to, None);
        route.map(|route| route.interface.as_str())
    }

    /// Whether replies over IPv4 may come by another interface than the one by which the requests leave.
    pub(super) fn has_several_ways_back(&self) -> bool {
        self.routes.have_several_ways_back()
    }

    /// Why the kernel refused a request to `to` with `errno` at `now`. With `interface`, requests leave by it.
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
        if self.outages.is_down_for(to, interface) {
            return LocalLoss::LINK_DOWN;
        }
        let outage = self.may_have_lost(to, interface, now, |_| OUTAGE_AGE);
        for cause in [LocalLoss::LINK_DOWN, LocalLoss::NO_ADDRESS] {
            if outage.has(cause) {
                return cause;
            }
        }
        if self.own_addresses.has_one_like(to) {
            LocalLoss::NO_ROUTE
        } else {
            LocalLoss::NO_ADDRESS
        }
    }

    /// Whether there was ever a route to `to` since the prober began.
    pub(super) fn had_route(&self, to: IpAddr) -> bool {
        self.routes.had_route(to)
    }

    /// The gateway of a number, with its interface; `None` if it is unknown, or if several gateways share the number.
    pub(super) fn gateway(&self, v6: bool, next_hop: NextHop) -> Option<(String, IpAddr)> {
        match next_hop {
            NextHop::Gateway(number) => self.routes.gateway(v6, number),
            NextHop::OnLink | NextHop::Other => None,
        }
    }

    /// The gateway of a message to `to`, with its interface. With `interface`, it leaves by that one.
    pub(super) fn gateway_to(
        &self,
        to: IpAddr,
        interface: Option<&str>,
    ) -> Option<(String, IpAddr)> {
        self.routes.gateway_to(to, interface)
    }

    /// Whether requests with this next hop go by a gateway. Of a routing table that is too large it is not known.
    pub(super) fn is_by_gateway(&self, v6: bool, next_hop: NextHop) -> bool {
        match next_hop {
            NextHop::Gateway(number) => self.routes.is_gateway(v6, number),
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
        let route = self.routes.best(to.address, interface);
        let name = interface.or(route.map(|route| route.interface.as_str()));
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
        self.own_addresses.contains(address)
    }

    /// Where a message to `to` goes first. With `interface`, it leaves by that one.
    pub(super) fn next_hop(&mut self, to: IpAddr, interface: Option<&str>) -> NextHop {
        self.routes.next_hop(to, interface, &self.interfaces)
    }
}
