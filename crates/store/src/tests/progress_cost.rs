//! What the counters of a run cost the transactions that store its rows. Run it alone, with optimisation:
//! `cargo test --release -p pingfleet-store --lib -- --ignored --nocapture progress_cost`.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::Result;
use pingfleet_wire::{Rtt, Status, Target, WorkChunk};
use tempfile::TempDir;

use super::sample::{delivery, options, outcome, plan_of, result};
use crate::{
    DecodedDelivery, Durability, OpenOptions, Transport, Writer, progress::StoredProgress,
};

const CHUNK: usize = 250;

/// Chunks of a batch: 5,000 rows.
const BATCH: usize = 20;

/// Targets, and the step between their addresses: 1,000,000 in a row, and 100,000 that fill as many cells as there may be.
const RUNS: [(u32, u32); 2] = [(1_000_000, 1), (100_000, 4096)];

fn started(folder: &TempDir, name: &str, targets: &[Target]) -> Result<(Writer, Vec<WorkChunk>)> {
    let mut store = OpenOptions {
        durability: Durability::Full,
        ..options(&folder.path().join(name))
    }
    .open()?;
    let chunks = targets.chunks(CHUNK).map(<[_]>::to_vec).collect();
    let (planned, works) = plan_of(&mut store, Transport::Sweep, chunks)?;
    store.start_run(planned.run)?;
    Ok((store, works))
}

fn batch(works: &[WorkChunk]) -> Vec<DecodedDelivery> {
    let statuses = [Status::Up, Status::Up, Status::Up, Status::DOWN];
    let message = |work: &WorkChunk| {
        let mut message = result(work, &[Status::Up]);
        for (at, answer) in message.outcomes.iter_mut().enumerate() {
            *answer = outcome(statuses[at % 4]);
            let mean = 200_000 + at as u64 * 7919 % 20_000_000;
            answer.rtt = answer.rtt.map(|_| Rtt {
                min_ns: mean,
                avg_ns: mean,
                max_ns: mean,
                stddev_ns: 0,
            });
        }
        delivery(message)
    };
    works.iter().map(message).collect()
}

/// How long this thread was on a processor, in milliseconds.
fn on_processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn print(what: &str, times: &mut [Vec<f64>; 2]) {
    let [with, without] = times.each_mut().map(|times| {
        times.sort_by(f64::total_cmp);
        [times[times.len() / 4], times[times.len() / 2]]
    });
    for (name, at) in [("lower quartile", 0), ("median", 1)] {
        println!(
            "{what}: {name} {:.3} ms with, {:.3} ms without ({:+.2} %)",
            with[at],
            without[at],
            100.0 * (with[at] / without[at] - 1.0)
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn progress_cost() -> Result<()> {
    for (count, step) in RUNS {
        let folder = TempDir::new()?;
        let address = |number| Ipv4Addr::from_bits(0x0a00_0000 + number * step);
        let mut targets: Vec<_> = (0..count)
            .map(|number| Target::Address(address(number).into()))
            .collect();
        fastrand::Rng::with_seed(5).shuffle(&mut targets);
        let mut sides = [
            started(&folder, "with.db", &targets)?,
            started(&folder, "without.db", &targets)?,
        ];
        let mut times = [Vec::new(), Vec::new()];
        let mut processors = [Vec::new(), Vec::new()];
        let chunks = sides[0].1.len() - sides[0].1.len() % BATCH - BATCH;
        for (turn, first) in (0..chunks).step_by(BATCH).enumerate() {
            for side in [turn % 2, 1 - turn % 2] {
                let (store, works) = &mut sides[side];
                let batch = batch(&works[first..first + BATCH]);
                let began = (Instant::now(), on_processor());
                store.apply(Transport::Sweep, &batch)?;
                let processor = on_processor() - began.1;
                times[side].push(began.0.elapsed().as_secs_f64() * 1000.0);
                processors[side].push(processor);
                if turn == 0 && side == 1 {
                    // As of a run that an older version began: no counters are kept.
                    store.connection.execute("DELETE FROM run_progress", ())?;
                }
            }
        }
        let bytes: i64 = sides[0].0.connection.query_row(
            "SELECT length(progress) FROM run_progress",
            (),
            |row| row.get(0),
        )?;
        println!(
            "{count} targets, {} transactions, {bytes} bytes",
            times[0].len()
        );
        print("from begin to end", &mut times);
        print("on the processor", &mut processors);
        let stored: Vec<u8> =
            sides[0]
                .0
                .connection
                .query_row("SELECT progress FROM run_progress", (), |row| row.get(0))?;
        let began = on_processor();
        for _ in 0..100 {
            std::hint::black_box(StoredProgress::decode(&stored).map_err(anyhow::Error::msg)?);
        }
        let decoded = on_processor();
        let progress = StoredProgress::decode(&stored).map_err(anyhow::Error::msg)?;
        for _ in 0..100 {
            std::hint::black_box(progress.encode());
        }
        let encoded = on_processor();
        println!(
            "decode {:.3} ms, encode {:.3} ms",
            (decoded - began) / 100.0,
            (encoded - decoded) / 100.0
        );
    }
    Ok(())
}
