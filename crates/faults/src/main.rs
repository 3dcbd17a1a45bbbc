//! `fault-suite`: runs the cases one after the other, tells how each ended, and writes the table of them.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use pingfleet_faults::{bench::Bench, cases, table};

/// Does harm to a fleet, and proves that nothing is lost by it
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases with this in their name
    #[arg(long)]
    only: Option<String>,
    /// The quick form of each case
    #[arg(long)]
    bounded: bool,
    /// The table of cases; what runs with other brokers wrote into it stays
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut bench = Bench::new(!arguments.bounded);
    let version = bench.broker_version()?;
    let mut out = io::stdout();
    writeln!(out, "RabbitMQ {version}")?;
    let mut judged = Vec::new();
    for case in cases::all() {
        let only = arguments.only.as_deref().unwrap_or_default();
        if !case.name.contains(only) {
            continue;
        }
        let judgement = bench.judge(&case);
        writeln!(
            out,
            "{} {} ({:.1} s): {}; control: {}",
            if judgement.passed { "ok  " } else { "FAIL" },
            case.name,
            judgement.took.as_secs_f64(),
            judgement.story,
            judgement.control
        )?;
        judged.push((case, judgement));
    }
    if let Some(path) = &arguments.out {
        let before = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        fs::write(path, table::with_section(&before, &version, &judged))?;
    }
    let failed = judged.iter().filter(|(_, how)| !how.passed).count();
    writeln!(out, "{} cases, {failed} failed", judged.len())?;
    Ok(if failed == 0 && !judged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
