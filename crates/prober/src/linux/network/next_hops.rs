//! The next hops of one thread's requests, each with a number that stays. Pure: no I/O and no clock.

use std::{net::IpAddr, sync::Arc};

use super::{
    interface::{Interface, Interfaces},
    routes::{Gateway, Route, RouteTable},
};

/// Gateways of each family that have a number, and so a socket, of their own. All others share one more number.
const MAX_GATEWAYS: usize = 6;

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

/// The gateways that have a number, those of IPv4 first: it is their index, in the order in which they were first needed.
#[derive(Debug, Default)]
pub(super) struct NextHops([Vec<Route>; 2]);

impl NextHops {
    /// The gateway of a number, with its interface; `None` if it is unknown, or if several gateways share the number.
    pub(super) fn gateway(&self, v6: bool, number: usize) -> Option<(String, IpAddr)> {
        let Route { interface, gateway } = self.0[usize::from(v6)].get(number)?;
        match gateway {
            Gateway::Address(address) => Some((interface.as_ref().to_owned(), *address)),
            Gateway::None | Gateway::Unknown => None,
        }
    }

    /// All gateways that have a number of their own, with their interfaces.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let families = [false, true].into_iter();
        families.flat_map(move |v6| {
            (0..MAX_GATEWAYS).filter_map(move |number| self.gateway(v6, number))
        })
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
        let known = &mut self.0[usize::from(v6)];
        let number = known.iter().position(|known| known == route);
        number.unwrap_or_else(|| {
            if known.len() == MAX_GATEWAYS {
                return MAX_GATEWAYS;
            }
            known.push(Route {
                // Not a part of the table, which may be large.
                interface: Arc::from(route.interface.as_ref()),
                gateway: route.gateway,
            });
            known.len() - 1
        })
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
    }
}
