//! By which interface an address is reached, and in which state that is: what the engine has to know about the box's
//! routes. It reads the main routing tables and the flags of the interfaces of the calling thread's network.
//!
//! Source: Linux `proc_pid_net(5)` (`route`, `ipv6_route`), `netdevice(7)`.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use tracing::{debug, warn};

use super::links::{Link, LinkMonitor};

/// How long what was read about routes is believed.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The interfaces are not checked at more often than this.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Addresses that change so soon after an interface did not run are its own.
const SETTLING: Duration = Duration::from_secs(5);

/// Routing tables with more routes than this are those of a router: which interface an address takes is not checked up
/// there, so that a loss on any of them may concern it, and it counts as no neighbour.
const MAX_ROUTES: usize = 10_000;

/// Gateways of each family that are told apart: each takes a socket of its own. The others count as one.
const MAX_GATEWAYS: usize = 6;

/// Instead of a gateway's address where that is unknown.
const UNKNOWN_GATEWAY: Option<u128> = Some(0);

/// A route by way of a gateway (linux/route.h).
const RTF_GATEWAY: u32 = 0x2;

/// A route of the loopback interface or one that refuses (`RTF_REJECT` of `linux/route.h`).
const RTF_REJECT: u32 = 0x200;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    /// The network's address, with IPv4 in the lowest bits.
    network: u128,
    /// Bits of `network` that count, from the top of the address.
    mask: u128,
    interface: String,
    gateway: Option<u128>,
}

/// Where a message goes first, as far as its link address has to be found before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextHop {
    /// To the target itself, on a link of this box.
    OnLink,
    /// To the gateway of this number.
    Gateway(usize),
    /// To nobody whose link address is needed, or nobody knows.
    Other,
}

/// The state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interface {
    flags: InterfaceFlags,
    /// How often it has lost its carrier.
    carrier_down_count: Option<u32>,
}

/// An interface that has outage to run, does not run, or has lost an address.
#[derive(Debug)]
struct LinkOutage {
    /// The last time that it was found so.
    at: Instant,
    /// When it was first found so, if it has not run at any time since.
    since: Option<Instant>,
    /// What was sent by it then.
    routes: [Vec<Route>; 2],
}

/// The routes and interfaces of this box.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    links: Option<LinkMonitor>,
    routes: [Vec<Route>; 2],
    /// Each by interface and address, in the order in which they were first needed, so that their numbers stay.
    gateways: [Vec<(String, u128)>; 2],
    read: Option<Instant>,
    checked: Option<Instant>,
    /// By name, at the last look.
    interfaces: HashMap<String, Interface>,
    /// Addresses of this box.
    own: HashSet<IpAddr>,
    /// By interface, the last time.
    outages: HashMap<String, LinkOutage>,
}

impl RouteTable {
    /// Reads what there is, and is told of changes from now on.
    pub(super) fn watch() -> Self {
        let links = LinkMonitor::listen()
            .inspect_err(|error| warn!(%error, "links that go down are not noticed"))
            .ok();
        let now = Instant::now();
        let mut table = Self {
            links,
            ..Self::default()
        };
        // In this order: an interface that does not run now has its routes.
        table.read_routes();
        table.read = Some(now);
        table.read_addresses();
        table.check(now);
        table
    }

    /// Reads the routes, if what is known of them is old.
    pub(super) fn refresh(&mut self, now: Instant) {
        if self.read.is_some_and(|read| now < read + MAX_AGE) {
            return;
        }
        self.check(now);
        self.read = Some(now);
        self.read_routes();
    }

    fn read_routes(&mut self) {
        // Of the thread, not of the process: the two may be in different networks.
        self.routes = [
            ("route", parse_v4 as fn(&str) -> _),
            ("ipv6_route", parse_v6),
        ]
        .map(|(file, parse)| {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            let Ok(text) = text else {
                return Vec::new();
            };
            let mut routes: Vec<Route> = text.lines().filter_map(parse).collect();
            if routes.len() > MAX_ROUTES {
                let mut routes = one_route_per_interface(routes);
                routes.retain(|route| {
                    let known = self.interfaces.get(&route.interface);
                    known.is_none_or(|state| state.runs())
                });
                return routes;
            }
            // The longest prefix first; of equal ones the kernel lists the preferred one first.
            routes.sort_by_key(|route| std::cmp::Reverse(route.mask.count_ones()));
            routes
        });
    }

    /// When the interfaces were checked at.
    pub(super) fn last_checked(&self) -> Option<Instant> {
        self.checked
    }

    /// Looks at the interfaces, if that was not done just now.
    pub(super) fn check(&mut self, now: Instant) {
        if self
            .checked
            .is_some_and(|checked| now < checked + CHECK_INTERVAL)
        {
            return;
        }
        self.checked = Some(now);
        let Some(events) = self.links.as_ref().map(LinkMonitor::read) else {
            return;
        };
        // An answer to an address that is gone dies here. The state of every link is among the events.
        let lost_address: HashSet<_> = events
            .links
            .iter()
            .filter(|link| events.lost_address.contains(&link.index))
            .map(|link| link.name.clone())
            .collect();
        for link in events.links {
            self.link_changed(link, now);
        }
        for name in lost_address {
            self.mark_down(name, now);
        }
        for name in events.removed {
            self.interfaces.remove(&name);
            self.mark_down(name, now);
        }
        if events.overrun {
            let names: Vec<_> = self.interfaces.keys().cloned().collect();
            for name in names {
                self.mark_down(name, now);
            }
        }
        if events.addresses_changed || events.overrun {
            // An interface that runs again gets its addresses back a moment later, and nothing for them before.
            for outage in self.outages.values_mut() {
                if now < outage.at + SETTLING {
                    outage.at = now;
                }
            }
            self.read_addresses();
            self.read = None;
        }
    }

    /// An interface is in this state.
    fn link_changed(&mut self, link: Link, now: Instant) {
        let Link {
            name,
            flags,
            carrier_down_count,
            ..
        } = link;
        let flags = InterfaceFlags::from_bits_retain(flags as _);
        let state = Interface {
            flags,
            carrier_down_count,
        };
        let before = self.interfaces.get(&name).copied();
        if before == Some(state) && state.runs() {
            return;
        }
        let has_fallen =
            before.is_some_and(|before| before.carrier_down_count < carrier_down_count);
        // One that runs again may have begun to just now.
        let should_have = before.is_some_and(|before| before.is_up() && !before.runs());
        let was_up = before.is_some_and(Interface::is_up);
        self.interfaces.insert(name.clone(), state);
        if has_fallen || should_have || (state.is_up() || was_up) && !state.runs() {
            self.mark_down(name.clone(), now);
        }
        if let Some(outage) = self.outages.get_mut(&name) {
            outage.since = match outage.since {
                _ if state.runs() => None,
                Some(since) if !has_fallen => Some(since),
                _ => Some(now),
            };
        }
        if before != Some(state) {
            // The kernel drops the routes of an interface that is taken down.
            self.read = None;
        }
    }

    /// An interface did not run, or could not receive for one of its addresses, at `now` or for a moment before.
    fn mark_down(&mut self, name: String, now: Instant) {
        let [v4, v6] = self.routes.each_ref().map(|routes| {
            let its = routes.iter().filter(|route| route.interface == name);
            its.cloned().collect::<Vec<_>>()
        });
        if v4.is_empty() && v6.is_empty() && !self.outages.contains_key(&name) {
            return;
        }
        let outage = self.outages.entry(name).or_insert_with(|| LinkOutage {
            at: now,
            since: None,
            routes: Default::default(),
        });
        outage.at = now;
        for (known, found) in outage.routes.iter_mut().zip([v4, v6]) {
            for route in found {
                if !known.contains(&route) {
                    known.push(route);
                }
            }
        }
    }

    fn read_addresses(&mut self) {
        match getifaddrs() {
            Ok(found) => {
                let addresses = found.filter_map(|entry| ip_address(entry.address.as_ref()?));
                self.own = addresses.collect();
            }
            Err(error) => debug!(%error, "the addresses of this box are unknown"),
        }
    }

    /// Whether what was sent to `to` after `first`, or an answer, may be lost with an interface that did not run since
    /// then. It leaves by `interface`, where one is given.
    pub(super) fn may_have_lost(
        &self,
        to: IpAddr,
        interface: Option<&str>,
        first: Instant,
    ) -> bool {
        let (bits, family) = bits(to);
        let leads_there = |route: &&Route| bits & route.mask == route.network;
        self.outages.iter().any(|(name, outage)| {
            if outage.at < first {
                return false;
            }
            if let Some(interface) = interface {
                return name == interface;
            }
            let known = outage.routes[family]
                .iter()
                .any(|route| leads_there(&route));
            // While it does not run its routes do not change: it took what it has the best one for, and nothing else.
            let stays = outage.since.is_some_and(|since| since <= first);
            let mut routes = self.routes[family].iter().filter(leads_there);
            known
                && match routes.next() {
                    Some(best) if stays && best.gateway != UNKNOWN_GATEWAY => {
                        best.interface == *name
                    }
                    Some(best) if stays => {
                        best.interface == *name || routes.any(|route| route.interface == *name)
                    }
                    _ => true,
                }
        })
    }

    /// Whether an address is one of this box.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Where a message to `to` goes first. It leaves by `interface`, where one is given.
    pub(super) fn next_hop(&mut self, to: IpAddr, interface: Option<&str>) -> NextHop {
        const NO_NEIGHBOURS: InterfaceFlags = InterfaceFlags::IFF_NOARP
            .union(InterfaceFlags::IFF_LOOPBACK)
            .union(InterfaceFlags::IFF_POINTOPOINT);
        let (bits, family) = bits(to);
        let mut routes = self.routes[family].iter();
        let by = |route: &&Route| interface.is_none_or(|interface| route.interface == interface);
        let route = routes.find(|route| by(route) && bits & route.mask == route.network);
        // By an interface that is given and has no route, the kernel asks for an IPv4 target on its link.
        let link = interface.filter(|_| to.is_ipv4());
        let Some(name) = route.map(|route| route.interface.as_str()).or(link) else {
            return NextHop::Other;
        };
        if let Some(gateway) = route.and_then(|route| route.gateway) {
            let known = &mut self.gateways[family];
            let number = known
                .iter()
                .position(|(by, address)| *address == gateway && by == name);
            return NextHop::Gateway(number.unwrap_or_else(|| {
                if known.len() < MAX_GATEWAYS {
                    known.push((name.to_owned(), gateway));
                    known.len() - 1
                } else {
                    MAX_GATEWAYS
                }
            }));
        }
        let state = self.interfaces.get(name);
        if state.is_some_and(|state| !state.flags.intersects(NO_NEIGHBOURS)) {
            NextHop::OnLink
        } else {
            NextHop::Other
        }
    }
}

impl Interface {
    fn is_up(self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_UP)
    }

    /// Whether it has its carrier, and the kernel has taken note of that: it sends nothing before.
    fn runs(self) -> bool {
        let runs = InterfaceFlags::IFF_RUNNING.union(InterfaceFlags::IFF_LOWER_UP);
        self.flags.contains(runs)
    }
}

/// One route to everywhere for each interface.
fn one_route_per_interface(routes: Vec<Route>) -> Vec<Route> {
    let interfaces: HashSet<_> = routes.into_iter().map(|route| route.interface).collect();
    let everywhere = |interface| Route {
        network: 0,
        mask: 0,
        interface,
        gateway: UNKNOWN_GATEWAY,
    };
    interfaces.into_iter().map(everywhere).collect()
}

/// An address as routes have it, and which table is for it.
fn bits(address: IpAddr) -> (u128, usize) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits().into(), 0),
        IpAddr::V6(v6) => (v6.to_bits(), 1),
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`: addresses are hexadecimal as they lie in memory.
fn parse_v4(line: &str) -> Option<Route> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let address = |text: &str| {
        let raw = u32::from_str_radix(text, 16).ok()?;
        Some(u128::from(Ipv4Addr::from(raw.to_ne_bytes()).to_bits()))
    };
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    (flags & RTF_REJECT == 0).then_some(())?;
    Some(Route {
        network: address(fields.get(1)?)?,
        mask: address(fields.get(7)?)?,
        interface: (*fields.first()?).to_owned(),
        gateway: (flags & RTF_GATEWAY != 0)
            .then(|| address(fields.get(2)?))
            .flatten(),
    })
}

/// `destination length source length next-hop metric refcount use flags interface`.
fn parse_v6(line: &str) -> Option<Route> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    (flags & RTF_REJECT == 0).then_some(())?;
    let length = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    Some(Route {
        network: u128::from_str_radix(fields.first()?, 16).ok()?,
        mask: u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0),
        interface: (*fields.get(9)?).to_owned(),
        gateway: (flags & RTF_GATEWAY != 0)
            .then(|| u128::from_str_radix(fields.get(4)?, 16).ok())
            .flatten(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        assert_eq!(
            parse_v4("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask"),
            None
        );
        let gateway =
            parse_v4("eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0").unwrap();
        assert_eq!(gateway.gateway, Some(0xc0a8_0001));
        assert_eq!(gateway.mask, 0);
        let v6 = parse_v6(
            "fd000002000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001     dead",
        )
        .unwrap();
        assert_eq!(v6.interface, "dead");
        assert_eq!(v6.gateway, None);
        assert_eq!(v6.mask.count_ones(), 64);
    }

    #[test]
    fn the_longest_prefix_decides() {
        let line = |network: [u8; 4], gateway: u8, mask: [u8; 4], interface: &str| {
            let raw = u32::from_ne_bytes;
            let flags = if gateway > 0 { 3 } else { 1 };
            let (network, mask) = (raw(network), raw(mask));
            parse_v4(&format!(
                "{interface} {network:08X} {gateway:08X} {flags:04X} 0 0 0 {mask:08X} 0 0 0"
            ))
            .unwrap()
        };
        let mut table = RouteTable::default();
        table.routes[0] = vec![
            line([10, 1, 2, 0], 2, [255, 255, 255, 0], "eth0"),
            line([10, 1, 0, 0], 0, [255, 255, 0, 0], "eth0"),
            line([10, 2, 0, 0], 0, [255, 255, 0, 0], "tun0"),
            line([0, 0, 0, 0], 1, [0, 0, 0, 0], "eth0"),
        ];
        let up = InterfaceFlags::IFF_UP;
        let state = |flags| Interface {
            flags,
            carrier_down_count: None,
        };
        table.interfaces = HashMap::from([
            ("eth0".to_owned(), state(up)),
            ("tun0".to_owned(), state(up | InterfaceFlags::IFF_NOARP)),
        ]);
        let mut next_hop = |text: &str| table.next_hop(text.parse().unwrap(), None);
        assert_eq!(next_hop("10.1.1.1"), NextHop::OnLink);
        assert_eq!(next_hop("10.1.2.1"), NextHop::Gateway(0));
        assert_eq!(next_hop("10.2.0.1"), NextHop::Other);
        assert_eq!(next_hop("192.0.2.1"), NextHop::Gateway(1));
        assert_eq!(next_hop("10.1.2.2"), NextHop::Gateway(0));
        let mut by = |text: &str, name| table.next_hop(text.parse().unwrap(), Some(name));
        assert_eq!(by("10.2.0.1", "eth0"), NextHop::Gateway(1));
        // No route by that interface: its link is asked, if it has neighbours.
        table.routes[0].truncate(3);
        let mut by = |text: &str, name| table.next_hop(text.parse().unwrap(), Some(name));
        assert_eq!(by("192.0.2.1", "eth0"), NextHop::OnLink);
        assert_eq!(by("192.0.2.1", "tun0"), NextHop::Other);
        assert_eq!(by("fd00::1", "eth0"), NextHop::Other);
    }

    #[test]
    fn gateways_past_the_bound_share_a_number() {
        let mut table = RouteTable::default();
        table.routes[0] = (0..10)
            .map(|number| Route {
                network: number << 8,
                mask: 0xffff_ff00,
                interface: "eth0".to_owned(),
                gateway: Some(number + 1),
            })
            .collect();
        let numbers = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6].map(NextHop::Gateway);
        for _ in 0..2 {
            let next_hops: [_; 10] = std::array::from_fn(|number| {
                table.next_hop(Ipv4Addr::from((number as u32) << 8).into(), None)
            });
            assert_eq!(next_hops, numbers);
        }
    }

    #[test]
    fn of_a_link_that_stays_down_only_the_best_route_counts() {
        let route = |network, bits: u32, interface: &str| Route {
            network,
            mask: u128::MAX << (32 - bits) & 0xffff_ffff,
            interface: interface.to_owned(),
            gateway: Some(1),
        };
        let link = |flags: InterfaceFlags, carrier_down_count| Link {
            index: 2,
            name: "wlan0".to_owned(),
            flags: flags.bits() as u32,
            carrier_down_count: Some(carrier_down_count),
        };
        let up = InterfaceFlags::IFF_UP;
        let runs = up | InterfaceFlags::IFF_RUNNING | InterfaceFlags::IFF_LOWER_UP;
        let mut table = RouteTable::default();
        table.routes[0] = vec![
            route(0x0a00_0000, 8, "wlan0"),
            route(0, 0, "eth0"),
            route(0, 0, "wlan0"),
        ];
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        table.link_changed(link(up, 1), at(0));
        table.link_changed(link(up, 1), at(9));
        let may_have_lost = |table: &RouteTable, to: [u8; 4], first| {
            table.may_have_lost(to.into(), None, at(first))
        };
        assert!(may_have_lost(&table, [10, 0, 0, 1], 5));
        assert!(!may_have_lost(&table, [192, 0, 2, 1], 5));
        assert!(!may_have_lost(&table, [10, 0, 0, 1], 10));
        // For a moment it ran: it may have taken anything then.
        table.link_changed(link(up, 2), at(20));
        assert!(may_have_lost(&table, [192, 0, 2, 1], 15));
        assert!(!may_have_lost(&table, [192, 0, 2, 1], 20));
        table.link_changed(link(runs, 2), at(30));
        assert!(may_have_lost(&table, [192, 0, 2, 1], 25));
        assert!(!may_have_lost(&table, [10, 0, 0, 1], 31));
    }
}
