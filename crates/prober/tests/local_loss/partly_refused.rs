//! Targets of which the kernel accepts some requests and refuses others.

use std::time::Duration;

use pingfleet_testbed::simnet::IpVersion;
use pingfleet_wire::{LocalLoss, Probing, Status};

use crate::{
    expectations::{all, is_unknown},
    pair,
    probing_process::{Asked, Prober},
    variants::{Network, Variant, addresses, at_once, variants},
};

/// Targets that do not answer.
const SILENT: u32 = 20;

/// EPERM of Linux.
const FORBIDDEN: i32 = 1;

#[test]
fn a_target_with_a_lost_request_and_refused_retries_is_not_down() -> anyhow::Result<()> {
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
            IpVersion::V4 => "ip route del default",
            IpVersion::V6 => "ip -6 route del default",
        })?;
        let report = running.finish()?;
        // In the second attempt the kernel refused all requests. It accepted one in the first.
        all(&report.outcomes[0], |outcome| {
            is_unknown(outcome.status, LocalLoss::SEND_PATH)
                && (outcome.sent, outcome.attempts) == (0, 2)
        })
    })
}

/// A filter that rejects answers each refused request with an ICMP error, which is pending on the socket at the next try.
#[test]
fn a_target_that_a_filter_rejects_is_send_failed() -> anyhow::Result<()> {
    // To an IPv6 datagram socket the kernel reports no refusal.
    let is_reported = |variant: &Variant| variant.family == IpVersion::V4 || variant.caller.is_raw;
    at_once(variants().filter(is_reported), |variant| {
        let pair = pair::make()?;
        let silent = pair::silent(variant.family);
        pair.sh(&match variant.family {
            IpVersion::V4 => filter("ip", &format!("{silent}/24"), "icmp type host-unreachable"),
            IpVersion::V6 => filter(
                "ip6",
                &format!("{silent}/64"),
                "icmpv6 type admin-prohibited",
            ),
        })?;
        let mut targets = addresses(silent, SILENT);
        targets.extend(addresses(pair::living(variant.family), SILENT));
        let probing = Probing {
            retries: 0,
            rate: None,
            ..Probing::default()
        };
        let asked = Asked { probing, targets };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        let (refused, living) = report.outcomes[0].split_at(SILENT as usize);
        all(refused, |outcome| {
            outcome.status == Status::SendFailed { errno: FORBIDDEN } && outcome.sent == 0
        })?;
        all(living, |outcome| outcome.status == Status::Up)
    })
}

/// A filter that rejects requests to these addresses.
fn filter(family: &str, to: &str, with: &str) -> String {
    format!(
        "nft add table {family} strict
         nft add chain {family} strict out '{{ type filter hook output priority 0; }}'
         nft add rule {family} strict out {family} daddr {to} reject with {with}"
    )
}
