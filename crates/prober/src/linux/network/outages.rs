//! Outages of links: an interface that is not running, stopped for a moment, or lost an address. What was sent by it, and
//! the answers to that, may be lost. Pure: no I/O and no clock.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::Ipv6Net;
use pingfleet_wire::LocalLoss;
use prefix_trie::PrefixSet;

use super::{
    interface::Interface,
    routes::{Gateway, RouteTable, host},
};

/// An interface that runs again gets its addresses back within this time.
const ADDRESS_RECOVERY: Duration = Duration::from_secs(5);

/// An outage of one interface.
#[derive(Debug, Clone)]
struct LinkOutage {
    /// When it was last observed.
    last_seen: Instant,
    /// What was observed: `LINK_DOWN`, `NO_ADDRESS`, or `SEND_PATH` if reports were lost.
    causes: LocalLoss,
    /// It has got no address since it was down or lost one.
    awaits_address: bool,
    /// Since when the interface has been down without a pause; `None` when it is running.
    down_since: Option<Instant>,
    /// What was sent by the interface during the outage: the prefixes of its routes. IPv4 comes first.
    prefixes: Arc<[PrefixSet<Ipv6Net>; 2]>,
    /// The number of the last routing table whose prefixes are among them.
    table: Option<u64>,
}

/// The last outage of each interface, by name.
#[derive(Debug, Default, Clone)]
pub(super) struct Outages(HashMap<String, LinkOutage>);

impl Outages {
    /// An interface was in state `before` at the previous check, and is in state `now_in` now.
    pub(super) fn link_changed(
        &mut self,
        name: &str,
        before: Option<Interface>,
        now_in: Interface,
        routes: &RouteTable,
        now: Instant,
    ) {
        if before == Some(now_in) && now_in.is_running() {
            return;
        }
        let lost_carrier =
            before.is_some_and(|before| before.carrier_down_count < now_in.carrier_down_count);
        // It may have begun to run only just now.
        let was_down = before.is_some_and(|before| before.is_up() && !before.is_running());
        let was_up = before.is_some_and(Interface::is_up);
        let is_down = (now_in.is_up() || was_up) && !now_in.is_running();
        if lost_carrier || was_down || is_down {
            self.mark_down(name, LocalLoss::LINK_DOWN, routes, now);
        }
        if let Some(outage) = self.0.get_mut(name) {
            outage.down_since = match outage.down_since {
                _ if now_in.is_running() => None,
                Some(since) if !lost_carrier => Some(since),
                _ => Some(now),
            };
        }
    }

    /// An interface was down, or could not receive for one of its addresses, at `now` or for a moment before. An interface
    /// without routes is ignored.
    pub(super) fn mark_down(
        &mut self,
        name: &str,
        cause: LocalLoss,
        routes: &RouteTable,
        now: Instant,
    ) {
        let prefixes = routes.prefixes_by(name);
        if prefixes.is_none() && !self.0.contains_key(name) {
            return;
        }
        let outage = self.0.entry(name.to_owned()).or_insert_with(|| LinkOutage {
            last_seen: now,
            causes: LocalLoss::default(),
            awaits_address: false,
            down_since: None,
            prefixes: Arc::default(),
            table: None,
        });
        if now >= outage.last_seen + ADDRESS_RECOVERY {
            outage.causes = LocalLoss::default();
        }
        outage.causes = outage.causes.and(cause);
        outage.awaits_address = true;
        outage.last_seen = now;
        if outage.table.replace(routes.number()) == Some(routes.number()) {
            return;
        }
        let sets = Arc::make_mut(&mut outage.prefixes).iter_mut();
        for (set, prefixes) in sets.zip(prefixes.into_iter().flatten()) {
            for prefix in prefixes {
                set.insert(*prefix);
            }
        }
    }

    /// Addresses have changed. An interface that runs again can receive nothing before it has its addresses back, so its
    /// outage lasted until now.
    pub(super) fn addresses_changed(&mut self, now: Instant) {
        for outage in self.0.values_mut() {
            if now < outage.last_seen + ADDRESS_RECOVERY {
                outage.last_seen = now;
            }
        }
    }

    /// An interface has got an address. If it lost one before, that outage lasted until now: the kernel sends from a new IPv6
    /// address before it receives for it.
    ///
    /// Source: Linux `net/ipv6/addrconf.c` (`inet6_addr_add` makes the source, `addrconf_dad_work` the local route).
    pub(super) fn got_address(&mut self, name: &str, now: Instant) {
        if let Some(outage) = self.0.get_mut(name)
            && std::mem::take(&mut outage.awaits_address)
        {
            outage.last_seen = now;
        }
    }

    /// When an interface was last observed not to work; of all interfaces, if none is named.
    pub(super) fn last_seen(&self, interface: Option<&str>) -> Option<Instant> {
        let of = |(name, _): &(&String, &LinkOutage)| interface.is_none_or(|by| by == *name);
        let outages = self.0.iter().filter(of);
        outages.map(|(_, outage)| outage.last_seen).max()
    }

    /// Whether an interface by which messages to `to` left is down now. With `interface`, they leave by it.
    pub(super) fn is_down_for(&self, to: IpAddr, interface: Option<&str>) -> bool {
        let (host, family) = host(to);
        let down = self.0.iter().filter(|(_, of)| of.down_since.is_some());
        let mut down = down.map(|(name, of)| match interface {
            Some(interface) => name == interface,
            None => of.prefixes[family].get_lpm(&host).is_some(),
        });
        down.any(|affects| affects)
    }

    /// The causes of the outages since `first` that may have cost a request to `to`, or its answer. Each counts for `grace`
    /// longer than it was observed. With `interface`, requests leave by it.
    pub(super) fn may_have_lost(
        &self,
        to: IpAddr,
        interface: Option<&str>,
        first: Instant,
        grace: Duration,
        routes: &RouteTable,
    ) -> LocalLoss {
        let (host, family) = host(to);
        let since_first = self
            .0
            .iter()
            .filter(|(_, outage)| outage.last_seen + grace >= first);
        let affecting = since_first.filter(|(name, outage)| {
            if let Some(interface) = interface {
                return *name == interface;
            }
            if outage.prefixes[family].get_lpm(&host).is_none() {
                return false;
            }
            // A down interface keeps its routes, so only targets whose best route uses it are affected.
            let stayed_down = outage.down_since.is_some_and(|since| since <= first);
            match routes.best(to, None) {
                Some(best) if stayed_down && best.gateway != Gateway::Unknown => {
                    *best.interface == **name
                }
                Some(_) if stayed_down => routes.any_by(to, name),
                _ => true,
            }
        });
        affecting.fold(LocalLoss::default(), |all, (_, outage)| {
            all.and(outage.causes)
        })
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkFlags;

    use super::{super::routes::tests::ipv4_routes, *};

    #[test]
    fn an_outage_lasts_until_an_address_is_back_however_long_that_takes() {
        let routes = ipv4_routes(&[("0.0.0.0/0", Some("192.0.2.254"), "eth0")]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outages = Outages::default();
        outages.mark_down("eth0", LocalLoss::NO_ADDRESS, &routes, at(0));
        let lost_since = |outages: &Outages, first| {
            let to = [192, 0, 2, 1].into();
            outages.may_have_lost(to, None, at(first), Duration::ZERO, &routes)
        };
        assert!(lost_since(&outages, 59).is_none());
        outages.got_address("eth0", at(60));
        assert_eq!(lost_since(&outages, 59), LocalLoss::NO_ADDRESS);
        assert!(lost_since(&outages, 61).is_none());
        // The lifetime of an address has changed.
        outages.got_address("eth0", at(70));
        assert!(lost_since(&outages, 61).is_none());
    }

    #[test]
    fn a_link_that_stays_down_affects_only_targets_whose_best_route_uses_it() {
        let routes = ipv4_routes(&[
            ("10.0.0.0/8", Some("192.0.2.254"), "wlan0"),
            ("0.0.0.0/0", Some("192.0.2.254"), "eth0"),
            ("0.0.0.0/0", Some("192.0.2.254"), "wlan0"),
        ]);
        let state = |flags, carrier_down_count| Interface {
            flags,
            carrier_down_count: Some(carrier_down_count),
        };
        let up = LinkFlags::Up;
        let running = up | LinkFlags::Running | LinkFlags::LowerUp;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outages = Outages::default();
        let mut before = None;
        let mut change = |outages: &mut Outages, now_in, now| {
            let before = before.replace(now_in);
            outages.link_changed("wlan0", before, now_in, &routes, now);
        };
        let may_have_lost = |outages: &Outages, to: [u8; 4], first| {
            let causes = outages.may_have_lost(to.into(), None, at(first), Duration::ZERO, &routes);
            assert!(causes.is_none() || causes == LocalLoss::LINK_DOWN);
            !causes.is_none()
        };
        change(&mut outages, state(up, 1), at(0));
        change(&mut outages, state(up, 1), at(9));
        assert!(may_have_lost(&outages, [10, 0, 0, 1], 5));
        assert!(!may_have_lost(&outages, [192, 0, 2, 1], 5));
        assert!(!may_have_lost(&outages, [10, 0, 0, 1], 10));
        // It ran for a moment, and may have carried any request then.
        change(&mut outages, state(up, 2), at(20));
        assert!(may_have_lost(&outages, [192, 0, 2, 1], 15));
        assert!(!may_have_lost(&outages, [192, 0, 2, 1], 20));
        change(&mut outages, state(running, 2), at(30));
        assert!(may_have_lost(&outages, [192, 0, 2, 1], 25));
        assert!(!may_have_lost(&outages, [10, 0, 0, 1], 31));
    }
}
