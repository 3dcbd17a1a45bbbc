//! Links of this machine that go down, or lose their carrier, during a sweep.

use std::{num::NonZeroU32, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::{
    Namespace,
    simnet::{Script, SimNet},
};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::{Echoes, MAX_WAIT},
    expectations::{all, is_unknown, repeated, tally, up_or_unknown},
    pair,
    probing_process::{Asked, Prober, Running},
    variants::{Far, Network, Variant, addresses, at_once, hosts, variants},
};

/// How many targets answer.
const LIVING: u32 = 1500;

/// How many targets are silent.
const SILENT: u32 = 20;

/// Requests that have left when the outage begins.
const MIDDLE: u64 = 400;

/// One request for each target, over one and a half seconds.
fn probing() -> Probing {
    Probing {
        retries: 0,
        timeout: Duration::from_secs(1),
        rate: NonZeroU32::new(1000),
        ..Probing::default()
    }
}

/// The outcomes of the answering and of the silent targets of a sweep. `happens` is called in the middle.
fn sweep(
    pair: &Namespace,
    variant: Variant,
    happens: impl FnOnce(&mut Running) -> anyhow::Result<()>,
) -> anyhow::Result<(Vec<Outcome>, Vec<Outcome>)> {
    let mut targets = addresses(pair::silent(variant.family), SILENT);
    targets.extend(addresses(pair::living(variant.family), LIVING));
    let probing = probing();
    let asked = Asked { probing, targets };
    let mut running = Prober::default().start(pair, variant, vec![asked])?;
    running.wait_for(variant.family, MIDDLE)?;
    happens(&mut running)?;
    let mut report = running.finish()?;
    let mut silent = report.outcomes.swap_remove(0);
    let living = silent.split_off(SILENT as usize);
    Ok((living, silent))
}

#[test]
fn targets_are_up_after_their_link_has_recovered() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        let far = Far(&pair);
        let (living, silent) = sweep(&pair, variant, |running| {
            far.sh("ip link set veth0 down")?;
            running.wait_for(variant.family, MIDDLE + 150)?;
            // Between the carrier's return and the far side's recovery the far side would lose requests.
            running.signal("-STOP")?;
            pair::set_up(&far)?;
            // The near side's kernel may need another second. Until then the prober cannot know, and repeats requests to silent
            // targets as lost here, for at most three attempts.
            pair::wait_for_carrier(&pair)?;
            running.signal("-CONT")
        })?;
        let sent = Echoes::read(&pair, variant.family)?;
        let came = Echoes::read(&far, variant.family)?;
        // Requests that arrive on the near side are canaries.
        let lost = sent.requests_out - sent.requests_in - came.requests_in;
        ensure!(lost > SILENT.into(), "nothing was lost: {sent:?} {came:?}");
        all(&living, |outcome| outcome.status == Status::Up)?;
        // A busy machine may stall the prober.
        all(&silent, |outcome| {
            outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::STALLED)
        })
    })
}

#[test]
fn targets_of_a_link_that_stays_without_carrier_are_unknown() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        let (living, silent) = sweep(&pair, variant, |_| Far(&pair).sh("ip link set veth0 down"))?;
        all(&living, |outcome| {
            up_or_unknown(outcome.status, LocalLoss::LINK_DOWN)
        })?;
        let lost = living.iter().filter(|outcome| outcome.status != Status::Up);
        ensure!(lost.count() > 0, "the sweep was over before");
        // They may have been settled before the outage.
        all(&silent, |outcome| {
            outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::LINK_DOWN)
        })
    })
}

#[test]
fn targets_of_a_link_that_stays_down_are_unknown() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        let (living, silent) = sweep(&pair, variant, |_| pair.sh("ip link set veth0 down"))?;
        all(&living, |outcome| {
            up_or_unknown(outcome.status, LocalLoss::LINK_DOWN)
        })?;
        let refused = |outcome: &Outcome| outcome.status != Status::Up && outcome.sent == 0;
        ensure!(living.iter().any(refused), "{:?}", tally(&living));
        all(&silent, |outcome| {
            outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::LINK_DOWN)
        })
    })
}

#[test]
fn a_link_without_carrier_from_the_start_makes_no_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        Far(&pair).sh("ip link set veth0 down")?;
        pair::wait_for(&pair, &["link", "show", "veth0"], "NO-CARRIER")?;
        let (living, silent) = sweep(&pair, variant, |_| Ok(()))?;
        for outcomes in [living, silent] {
            all(&outcomes, |outcome| {
                is_unknown(outcome.status, LocalLoss::LINK_DOWN)
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_link_that_is_down_for_a_moment_makes_no_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = SimNet::start(Script::alive_after(1..=6000, Duration::from_millis(200)))?;
        net.sh("echo 1 > /proc/sys/net/ipv6/conf/sim0/keep_addr_on_down")?;
        let asked = Asked {
            probing: Probing {
                rate: NonZeroU32::new(2000),
                ..probing()
            },
            targets: hosts(variant.family, 1..=6000),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(1000, MAX_WAIT)?;
        // The outage of 40 ms: the answers to 80 requests arrive in it.
        net.sh("ip link set sim0 down; sleep 0.04; ip link set sim0 up
             ip route add 10.64.0.0/10 dev sim0; ip route add fd00:64::/64 dev sim0")?;
        let report = running.finish()?;
        let traffic = net.stop()?;
        let outcomes = &report.outcomes[0];
        let lost = traffic.refused > 0 || repeated(outcomes) > 0;
        ensure!(lost, "no answer was lost");
        all(outcomes, |outcome| {
            let causes = [
                LocalLoss::LINK_DOWN,
                LocalLoss::NO_ROUTE,
                LocalLoss::NO_ADDRESS,
            ];
            causes
                .into_iter()
                .any(|cause| up_or_unknown(outcome.status, cause))
        })
    })
}
