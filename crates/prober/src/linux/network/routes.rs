//! The routes of this machine: by which interface an address is reached, and through which next hop. Reads the main
//! routing tables from /proc; the longest prefix decides.
//!
//! Source: Linux `proc_pid_net(5)` (`route`, `ipv6_route`).

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::Ipv6Net;
use prefix_trie::PrefixMap;

use super::interface::{Interface, Interfaces};

/// Routes are read again when they are older than this.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Larger routing tables are those of a router, and are not looked up: a loss on any interface may affect any target, and
/// no target counts as a neighbour.
const MAX_ROUTES: usize = 10_000;

/// Gateways of each family that have a number, and so a socket, of their own. All others share one more number.
const MAX_GATEWAYS: usize = 6;

/// Gateways of each family that share a number and are watched all the same.
const MAX_SHARED_GATEWAYS: usize = 64;

/// Stands for the interface of an IPv4 route that has none, such as a blackhole route.
const NO_INTERFACE: &str = "*";

/// A route by way of a gateway (`linux/route.h`).
const RTF_GATEWAY: u32 = 0x2;

/// A route that refuses what is sent (`linux/route.h`).
const RTF_REJECT: u32 = 0x200;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gateway {
    /// To the target itself, on the link.
    None,
    /// To this router.
    Address(IpAddr),
    /// The routing table is too large to be looked up.
    Unknown,
}

/// A route of one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) prefix: Ipv6Net,
    pub(super) interface: String,
    pub(super) gateway: Gateway,
}

/// The machine whose link address is needed to send a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::linux) enum NextHop {
    /// The target itself, which is on a link of this machine.
    OnLink,
    /// The gateway of this number.
    Gateway(usize),
    /// No link address is needed, or the route is unknown.
    Other,
}

/// All routes. Those of IPv4 come first; each family has a map by prefix.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    /// Of equal prefixes, the preferred route comes first.
    by_prefix: [PrefixMap<Ipv6Net, Vec<Route>>; 2],
    /// Gateways that have a number: it is their index, in the order in which they were first needed, and stays.
    gateways: [Vec<(String, Gateway)>; 2],
    /// Gateways that share the next number.
    shared_gateways: [Vec<(String, IpAddr)>; 2],
    /// The prefixes of all routes that there ever were, and whether each ever led somewhere.
    ever: [PrefixMap<Ipv6Net, bool>; 2],
    has_several_ways_back: bool,
    read_at: Option<Instant>,
}

impl RouteTable {
    /// Whether the routes must be read again.
    pub(super) fn are_old(&self, now: Instant) -> bool {
        self.read_at.is_none_or(|read| now >= read + MAX_AGE)
    }

    /// Something has changed: the routes must be read again.
    pub(super) fn mark_old(&mut self) {
        self.read_at = None;
    }

    /// Reads the routes.
    pub(super) fn refresh(&mut self, interfaces: &Interfaces, now: Instant) {
        self.read_at = Some(now);
        let mut refusing: [Vec<Ipv6Net>; 2] = Default::default();
        let mut family = 0;
        self.by_prefix = [&IPV4_TABLE, &IPV6_TABLE].map(|format| {
            // Of the thread, not of the process: the two may be in different network namespaces.
            let path = format!("/proc/thread-self/net/{}", format.file);
            let text = fs::read_to_string(path).unwrap_or_default();
            let mut routes = Vec::new();
            for line in text.lines().filter_map(|line| format.parse(line)) {
                match line {
                    Line::Route(route) => routes.push(route),
                    Line::Refusing(prefix) => refusing[family].push(prefix),
                }
            }
            family += 1;
            if routes.len() > MAX_ROUTES {
                routes = one_route_per_interface(routes);
                routes.retain(|route| {
                    let state = interfaces.get(&route.interface);
                    state.is_none_or(Interface::is_running)
                });
            }
            by_prefix(routes)
        });
        self.has_several_ways_back = has_several_ways_back(&self.by_prefix[0]);
        for (family, refusing) in refusing.into_iter().enumerate() {
            self.remember(family, &refusing);
        }
    }

    /// Remembers the routes of a family, and the prefixes that refuse what is sent. The bound holds for all that there ever
    /// were.
    fn remember(&mut self, family: usize, refusing: &[Ipv6Net]) {
        let ever = &mut self.ever[family];
        // Before the routes: one that refuses from the beginning takes its targets away from a shorter prefix. One that
        // begins to refuse later does not.
        for prefix in refusing {
            if ever.len() < MAX_ROUTES && ever.get(prefix).is_none() {
                ever.insert(*prefix, covered(ever, prefix));
            }
        }
        for prefix in self.by_prefix[family].keys() {
            if ever.len() < MAX_ROUTES {
                ever.insert(*prefix, true);
            }
        }
    }

    /// Whether there was a route to `to`, now or before, and not one that refuses from the beginning.
    pub(super) fn had_route(&self, to: IpAddr) -> bool {
        let (host, family) = host(to);
        covered(&self.ever[family], &host)
    }

    /// Whether the gateway of a number is one. More gateways than have a number share the next one.
    pub(super) fn is_gateway(&self, v6: bool, number: usize) -> bool {
        let known = self.gateways[usize::from(v6)].get(number);
        known.is_none_or(|(_, gateway)| *gateway != Gateway::Unknown)
    }

    /// Whether messages over IPv4 may come by another interface than the one by which their sender is reached: gateways are on
    /// several interfaces, or a prefix is.
    pub(super) fn have_several_ways_back(&self) -> bool {
        self.has_several_ways_back
    }

    /// The gateway of a number, with its interface; `None` if it is unknown, or if several gateways share the number.
    pub(super) fn gateway(&self, v6: bool, number: usize) -> Option<(String, IpAddr)> {
        let (interface, gateway) = self.gateways[usize::from(v6)].get(number)?;
        match gateway {
            Gateway::Address(address) => Some((interface.clone(), *address)),
            Gateway::None | Gateway::Unknown => None,
        }
    }

    /// The gateways that were needed, with their interfaces.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let families = [false, true].into_iter();
        let own = families.flat_map(move |v6| {
            (0..MAX_GATEWAYS).filter_map(move |number| self.gateway(v6, number))
        });
        own.chain(self.shared_gateways.iter().flatten().cloned())
    }

    /// The gateway of a message to `to`, with its interface. With `interface`, it leaves by that one.
    pub(super) fn gateway_to(
        &self,
        to: IpAddr,
        interface: Option<&str>,
    ) -> Option<(String, IpAddr)> {
        let route = self.best(to, interface)?;
        match route.gateway {
            Gateway::Address(address) => Some((route.interface.clone(), address)),
            Gateway::None | Gateway::Unknown => None,
        }
    }

    /// The route of a message to `to`; with `interface`, the best one by that interface.
    pub(super) fn best(&self, to: IpAddr, interface: Option<&str>) -> Option<&Route> {
        let (host, family) = host(to);
        let by = |route: &&Route| interface.is_none_or(|name| route.interface == name);
        // From the shortest prefix to the longest.
        let covering = self.by_prefix[family].cover_values(&host);
        covering.filter_map(|routes| routes.iter().find(by)).last()
    }

    /// Whether any route to `to` leaves by `interface`.
    pub(super) fn any_by(&self, to: IpAddr, interface: &str) -> bool {
        self.best(to, Some(interface)).is_some()
    }

    /// All routes by an interface, each with the index of its family.
    pub(super) fn of_interface(&self, interface: &str) -> impl Iterator<Item = (usize, &Route)> {
        let families = self.by_prefix.iter().enumerate();
        let all = families
            .flat_map(|(family, map)| map.values().flatten().map(move |route| (family, route)));
        all.filter(move |(_, route)| route.interface == interface)
    }

    /// Where a message to `to` goes first. With `interface`, it leaves by that one.
    pub(super) fn next_hop(
        &mut self,
        to: IpAddr,
        interface: Option<&str>,
        interfaces: &Interfaces,
    ) -> NextHop {
        let route = self.best(to, interface);
        if let Some(route) = route.filter(|route| route.gateway != Gateway::None) {
            let known = &self.gateways[usize::from(to.is_ipv6())];
            let number = known
                .iter()
                .position(|(by, gateway)| *gateway == route.gateway && *by == route.interface);
            return NextHop::Gateway(if let Some(number) = number {
                number
            } else {
                let gateway = (route.interface.clone(), route.gateway);
                self.number_of_new(gateway, to.is_ipv6())
            });
        }
        // Without a route by the given interface, the kernel looks for an IPv4 target on its link.
        let link = interface.filter(|_| to.is_ipv4());
        let name = route.map(|route| route.interface.as_str()).or(link);
        let state = name.and_then(|name| interfaces.get(name));
        if state.is_some_and(Interface::has_neighbours) {
            NextHop::OnLink
        } else {
            NextHop::Other
        }
    }

    /// The number of a gateway that has none yet.
    fn number_of_new(&mut self, gateway: (String, Gateway), v6: bool) -> usize {
        let known = &mut self.gateways[usize::from(v6)];
        if known.len() < MAX_GATEWAYS {
            known.push(gateway);
            return known.len() - 1;
        }
        if let (interface, Gateway::Address(address)) = gateway {
            let shared = &mut self.shared_gateways[usize::from(v6)];
            let gateway = (interface, address);
            if shared.len() < MAX_SHARED_GATEWAYS && !shared.contains(&gateway) {
                shared.push(gateway);
            }
        }
        MAX_GATEWAYS
    }
}

/// Whether the longest prefix that covers this one ever led somewhere.
fn covered(ever: &PrefixMap<Ipv6Net, bool>, prefix: &Ipv6Net) -> bool {
    ever.get_lpm(prefix).is_some_and(|(_, led)| *led)
}

fn has_several_ways_back(routes: &PrefixMap<Ipv6Net, Vec<Route>>) -> bool {
    let mut of_gateways = HashSet::new();
    routes.values().any(|of_prefix| {
        let by_gateway = of_prefix
            .iter()
            .filter(|route| route.gateway != Gateway::None);
        of_gateways.extend(by_gateway.map(|route| &route.interface));
        let first = of_prefix.first().map(|route| &route.interface);
        of_gateways.len() > 1
            || of_prefix
                .iter()
                .any(|route| Some(&route.interface) != first)
    })
}

fn by_prefix(routes: Vec<Route>) -> PrefixMap<Ipv6Net, Vec<Route>> {
    let mut map: PrefixMap<_, Vec<_>> = PrefixMap::new();
    for route in routes {
        map.entry(route.prefix).or_default().push(route);
    }
    map
}

/// One route to everywhere for each interface.
fn one_route_per_interface(routes: Vec<Route>) -> Vec<Route> {
    let interfaces: HashSet<_> = routes.into_iter().map(|route| route.interface).collect();
    let everywhere = |interface| Route {
        prefix: Ipv6Net::default(),
        interface,
        gateway: Gateway::Unknown,
    };
    interfaces.into_iter().map(everywhere).collect()
}

/// An address as a prefix of one address, and the index of its family's map. IPv4 is mapped into IPv6 (RFC 4291, section
/// 2.5.5.2).
pub(super) fn host(address: IpAddr) -> (Ipv6Net, usize) {
    match address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().into(), 0),
        IpAddr::V6(v6) => (v6.into(), 1),
    }
}

/// A line of a routing table.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Route(Route),
    /// This prefix refuses what is sent.
    Refusing(Ipv6Net),
}

/// Where the columns of a routing table in /proc are, and how it writes addresses.
struct TableFormat {
    file: &'static str,
    destination: usize,
    length: usize,
    gateway: usize,
    flags: usize,
    interface: usize,
    address: fn(&str) -> Option<IpAddr>,
    /// From the text of the prefix's length, or of its mask.
    prefix_length: fn(&str) -> Option<u8>,
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`.
const IPV4_TABLE: TableFormat = TableFormat {
    file: "route",
    destination: 1,
    length: 7,
    gateway: 2,
    flags: 3,
    interface: 0,
    address: |text| Some(ipv4(text)?.into()),
    prefix_length: |mask| Some(96 + ipv4(mask)?.to_bits().leading_ones() as u8),
};

/// `destination length source length next-hop metric refcount use flags interface`.
const IPV6_TABLE: TableFormat = TableFormat {
    file: "ipv6_route",
    destination: 0,
    length: 1,
    gateway: 4,
    flags: 8,
    interface: 9,
    address: |text| {
        let bits = u128::from_str_radix(text, 16).ok()?;
        Some(Ipv6Addr::from_bits(bits).into())
    },
    prefix_length: |text| u8::from_str_radix(text, 16).ok(),
};

/// An IPv4 address: hexadecimal, in the order of its bytes in memory.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let raw = u32::from_str_radix(text, 16).ok()?;
    Some(raw.to_ne_bytes().into())
}

impl TableFormat {
    /// Reads a line. `None` for the heading.
    fn parse(&self, line: &str) -> Option<Line> {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(self.flags)?, 16).ok()?;
        let (network, _) = host((self.address)(fields.get(self.destination)?)?);
        let length = (self.prefix_length)(fields.get(self.length)?)?;
        let prefix = Ipv6Net::new(network.addr(), length).ok()?;
        let interface = *fields.get(self.interface)?;
        if flags & RTF_REJECT != 0 || interface == NO_INTERFACE {
            return Some(Line::Refusing(prefix));
        }
        Some(Line::Route(Route {
            prefix,
            interface: interface.to_owned(),
            gateway: if flags & RTF_GATEWAY == 0 {
                Gateway::None
            } else {
                Gateway::Address((self.address)(fields.get(self.gateway)?)?)
            },
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::link::LinkFlags;

    use super::*;

    /// A table of these IPv4 routes: prefix, gateway if any, interface.
    pub(in super::super) fn ipv4_routes(routes: &[(&str, Option<&str>, &str)]) -> RouteTable {
        let routes = routes.iter().map(|(prefix, gateway, interface)| {
            let (address, length) = prefix.split_once('/').unwrap();
            let (network, _) = host(address.parse().unwrap());
            Route {
                prefix: Ipv6Net::new(network.addr(), 96 + length.parse::<u8>().unwrap()).unwrap(),
                interface: (*interface).to_owned(),
                gateway: gateway.map_or(Gateway::None, |gateway| {
                    Gateway::Address(gateway.parse().unwrap())
                }),
            }
        });
        RouteTable {
            by_prefix: [by_prefix(routes.collect()), PrefixMap::new()],
            ..RouteTable::default()
        }
    }

    #[test]
    fn lines_of_the_kernel_are_parsed() {
        let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask";
        assert_eq!(IPV4_TABLE.parse(heading), None);
        let line = |interface, network: [u8; 4], gateway: [u8; 4], mask: [u8; 4], flags: u32| {
            let [network, gateway, mask] = [network, gateway, mask].map(u32::from_ne_bytes);
            IPV4_TABLE.parse(&format!(
                "{interface}\t{network:08X}\t{gateway:08X}\t{flags:04X}\t0\t0\t0\t{mask:08X}\t0\t0\t0"
            ))
        };
        let route = |line| match line {
            Some(Line::Route(route)) => route,
            other => panic!("{other:?}"),
        };
        let default = route(line("eth0", [0; 4], [192, 168, 0, 1], [0; 4], 3));
        assert_eq!(default.gateway, Gateway::Address([192, 168, 0, 1].into()));
        assert_eq!(default.prefix, "::ffff:0:0/96".parse().unwrap());
        let on_link = route(line("eth0", [10, 1, 2, 0], [0; 4], [255, 255, 254, 0], 1));
        assert_eq!(on_link.gateway, Gateway::None);
        assert_eq!(on_link.prefix, "::ffff:10.1.2.0/119".parse().unwrap());
        // An unreachable route, and a blackhole.
        let refusing = Some(Line::Refusing("::ffff:10.1.2.0/128".parse().unwrap()));
        for (interface, flags) in [("eth0", 0x201), ("*", 1)] {
            let line = line(interface, [10, 1, 2, 0], [0; 4], [255; 4], flags);
            assert_eq!(line, refusing);
        }
        let v6 = IPV6_TABLE.parse(
            "fd000002000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001     dead",
        );
        let expected = Route {
            prefix: "fd00:2::/64".parse().unwrap(),
            interface: "dead".to_owned(),
            gateway: Gateway::None,
        };
        assert_eq!(v6, Some(Line::Route(expected)));
    }

    #[test]
    fn a_route_that_refused_from_the_beginning_is_none_and_one_that_came_back_is_one() {
        let mut table = ipv4_routes(&[("0.0.0.0/0", Some("192.0.2.1"), "eth0")]);
        let prefix = |text: &str| -> Ipv6Net { text.parse().unwrap() };
        let had_route = |table: &RouteTable, to: [u8; 4]| table.had_route(to.into());
        table.remember(0, &[prefix("::ffff:10.9.0.0/112")]);
        assert!(had_route(&table, [10, 1, 0, 1]) && !had_route(&table, [10, 9, 0, 1]));
        // Later everything refuses, and another prefix as well.
        table.by_prefix[0].clear();
        let refusing = ["::ffff:0.0.0.0/96", "::ffff:10.8.0.0/112"].map(prefix);
        table.remember(0, &refusing);
        assert!(had_route(&table, [10, 1, 0, 1]) && had_route(&table, [10, 8, 0, 1]));
        assert!(!had_route(&table, [10, 9, 0, 1]));
    }

    #[test]
    fn messages_may_come_by_another_interface_if_gateways_or_a_prefix_are_on_several() {
        let several = |routes: &[_]| has_several_ways_back(&ipv4_routes(routes).by_prefix[0]);
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

    fn interfaces() -> Interfaces {
        let mut interfaces = Interfaces::default();
        for (name, flags) in [
            ("eth0", LinkFlags::Up),
            ("tun0", LinkFlags::Up | LinkFlags::Noarp),
        ] {
            let state = Interface {
                flags,
                carrier_down_count: None,
            };
            interfaces.replace(name.to_owned(), state);
        }
        interfaces
    }

    #[test]
    fn the_longest_prefix_decides() {
        let on_links = [
            ("10.1.2.0/24", Some("10.1.0.2"), "eth0"),
            ("10.1.0.0/16", None, "eth0"),
            ("10.2.0.0/16", None, "tun0"),
        ];
        let default = ("0.0.0.0/0", Some("10.1.0.1"), "eth0");
        let interfaces = interfaces();
        let mut table = ipv4_routes(&[&on_links[..], &[default]].concat());
        let mut next_hop = |text: &str, by| table.next_hop(text.parse().unwrap(), by, &interfaces);
        assert_eq!(next_hop("10.1.1.1", None), NextHop::OnLink);
        assert_eq!(next_hop("10.1.2.1", None), NextHop::Gateway(0));
        assert_eq!(next_hop("10.2.0.1", None), NextHop::Other);
        assert_eq!(next_hop("192.0.2.1", None), NextHop::Gateway(1));
        assert_eq!(next_hop("10.1.2.2", None), NextHop::Gateway(0));
        assert_eq!(next_hop("10.2.0.1", Some("eth0")), NextHop::Gateway(1));
        // No route by that interface: the target counts as on its link, if it has neighbours.
        let mut table = ipv4_routes(&on_links);
        let mut next_hop = |text: &str, by| table.next_hop(text.parse().unwrap(), by, &interfaces);
        assert_eq!(next_hop("192.0.2.1", Some("eth0")), NextHop::OnLink);
        assert_eq!(next_hop("192.0.2.1", Some("tun0")), NextHop::Other);
        assert_eq!(next_hop("fd00::1", Some("eth0")), NextHop::Other);
    }

    #[test]
    fn gateways_above_the_bound_share_a_number() {
        let routes: Vec<_> = (0..10)
            .map(|number| (format!("10.0.{number}.0/24"), format!("10.1.0.{number}")))
            .collect();
        let routes: Vec<_> = routes
            .iter()
            .map(|(prefix, gateway)| (prefix.as_str(), Some(gateway.as_str()), "eth0"))
            .collect();
        let mut table = ipv4_routes(&routes);
        let numbers = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6].map(NextHop::Gateway);
        for _ in 0..2 {
            let next_hops: [_; 10] = std::array::from_fn(|number| {
                let to = Ipv4Addr::new(10, 0, number as u8, 7);
                table.next_hop(to.into(), None, &Interfaces::default())
            });
            assert_eq!(next_hops, numbers);
        }
        // All of them are watched, each once.
        assert_eq!(table.gateways().count(), 10);
    }

    #[test]
    fn a_table_too_large_for_lookup_leaves_one_route_per_interface() {
        let table = ipv4_routes(&[
            ("10.1.0.0/16", None, "eth0"),
            ("10.2.0.0/16", None, "eth0"),
            ("10.3.0.0/16", None, "eth1"),
        ]);
        let routes = ["eth0", "eth1"].map(|name| table.of_interface(name));
        let routes = routes.into_iter().flatten().map(|(_, route)| route.clone());
        let mut short = one_route_per_interface(routes.collect());
        short.sort_by(|one, other| one.interface.cmp(&other.interface));
        let names: Vec<_> = short.iter().map(|route| &route.interface[..]).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        let mut table = RouteTable {
            by_prefix: [by_prefix(short), PrefixMap::new()],
            ..RouteTable::default()
        };
        let to = "10.3.0.1".parse().unwrap();
        let next_hop = table.next_hop(to, None, &Interfaces::default());
        assert_eq!(next_hop, NextHop::Gateway(0));
        assert!(table.any_by(to, "eth0") && table.any_by(to, "eth1"));
    }
}
