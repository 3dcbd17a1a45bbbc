//! How fast the commands that read a large database are: 24 runs of 1,000,000 targets, of which a quarter is not up.
//!
//! `cargo bench -p pingfleet --bench reports`. It prints the time and the memory of each command beside what is promised,
//! and fails when a command fails, not when one is slow: other work of the machine makes it slow. The database is
//! generated once, and kept in the target folder.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::Parser;
use pingfleet_testbed::GeneratedRuns;

/// The seed of the database.
const SEED: u64 = 12;

/// Measures the commands that read a large database
#[derive(Debug, Parser)]
struct Arguments {
    /// Targets of each run
    #[arg(long, default_value_t = 1_000_000)]
    targets: u32,
    /// Runs of these targets
    #[arg(long, default_value_t = 24)]
    runs: u32,
    /// How often each command runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A command and what is promised of it.
struct Promise {
    arguments: &'static [&'static str],
    max_seconds: f64,
    max_mib: u64,
}

/// The page is written to standard output, and must be smaller than this.
const PAGE: [&str; 3] = ["report", "--html", "-"];
const MAX_PAGE_BYTES: usize = 3_000_000;

const PROMISES: [Promise; 9] = [
    Promise {
        arguments: &["report"],
        max_seconds: 2.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["report", "1"],
        max_seconds: 2.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["report", "--json"],
        max_seconds: 2.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["diff"],
        max_seconds: 4.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["-q", "diff", "--json"],
        max_seconds: 4.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["hosts", "--status", "down"],
        max_seconds: 1.0,
        max_mib: 200,
    },
    Promise {
        arguments: &["history", "10.3.0.1"],
        max_seconds: 2.0,
        max_mib: 200,
    },
    // No promise stands for it, but it scans all runs, as for a target whose place in the plan changes.
    Promise {
        arguments: &["history", "10.3.0.0/24"],
        max_seconds: 4.0,
        max_mib: 200,
    },
    Promise {
        arguments: &PAGE,
        max_seconds: 6.0,
        max_mib: 200,
    },
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let database = database(&arguments)?;
    println!(
        "{} runs of {} targets, {} MiB; median of {} rounds (shortest to longest)\n",
        arguments.runs,
        arguments.targets,
        fs::metadata(&database)?.len() >> 20,
        arguments.rounds
    );
    println!(
        "{:26}{:>24}{:>10}{:>12}{:>10}",
        "command", "seconds", "promised", "MiB", "promised"
    );
    for promise in &PROMISES {
        measure(promise, &database, arguments.rounds)?;
    }
    Ok(())
}

/// The generated database. Another size or another version of the generator needs `--targets`, `--runs` or a removed file.
fn database(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("reports-{}-{}.db", arguments.targets, arguments.runs);
    let path = folder.join(name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(folder)?;
    // It gets its name when it is complete.
    let new = path.with_extension("new");
    if new.exists() {
        fs::remove_file(&new)?;
    }
    let began = Instant::now();
    let generated = GeneratedRuns {
        targets: arguments.targets,
        runs: arguments.runs,
        seed: SEED,
    };
    generated.write(&new)?;
    fs::rename(&new, &path)?;
    println!("generated in {:.0} s", began.elapsed().as_secs_f64());
    Ok(path)
}

fn measure(promise: &Promise, database: &Path, rounds: u32) -> anyhow::Result<()> {
    let mut seconds = Vec::new();
    let mut kib = 0;
    let mut bytes = 0;
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let output = Command::new("/usr/bin/time")
            .args(["--format", "%M", env!("CARGO_BIN_EXE_pingfleet")])
            .args(promise.arguments)
            .arg("--db")
            .arg(database)
            .stdin(Stdio::null())
            .output()
            .context("no /usr/bin/time: apt-get install time")?;
        seconds.push(began.elapsed().as_secs_f64());
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{:?}: {text}", promise.arguments);
        bytes = output.stdout.len();
        kib = kib.max(
            text.trim()
                .parse::<u64>()
                .with_context(|| text.to_string())?,
        );
    }
    seconds.sort_unstable_by(f64::total_cmp);
    let (first, last) = (seconds[0], seconds[seconds.len() - 1]);
    let spread = format!(
        "{:.2} ({first:.2} to {last:.2})",
        seconds[seconds.len() / 2]
    );
    println!(
        "{:26}{spread:>24}{:>10}{:>12}{:>10}",
        promise.arguments.join(" "),
        format!("<= {}", promise.max_seconds),
        kib >> 10,
        format!("<= {}", promise.max_mib)
    );
    if promise.arguments == PAGE {
        println!(
            "{:24}{bytes:>24}{:>10}",
            "  bytes of the page",
            format!("< {MAX_PAGE_BYTES}")
        );
    }
    Ok(())
}
