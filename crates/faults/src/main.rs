//! `fault-suite`: runs the cases one after the other, prints the outcome of each, and writes the table of outcomes.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use pingfleet_faults::{cases, outcome_table, runner::CaseRunner};

/// Injects faults into a running deployment, and proves that nothing is lost
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases with this in their name
    #[arg(long)]
    only: Option<String>,
    /// The quick form of each case
    #[arg(long)]
    quick: bool,
    /// Where to write the table of outcomes. Rows of other brokers are kept
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut runner = CaseRunner::new(!arguments.quick);
    let version = runner.broker_version()?;
    let mut out = io::stdout();
    writeln!(out, "RabbitMQ {version}")?;
    let mut judged = Vec::new();
    for case in cases::all() {
        let only = arguments.only.as_deref().unwrap_or_default();
        if !case.name.contains(only) {
            continue;
        }
        let report = runner.judge(&case);
        writeln!(
            out,
            "{} {} ({:.1} s): {}; control: {}",
            if report.passed { "ok  " } else { "FAIL" },
            case.name,
            report.took.as_secs_f64(),
            report.summary,
            report.control
        )?;
        judged.push((case, report));
    }
    if let Some(path) = &arguments.out {
        let before = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        fs::write(
            path,
            outcome_table::replace_section(&before, &version, &judged),
        )?;
    }
    let failed = judged.iter().filter(|(_, report)| !report.passed).count();
    writeln!(out, "{} cases, {failed} failed", judged.len())?;
    Ok(if failed == 0 && !judged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
