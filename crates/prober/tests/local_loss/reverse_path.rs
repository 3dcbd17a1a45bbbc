//! Replies that this machine's reverse path filter drops: it has a route to their sender by another interface.

use std::time::Duration;

use anyhow::{Context, ensure};
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    expectations::{all, all_silent, is_unknown},
    pair,
    probing_process::{Asked, Prober},
    repeated::Repeated,
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// Probes some targets that answer, by an interface that is not the one of the best route to them.
fn probe(pair: &Namespace, variant: Variant, filter: u8) -> anyhow::Result<Vec<Outcome>> {
    pair.sh(&format!(
        "ip link add other0 type veth peer name other1; ip link set other1 up
         ip link set other0 up
         ip route add 10.0.0.0/16 dev other0
         echo {filter} > /proc/sys/net/ipv4/conf/veth0/rp_filter"
    ))?;
    let asked = Asked {
        probing: Probing {
            retries: 0,
            timeout: Duration::from_millis(500),
            interface: Some("veth0".to_owned()),
            ..Probing::default()
        },
        targets: addresses(pair::living(variant.family), 20),
    };
    let mut report = Prober::default().run(pair, variant, vec![asked])?;
    Ok(report.outcomes.swap_remove(0))
}

/// The kernel's counter of what the filter has dropped.
fn dropped(pair: &Namespace) -> anyhow::Result<u64> {
    let output = Network::command(pair, "cat")
        .arg("/proc/net/netstat")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("no counters")?;
    let mut both = std::iter::zip(names.split(' '), values.split(' '));
    let found = both.find(|(name, _)| *name == "IPReversePathFilter");
    Ok(found.context("no such counter")?.1.parse()?)
}

fn is_v4(variant: &Variant) -> bool {
    variant.family == IpVersion::V4
}

#[test]
fn targets_whose_replies_the_reverse_path_filter_drops_are_unknown() -> anyhow::Result<()> {
    at_once(variants().filter(is_v4), |variant| {
        let pair = pair::make()?;
        let outcomes = probe(&pair, variant, 1)?;
        ensure!(dropped(&pair)? >= 20, "nothing was dropped");
        all(&outcomes, |outcome| {
            is_unknown(outcome.status, LocalLoss::RP_FILTER) && outcome.attempts == 3
        })
    })
}

/// The filter drops other messages all the time, and our replies could only come by the interface that leads to their sender.
#[test]
fn targets_that_are_silent_while_the_filter_drops_other_messages_are_down() -> anyhow::Result<()> {
    at_once(variants().filter(is_v4), |variant| {
        let pair = pair::make()?;
        pair.sh(
            "ip link add other0 type veth peer name other1; ip link set other1 up
         ip link set other0 up
         ip route add 10.77.0.0/16 dev other0
         echo 1 > /proc/sys/net/ipv4/conf/veth0/rp_filter",
        )?;
        let far = Far(&pair);
        far.sh("ip addr add 10.77.0.1/32 dev lo")?;
        let [near, _] = pair::ends(variant.family);
        let send =
            format!("ping -q -n -c 1 -W 0.1 -I 10.77.0.1 {near} >/dev/null || true\nsleep 0.05");
        let dropping = Repeated::start(&far, &send)?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: Duration::from_millis(500),
                ..Probing::default()
            },
            targets: addresses(pair::silent(variant.family), 20),
        };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        dropping.stop()?;
        ensure!(dropped(&pair)? > 0, "nothing was dropped");
        all_silent(&report.outcomes[0])
    })
}

/// The control: without the filter they are up.
#[test]
fn without_a_reverse_path_filter_the_same_targets_are_up() -> anyhow::Result<()> {
    at_once(variants().filter(is_v4), |variant| {
        let pair = pair::make()?;
        let outcomes = probe(&pair, variant, 0)?;
        ensure!(dropped(&pair)? == 0, "replies were dropped");
        all(&outcomes, |outcome| outcome.status == Status::Up)
    })
}
