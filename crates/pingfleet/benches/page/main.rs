//! What the live page costs: runs of 1,000,000 targets by 64 simulated workers over a private RabbitMQ, and 3 open tabs.
//!
//! `cargo bench -p pingfleet --bench page --features parquet`. It prints each figure beside what is promised, and fails when
//! something does not work, not when a figure misses its promise: other work of the machine makes it slow. The workers
//! probe nothing: they publish invented results and heartbeats. The writer is a process of its own, in which the page has a
//! runtime of its own, so that its processor time is known. Nothing leaves this machine.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod figures;
mod flood;
mod run;
mod tabs;
mod visits;
mod writer;
mod writer_process;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Parser;
use pingfleet_testbed::Rabbit;

use self::{
    figures::{Spread, promised},
    flood::Flood,
    run::{Fleet, Run},
    tabs::Tabs,
    writer_process::WriterProcess,
};

/// Open tabs.
const TABS: usize = 3;

/// Runs before the last figure of memory, and their targets.
const RUNS: u32 = 100;
const SMALL: u32 = 10_000;

/// Prints some of the figures.
type Part = fn(&Bench) -> anyhow::Result<()>;

/// Measures what the live page costs
#[derive(Debug, Parser)]
struct Arguments {
    /// Targets of a large run
    #[arg(long, default_value_t = 1_000_000)]
    targets: u32,
    /// Pairs of runs, with and without the page
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Targets per second of the run whose cost is measured over its whole time
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// Only these parts: rate, cost, abuse, memory
    #[arg(value_name = "PART")]
    parts: Vec<String>,
    /// The benchmark starts itself again as the writer of this database
    #[arg(long, hide = true, requires = "broker")]
    writer: Option<PathBuf>,
    /// The broker of the writer
    #[arg(long, hide = true)]
    broker: Option<String>,
    /// Whether the writer has a page
    #[arg(long, hide = true)]
    with_page: bool,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let (Some(database), Some(broker)) = (&arguments.writer, &arguments.broker) {
        return writer::write(database, broker, arguments.with_page);
    }
    let rabbit = Rabbit::start()?;
    let bench = Bench {
        fleet: Fleet::start(&rabbit.url())?,
        arguments,
    };
    let parts: [(&str, Part); 4] = [
        ("rate", Bench::rate),
        ("cost", Bench::cost),
        ("abuse", Bench::abuse),
        ("memory", Bench::memory),
    ];
    let wanted = &bench.arguments.parts;
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part(&bench)?;
        }
    }
    Ok(())
}

struct Bench {
    fleet: Fleet,
    arguments: Arguments,
}

impl Bench {
    /// The rate of a sweep with the page and three tabs over that without, in turns.
    fn rate(&self) -> anyhow::Result<()> {
        let mut ratios = Vec::new();
        let mut visits = Vec::new();
        for pair in 0..self.arguments.pairs {
            let mut rates = [0.0; 2];
            for with in [pair % 2 == 0, pair % 2 != 0] {
                let folder = tempfile::tempdir()?;
                let writer = WriterProcess::start(self.fleet.url(), folder.path(), with)?;
                let mut run = Run::plan(&self.fleet, &writer, self.arguments.targets)?;
                let began = Instant::now();
                run.begin(&self.fleet, None);
                if let Some(address) = writer.page() {
                    // The first visit of this page: nothing was read for anybody before.
                    let began = Instant::now();
                    visits::get(address, "/")?;
                    visits.push(began.elapsed().as_secs_f64() * 1000.0);
                }
                let tabs = writer
                    .page()
                    .map(|page| Tabs::open(page, TABS))
                    .transpose()?;
                run.wait()?;
                rates[usize::from(with)] =
                    f64::from(self.arguments.targets) / began.elapsed().as_secs_f64();
                drop(tabs);
                writer.stop()?;
            }
            let [without, with] = rates;
            println!("  pair {pair}: {with:.0} targets/s with, {without:.0} without");
            ratios.push(with / without);
        }
        promised(
            "rate of a sweep with the page / without",
            &Spread::of(ratios),
            3,
            ">= 0.98",
        );
        promised(
            "first content, first visit of all, ms",
            &Spread::of(visits),
            0,
            "<= 200",
        );
        Ok(())
    }

    /// What the page and a tab cost while a run goes on at a steady rate.
    fn cost(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let writer = WriterProcess::start(self.fleet.url(), folder.path(), true)?;
        let page = writer.page_address()?;
        let mut run = Run::plan(&self.fleet, &writer, self.arguments.targets)?;
        run.begin(&self.fleet, Some(self.arguments.rate));
        let tabs = Tabs::open(page, TABS)?;
        thread::sleep(Duration::from_secs(5));
        let (began, before, read) = (Instant::now(), writer.page_seconds()?, tabs.bytes());
        let mut contents = Vec::new();
        let mut largest = visits::FirstVisit::default();
        while !run.is_done()? {
            let visit = visits::first_visit(page)?;
            contents.push(visit.content.as_secs_f64() * 1000.0);
            if visit.bytes() > largest.bytes() {
                largest = visit;
            }
            thread::sleep(Duration::from_secs(10));
        }
        let seconds = began.elapsed().as_secs_f64();
        let share = 100.0 * (writer.page_seconds()? - before) / seconds;
        let each: Vec<f64> = (tabs.bytes().iter().zip(&read))
            .map(|(now, before)| (now - before) as f64 / seconds / 1000.0)
            .collect();
        println!(
            "  {seconds:.0} s of a run at {} targets/s",
            self.arguments.rate
        );
        promised(
            "the page's share of a core, %",
            &Spread::of(vec![share]),
            2,
            "< 2",
        );
        promised(
            "first content, open tabs beside it, ms",
            &Spread::of(contents),
            0,
            "<= 200",
        );
        promised(
            "first visit, kB",
            &Spread::of(vec![largest.bytes() as f64 / 1000.0]),
            1,
            "<= 90",
        );
        for (path, bytes) in &largest.parts {
            println!("    {path}: {bytes} bytes");
        }
        promised("a tab, kB/s", &Spread::of(each), 2, "<= 4");
        println!("    by section, bytes of text: {}", tabs.by_section());
        println!("    processor seconds by thread: {}", writer.threads()?);
        drop(tabs);
        run.wait()?;
        writer.stop()
    }

    /// The rate of a sweep under an attack on its page over that without one, in turns.
    fn abuse(&self) -> anyhow::Result<()> {
        let mut ratios = Vec::new();
        for pair in 0..self.arguments.pairs {
            let mut rates = [0.0; 2];
            for with in [pair % 2 == 0, pair % 2 != 0] {
                let folder = tempfile::tempdir()?;
                let writer = WriterProcess::start(self.fleet.url(), folder.path(), true)?;
                let mut run = Run::plan(&self.fleet, &writer, self.arguments.targets)?;
                let flood = with
                    .then(|| Flood::start(writer.page_address()?))
                    .transpose()?;
                let began = Instant::now();
                run.begin(&self.fleet, None);
                run.wait()?;
                rates[usize::from(with)] =
                    f64::from(self.arguments.targets) / began.elapsed().as_secs_f64();
                if let Some(flood) = flood {
                    let opened = flood.stop()?;
                    ensure!(opened >= flood::CONNECTIONS, "{opened} connections");
                }
                writer.stop()?;
            }
            let [without, with] = rates;
            println!("  pair {pair}: {with:.0} targets/s attacked, {without:.0} not");
            ratios.push(with / without);
        }
        promised(
            "rate with 500 connections and 1,000 stuck streams / without",
            &Spread::of(ratios),
            3,
            ">= 0.98",
        );
        Ok(())
    }

    /// The memory of the writer with its page after one run and after a hundred.
    fn memory(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let writer = WriterProcess::start(self.fleet.url(), folder.path(), true)?;
        let tabs = Tabs::open(writer.page_address()?, 1)?;
        let mut after = Vec::new();
        for number in 1..=RUNS {
            let mut run = Run::plan(&self.fleet, &writer, SMALL)?;
            run.begin(&self.fleet, None);
            run.wait()?;
            if [1, 10, 50, RUNS].contains(&number) {
                // The page shows it, and reads its charts again.
                thread::sleep(Duration::from_secs(6));
                visits::get(writer.page_address()?, "/")?;
                let mib = writer.memory_kib()? as f64 / 1024.0;
                println!("  after {number} runs of {SMALL} targets: {mib:.1} MiB");
                after.push(mib);
            }
        }
        let growth = after
            .last()
            .zip(after.first())
            .map_or(0.0, |(last, first)| last - first);
        promised(
            "memory after 100 runs - after 1, MiB",
            &Spread::of(vec![growth]),
            1,
            "flat",
        );
        drop(tabs);
        writer.stop()
    }
}
