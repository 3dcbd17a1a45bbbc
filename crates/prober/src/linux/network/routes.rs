//! The routes of this machine: by which interface an address is reached, and through which next hop. The longest prefix of
//! the main routing tables decides. Invariant: a table does not change after it was read.
//!
//! A table of 200,000 routes takes about 25 MB, and twice that while the next one is read.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::Ipv6Net;
use prefix_trie::{PrefixMap, PrefixSet};
use tracing::{debug, warn};

use super::{
    interface::{Interface, Interfaces},
    route_files::{Line, RouteLine, TABLES},
};

/// The routes of a larger table are not looked up: a loss on any interface may affect any target, and no target counts as a
/// neighbour. The whole Internet has about a million routes of IPv4.
const MAX_ROUTES: usize = 2_000_000;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Gateway {
    /// To the target itself, on the link.
    None,
    /// To this router.
    Address(IpAddr),
    /// The routing table is too large to be looked up.
    Unknown,
}

/// A route. Many prefixes share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) interface: Arc<str>,
    pub(super) gateway: Gateway,
}

impl Route {
    /// The address of the gateway, with its interface.
    pub(super) fn address(&self) -> Option<(String, IpAddr)> {
        match self.gateway {
            Gateway::Address(address) => Some((self.interface.as_ref().to_owned(), address)),
            Gateway::None | Gateway::Unknown => None,
        }
    }
}

/// The routes of a prefix: their numbers in [`RouteTable::routes`]. The preferred route comes first.
#[derive(Debug, Clone)]
enum OfPrefix {
    One(u32),
    Several(Box<[u32]>),
}

impl OfPrefix {
    fn numbers(&self) -> &[u32] {
        match self {
            Self::One(number) => std::slice::from_ref(number),
            Self::Several(numbers) => numbers,
        }
    }
}

/// All routes. Those of IPv4 come first; each family has a map by prefix.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    by_prefix: [PrefixMap<Ipv6Net, OfPrefix>; 2],
    /// The different routes.
    routes: Vec<Route>,
    /// The prefixes of each interface.
    by_interface: HashMap<Arc<str>, [Vec<Ipv6Net>; 2]>,
    /// Prefixes that no route has now, and whether each led somewhere before, where that is not so for the shorter prefix that
    /// covers it.
    earlier: [PrefixMap<Ipv6Net, bool>; 2],
    /// Prefixes that refuse what is sent.
    refusing: [PrefixSet<Ipv6Net>; 2],
    has_several_ways_back: bool,
    number: u64,
}

impl RouteTable {
    /// Reads the tables of the network namespace of the calling thread, after `previous` was read. `None` if `is_stopped`
    /// says so meanwhile, or if they cannot be read whole.
    pub(super) fn read(
        previous: &Self,
        interfaces: &Interfaces,
        is_stopped: impl Fn() -> bool,
    ) -> Option<Self> {
        let mut new = NewTable::default();
        for (family, format) in TABLES.iter().enumerate() {
            let read = format.read(|line| {
                match line {
                    Line::Route(route) => new.add(family, &route),
                    Line::Refusing(prefix) => new.refuse(family, prefix),
                }
                new.counts[family] <= MAX_ROUTES && !is_stopped()
            });
            if let Err(error) = read {
                warn!(%error, "cannot read the routes: changes of them are noticed late");
                return None;
            }
            if is_stopped() {
                return None;
            }
            if new.counts[family] > MAX_ROUTES {
                new.keep_interfaces(family, interfaces);
            }
        }
        let mut table = new.table;
        table.number = previous.number + 1;
        for family in 0..TABLES.len() {
            table.remember(family, previous);
        }
        table.has_several_ways_back = table.several_ways_back();
        let [v4, v6] = new.counts;
        debug!(v4, v6, "routes read");
        Some(table)
    }

    /// Remembers the prefixes of a family that are gone since `previous`, and those that refuse what is sent. One that refuses
    /// from the beginning takes its targets away from a shorter prefix; one that begins to refuse later does not.
    fn remember(&mut self, family: usize, previous: &Self) {
        let refusing = self.refusing[family].iter().copied();
        let refusing = refusing.map(|prefix| (prefix, previous.led_somewhere(family, &prefix)));
        let earlier = previous.earlier[family].iter();
        let earlier = earlier.filter(|(_, led)| **led).map(|(prefix, _)| prefix);
        let gone = previous.by_prefix[family].keys().chain(earlier);
        let all = refusing.chain(gone.map(|prefix| (*prefix, true)));
        let here = &self.by_prefix[family];
        let mut all: Vec<_> = all
            .filter(|(prefix, _)| here.get(prefix).is_none())
            .collect();
        // What a shorter prefix says decides what is to be noted of a longer one.
        all.sort_by_key(|(prefix, _)| prefix.prefix_len());
        for (prefix, led) in all {
            self.note(family, prefix, led);
        }
    }

    /// Notes whether a prefix without a route led somewhere.
    fn note(&mut self, family: usize, prefix: Ipv6Net, led: bool) {
        let has_place = self.earlier[family].len() < MAX_ROUTES;
        if has_place && self.led_somewhere(family, &prefix) != led {
            self.earlier[family].insert(prefix, led);
        }
    }

    /// The number of this table: each one that is read has a larger one.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether there was a route to `to`, now or before, and not one that refuses from the beginning.
    pub(super) fn had_route(&self, to: IpAddr) -> bool {
        let (host, family) = host(to);
        self.led_somewhere(family, &host)
    }

    /// Whether the longest prefix that covers this one ever led somewhere.
    fn led_somewhere(&self, family: usize, prefix: &Ipv6Net) -> bool {
        let here = self.by_prefix[family].get_lpm(prefix);
        match (here, self.earlier[family].get_lpm(prefix)) {
            (Some((here, _)), Some((earlier, led))) => {
                *led || here.prefix_len() > earlier.prefix_len()
            }
            (Some(_), None) => true,
            (None, earlier) => earlier.is_some_and(|(_, led)| *led),
        }
    }

    /// Whether a route refuses now what is sent to `to`.
    pub(super) fn refuses(&self, to: IpAddr) -> bool {
        let (host, family) = host(to);
        let here = self.by_prefix[family].get_lpm(&host);
        let refusing = self.refusing[family].get_lpm(&host);
        // Of one that has a route as well only the preferred one is known, and it refuses.
        refusing.is_some_and(|refusing| {
            here.is_none_or(|(here, _)| here.prefix_len() <= refusing.prefix_len())
        })
    }

    /// Whether messages over IPv4 may come by another interface than the one by which their sender is reached: gateways are on
    /// several interfaces, or a prefix is.
    pub(super) fn has_several_ways_back(&self) -> bool {
        self.has_several_ways_back
    }

    fn several_ways_back(&self) -> bool {
        let mut of_gateways = HashSet::new();
        self.by_prefix[0].values().any(|of_prefix| {
            let routes = || self.of(of_prefix);
            let by_gateway = routes().filter(|route| route.gateway != Gateway::None);
            of_gateways.extend(by_gateway.map(|route| &route.interface));
            let first = routes().next().map(|route| &route.interface);
            of_gateways.len() > 1 || routes().any(|route| Some(&route.interface) != first)
        })
    }

    /// The gateway of a message to `to`, with its interface. With `interface`, it leaves by that one.
    pub(super) fn gateway_to(
        &self,
        to: IpAddr,
        interface: Option<&str>,
    ) -> Option<(String, IpAddr)> {
        self.best(to, interface)?.address()
    }

    /// The route of a message to `to`; with `interface`, the best one by that interface.
    pub(super) fn best(&self, to: IpAddr, interface: Option<&str>) -> Option<&Route> {
        let (host, family) = host(to);
        let by = |route: &&Route| interface.is_none_or(|name| *route.interface == *name);
        // From the shortest prefix to the longest.
        let covering = self.by_prefix[family].cover_values(&host);
        covering
            .filter_map(|of_prefix| self.of(of_prefix).find(by))
            .last()
    }

    fn of(&self, of_prefix: &OfPrefix) -> impl Iterator<Item = &Route> {
        let numbers = of_prefix.numbers().iter();
        numbers.map(|number| &self.routes[*number as usize])
    }

    /// Whether any route to `to` leaves by `interface`.
    pub(super) fn any_by(&self, to: IpAddr, interface: &str) -> bool {
        self.best(to, Some(interface)).is_some()
    }

    /// The prefixes of all routes by an interface, those of IPv4 first.
    pub(super) fn prefixes_by(&self, interface: &str) -> Option<&[Vec<Ipv6Net>; 2]> {
        self.by_interface.get(interface)
    }
}

/// A table that is being read.
#[derive(Debug, Default)]
struct NewTable {
    table: RouteTable,
    /// The number of each route.
    numbers: HashMap<Route, u32>,
    /// Routes of each family.
    counts: [usize; 2],
}

impl NewTable {
    /// Adds a route after those of the same prefix.
    fn add(&mut self, family: usize, line: &RouteLine<'_>) {
        self.counts[family] += 1;
        let Self { table, numbers, .. } = self;
        let interface = match table.by_interface.get_key_value(line.interface) {
            Some((name, _)) => Arc::clone(name),
            None => line.interface.into(),
        };
        let of_interface = table.by_interface.entry(Arc::clone(&interface));
        of_interface.or_default()[family].push(line.prefix);
        let route = Route {
            interface,
            gateway: line.gateway,
        };
        let number = *numbers.entry(route).or_insert_with_key(|route| {
            table.routes.push(route.clone());
            (table.routes.len() - 1) as u32
        });
        let known = table.by_prefix[family].get(&line.prefix);
        let of_prefix = known.map_or(OfPrefix::One(number), |known| {
            let numbers = known.numbers().iter().copied();
            OfPrefix::Several(numbers.chain([number]).collect())
        });
        table.by_prefix[family].insert(line.prefix, of_prefix);
    }

    /// Adds a prefix that refuses what is sent, unless a preferred route has it.
    fn refuse(&mut self, family: usize, prefix: Ipv6Net) {
        let refusing = &mut self.table.refusing[family];
        if refusing.len() < MAX_ROUTES && self.table.by_prefix[family].get(&prefix).is_none() {
            refusing.insert(prefix);
        }
    }

    /// Replaces the routes of a family by one route to everywhere for each running interface.
    fn keep_interfaces(&mut self, family: usize, interfaces: &Interfaces) {
        self.table.by_prefix[family].clear();
        let mut names = HashSet::new();
        for (name, prefixes) in &mut self.table.by_interface {
            if !std::mem::take(&mut prefixes[family]).is_empty() {
                let state = interfaces.get(name);
                if state.is_none_or(Interface::is_running) {
                    names.insert(Arc::clone(name));
                }
            }
        }
        for interface in names {
            let everywhere = RouteLine {
                prefix: Ipv6Net::default(),
                interface: &interface,
                gateway: Gateway::Unknown,
            };
            self.add(family, &everywhere);
        }
    }
}

/// An address as a prefix of one address, and the index of its family's map. IPv4 is mapped into IPv6 (RFC 4291, section
/// 2.5.5.2).
pub(super) fn host(address: IpAddr) -> (Ipv6Net, usize) {
    match address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().into(), 0),
        IpAddr::V6(v6) => (v6.into(), 1),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn read_lines(routes: &[(&str, Option<&str>, &str)]) -> NewTable {
        let mut new = NewTable::default();
        add_lines(&mut new, routes);
        new
    }

    fn add_lines(new: &mut NewTable, routes: &[(&str, Option<&str>, &str)]) {
        for (prefix, gateway, interface) in routes {
            let (address, length) = prefix.split_once('/').unwrap();
            let (network, _) = host(address.parse().unwrap());
            let line = RouteLine {
                prefix: Ipv6Net::new(network.addr(), 96 + length.parse::<u8>().unwrap()).unwrap(),
                interface,
                gateway: gateway.map_or(Gateway::None, |gateway| {
                    Gateway::Address(gateway.parse().unwrap())
                }),
            };
            new.add(0, &line);
        }
    }

    /// A table of these IPv4 routes: prefix, gateway if any, interface.
    pub(in super::super) fn ipv4_routes(routes: &[(&str, Option<&str>, &str)]) -> RouteTable {
        RouteTable {
            number: 1,
            ..read_lines(routes).table
        }
    }

    #[test]
    fn a_table_too_large_for_lookup_leaves_one_route_per_interface() {
        let mut new = read_lines(&[
            ("10.1.0.0/16", None, "eth0"),
            ("10.2.0.0/16", None, "eth0"),
            ("10.3.0.0/16", None, "eth1"),
        ]);
        new.keep_interfaces(0, &Interfaces::default());
        let table = new.table;
        let to = "10.3.0.1".parse().unwrap();
        assert_eq!(table.best(to, None).unwrap().gateway, Gateway::Unknown);
        for name in ["eth0", "eth1"] {
            assert!(table.any_by(to, name));
            let prefixes = table.prefixes_by(name).unwrap();
            assert_eq!(prefixes, &[vec![Ipv6Net::default()], Vec::new()]);
        }
    }

    /// The table of these routes, with prefixes that refuse and come before them, after `previous`.
    fn next_table(
        previous: &RouteTable,
        routes: &[(&str, Option<&str>, &str)],
        refusing: &[&str],
    ) -> RouteTable {
        let mut table = ipv4_routes(routes);
        for prefix in refusing {
            table.refusing[0].insert(prefix.parse().unwrap());
        }
        table.remember(0, previous);
        table
    }

    #[test]
    fn a_route_that_refused_from_the_beginning_is_none_and_one_that_came_back_is_one() {
        let had_route = |table: &RouteTable, to: [u8; 4]| table.had_route(to.into());
        let default = [("0.0.0.0/0", Some("192.0.2.1"), "eth0")];
        let [all, eight, nine] = [
            "::ffff:0.0.0.0/96",
            "::ffff:10.8.0.0/112",
            "::ffff:10.9.0.0/112",
        ];
        let first = next_table(&RouteTable::default(), &default, &[nine]);
        assert!(had_route(&first, [10, 1, 0, 1]) && !had_route(&first, [10, 9, 0, 1]));
        // Later everything refuses, and another prefix as well.
        let later = next_table(&first, &[], &[eight, all, nine]);
        assert!(had_route(&later, [10, 1, 0, 1]) && had_route(&later, [10, 8, 0, 1]));
        assert!(!had_route(&later, [10, 9, 0, 1]));
        assert!(later.refuses([10, 8, 0, 1].into()) && later.refuses([10, 1, 0, 1].into()));
        // Nothing is left.
        let none = next_table(&later, &[], &[nine]);
        assert!(had_route(&none, [10, 1, 0, 1]) && had_route(&none, [10, 8, 0, 1]));
        assert!(!had_route(&none, [10, 9, 0, 1]) && !none.refuses([10, 8, 0, 1].into()));
        // What refused from the beginning leads somewhere now, and refuses again later.
        let again = next_table(&none, &default, &[]);
        let last = next_table(&again, &default, &[nine]);
        for table in [&again, &last] {
            assert!(had_route(table, [10, 9, 0, 1]) && had_route(table, [10, 1, 0, 1]));
        }
        assert!(last.refuses([10, 9, 0, 1].into()) && !last.refuses([10, 8, 0, 1].into()));
        assert_eq!(last.earlier[0].len(), 0, "the default route says the same");
    }

    #[test]
    fn of_a_route_and_one_that_refuses_the_same_prefix_the_preferred_one_counts() {
        let [prefix, to] = [("::ffff:10.9.0.0/112"), "10.9.0.1"];
        let route = ("10.9.0.0/16", Some("192.0.2.1"), "eth0");
        let mut refusing_first = NewTable::default();
        refusing_first.refuse(0, prefix.parse().unwrap());
        let mut route_first = read_lines(&[route]);
        route_first.refuse(0, prefix.parse().unwrap());
        for line in route_first.table.by_interface.values() {
            assert_eq!(line[0], [prefix.parse().unwrap()]);
        }
        assert!(!route_first.table.refuses(to.parse().unwrap()));
        add_lines(&mut refusing_first, &[route]);
        assert!(refusing_first.table.refuses(to.parse().unwrap()));
        assert!(refusing_first.table.had_route(to.parse().unwrap()));
    }

    #[test]
    fn messages_may_come_by_another_interface_if_gateways_or_a_prefix_are_on_several() {
        let several = |routes: &[_]| ipv4_routes(routes).several_ways_back();
        let default = ("0.0.0.0/0", Some("192.0.2.1"), "eth0");
        let on_link = ("192.0.2.0/24", None, "eth0");
        assert!(!several(&[
            default,
            on_link,
            ("172.17.0.0/16", None, "docker0")
        ]));
        assert!(several(&[
            default,
            ("10.0.0.0/8", Some("198.51.100.1"), "eth1")
        ]));
        assert!(several(&[
            default,
            on_link,
            ("192.0.2.0/24", None, "wlan0")
        ]));
    }

    #[test]
    fn the_preferred_one_of_equal_prefixes_comes_first() {
        let table = ipv4_routes(&[
            ("10.0.0.0/8", Some("192.0.2.1"), "eth0"),
            ("10.0.0.0/8", Some("192.0.2.2"), "eth1"),
        ]);
        let to = "10.3.0.1".parse().unwrap();
        let gateway = |by| table.best(to, by).map(|route| route.gateway);
        let address = |last| Some(Gateway::Address([192, 0, 2, last].into()));
        assert_eq!(gateway(None), address(1));
        assert_eq!(gateway(Some("eth1")), address(2));
        assert_eq!(gateway(Some("eth2")), None);
    }
}
