//! The states of the network interfaces, at the last check.

use std::collections::HashMap;

use netlink_packet_route::link::LinkFlags;

/// The state of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its flags (`netdevice(7)`).
    pub(super) flags: LinkFlags,
    /// How often it has lost its carrier, where the kernel reports it (Linux 4.16).
    pub(super) carrier_down_count: Option<u32>,
}

impl Interface {
    /// Whether it is set up.
    pub(super) fn is_up(self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    /// Whether it has its carrier and the kernel has noticed that. The kernel sends nothing before.
    pub(super) fn is_running(self) -> bool {
        self.flags
            .contains(LinkFlags::Running.union(LinkFlags::LowerUp))
    }

    /// Whether the kernel resolves link addresses on it.
    pub(super) fn has_neighbours(self) -> bool {
        let without = LinkFlags::Noarp
            .union(LinkFlags::Loopback)
            .union(LinkFlags::Pointopoint);
        !self.flags.intersects(without)
    }
}

/// All interfaces, by name.
#[derive(Debug, Default, Clone)]
pub(super) struct Interfaces(HashMap<String, Interface>);

impl Interfaces {
    /// The state of an interface.
    pub(super) fn get(&self, name: &str) -> Option<Interface> {
        self.0.get(name).copied()
    }

    /// Sets the state of an interface.
    pub(super) fn replace(&mut self, name: String, state: Interface) {
        self.0.insert(name, state);
    }

    /// An interface no longer exists.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The names of all interfaces.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}
