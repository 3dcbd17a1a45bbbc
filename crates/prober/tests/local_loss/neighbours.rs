//! Next hops and neighbours whose link address is not known yet, or never will be.

use std::{process::Stdio, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::Family};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::Echoes,
    expectations::{all, tally},
    pair,
    probing_process::{Asked, Prober},
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// Targets behind the next hop.
const ROUTED: u32 = 3000;

/// Targets on the link that answer.
const LIVING_NEIGHBOURS: u32 = 10;

/// How long the kernel asks for a neighbour in vain (`arp(7)`: three times, a second apart).
const GIVEN_UP: Duration = Duration::from_secs(3);

/// Bytes of payload with which 253 requests fill a send buffer of 4 MiB, and one of them is no fragment too many.
const LONG: u16 = 20_000;

/// What a prober loses below itself that sends everything at once: the kernel keeps some requests until it knows the
/// next hop's link address, and drops the others.
#[test]
fn a_next_hop_that_takes_a_second_to_resolve_costs_no_answer() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = slow_network(variant.family)?;
        let asked = Asked {
            probing: Probing {
                retries: 1,
                timeout: Duration::from_secs(4),
                rate: None,
                ..Probing::default()
            },
            targets: addresses(pair::living(variant.family), ROUTED),
        };
        let running = Prober::default().start(&pair, variant, vec![asked])?;
        pair::hear_the_next_question(&Far(&pair))?;
        let report = running.finish()?;
        let sent = Echoes::read(&pair, variant.family)?;
        let came = Echoes::read(&Far(&pair), variant.family)?;
        // What came to the near side is the prober's own canary.
        let dropped = sent.requests_out - sent.requests_in - came.requests_in;
        ensure!(
            dropped == 0,
            "{dropped} requests never came to the next hop"
        );
        let slowest = report.outcomes[0].iter().filter_map(|outcome| outcome.rtt);
        let slowest = slowest.map(|rtt| rtt.max_ns).max();
        ensure!(
            slowest > Some(500_000_000),
            "the next hop was known at once: {slowest:?}"
        );
        all(&report.outcomes[0], |outcome| {
            outcome.status == Status::Up && outcome.attempts == 1
        })
    })
}

/// Its control: fping knows no window.
#[test]
fn a_slow_next_hop_drops_what_is_sent_at_once() -> anyhow::Result<()> {
    let pair = slow_network(Family::V4)?;
    let mut fping = Network::command(&pair, "fping");
    let mut fping = fping
        .args([
            "-q",
            "-c",
            "1",
            "-i",
            "0",
            "-t",
            "3000",
            "-g",
            "10.0.0.0",
            "10.0.11.183",
        ])
        .stderr(Stdio::null())
        .spawn()?;
    pair::hear_the_next_question(&Far(&pair))?;
    fping.wait()?;
    let sent = Echoes::read(&pair, Family::V4)?;
    let came = Echoes::read(&Far(&pair), Family::V4)?;
    ensure!(
        came.requests_in * 2 < sent.requests_out,
        "{came:?} of {sent:?}"
    );
    Ok(())
}

/// A network whose gateway answers no question for its link address.
fn slow_network(family: Family) -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    pair::deafen(&Far(&pair))?;
    let [_, gateway] = pair::ends(family);
    pair.sh(&format!("ip neigh del {gateway} dev veth0"))?;
    Ok(pair)
}

#[test]
fn dead_neighbours_are_down_for_no_arp_and_hold_up_nobody() -> anyhow::Result<()> {
    // All networks of a box share one table of neighbours: no more of them at once than it holds.
    let variants: Vec<_> = variants().collect();
    for some in variants.chunks(4) {
        at_once(some.iter().copied(), dead_neighbours)?;
    }
    Ok(())
}

fn dead_neighbours(variant: Variant) -> anyhow::Result<()> {
    let pair = pair::make()?;
    let (own, dead, living, bits) = match variant.family {
        Family::V4 => ("192.0.2.254", "192.0.2.1", "192.0.2.200", 24),
        Family::V6 => ("fd00:2::fe", "fd00:2::1", "fd00:2::c8", 120),
    };
    pair.sh(&format!("ip addr add {own}/{bits} dev veth0 nodad"))?;
    // The living ones stand in the middle of the dead ones.
    for neighbour in texts(living, LIVING_NEIGHBOURS) {
        Far(&pair).sh(&format!("ip addr add {neighbour}/{bits} dev veth0 nodad"))?;
    }
    pair::wait_for_address(&pair, own)?;
    pair::know(&Far(&pair), own)?;
    let probing = Probing {
        retries: 0,
        timeout: Duration::from_secs(5),
        rate: None,
        ..Probing::default()
    };
    // Requests that wait for a link address fill the buffer that they leave by: long ones fill even a large one.
    let long = Asked {
        probing: Probing {
            size: LONG,
            ..probing.clone()
        },
        targets: addresses(dead, 253),
    };
    let beyond = Asked {
        probing,
        targets: addresses(pair::living(variant.family), ROUTED),
    };
    let report = Prober::default().run(&pair, variant, vec![long, beyond])?;
    let [neighbours, beyond] = &report.outcomes[..] else {
        unreachable!("two chunks were asked");
    };
    all(beyond, |outcome| {
        outcome.status == Status::Up && outcome.attempts == 1
    })?;
    // By the same socket the others would wait for the room that is free only then.
    ensure!(
        report.took[1] < GIVEN_UP,
        "the dead ones held up the others: {:?}",
        report.took
    );
    let (before, rest) = neighbours.split_at(199);
    let (living, after) = rest.split_at(LIVING_NEIGHBOURS as usize);
    all(living, |outcome| outcome.status == Status::Up)?;
    let no_arp = Status::Down { no_arp: true };
    for dead in [before, after] {
        all(dead, |outcome| {
            matches!(outcome.status, Status::Down { .. })
        })?;
    }
    // The kernel does not say so of each neighbour that it gives up, and of fewer the busier it is.
    let told = neighbours.iter().any(|outcome| outcome.status == no_arp);
    ensure!(told, "{:?}", tally(neighbours));
    Ok(())
}

fn texts(first: &str, count: u32) -> Vec<String> {
    let targets = addresses(first, count).into_iter();
    targets.map(|target| target.to_string()).collect()
}
