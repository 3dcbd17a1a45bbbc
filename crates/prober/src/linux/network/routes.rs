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
use prefix_trie::PrefixMap;
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

/// What is known of a prefix that no route has now.
#[derive(Debug, Clone, Copy, Default)]
struct WithoutRoute {
    /// It led somewhere before, or a shorter prefix did when this one began to refuse.
    led_somewhere: bool,
    /// It refuses now what is sent.
    refuses: bool,
}

/// All routes. Those of IPv4 come first; each family has a map by prefix.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    /// For each prefix, the index of its routes in `lists`.
    by_prefix: [PrefixMap<Ipv6Net, u32>; 2],
    /// The different lists of routes that a prefix has. The preferred route comes first.
    lists: Vec<Arc<[Route]>>,
    /// The prefixes of each interface.
    by_interface: HashMap<Arc<str>, [Vec<Ipv6Net>; 2]>,
    /// Prefixes that no route has now: those of earlier routes, and those that refuse what is sent.
    without_route: [PrefixMap<Ipv6Net, WithoutRoute>; 2],
    has_several_ways_back: bool,
    number: u64,
}

impl RouteTable {
    /// Reads the tables of the network namespace of the calling thread, after `previous` was read. `None` if `is_stopped`
    /// says so meanwhile.
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
                warn!(%error, "cannot read the routes: their outages are not detected");
            }
            if is_stopped() {
                return None;
            }
            if new.counts[family] > MAX_ROUTES {
                new.keep_interfaces(family, interfaces);
            }
        }
        let refusing = new.refusing;
        let mut table = new.table;
        table.number = previous.number + 1;
        for (family, refusing) in refusing.iter().enumerate() {
            table.remember(family, previous, refusing);
        }
        table.has_several_ways_back = table.several_ways_back();
        let [v4, v6] = new.counts;
        debug!(v4, v6, "routes read");
        Some(table)
    }

    /// Remembers the prefixes of a family that are gone since `previous`, and those that refuse what is sent. One that refuses
    /// from the beginning takes its targets away from a shorter prefix; one that begins to refuse later does not.
    fn remember(&mut self, family: usize, previous: &Self, refusing: &[Ipv6Net]) {
        let here = &self.by_prefix[family];
        let mut without = previous.without_route[family].clone();
        without.retain(|prefix, _| here.get(prefix).is_none());
        for known in without.values_mut() {
            known.refuses = false;
        }
        let gone = previous.by_prefix[family].keys();
        for prefix in gone.filter(|prefix| here.get(*prefix).is_none()) {
            if without.len() < MAX_ROUTES {
                let led = WithoutRoute {
                    led_somewhere: true,
                    refuses: false,
                };
                without.insert(*prefix, led);
            }
        }
        for prefix in refusing {
            if let Some(known) = without.get_mut(prefix) {
                known.refuses = true;
            } else if without.len() < MAX_ROUTES && here.get(prefix).is_none() {
                let refuses = WithoutRoute {
                    led_somewhere: previous.led_somewhere(family, prefix),
                    refuses: true,
                };
                without.insert(*prefix, refuses);
            }
        }
        self.without_route[family] = without;
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
        match (here, self.without_route[family].get_lpm(prefix)) {
            (Some((here, _)), Some((other, known))) => {
                known.led_somewhere || here.prefix_len() > other.prefix_len()
            }
            (Some(_), None) => true,
            (None, other) => other.is_some_and(|(_, known)| known.led_somewhere),
        }
    }

    /// Whether a route refuses now what is sent to `to`.
    pub(super) fn refuses(&self, to: IpAddr) -> bool {
        let (host, family) = host(to);
        let covering = self.without_route[family].cover(&host);
        let refusing = covering.filter(|(_, known)| known.refuses).last();
        let here = self.by_prefix[family].get_lpm(&host);
        refusing.is_some_and(|(refusing, _)| {
            here.is_none_or(|(here, _)| here.prefix_len() < refusing.prefix_len())
        })
    }

    /// Whether messages over IPv4 may come by another interface than the one by which their sender is reached: gateways are on
    /// several interfaces, or a prefix is.
    pub(super) fn has_several_ways_back(&self) -> bool {
        self.has_several_ways_back
    }

    fn several_ways_back(&self) -> bool {
        let mut of_gateways = HashSet::new();
        self.by_prefix[0].values().any(|list| {
            let routes = &self.lists[*list as usize];
            let by_gateway = routes.iter().filter(|route| route.gateway != Gateway::None);
            of_gateways.extend(by_gateway.map(|route| &route.interface));
            let first = routes.first().map(|route| &route.interface);
            of_gateways.len() > 1 || routes.iter().any(|route| Some(&route.interface) != first)
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
        let covering = self.covering(&host, family);
        covering.filter_map(|routes| routes.iter().find(by)).last()
    }

    /// The routes of each prefix that covers a host, from the shortest prefix to the longest.
    fn covering(&self, host: &Ipv6Net, family: usize) -> impl Iterator<Item = &[Route]> {
        let lists = self.by_prefix[family].cover_values(host);
        lists.map(|list| &self.lists[*list as usize][..])
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
    /// The index of each list.
    indices: HashMap<Arc<[Route]>, u32>,
    /// Routes of each family.
    counts: [usize; 2],
    /// The prefixes of each family that refuse what is sent.
    refusing: [Vec<Ipv6Net>; 2],
}

impl NewTable {
    /// Adds a route after those of the same prefix.
    fn add(&mut self, family: usize, line: &RouteLine<'_>) {
        self.counts[family] += 1;
        let Self { table, indices, .. } = self;
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
        let known = table.by_prefix[family].get(&line.prefix);
        let before = known.map_or(&[][..], |list| &table.lists[*list as usize]);
        let routes: Arc<[Route]> = before.iter().cloned().chain([route]).collect();
        let list = *indices.entry(routes).or_insert_with_key(|routes| {
            table.lists.push(Arc::clone(routes));
            (table.lists.len() - 1) as u32
        });
        table.by_prefix[family].insert(line.prefix, list);
    }

    fn refuse(&mut self, family: usize, prefix: Ipv6Net) {
        if self.refusing[family].len() < MAX_ROUTES {
            self.refusing[family].push(prefix);
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
        new
    }

    /// A table of these IPv4 routes: prefix, gateway if any, interface.
    pub(in super::super) fn ipv4_routes(routes: &[(&str, Option<&str>, &str)]) -> RouteTable {
        read_lines(routes).table
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

    #[test]
    fn a_route_that_refused_from_the_beginning_is_none_and_one_that_came_back_is_one() {
        let prefix = |text: &str| -> Ipv6Net { text.parse().unwrap() };
        let had_route = |table: &RouteTable, to: [u8; 4]| table.had_route(to.into());
        let default = [("0.0.0.0/0", Some("192.0.2.1"), "eth0")];
        let mut first = ipv4_routes(&default);
        first.remember(0, &RouteTable::default(), &[prefix("::ffff:10.9.0.0/112")]);
        assert!(had_route(&first, [10, 1, 0, 1]) && !had_route(&first, [10, 9, 0, 1]));
        // Later everything refuses, and another prefix as well.
        let refusing = ["::ffff:0.0.0.0/96", "::ffff:10.8.0.0/112"].map(prefix);
        let mut later = RouteTable::default();
        later.remember(0, &first, &refusing);
        assert!(had_route(&later, [10, 1, 0, 1]) && had_route(&later, [10, 8, 0, 1]));
        assert!(!had_route(&later, [10, 9, 0, 1]));
        assert!(later.refuses([10, 8, 0, 1].into()) && later.refuses([10, 1, 0, 1].into()));
        // And again, without any of them, and with the first route.
        for routes in [&[][..], &default] {
            let mut again = ipv4_routes(routes);
            again.remember(0, &later, &[]);
            assert!(had_route(&again, [10, 1, 0, 1]) && had_route(&again, [10, 8, 0, 1]));
            assert!(!had_route(&again, [10, 9, 0, 1]));
            assert!(!again.refuses([10, 8, 0, 1].into()));
            later = again;
        }
        // What refused from the beginning leads somewhere now.
        let mut table = ipv4_routes(&[("10.9.0.0/16", None, "eth1")]);
        table.remember(0, &later, &[]);
        assert!(had_route(&table, [10, 9, 0, 1]) && had_route(&table, [10, 1, 0, 1]));
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
