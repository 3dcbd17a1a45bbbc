//! The canary, an echo to 127.0.0.1 that uses no link: when it is lost, answers may be lost as well.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pingfleet_testbed::simnet::{IpVersion, Script, SimNet};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::{Echoes, MAX_WAIT},
    expectations::{all, is_unknown},
    probing_process::{Asked, Prober, Report},
    variants::{Network, Variant, at_once, hosts, variants},
};

/// Targets that answer; as many others are silent.
const LIVING: u32 = 20;

/// Long enough to set up a firewall meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A network in which half of the hosts are silent.
fn network() -> anyhow::Result<SimNet> {
    SimNet::start(Script::alive(1..=LIVING))
}

/// One request to each host.
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

/// The outcomes of the answering hosts, then those of the silent ones.
fn halves(report: &Report) -> (&[Outcome], &[Outcome]) {
    report.outcomes[0].split_at(LIVING as usize)
}

#[test]
fn silence_is_unknown_while_the_canary_is_lost() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = network()?;
        let running = Prober::default().start(&net, variant, asked(variant, TIMEOUT))?;
        net.wait_for(2 * LIVING as usize, MAX_WAIT)?;
        // The canary is always IPv4, and nothing else sends echo requests here. When the second canary is sent, the
        // answer to the first one has been read; before that, a missing answer does not count.
        let deadline = Instant::now() + MAX_WAIT;
        while Echoes::read(&net, IpVersion::V4)?.requests_in < 2 {
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

/// Some machines answer no echo, or none to themselves. There a missing answer to the canary does not count.
#[test]
fn silence_is_down_where_the_canary_is_never_answered() -> anyhow::Result<()> {
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
            all(silent, |outcome| outcome.status == Status::DOWN)
        })?;
    }
    Ok(())
}
