//! What the engine knows about this machine's network: where a message goes first, which link outages may have cost an
//! answer, and which addresses are our own. All of it concerns the network namespace of the calling thread.

mod interface;
mod links;
mod neighbours;
mod outages;
mod own_addresses;
mod routes;

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use tracing::warn;

use self::{
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
        let Some(events) = self.monitor.as_ref().map(LinkMonitor::read) else {
            return;
        };
        // The events name a link that lost an address by its index, and list every link.
        let lost_address: HashSet<_> = events
            .links
            .iter()
            .filter(|link| events.lost_address.contains(&link.index))
            .map(|link| link.name.clone())
            .collect();
        for link in events.links {
            self.link_changed(link, now);
        }
        // An answer to an address that was removed is lost here.
        for name in &lost_address {
            self.outages.mark_down(name, &self.routes, now);
        }
        for name in &events.removed {
            self.interfaces.remove(name);
            self.outages.mark_down(name, &self.routes, now);
        }
        if events.overrun {
            for name in self.interfaces.names() {
                self.outages.mark_down(&name, &self.routes, now);
            }
        }
        if events.addresses_changed || events.overrun {
            self.outages.addresses_changed(now);
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

    /// Whether a link outage since `first` may have cost a request to `to`, or its answer. With `interface`, requests
    /// leave by it.
    pub(super) fn may_have_lost(
        &self,
        to: IpAddr,
        interface: Option<&str>,
        first: Instant,
    ) -> bool {
        self.outages
            .may_have_lost(to, interface, first, &self.routes)
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
