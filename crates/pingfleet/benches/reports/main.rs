//! How fast the commands that read a large database are: 24 runs of 1,000,000 targets, of which a quarter is not up.
//!
//! `cargo bench -p pingfleet --bench reports --features parquet`. It prints the time and the memory of each command beside what is promised,
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

/// An export of a run to a file, and what is promised of it.
struct ExportPromise {
    ending: &'static str,
    min_rows_per_s: f64,
    max_bytes_per_row: Option<f64>,
}

const MAX_EXPORT_MIB: u64 = 200;

const EXPORTS: [ExportPromise; 2] = [
    ExportPromise {
        ending: "jsonl",
        min_rows_per_s: 400_000.0,
        max_bytes_per_row: None,
    },
    ExportPromise {
        ending: "parquet",
        min_rows_per_s: 300_000.0,
        max_bytes_per_row: Some(16.0),
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
    println!(
        "\n{:26}{:>24}{:>10}{:>12}{:>10}",
        "export to a file", "rows/s", "promised", "MiB", "promised"
    );
    for promise in &EXPORTS {
        if promise.ending == "parquet" && !cfg!(feature = "parquet") {
            println!("{:26}needs --features parquet", promise.ending);
            continue;
        }
        measure_export(promise, &database, &arguments)?;
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

/// What some runs of a command took.
struct Measured {
    /// Sorted.
    seconds: Vec<f64>,
    /// The most memory of them.
    kib: u64,
    stdout_bytes: usize,
}

impl Measured {
    fn new(arguments: &[&str], database: &Path, rounds: u32) -> anyhow::Result<Self> {
        let mut measured = Self {
            seconds: Vec::new(),
            kib: 0,
            stdout_bytes: 0,
        };
        for _ in 0..rounds.max(1) {
            let began = Instant::now();
            let output = Command::new("/usr/bin/time")
                .args(["--format", "%M", env!("CARGO_BIN_EXE_pingfleet")])
                .args(arguments)
                .arg("--db")
                .arg(database)
                .stdin(Stdio::null())
                .output()
                .context("no /usr/bin/time: apt-get install time")?;
            measured.seconds.push(began.elapsed().as_secs_f64());
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{arguments:?}: {text}");
            measured.stdout_bytes = output.stdout.len();
            let kib = text
                .trim()
                .parse::<u64>()
                .with_context(|| text.to_string())?;
            measured.kib = measured.kib.max(kib);
        }
        measured.seconds.sort_unstable_by(f64::total_cmp);
        Ok(measured)
    }

    /// The shortest, the median and the longest time.
    fn times(&self) -> [f64; 3] {
        let times = &self.seconds;
        [times[0], times[times.len() / 2], times[times.len() - 1]]
    }
}

fn measure(promise: &Promise, database: &Path, rounds: u32) -> anyhow::Result<()> {
    let measured = Measured::new(promise.arguments, database, rounds)?;
    let [first, median, last] = measured.times();
    println!(
        "{:26}{:>24}{:>10}{:>12}{:>10}",
        promise.arguments.join(" "),
        format!("{median:.2} ({first:.2} to {last:.2})"),
        format!("<= {}", promise.max_seconds),
        measured.kib >> 10,
        format!("<= {}", promise.max_mib)
    );
    if promise.arguments == PAGE {
        println!(
            "{:24}{:>24}{:>10}",
            "  bytes of the page",
            measured.stdout_bytes,
            format!("< {MAX_PAGE_BYTES}")
        );
    }
    Ok(())
}

fn measure_export(
    promise: &ExportPromise,
    database: &Path,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let file = database.with_extension(promise.ending);
    let path = file.to_str().context("a path in UTF-8")?;
    let measured = Measured::new(&["-q", "export", "-o", path], database, arguments.rounds)?;
    let rows = f64::from(arguments.targets);
    let [first, median, last] = measured.times().map(|seconds| rows / seconds);
    println!(
        "{:26}{:>24}{:>10}{:>12}{:>10}",
        promise.ending,
        format!("{median:.0} ({last:.0} to {first:.0})"),
        format!(">= {}", promise.min_rows_per_s),
        measured.kib >> 10,
        format!("<= {MAX_EXPORT_MIB}")
    );
    println!(
        "{:26}{:>24.1}{:>10}",
        "  bytes a row",
        fs::metadata(&file)?.len() as f64 / rows,
        promise
            .max_bytes_per_row
            .map_or("-".to_owned(), |bytes| format!("<= {bytes}"))
    );
    Ok(fs::remove_file(&file)?)
}
