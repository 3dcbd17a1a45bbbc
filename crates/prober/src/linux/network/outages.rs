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

/// Outages that ended longer ago are forgotten. No attempt lasts as long.
const MAX_AGE: Duration = Duration::from_hours(1);

/// An outage of one interface.
#[derive(Debug, Clone)]
struct LinkOutage {
    /// When it may have lasted until, as far as is known.
    last_seen: Instant,
    /// When the interface was last observed not to work, or to get its first address afterwards.
    observed: Instant,
    /// What was observed: `LINK_DOWN`, `NO_ADDRESS`, or `SEND_PATH` if reports were lost.
    causes: LocalLoss,
    /// It was down when it was first seen, and is ever since.
    was_always_down: bool,
    /// It has got no address since it was down or lost one.
    awaits_address: bool,
    /// Since when the interface has been down without a pause; `None` when it is running.
    down_since: Option<Instant>,
    /// What was sent by the interface during the outage: the prefixes of its routes. IPv4 comes first.
    prefixes: Arc<[PrefixSet<Ipv6Net>; 2]>,
    /// The number of the last routing table whose prefixes are among them.
    table: Option<u64>,
}

impl LinkOutage {
    /// The routes of the interface were there during the outage.
    fn add_routes(&mut self, name: &str, routes: &RouteTable) {
        if self.table.replace(routes.number()) == Some(routes.number()) {
            return;
        }
        let Some(prefixes) = routes.prefixes_by(name) else {
            return;
        };
        let sets = Arc::make_mut(&mut self.prefixes).iter_mut();
        for (set, prefixes) in sets.zip(prefixes) {
            for prefix in prefixes {
                set.insert(*prefix);
            }
        }
    }

    fn has_routes(&self) -> bool {
        self.prefixes.iter().any(|set| !set.is_empty())
    }
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
        let of = self.0.get(name);
        let was_always_down = before.is_none_or(|before| {
            before == now_in && of.is_some_and(|outage| outage.was_always_down)
        });
        if lost_carrier || was_down || is_down {
            self.mark_down(name, LocalLoss::LINK_DOWN, routes, now);
        }
        if let Some(outage) = self.0.get_mut(name) {
            outage.was_always_down = was_always_down && !now_in.is_running();
            outage.down_since = match outage.down_since {
                _ if now_in.is_running() => None,
                Some(since) if !lost_carrier => Some(since),
                _ => Some(now),
            };
        }
    }

    /// Forgets what ended long ago.
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, outage| now < outage.last_seen + MAX_AGE);
    }

    /// Routes that were read after those from `since` on: they may have been there during the outages since then.
    pub(super) fn later_routes(&mut self, routes: &RouteTable, since: Instant) {
        let recent = self.0.iter_mut().filter(|(_, of)| of.last_seen >= since);
        for (name, outage) in recent {
            outage.add_routes(name, routes);
        }
    }

    /// When an interface that had worked was last observed not to work.
    pub(super) fn last_observed(&self) -> Option<Instant> {
        let worked = self.0.values().filter(|outage| !outage.was_always_down);
        worked.map(|outage| outage.last_seen).max()
    }

    /// An interface was down, or could not receive for one of its addresses, at `now` or for a moment before.
    pub(super) fn mark_down(
        &mut self,
        name: &str,
        cause: LocalLoss,
        routes: &RouteTable,
        now: Instant,
    ) {
        let outage = self.0.entry(name.to_owned()).or_insert_with(|| LinkOutage {
            last_seen: now,
            observed: now,
            was_always_down: false,
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
        outage.was_always_down = false;
        outage.observed = now;
        outage.last_seen = now;
        outage.add_routes(name, routes);
    }

    /// An interface has got an address, or the lifetime of one has changed. If it lost one or was down before, that outage
    /// lasted until now: the kernel sends from a new IPv6 address before it receives for it. It gets all of them within
    /// [`ADDRESS_RECOVERY`] of the first one.
    ///
    /// Source: Linux `net/ipv6/addrconf.c` (`inet6_addr_add` makes the source, `addrconf_dad_work` the local route).
    pub(super) fn got_address(&mut self, name: &str, now: Instant) {
        let Some(outage) = self.0.get_mut(name) else {
            return;
        };
        if std::mem::take(&mut outage.awaits_address) {
            outage.observed = now;
        }
        if now < outage.observed + ADDRESS_RECOVERY {
            outage.last_seen = now;
        }
    }

    /// An interface no longer exists.
    pub(super) fn removed(&mut self, name: &str) {
        if let Some(outage) = self.0.get_mut(name) {
            outage.down_since = None;
        }
    }

    /// Each interface that did not work, and until when. With `interface`, only that one. Otherwise those are left out that
    /// never worked, such as a bridge of containers without any, that have no routes, or that have been down for long.
    pub(super) fn recent(
        &self,
        interface: Option<&str>,
        now: Instant,
    ) -> impl Iterator<Item = (&str, Instant)> {
        let is_recent = move |name: &str, of: &LinkOutage| {
            if let Some(interface) = interface {
                return interface == name;
            }
            let lasts = of.down_since.map(|since| since + ADDRESS_RECOVERY);
            !of.was_always_down && of.has_routes() && lasts.is_none_or(|until| now < until)
        };
        let outages = self.0.iter().map(|(name, of)| (name.as_str(), of));
        let recent = outages.filter(move |(name, of)| is_recent(name, of));
        recent.map(|(name, of)| (name, of.last_seen))
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

    /// The causes of the outages since `first` that may have cost a request to `to`, or its answer. That of an
    /// interface counts for `grace` longer. With `interface`, requests leave by it.
    pub(super) fn may_have_lost(
        &self,
        to: IpAddr,
        interface: Option<&str>,
        first: Instant,
        grace: impl Fn(&str) -> Duration,
        routes: &RouteTable,
    ) -> LocalLoss {
        let (host, family) = host(to);
        let since_first = self
            .0
            .iter()
            .filter(|(name, outage)| outage.last_seen + grace(name) >= first);
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
            outages.may_have_lost(to, None, at(first), |_| Duration::ZERO, &routes)
        };
        assert!(lost_since(&outages, 59).is_none());
        outages.got_address("eth0", at(60));
        assert_eq!(lost_since(&outages, 59), LocalLoss::NO_ADDRESS);
        assert!(lost_since(&outages, 61).is_none());
        // Its other addresses follow, and later the lifetime of one changes again and again.
        outages.got_address("eth0", at(63));
        assert_eq!(lost_since(&outages, 62), LocalLoss::NO_ADDRESS);
        for second in 66..80 {
            outages.got_address("eth0", at(second));
        }
        assert!(lost_since(&outages, 64).is_none());
    }

    #[test]
    fn an_outage_counts_for_routes_that_are_read_after_it_but_may_have_been_there() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outages = Outages::default();
        outages.mark_down("eth1", LocalLoss::LINK_DOWN, &RouteTable::default(), at(5));
        assert!(outages.recent(None, at(5)).next().is_none(), "no routes");
        let later = ipv4_routes(&[("10.0.0.0/8", Some("192.0.2.254"), "eth1")]);
        let lost = |outages: &Outages| {
            let grace = |_: &str| Duration::ZERO;
            !outages
                .may_have_lost([10, 0, 0, 1].into(), None, at(5), grace, &later)
                .is_none()
        };
        // They were read long after the outage, and so were the ones before.
        outages.later_routes(&later, at(6));
        assert!(!lost(&outages));
        outages.later_routes(&later, at(1));
        assert!(lost(&outages));
        assert_eq!(outages.last_observed(), Some(at(5)));
    }

    #[test]
    fn an_interface_that_never_worked_is_no_recent_outage() {
        let routes = ipv4_routes(&[
            ("172.17.0.0/16", None, "docker0"),
            ("10.0.0.0/8", None, "eth0"),
        ]);
        let state = |flags| Interface {
            flags,
            carrier_down_count: Some(1),
        };
        let down = LinkFlags::Up;
        let running = down | LinkFlags::Running | LinkFlags::LowerUp;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outages = Outages::default();
        for second in 0..3 {
            let before = (second > 0).then(|| state(down));
            outages.link_changed("docker0", before, state(down), &routes, at(second));
        }
        outages.link_changed("eth0", None, state(running), &routes, at(0));
        let recent = |outages: &Outages, by, second| {
            let recent = outages.recent(by, at(second));
            recent.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        assert!(recent(&outages, None, 2).is_empty());
        assert_eq!(recent(&outages, Some("docker0"), 2), ["docker0"]);
        outages.link_changed("eth0", Some(state(running)), state(down), &routes, at(3));
        assert_eq!(recent(&outages, None, 4), ["eth0"]);
        assert!(recent(&outages, None, 9).is_empty());
        outages.link_changed(
            "docker0",
            Some(state(down)),
            state(running),
            &routes,
            at(10),
        );
        assert_eq!(recent(&outages, None, 10), ["docker0"]);
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
            let grace = |_: &str| Duration::ZERO;
            let causes = outages.may_have_lost(to.into(), None, at(first), grace, &routes);
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
