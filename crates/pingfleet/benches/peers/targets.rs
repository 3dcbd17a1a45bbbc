//! Files of targets, one address a line. Those of 10.0.0.0/9 answer, those of 10.128.0.0/9 are silent.

use std::{
    fs::File,
    io::{BufWriter, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// What answers in the namespaces of the benchmark.
pub(crate) const ANSWERING: &str = "10.0.0.0/9";

/// Targets of a usual case. fping has 65,535 sequence numbers and keeps each for ten seconds.
pub(crate) const USUAL: u32 = 60_000;

/// Targets of the largest case.
pub(crate) const MANY: u32 = 1_000_000;

/// One target in this many answers in the case of silent targets.
pub(crate) const ALIVE_ONE_IN: u32 = 10;

/// The first address that answers, and the distance to its silent counterpart.
const FIRST: u32 = Ipv4Addr::new(10, 16, 0, 0).to_bits();
const SILENT: u32 = 1 << 23;

/// Whether an address answers.
pub(crate) fn answers(address: &str) -> bool {
    address
        .parse()
        .is_ok_and(|address: Ipv4Addr| address.to_bits() & SILENT == 0)
}

/// Writes targets; those for whose number `alive` returns true answer.
pub(crate) fn write(
    path: PathBuf,
    numbers: impl Iterator<Item = u32>,
    alive: impl Fn(u32) -> bool,
) -> anyhow::Result<PathBuf> {
    let mut file = BufWriter::new(File::create(&path)?);
    for number in numbers {
        let address = FIRST + number + if alive(number) { 0 } else { SILENT };
        writeln!(file, "{}", Ipv4Addr::from(address))?;
    }
    file.flush()?;
    Ok(path)
}

/// Targets that all answer.
pub(crate) fn answering(folder: &Path, count: u32) -> anyhow::Result<PathBuf> {
    write(
        folder.join(format!("answering-{count}.txt")),
        0..count,
        |_| true,
    )
}

/// Targets that are all silent.
pub(crate) fn silent(folder: &Path, count: u32) -> anyhow::Result<PathBuf> {
    write(folder.join(format!("silent-{count}.txt")), 0..count, |_| {
        false
    })
}

/// Targets of which most are silent, in `parts` files.
pub(crate) fn mostly_silent(folder: &Path, count: u32, parts: u32) -> anyhow::Result<Vec<PathBuf>> {
    (0..parts)
        .map(|part| {
            let path = folder.join(format!("mostly-silent-{part}-of-{parts}.txt"));
            let numbers = (part * count / parts)..((part + 1) * count / parts);
            write(path, numbers, |number| number % ALIVE_ONE_IN == 0)
        })
        .collect()
}
