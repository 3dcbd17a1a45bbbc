//! The links and addresses of a network namespace: what the kernel reports of them, and the outages that follow. Nothing
//! here waits. Invariant: when a check is over, every outage that ended before it began is known.

use std::{collections::HashSet, sync::Arc, time::Instant};

use pingfleet_wire::LocalLoss;
use tracing::{trace, warn};

use super::{
    interface::Interfaces,
    links::{Link, LinkEvents, LinkMonitor},
    outages::Outages,
    own_addresses::OwnAddresses,
    routes::RouteTable,
};

/// What is known of the links and addresses.
#[derive(Debug, Default, Clone)]
pub(super) struct LinkStates {
    pub(super) interfaces: Arc<Interfaces>,
    pub(super) outages: Arc<Outages>,
    pub(super) own_addresses: Arc<OwnAddresses>,
    /// Every outage before this is known.
    pub(super) known_until: Option<Instant>,
}

/// Watches links and addresses.
#[derive(Debug)]
pub(super) struct LinkWatch {
    /// `None`: outages are not detected.
    monitor: Option<LinkMonitor>,
    states: LinkStates,
}

impl LinkWatch {
    /// Receives reports from now on, in the network namespace of the calling thread.
    pub(super) fn listen() -> Self {
        let monitor = LinkMonitor::listen()
            .inspect_err(|error| warn!(%error, "link outages are not detected"));
        Self {
            monitor: monitor.ok(),
            states: LinkStates {
                own_addresses: Arc::new(OwnAddresses::read()),
                ..LinkStates::default()
            },
        }
    }

    /// Reads the state of every link, and what has changed since the last call, with the routes of that time. Call it in the
    /// network namespace in which it was opened.
    pub(super) fn check(&mut self, routes: &RouteTable) -> LinkStates {
        let began = Instant::now();
        if let Some(events) = self.monitor.as_ref().map(LinkMonitor::read) {
            trace!(links = events.links.len(), "links read");
            // What was observed happened before this.
            self.take(events, routes, Instant::now());
        }
        self.states.known_until = Some(began);
        self.states.clone()
    }

    /// Routes that were read after those from `since` on: they may have been there during the outages since then.
    pub(super) fn later_routes(&mut self, routes: &RouteTable, since: Instant) -> LinkStates {
        Arc::make_mut(&mut self.states.outages).later_routes(routes, since);
        self.states.clone()
    }

    fn take(&mut self, events: LinkEvents, routes: &RouteTable, now: Instant) {
        // The events name the link of an address by its index, and list every link.
        let links_of = |indices: &[u32]| -> HashSet<_> {
            let links = events.links.iter();
            let links = links.filter(|link| indices.contains(&link.index));
            links.map(|link| link.name.clone()).collect()
        };
        Arc::make_mut(&mut self.states.outages).forget(now);
        let lost_address = links_of(&events.lost_address);
        let got_address = links_of(&events.got_address);
        for link in events.links {
            self.link_changed(link, routes, now);
        }
        // An answer to an address that was removed is lost here.
        for name in &lost_address {
            self.mark_down(name, LocalLoss::NO_ADDRESS, routes, now);
        }
        for name in &got_address {
            Arc::make_mut(&mut self.states.outages).got_address(name, now);
        }
        for name in &events.removed {
            Arc::make_mut(&mut self.states.interfaces).remove(name);
            self.mark_down(name, LocalLoss::LINK_DOWN, routes, now);
            Arc::make_mut(&mut self.states.outages).removed(name);
        }
        if events.overrun {
            for name in self.states.interfaces.names() {
                self.mark_down(&name, LocalLoss::SEND_PATH, routes, now);
            }
        }
        if events.addresses_changed || events.overrun {
            self.states.own_addresses = Arc::new(OwnAddresses::read());
        }
    }

    /// Takes in the state of one link.
    fn link_changed(&mut self, link: Link, routes: &RouteTable, now: Instant) {
        let state = link.state();
        let before = self.states.interfaces.get(&link.name);
        if before == Some(state) && state.is_running() {
            return;
        }
        let outages = Arc::make_mut(&mut self.states.outages);
        outages.link_changed(&link.name, before, state, routes, now);
        if before != Some(state) {
            Arc::make_mut(&mut self.states.interfaces).replace(link.name, state);
        }
    }

    fn mark_down(&mut self, name: &str, cause: LocalLoss, routes: &RouteTable, now: Instant) {
        Arc::make_mut(&mut self.states.outages).mark_down(name, cause, routes, now);
    }
}
