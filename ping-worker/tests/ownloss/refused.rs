//! Targets of which the kernel refuses some requests and took others.

use std::time::Duration;

use pingfleet_testbed::simnet::Family;
use pingfleet_wire::{Probing, Status};

use crate::{
    caller::{Network, addresses, at_once, variants},
    pair,
    prober::{Asked, Prober},
    truth::all,
};

/// Targets that do not answer.
const SILENT: u32 = 20;

/// ENETUNREACH of Linux.
const NO_ROUTE: i32 = 101;

#[test]
fn a_first_request_that_the_network_lost_and_repeats_that_the_kernel_refused_are_no_down()
-> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        let asked = Asked {
            probing: Probing {
                retries: 2,
                timeout: Duration::from_secs(1),
                rate: None,
                ..Probing::default()
            },
            targets: addresses(pair::silent(variant.family), SILENT),
        };
        let mut running = Prober::default().start(&pair, variant, vec![asked])?;
        running.wait_for(variant.family, SILENT.into())?;
        pair.sh(match variant.family {
            Family::V4 => "ip route del default",
            Family::V6 => "ip -6 route del default",
        })?;
        let report = running.finish()?;
        // In the second pass the kernel refused all of them.
        all(&report.outcomes[0], |outcome| {
            outcome.status == Status::SendFailed { errno: NO_ROUTE }
                && (outcome.sent, outcome.attempts) == (0, 2)
        })
    })
}
