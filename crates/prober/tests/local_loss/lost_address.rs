//! An address of this machine is removed during a sweep, while the link stays up.

use std::{num::NonZeroU32, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::simnet::{IpVersion, Script, SimNet};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::MAX_WAIT,
    expectations::{all, all_silent, repeated, tally},
    probing_process::{Asked, Prober},
    variants::{Network, at_once, hosts, variants},
};

/// Targets that answer, after 200 ms.
const LIVING: u32 = 2000;

/// Targets that do not answer.
const SILENT: u32 = 20;

#[test]
fn answers_to_a_removed_address_make_no_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = SimNet::start(Script::alive_after(1..=LIVING, Duration::from_millis(200)))?;
        // It is used only when the first one is removed, and with it the link keeps its routes.
        let (bits, second) = match variant.family {
            IpVersion::V4 => (32, "192.0.2.7/32 dev sim0"),
            IpVersion::V6 => (128, "fd00:2::7/128 dev sim0 nodad preferred_lft 0"),
        };
        net.sh(&format!("ip addr add {second}"))?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: Duration::from_secs(1),
                rate: NonZeroU32::new(1000),
                ..Probing::default()
            },
            targets: hosts(variant.family, 1..=LIVING + SILENT),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(500, MAX_WAIT)?;
        let first = net.own_address(variant.family);
        net.sh(&format!("ip addr del {first}/{bits} dev sim0"))?;
        let report = running.finish()?;
        let (living, silent) = report.outcomes[0].split_at(LIVING as usize);
        ensure!(repeated(living) > 0, "{:?}", tally(living));
        all(living, |outcome| outcome.status == Status::Up)?;
        all_silent(silent)
    })
}
