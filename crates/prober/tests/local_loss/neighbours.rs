//! Next hops and neighbours whose link address is resolved late or never.

use std::{process::Stdio, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{DownReason, Probing, Status};

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

/// How long the kernel tries to resolve a neighbour (`arp(7)`: three times, a second apart).
const GIVEN_UP: Duration = Duration::from_secs(3);

/// Payload size with which 253 requests fill a send buffer of 4 MiB, and none needs too many fragments.
const LONG: u16 = 20_000;

/// Until the kernel knows the next hop's link address, it keeps some requests and drops the others. A prober that sends
/// everything at once loses them.
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
        pair::answer_next_resolution(&Far(&pair))?;
        let report = running.finish()?;
        let sent = Echoes::read(&pair, variant.family)?;
        let came = Echoes::read(&Far(&pair), variant.family)?;
        // Requests that arrive on the near side are canaries.
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

/// The control: fping has no window.
#[test]
fn a_slow_next_hop_drops_what_is_sent_at_once() -> anyhow::Result<()> {
    let pair = slow_network(IpVersion::V4)?;
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
    pair::answer_next_resolution(&Far(&pair))?;
    fping.wait()?;
    let sent = Echoes::read(&pair, IpVersion::V4)?;
    let came = Echoes::read(&Far(&pair), IpVersion::V4)?;
    ensure!(
        came.requests_in * 2 < sent.requests_out,
        "{came:?} of {sent:?}"
    );
    Ok(())
}

/// A network whose gateway does not answer ARP and neighbour solicitations.
fn slow_network(family: IpVersion) -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    pair::ignore_resolution(&Far(&pair))?;
    let [_, gateway] = pair::ends(family);
    pair.sh(&format!("ip neigh del {gateway} dev veth0"))?;
    Ok(pair)
}

#[test]
fn dead_neighbours_are_down_with_no_arp_and_delay_no_other_target() -> anyhow::Result<()> {
    // All namespaces of a machine share one neighbour table. It holds this many at once.
    let variants: Vec<_> = variants().collect();
    for some in variants.chunks(4) {
        at_once(some.iter().copied(), dead_neighbours)?;
    }
    Ok(())
}

fn dead_neighbours(variant: Variant) -> anyhow::Result<()> {
    let pair = pair::make()?;
    let (own, dead, living, bits) = match variant.family {
        IpVersion::V4 => ("192.0.2.254", "192.0.2.1", "192.0.2.200", 24),
        IpVersion::V6 => ("fd00:2::fe", "fd00:2::1", "fd00:2::c8", 120),
    };
    pair.sh(&format!("ip addr add {own}/{bits} dev veth0 nodad"))?;
    // The answering ones are in the middle of the range.
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
    // Requests that wait for a link address fill the send buffer. Long ones fill even a large buffer.
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
    // On the same socket they would have to wait until the send buffer has room again.
    ensure!(
        report.took[1] < GIVEN_UP,
        "the dead neighbours delayed the others: {:?}",
        report.took
    );
    let (before, rest) = neighbours.split_at(199);
    let (living, after) = rest.split_at(LIVING_NEIGHBOURS as usize);
    all(living, |outcome| outcome.status == Status::Up)?;
    let no_arp = Status::Down(DownReason::NoArp);
    for dead in [before, after] {
        all(dead, |outcome| matches!(outcome.status, Status::Down(_)))?;
    }
    // The kernel does not report each neighbour that it gives up; the busier it is, the fewer it reports.
    let reported = neighbours.iter().any(|outcome| outcome.status == no_arp);
    ensure!(reported, "{:?}", tally(neighbours));
    Ok(())
}

fn texts(first: &str, count: u32) -> Vec<String> {
    let targets = addresses(first, count).into_iter();
    targets.map(|target| target.to_string()).collect()
}
