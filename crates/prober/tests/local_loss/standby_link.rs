//! Links beside the one that is used.

use std::time::Duration;

use pingfleet_testbed::simnet::IpVersion;
use pingfleet_wire::{LocalLoss, Probing, Status};

use crate::{
    expectations::{all, is_unknown},
    pair,
    probing_process::{Asked, Prober},
    variants::{Network, addresses, at_once, variants},
};

#[test]
fn a_standby_link_without_carrier_makes_no_target_unknown() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        let (own, gateway) = match variant.family {
            IpVersion::V4 => ("203.0.113.1/30", "203.0.113.2"),
            IpVersion::V6 => ("fd99::1/64", "fd99::2"),
        };
        pair.sh(&format!(
            "ip link add spare0 type veth peer name spare1
             ip link set spare0 up
             ip addr add {own} dev spare0 nodad
             ip route add default via {gateway} dev spare0 metric 2000"
        ))?;
        pair::wait_for(&pair, &["link", "show", "spare0"], "NO-CARRIER")?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: Duration::from_secs(1),
                ..Probing::default()
            },
            targets: addresses(pair::silent(variant.family), 20),
        };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        // A busy machine may stall the prober.
        all(&report.outcomes[0], |outcome| {
            outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::STALLED)
        })
    })
}
