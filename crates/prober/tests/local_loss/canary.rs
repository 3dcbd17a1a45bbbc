//! The echo to this box itself, which takes no link: where it is lost, answers may be as well.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Family, Script, SimNet};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::{Echoes, PATIENCE},
    expectations::{all, is_unknown},
    probing_process::{Asked, Prober, Report},
    variants::{Network, Variant, at_once, hosts, variants},
};

/// Targets that answer; as many others are silent.
const LIVING: u32 = 20;

/// Long enough for a firewall to be set up meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Hosts of which half are silent.
fn network() -> anyhow::Result<SimNet> {
    SimNet::start(Script::alive(1..=LIVING))
}

/// One request to each of them.
fn asked(variant: Variant, timeout: Duration) -> Vec<Asked> {
    let probing = Probing {
        retries: 0,
        timeout,
        rate: None,
        ..Probing::default()
    };
    let targets = hosts(variant.family, 1..=2 * LIVING);
    vec![Asked { probing, targets }]
}

/// Those that answered at once, and then the silent ones.
fn halves(report: &Report) -> (&[Outcome], &[Outcome]) {
    report.outcomes[0].split_at(LIVING as usize)
}

#[test]
fn silence_is_unknown_while_this_box_loses_its_own_echo() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = network()?;
        let running = Prober::default().start(&net, variant, asked(variant, TIMEOUT))?;
        net.wait_for(2 * LIVING as usize, PATIENCE)?;
        // It is IPv4 whatever is probed, and nobody else echoes here. When the second one leaves, the answer to the
        // first one was read, without which its silence would mean nothing.
        let deadline = Instant::now() + PATIENCE;
        while Echoes::read(&net, Family::V4)?.requests_in < 2 {
            ensure!(Instant::now() < deadline, "no canary is sent");
        }
        net.sh("nft add table inet deaf
             nft add chain inet deaf in '{ type filter hook input priority 0; }'
             nft add rule inet deaf in iifname lo icmp type echo-request drop")?;
        let report = running.finish()?;
        let (living, silent) = halves(&report);
        all(living, |outcome| {
            outcome.status == Status::Up && outcome.attempts == 1
        })?;
        all(silent, |outcome| {
            is_unknown(outcome.status, LocalLoss::CANARY) && outcome.attempts == 3
        })
    })
}

/// A box may be set so that it answers no echo, or none to itself. Then silence of the canary says nothing.
#[test]
fn silence_is_down_where_this_box_never_answers_itself() -> anyhow::Result<()> {
    const NEVER: [&str; 2] = [
        "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all",
        "ip link set lo down",
    ];
    for never in NEVER {
        at_once(variants(), |variant| {
            let net = network()?;
            net.sh(never)?;
            let asked = asked(variant, TIMEOUT / 2);
            let report = Prober::default().run(&net, variant, asked)?;
            let (living, silent) = halves(&report);
            all(living, |outcome| outcome.status == Status::Up)?;
            all(silent, |outcome| {
                outcome.status == Status::Down { no_arp: false }
            })
        })?;
    }
    Ok(())
}
