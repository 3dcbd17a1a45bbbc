//! Addresses of our own box that it loses in the middle of a sweep, while the link stays.

use std::{num::NonZeroU32, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Family, Script, SimNet};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::PATIENCE,
    expectations::{all, all_silent, repeated, tally},
    probing_process::{Asked, Prober},
    variants::{Network, at_once, hosts, variants},
};

/// Targets that answer, a fifth of a second after they are asked.
const LIVING: u32 = 2000;

/// Targets that do not.
const SILENT: u32 = 20;

#[test]
fn answers_to_an_address_that_was_taken_away_make_nobody_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = SimNet::start(Script::alive_after(1..=LIVING, Duration::from_millis(200)))?;
        // Used only when the first one is gone; and with one address the link keeps its routes.
        let (bits, second) = match variant.family {
            Family::V4 => (32, "192.0.2.7/32 dev sim0"),
            Family::V6 => (128, "fd00:2::7/128 dev sim0 nodad preferred_lft 0"),
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
        net.wait_for(500, PATIENCE)?;
        let first = net.own_address(variant.family);
        net.sh(&format!("ip addr del {first}/{bits} dev sim0"))?;
        let report = running.finish()?;
        let (living, silent) = report.outcomes[0].split_at(LIVING as usize);
        ensure!(repeated(living) > 0, "{:?}", tally(living));
        all(living, |outcome| outcome.status == Status::Up)?;
        all_silent(silent)
    })
}
