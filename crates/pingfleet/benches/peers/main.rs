//! pingfleet beside its peers, in network namespaces: how fast it sweeps, what that costs, and how its round-trip times
//! compare. The programs of a case run in turns: on a busy machine only their ratios mean anything. docs/benchmarks.md
//! describes the cases.
//!
//! `cargo bench -p pingfleet --bench peers`, as root. It prints medians and spreads, judges them by what is promised,
//! and writes every single run to a file. It fails when a target that answers is called `down`, and only then.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod broker;
mod capture;
mod held;
mod machine;
mod outstanding;
mod program;
mod rows;
mod rtt;
mod site;
mod sweep;
mod targets;

use std::{io::Write, path::PathBuf};

use clap::{Parser, ValueEnum};

use crate::{rows::Rows, site::Site};

/// Sweeps the same targets with pingfleet and with its peers, in turns
#[derive(Debug, Parser)]
struct Arguments {
    /// Cases to run; all when none is named
    cases: Vec<Case>,
    /// Runs of each program in each case
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The file for the rows of all runs [default: peers.csv in the target folder]
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// The case `held` starts the benchmark again, inside its namespace
    #[arg(long, hide = true, value_name = "N")]
    hold: Option<usize>,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// 60,000 targets that all answer, by `pingfleet sweep`
    Answering,
    /// The same through RabbitMQ
    Broker,
    /// 60,000 targets of which nine in ten are silent
    Silent,
    /// 1,000,000 targets that all answer
    Million,
    /// The memory of a worker that waits for 100,000 answers at once
    Memory,
    /// What a request costs while many targets are in hand
    Held,
    /// Round-trip times beside those of ping
    Rtt,
    /// Round-trip times beside a capture of the link, at 50,000 requests a second
    Capture,
}

impl Case {
    /// Whether it runs the three roles with a broker.
    fn needs_broker(self) -> bool {
        matches!(self, Self::Broker | Self::Memory)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(number) = arguments.hold {
        writeln!(std::io::stdout(), "{}", held::hold(number)?)?;
        return Ok(());
    }
    let cases = if arguments.cases.is_empty() {
        Case::value_variants().to_vec()
    } else {
        arguments.cases
    };
    machine::require(&cases)?;
    let site = Site::new()?;
    if cases.iter().any(|case| case.needs_broker()) {
        site.build_roles()?;
    }
    let path = arguments
        .rows
        .as_deref()
        .map_or_else(|| site::scratch().join("peers.csv"), site::in_workspace);
    let mut rows = Rows::create(&path, &machine::describe()?)?;
    for case in cases {
        println!(
            "\n{}",
            case.to_possible_value().map_or_else(String::new, |value| {
                value
                    .get_help()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            })
        );
        match case {
            Case::Answering => sweep::answering(&site, &mut rows, arguments.rounds)?,
            Case::Broker => broker::answering(&site, &mut rows, arguments.rounds)?,
            Case::Silent => sweep::silent(&site, &mut rows, arguments.rounds)?,
            Case::Million => sweep::million(&site, &mut rows, arguments.rounds)?,
            Case::Memory => broker::memory(&site, &mut rows)?,
            Case::Held => held::held(&site, &mut rows, arguments.rounds)?,
            Case::Capture => capture::capture(&site, &mut rows, arguments.rounds)?,
            Case::Rtt => rtt::rtt(&site, &mut rows, arguments.rounds)?,
        }
    }
    println!("\nevery run is in {}", path.display());
    Ok(())
}
