//! Which of a name's addresses is probed. Asks the kernel for routes, by a function that tests replace.
//!
//! An address from a name server passes the rules that the address of a target passes. Of those that pass, the first one
//! that this machine has a route to is chosen (RFC 6724, section 6, rule 1), else the first one.

use std::net::IpAddr;

use pingfleet_wire::{DnsFailure, Family, Probing, is_host_address};

use super::Unresolved;
use crate::prober::Destination;

/// Whether there is a route to a destination, by the given interface if there is one.
pub(super) type HasRoute = fn(Destination, Option<&str>) -> bool;

/// The choice for one name, as far as its addresses are known.
pub(super) struct Choice<'a> {
    probing: &'a Probing,
    has_route: HasRoute,
    /// The first address that may be probed and has no route.
    without_route: Option<Destination>,
    /// Whether an address may not be probed.
    is_blocked: bool,
}

impl<'a> Choice<'a> {
    pub(super) fn new(probing: &'a Probing, has_route: HasRoute) -> Self {
        Self {
            probing,
            has_route,
            without_route: None,
            is_blocked: false,
        }
    }

    /// Takes in more addresses, and returns the first one that may be probed and has a route.
    pub(super) fn offer(&mut self, addresses: &[IpAddr]) -> Option<Destination> {
        let interface = self.probing.interface.as_deref();
        for address in addresses {
            let to = Destination::from(*address);
            if !self.may_be_probed(to.address) {
                self.is_blocked = true;
            } else if (self.has_route)(to, interface) {
                return Some(to);
            } else {
                self.without_route.get_or_insert(to);
            }
        }
        None
    }

    /// Whether any address was offered.
    pub(super) fn is_offered(&self) -> bool {
        self.is_blocked || self.without_route.is_some()
    }

    /// The result when no address has a route: the first one that may be probed, or why there is none.
    pub(super) fn without_route(self, failure: DnsFailure) -> Result<Destination, Unresolved> {
        self.without_route
            .ok_or(Unresolved::Name(if self.is_blocked {
                DnsFailure::BlockedAddress
            } else {
                failure
            }))
    }

    /// The result when the rest of the addresses cannot be found out.
    pub(super) fn interrupted(self, error: Unresolved) -> Result<Destination, Unresolved> {
        self.without_route.ok_or(error)
    }

    /// Whether an address may be probed. A link-local one needs a zone, or an interface for all requests.
    fn may_be_probed(&self, address: IpAddr) -> bool {
        let is_of_family = match self.probing.family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        };
        let lacks_zone = match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local() && self.probing.interface.is_none(),
        };
        is_of_family && is_host_address(address) && !lacks_zone
    }
}
