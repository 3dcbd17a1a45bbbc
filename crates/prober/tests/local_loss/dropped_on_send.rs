//! Requests that this machine's kernel drops on the way out: by a full interface queue, or by a filter.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::Echoes,
    expectations::{all, all_silent, is_unknown, repeated, tally, up_or_unknown},
    pair,
    probing_process::{Asked, Prober},
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// How many targets answer.
const LIVING: u32 = 400;

/// How many targets are silent.
const SILENT: u32 = 20;

/// The answering targets, then the silent ones, without pacing.
fn asked(variant: Variant) -> Asked {
    let mut targets = addresses(pair::living(variant.family), LIVING);
    targets.extend(addresses(pair::silent(variant.family), SILENT));
    Asked {
        probing: Probing {
            retries: 0,
            timeout: Duration::from_secs(1),
            rate: None,
            ..Probing::default()
        },
        targets,
    }
}

/// Whether the kernel does not report to the socket what it drops.
fn drops_silently(variant: &Variant) -> bool {
    variant.family == IpVersion::V6 && !variant.caller.is_raw
}

/// From now on the kernel drops echo requests on their way out. Neighbour discovery still works.
fn forbid(pair: &Namespace) -> anyhow::Result<()> {
    pair.sh("nft add table ip6 strict
         nft add chain ip6 strict out '{ type filter hook output priority 0; }'
         nft add rule ip6 strict out icmpv6 type echo-request drop")
}

#[test]
fn targets_behind_a_silent_filter_are_up_after_it_is_removed() -> anyhow::Result<()> {
    at_once(variants().filter(drops_silently), |variant| {
        let pair = pair::make()?;
        forbid(&pair)?;
        let mut running = Prober::default().start(&pair, variant, vec![asked(variant)])?;
        // The kernel counts them before the filter drops them.
        running.wait_for(variant.family, 20)?;
        pair.sh("nft delete table ip6 strict")?;
        let report = running.finish()?;
        let (living, silent) = report.outcomes[0].split_at(LIVING as usize);
        ensure!(repeated(living) > 0, "{:?}", tally(living));
        all(living, |outcome| outcome.status == Status::Up)?;
        all_silent(silent)
    })
}

#[test]
fn targets_behind_a_silent_filter_that_stays_are_unknown() -> anyhow::Result<()> {
    at_once(variants().filter(drops_silently), |variant| {
        let pair = pair::make()?;
        forbid(&pair)?;
        let report = Prober::default().run(&pair, variant, vec![asked(variant)])?;
        let came = Echoes::read(&Far(&pair), variant.family)?;
        ensure!(came.requests_in == 0, "{came:?}");
        all(&report.outcomes[0], |outcome| {
            is_unknown(outcome.status, LocalLoss::SEND_PATH) && outcome.attempts == 3
        })
    })
}

#[test]
fn a_full_interface_queue_makes_no_answering_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        // Room for some twenty requests, which leave at about a thousand a second.
        pair.sh("tc qdisc add dev veth0 root tbf rate 1mbit burst 2000 limit 2500")?;
        let before = backlog_drops()?;
        let report = Prober::default().run(&pair, variant, vec![asked(variant)])?;
        let show = ["-s", "qdisc", "show", "dev", "veth0"];
        let shown = pair.command("tc").args(show).output()?;
        let shown = String::from_utf8(shown.stdout)?;
        let nothing = shown.contains("dropped 0, ");
        ensure!(!nothing, "the queue was never full: {shown}");
        let (living, silent) = report.outcomes[0].split_at(LIVING as usize);
        if drops_silently(&variant) {
            ensure!(repeated(living) > 0, "{:?}", tally(living));
            all(living, |outcome| {
                up_or_unknown(outcome.status, LocalLoss::SEND_PATH)
            })?;
            return all(silent, |outcome| {
                outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::SEND_PATH)
            });
        }
        // A flood of another test takes room from all networks of the machine, on the way between two namespaces.
        let flooded = backlog_drops()? - before;
        let not_up = living.iter().filter(|outcome| outcome.status != Status::Up);
        ensure!(not_up.count() as u64 <= flooded, "{:?}", tally(living));
        // The far side drops requests to silent targets before it counts.
        let came = Echoes::read(&Far(&pair), variant.family)?;
        let sent = |outcome: &Outcome| u64::from(outcome.sent) * u64::from(outcome.attempts);
        let sent: u64 = living.iter().map(sent).sum();
        let lost = sent - came.requests_in;
        ensure!(lost <= flooded, "{sent} sent, {came:?}, {flooded} flooded");
        Ok(())
    })
}

/// Messages between namespaces that this machine dropped for lack of room (second column of `softnet_stat`).
fn backlog_drops() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat")?;
    let counts = text.lines().map(|line| {
        let count = line.split_ascii_whitespace().nth(1);
        anyhow::Ok(u64::from_str_radix(count.context("a short line")?, 16)?)
    });
    counts.sum()
}
