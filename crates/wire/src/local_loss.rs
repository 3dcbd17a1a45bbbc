//! Why an answer may have been lost on the machine that probes. No I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an answer may have been lost on this machine: a set of causes, each a bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalLoss(pub u16);

impl LocalLoss {
    /// The socket dropped what it had received.
    pub const SOCKET_DROPS: Self = Self(1);
    /// A request may not have left, for a reason that has no bit of its own.
    pub const SEND_PATH: Self = Self(2);
    /// The loop that reads answers was late.
    pub const STALLED: Self = Self(4);
    /// An echo request to the loopback address was not answered.
    pub const CANARY: Self = Self(8);
    /// The prober ended before the answer could have come.
    pub const INTERRUPTED: Self = Self(16);
    /// An interface on the way was down, or had no carrier.
    pub const LINK_DOWN: Self = Self(32);
    /// This machine had no route to the target, or one that refuses.
    pub const NO_ROUTE: Self = Self(64);
    /// This machine had no source address, or lost one of its addresses.
    pub const NO_ADDRESS: Self = Self(128);
    /// The gateway did not answer ARP or neighbour solicitations.
    pub const GATEWAY_NO_ARP: Self = Self(256);
    /// A filter of this machine refused requests.
    pub const LOCAL_FIREWALL: Self = Self(512);
    /// The reverse path filter of this machine dropped incoming messages.
    pub const RP_FILTER: Self = Self(1024);

    const NAMES: [(Self, &'static str); LocalLossCounts::CAUSES] = [
        (Self::SOCKET_DROPS, "socket_drops"),
        (Self::SEND_PATH, "send_path"),
        (Self::STALLED, "stalled"),
        (Self::CANARY, "canary"),
        (Self::INTERRUPTED, "interrupted"),
        (Self::LINK_DOWN, "link_down"),
        (Self::NO_ROUTE, "no_route"),
        (Self::NO_ADDRESS, "no_address"),
        (Self::GATEWAY_NO_ARP, "gateway_no_arp"),
        (Self::LOCAL_FIREWALL, "local_firewall"),
        (Self::RP_FILTER, "rp_filter"),
    ];

    /// Whether any cause of `other` is in the set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is no cause.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Each cause of the set that has a name, as a set of its own.
    pub fn causes(self) -> impl Iterator<Item = Self> {
        let all = Self::NAMES.into_iter().map(|(cause, _)| cause);
        all.filter(move |cause| self.has(*cause))
    }
}

impl fmt::Display for LocalLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::NAMES
            .iter()
            .filter(|(cause, _)| self.has(*cause))
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&names.join(","))
    }
}

/// How often each cause of a [`LocalLoss`] occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalLossCounts {
    /// The socket dropped what it had received.
    pub socket_drops: u64,
    /// A request may not have left, for a reason that has no count of its own.
    pub send_path: u64,
    /// The loop that reads answers was late.
    pub stalled: u64,
    /// An echo request to the loopback address was not answered.
    pub canary: u64,
    /// The prober ended before the answer could have come.
    pub interrupted: u64,
    /// An interface on the way was down, or had no carrier.
    pub link_down: u64,
    /// There was no route, or one that refuses.
    pub no_route: u64,
    /// There was no source address, or one of the addresses was removed.
    pub no_address: u64,
    /// The gateway did not answer ARP or neighbour solicitations.
    pub gateway_no_arp: u64,
    /// A filter of the machine refused requests.
    pub local_firewall: u64,
    /// The reverse path filter of the machine dropped incoming messages.
    pub rp_filter: u64,
}

impl LocalLossCounts {
    /// The number of causes.
    pub const CAUSES: usize = 11;

    /// Each cause by its name, such as `socket_drops`, with its count.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = LocalLoss::NAMES.into_iter().map(|(_, name)| name);
        names.zip(self.by_cause())
    }

    /// The counts in the order of the bits of [`LocalLoss`].
    #[must_use]
    pub fn by_cause(&self) -> [u64; Self::CAUSES] {
        [
            self.socket_drops,
            self.send_path,
            self.stalled,
            self.canary,
            self.interrupted,
            self.link_down,
            self.no_route,
            self.no_address,
            self.gateway_no_arp,
            self.local_firewall,
            self.rp_filter,
        ]
    }

    /// From the counts in the order of the bits of [`LocalLoss`].
    #[must_use]
    pub fn from_causes(counts: [u64; Self::CAUSES]) -> Self {
        let [
            socket_drops,
            send_path,
            stalled,
            canary,
            interrupted,
            link_down,
            no_route,
            no_address,
            gateway_no_arp,
            local_firewall,
            rp_filter,
        ] = counts;
        Self {
            socket_drops,
            send_path,
            stalled,
            canary,
            interrupted,
            link_down,
            no_route,
            no_address,
            gateway_no_arp,
            local_firewall,
            rp_filter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_loss_shows_the_names_of_its_causes() {
        let loss = LocalLoss::SOCKET_DROPS.and(LocalLoss::STALLED);
        assert_eq!(loss.to_string(), "socket_drops,stalled");
        let loss = LocalLoss::SOCKET_DROPS.and(LocalLoss::RP_FILTER);
        assert_eq!(loss.to_string(), "socket_drops,rp_filter");
        assert!(
            loss.causes()
                .eq([LocalLoss::SOCKET_DROPS, LocalLoss::RP_FILTER])
        );
    }

    #[test]
    fn each_cause_has_a_bit_a_name_and_a_count() {
        for (position, (cause, name)) in LocalLoss::NAMES.into_iter().enumerate() {
            assert_eq!(cause.0, 1 << position, "{name}");
            let mut counts = [0; LocalLossCounts::CAUSES];
            counts[position] = 7;
            assert_eq!(LocalLossCounts::from_causes(counts).by_cause(), counts);
        }
    }
}
