//! The next hops of one thread's requests, each with a number that stays. Pure: no I/O and no clock.

use std::{net::IpAddr, sync::Arc};

use super::{
    interface::{Interface, Interfaces},
    routes::{Gateway, Route, RouteTable},
};

/// Gateways of each family that have a number, and so a socket, of their own. All others share one more number.
const MAX_GATEWAYS: usize = 6;

/// Gateways of each family that share a number and are watched all the same.
const MAX_SHARED_GATEWAYS: usize = 64;

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

/// The gateways that were needed. Those of IPv4 come first.
#[derive(Debug, Default)]
pub(super) struct NextHops {
    /// Gateways that have a number: it is their index, in the order in which they were first needed, and stays.
    numbered: [Vec<Route>; 2],
    /// Gateways that share the next number.
    shared: [Vec<(String, IpAddr)>; 2],
}

impl NextHops {
    /// Whether the gateway of a number is one. More gateways than have a number share the next one.
    pub(super) fn is_gateway(&self, v6: bool, number: usize) -> bool {
        let known = self.numbered[usize::from(v6)].get(number);
        known.is_none_or(|route| route.gateway != Gateway::Unknown)
    }

    /// The gateway of a number, with its interface; `None` if it is unknown, or if several gateways share the number.
    pub(super) fn gateway(&self, v6: bool, number: usize) -> Option<(String, IpAddr)> {
        self.numbered[usize::from(v6)].get(number)?.address()
    }

    /// All gateways, with their interfaces.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let numbered = self.numbered.iter().flatten().filter_map(Route::address);
        numbered.chain(self.shared.iter().flatten().cloned())
    }

    /// Where a message to `to` goes first. With `interface`, it leaves by that one.
    pub(super) fn of(
        &mut self,
        to: IpAddr,
        interface: Option<&str>,
        routes: &RouteTable,
        interfaces: &Interfaces,
    ) -> NextHop {
        let route = routes.best(to, interface);
        if let Some(route) = route.filter(|route| route.gateway != Gateway::None) {
            return NextHop::Gateway(self.number(route, to.is_ipv6()));
        }
        // Without a route by the given interface, the kernel looks for an IPv4 target on its link.
        let link = interface.filter(|_| to.is_ipv4());
        let name = route.map(|route| route.interface.as_ref()).or(link);
        let state = name.and_then(|name| interfaces.get(name));
        if state.is_some_and(Interface::has_neighbours) {
            NextHop::OnLink
        } else {
            NextHop::Other
        }
    }

    /// The number of the gateway of a route.
    fn number(&mut self, route: &Route, v6: bool) -> usize {
        let known = &mut self.numbered[usize::from(v6)];
        if let Some(number) = known.iter().position(|known| known == route) {
            return number;
        }
        if known.len() < MAX_GATEWAYS {
            known.push(Route {
                // Not a part of the table, which may be large.
                interface: Arc::from(route.interface.as_ref()),
                gateway: route.gateway,
            });
            return known.len() - 1;
        }
        let shared = &mut self.shared[usize::from(v6)];
        if shared.len() < MAX_SHARED_GATEWAYS
            && let Some(gateway) = route.address()
            && !shared.contains(&gateway)
        {
            shared.push(gateway);
        }
        MAX_GATEWAYS
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::link::LinkFlags;

    use super::{super::routes::tests::ipv4_routes, *};

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
        let table = ipv4_routes(&[&on_links[..], &[default]].concat());
        let mut next_hops = NextHops::default();
        let mut next_hop =
            |text: &str, by| next_hops.of(text.parse().unwrap(), by, &table, &interfaces);
        assert_eq!(next_hop("10.1.1.1", None), NextHop::OnLink);
        assert_eq!(next_hop("10.1.2.1", None), NextHop::Gateway(0));
        assert_eq!(next_hop("10.2.0.1", None), NextHop::Other);
        assert_eq!(next_hop("192.0.2.1", None), NextHop::Gateway(1));
        assert_eq!(next_hop("10.1.2.2", None), NextHop::Gateway(0));
        assert_eq!(next_hop("10.2.0.1", Some("eth0")), NextHop::Gateway(1));
        // No route by that interface: the target counts as on its link, if it has neighbours.
        let table = ipv4_routes(&on_links);
        let mut next_hops = NextHops::default();
        let mut next_hop =
            |text: &str, by| next_hops.of(text.parse().unwrap(), by, &table, &interfaces);
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
        let table = ipv4_routes(&routes);
        let mut gateways = NextHops::default();
        let numbers = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6].map(NextHop::Gateway);
        for _ in 0..2 {
            let next_hops: [_; 10] = std::array::from_fn(|number| {
                let to = Ipv4Addr::new(10, 0, number as u8, 7);
                gateways.of(to.into(), None, &table, &Interfaces::default())
            });
            assert_eq!(next_hops, numbers);
        }
        // All of them are watched, each once.
        assert_eq!(gateways.gateways().count(), 10);
    }
}
