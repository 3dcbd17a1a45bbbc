//! What the engine knows about this machine's network: where a message goes first, which link outages may have cost an
//! answer, and which addresses are our own. All of it concerns the network namespace of the calling thread.

mod interface;
mod links;
mod outages;
mod own_addresses;
mod routes;

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::warn;

pub(super) use self::routes::NextHop;
use self::{
    interface::Interfaces,
    links::{Link, LinkMonitor},
    outages::Outages,
    own_addresses::OwnAddresses,
    routes::RouteTable,
};

/// The shortest time between two checks of the links.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The network of the calling thread.
#[derive(Debug)]
pub(super) struct Network {
    monitor: Option<LinkMonitor>,
    interfaces: Interfaces,
    routes: RouteTable,
    outages: Outages,
    own_addresses: OwnAddresses,
    last_checked: Option<Instant>,
}

impl Network {
    /// Reads the current state, and receives changes from now on.
    pub(super) fn watch() -> Self {
        let monitor = LinkMonitor::listen()
            .inspect_err(|error| warn!(%error, "link outages are not detected"))
            .ok();
        let now = Instant::now();
        let mut network = Self {
            monitor,
            interfaces: Interfaces::default(),
            routes: RouteTable::default(),
            outages: Outages::default(),
            own_addresses: OwnAddresses::read(),
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

    /// Whether an address is one of this machine.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(address)
    }

    /// Where a message to `to` goes first. With `interface`, it leaves by that one.
    pub(super) fn next_hop(&mut self, to: IpAddr, interface: Option<&str>) -> NextHop {
        self.routes.next_hop(to, interface, &self.interfaces)
    }
}
