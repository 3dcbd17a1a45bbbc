//! The size of the file: what one target costs in the first run, and in each later run of the same targets.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Result, ensure};
use pingfleet_store::Transport;
use pingfleet_wire::{Rtt, Status, Target};
use tempfile::TempDir;

use crate::sample::{delivery, options, outcome, plan_of, reader, result};

const CHUNK: usize = 250;

/// One run of `targets` IPv4 addresses, each of which answers its one request. `at_us` is when it starts.
fn sweep(path: &Path, targets: u32, at_us: u64) -> Result<u64> {
    let mut store = options(path).open()?;
    let targets: Vec<_> = (0..targets)
        .map(|number| Target::Address(Ipv4Addr::from_bits(0x0a00_0000 + number).into()))
        .collect();
    let chunks = targets.chunks(CHUNK).map(<[_]>::to_vec).collect();
    let (planned, works) = plan_of(&mut store, Transport::Sweep, chunks)?;
    store.start_run(planned.run)?;
    for (number, work) in (0..).zip(&works) {
        let mut message = result(work, &[Status::Up]);
        message.started_at_us = at_us + number * 50_000;
        for (position, answer) in (0..).zip(&mut message.outcomes) {
            let rtt_ns = 200_000 + (number * 250 + position) * 7919 % 20_000_000;
            *answer = outcome(Status::Up);
            answer.sent = 1;
            answer.received = 1;
            answer.rtt = Some(Rtt {
                min_ns: rtt_ns,
                avg_ns: rtt_ns,
                max_ns: rtt_ns,
                stddev_ns: 0,
            });
            answer.probed_after_us = position * 1000;
        }
        store.apply(Transport::Sweep, &[delivery(message)])?;
    }
    store.close_settled_runs(Transport::Sweep)?;
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    store.close()?;
    Ok(fs::metadata(path)?.len())
}

#[test]
fn a_target_costs_at_most_100_bytes_in_the_first_run_and_60_in_each_later_one() -> Result<()> {
    const TARGETS: u32 = 50_000;
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut size_before = 0;
    for (run, max_bytes) in [100.0, 60.0, 60.0].into_iter().enumerate() {
        let start_us = 1_790_000_000_000_000 + run as u64 * 3_600_000_000;
        let size = sweep(&path, TARGETS, start_us)?;
        let bytes = (size - size_before) as f64 / f64::from(TARGETS);
        ensure!(bytes <= max_bytes, "run {run}: {bytes} bytes a target");
        size_before = size;
    }
    Ok(())
}
