//! A million targets in one process at an unlimited rate: time, and the peak of the process's memory, for planning,
//! running and verifying. `cargo bench -p pingfleet --bench million`; it needs root for its network namespaces.
//!
//! It prints figures and asserts none but the outcome: the promise is that memory does not grow with the targets, so
//! it sweeps a tenth of them first, by range and by a hosts file of scattered addresses.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    io::Write,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pingfleet_testbed::Namespace;

/// How often the peak is read; the kernel keeps it, so only the growth of the last moment can be missed.
const SAMPLE: Duration = Duration::from_millis(10);

fn main() -> anyhow::Result<()> {
    let namespace = Namespace::answering("10.0.0.0/9")?;
    let folder = tempfile::tempdir()?;
    println!(
        "{:<40} {:>9} {:>9} {:>11}",
        "", "seconds", "peak MB", "targets/s"
    );
    for (targets, last) in [(100_000, "10.1.134.160"), (1_000_000, "10.15.66.64")] {
        let range = format!("10.0.0.1-{last}");
        measure(
            &namespace,
            folder.path(),
            &format!("{targets} in a range"),
            targets,
            &range,
        )?;
    }
    for targets in [100_000, 1_000_000] {
        let hosts = folder.path().join(format!("{targets}.txt"));
        scatter(&hosts, targets)?;
        let hosts = hosts.to_str().context("a plain path")?.to_owned();
        measure(
            &namespace,
            folder.path(),
            &format!("{targets} scattered, from a file"),
            targets,
            &hosts,
        )?;
    }
    Ok(())
}

/// Writes addresses of 10.0.0.0/9 of which no two are neighbours.
fn scatter(path: &Path, targets: u32) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for n in 0..targets {
        // An odd factor permutes the 22 bits; the last bit keeps them apart.
        let place = n.wrapping_mul(2_654_435_761) & 0x003f_ffff;
        writeln!(
            file,
            "{}",
            std::net::Ipv4Addr::from((10 << 24) | (place << 1) | 1)
        )?;
    }
    Ok(file.flush()?)
}

fn measure(
    namespace: &Namespace,
    folder: &Path,
    what: &str,
    targets: u32,
    wanted: &str,
) -> anyhow::Result<()> {
    let database = folder.join("million.db");
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", database.display());
        if Path::new(&file).exists() {
            std::fs::remove_file(file)?;
        }
    }
    let db = database.to_str().context("a plain path")?;
    let sweep = [
        "sweep",
        wanted,
        "--rate",
        "unlimited",
        "--quiet",
        "--db",
        db,
    ];
    let (seconds, peak) = run(namespace, &sweep)?;
    let rate = f64::from(targets) / seconds;
    println!(
        "{:<40} {seconds:>9.1} {peak:>9.1} {rate:>11.0}",
        format!("sweep, {what}")
    );
    let (seconds, peak) = run(namespace, &["verify", "--db", db])?;
    println!(
        "{:<40} {seconds:>9.1} {peak:>9.1}",
        format!("verify, {what}")
    );
    Ok(())
}

/// Runs pingfleet to its end; returns seconds and the peak of its resident memory in MB (1,000,000 bytes).
fn run(namespace: &Namespace, arguments: &[&str]) -> anyhow::Result<(f64, f64)> {
    let began = Instant::now();
    // `ip netns exec` replaces itself by the program, so the child's id is the program's.
    let mut child = namespace
        .command(env!("CARGO_BIN_EXE_pingfleet"))
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()?;
    let mut peak = 0.0_f64;
    let status = loop {
        if let Some(kib) = peak_kib(child.id()) {
            peak = peak.max(kib * 1024.0 / 1e6);
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(SAMPLE);
    };
    ensure!(status.success(), "pingfleet {arguments:?}: {status}");
    Ok((began.elapsed().as_secs_f64(), peak))
}

/// `VmHWM` of a process (`proc_pid_status(5)`).
fn peak_kib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
