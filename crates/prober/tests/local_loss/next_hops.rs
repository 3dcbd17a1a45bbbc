//! Next hops that are used at the same time: by several threads, or beside others that answer at once.

use std::{num::NonZeroUsize, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::Family};
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

/// Threads whose windows, each as open as that of a single one, are more than a next hop's queue holds. With longer
/// requests it would be fewer threads, but the far kernel has room for few long replies.
const THREADS: usize = 8;

/// A next hop that is found slowly.
struct Slow {
    address: &'static str,
    /// The first of the addresses that are reached by it, all of which answer.
    living: &'static str,
}

/// In a network of its own beside that of the gateway.
fn slow(family: Family) -> Slow {
    match family {
        Family::V4 => Slow {
            address: "169.254.78.2",
            living: "10.0.128.0",
        },
        Family::V6 => Slow {
            address: "fd78::2",
            living: "fd00:10::8000:0:0:0",
        },
    }
}

/// A network with a second gateway, which answers no question for its link address; the first one is known.
fn network(family: Family) -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    let (near, bits, prefix) = match family {
        Family::V4 => ("169.254.78.1", 30, "10.0.128.0/17"),
        Family::V6 => ("fd78::1", 64, "fd00:10::8000:0:0:0/65"),
    };
    let far = slow(family).address;
    Far(&pair).sh(&format!("ip addr add {far}/{bits} dev veth0"))?;
    pair::deafen(&Far(&pair))?;
    pair.sh(&format!(
        "ip addr add {near}/{bits} dev veth0 nodad; ip route add {prefix} via {far}"
    ))?;
    pair::wait_for_address(&pair, near)?;
    pair::wait_for_address(&Far(&pair), far)?;
    pair::know(&Far(&pair), near)?;
    Ok(pair)
}

/// Probes a chunk of targets from each of these addresses on. The slow next hop answers the second time that it is
/// asked, a second after the first.
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
    pair::hear_the_next_question(&Far(pair))?;
    running.finish()
}

/// Nothing was dropped below the prober, and every target answered at once.
fn nothing_lost(pair: &Namespace, variant: Variant, report: &Report) -> anyhow::Result<()> {
    let sent = Echoes::read(pair, variant.family)?;
    let came = Echoes::read(&Far(pair), variant.family)?;
    // What came to the near side is the prober's own canary.
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
fn several_threads_open_towards_a_slow_next_hop_as_one() -> anyhow::Result<()> {
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
fn a_next_hop_that_answers_opens_no_way_by_a_slow_one() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let chunks = [pair::living(variant.family), slow(variant.family).living];
        let chunks = chunks.map(str::to_owned);
        let report = probe(&pair, variant, Prober::default(), &chunks)?;
        nothing_lost(&pair, variant, &report)?;
        // The others did not wait for the slow ones.
        ensure!(report.took[0] < report.took[1], "{:?}", report.took);
        Ok(())
    })
}

/// The address this much after a first one.
fn nth(first: &str, more: u32) -> String {
    let all = addresses(first, more + 1);
    all.last().expect("there is one at least").to_string()
}
