//! Next hops that are used by several threads, or at the same time as others that answer at once.

use std::{num::NonZeroUsize, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::Echoes,
    expectations::all,
    pair,
    probing_process::{Asked, Prober, Report},
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// Targets of each chunk.
const TARGETS: u32 = 500;

/// With this many threads, windows that each open as far as a single one exceed a next hop's queue. With longer requests
/// fewer threads would do, but the far kernel has room for few long replies.
const THREADS: usize = 8;

/// A next hop whose link address is resolved slowly.
struct Slow {
    address: &'static str,
    /// The first of the addresses behind it, all of which answer.
    living: &'static str,
}

/// The slow next hop, in a network beside that of the gateway.
fn slow(family: IpVersion) -> Slow {
    match family {
        IpVersion::V4 => Slow {
            address: "169.254.78.2",
            living: "10.0.128.0",
        },
        IpVersion::V6 => Slow {
            address: "fd78::2",
            living: "fd00:10::8000:0:0:0",
        },
    }
}

/// A network with a second gateway, which does not answer ARP and neighbour solicitations. The link address of the first
/// one is known.
fn network(family: IpVersion) -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    let (near, bits, prefix) = match family {
        IpVersion::V4 => ("169.254.78.1", 30, "10.0.128.0/17"),
        IpVersion::V6 => ("fd78::1", 64, "fd00:10::8000:0:0:0/65"),
    };
    let far = slow(family).address;
    Far(&pair).sh(&format!("ip addr add {far}/{bits} dev veth0"))?;
    pair::ignore_resolution(&Far(&pair))?;
    pair.sh(&format!(
        "ip addr add {near}/{bits} dev veth0 nodad; ip route add {prefix} via {far}"
    ))?;
    pair::wait_for_address(&pair, near)?;
    pair::wait_for_address(&Far(&pair), far)?;
    pair::know(&Far(&pair), near)?;
    Ok(pair)
}

/// Probes one chunk of targets from each of these addresses on. The slow next hop answers the second resolution request, a
/// second after the first.
fn probe(
    pair: &Namespace,
    variant: Variant,
    prober: Prober,
    first: &[String],
) -> anyhow::Result<Report> {
    let asked = first.iter().map(|first| Asked {
        probing: Probing {
            retries: 0,
            timeout: Duration::from_secs(4),
            rate: None,
            ..Probing::default()
        },
        targets: addresses(first, TARGETS),
    });
    let running = prober.start(pair, variant, asked.collect())?;
    pair::answer_next_resolution(&Far(pair))?;
    running.finish()
}

/// The kernel dropped nothing, and every target answered in its first attempt.
fn nothing_lost(pair: &Namespace, variant: Variant, report: &Report) -> anyhow::Result<()> {
    let sent = Echoes::read(pair, variant.family)?;
    let came = Echoes::read(&Far(pair), variant.family)?;
    // Requests that arrive on the near side are canaries.
    let dropped = sent.requests_out - sent.requests_in - came.requests_in;
    ensure!(dropped == 0, "{dropped} requests never came");
    for outcomes in &report.outcomes {
        all(outcomes, |outcome| {
            outcome.status == Status::Up && outcome.attempts == 1
        })?;
    }
    Ok(())
}

#[test]
fn several_threads_share_the_window_of_a_slow_next_hop() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let prober = Prober {
            threads: NonZeroUsize::new(THREADS),
            ..Prober::default()
        };
        let first = slow(variant.family).living;
        let chunks =
            std::array::from_fn::<_, THREADS, _>(|chunk| nth(first, chunk as u32 * TARGETS));
        let report = probe(&pair, variant, prober, &chunks)?;
        nothing_lost(&pair, variant, &report)
    })
}

#[test]
fn a_next_hop_that_answers_does_not_open_the_window_of_a_slow_one() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let chunks = [pair::living(variant.family), slow(variant.family).living];
        let chunks = chunks.map(str::to_owned);
        let report = probe(&pair, variant, Prober::default(), &chunks)?;
        nothing_lost(&pair, variant, &report)?;
        // The others did not wait for the slow next hop.
        ensure!(report.took[0] < report.took[1], "{:?}", report.took);
        Ok(())
    })
}

/// The address `more` after `first`.
fn nth(first: &str, more: u32) -> String {
    let all = addresses(first, more + 1);
    all.last().expect("there is one at least").to_string()
}
