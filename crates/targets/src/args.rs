//! The part of the command line that says what to probe, and in which order.

use std::path::PathBuf;

use clap::Args;

use crate::InputFormat;

const TARGETS_HELP: &str = "Addresses, host names, networks (10.0.0.0/24, 2001:db8::/120), ranges \
    (10.0.0.1-10.0.0.99), fe80::1%eth0, or the names of files with such targets; - is standard input";

/// What the command line says about targets.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Targets")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line that stands alone"
)]
pub struct TargetArgs {
    /// What to probe: addresses, host names, networks, ranges, or files.
    #[arg(value_name = "TARGETS", help = TARGETS_HELP)]
    pub targets: Vec<String>,

    /// Read targets from a file: one a line, # begins a comment; of a CSV file the column `target`, the other
    /// columns are labels; - is standard input. May be repeated
    #[arg(short = 'f', long = "hosts", value_name = "FILE")]
    pub hosts: Vec<PathBuf>,

    /// Leave out a target, network or range. May be repeated
    #[arg(long, value_name = "TARGET")]
    pub exclude: Vec<String>,

    /// Leave out all targets of a file. May be repeated
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,

    /// How all these files are written [default: csv if the name ends with .csv or the first line is a header]
    // Explained values would spread the whole help over twice as many lines.
    #[arg(long, value_name = "csv|list", hide_possible_values = true)]
    pub format: Option<InputFormat>,

    /// Probe the network and broadcast addresses of IPv4 networks, too
    #[arg(long)]
    pub all_addresses: bool,

    /// Go on without bad targets (a bad exclude always stops)
    #[arg(long)]
    pub skip_bad: bool,

    /// Go on with more than 16,777,216 targets
    #[arg(long)]
    pub yes: bool,

    /// Shuffle the targets by this seed, to repeat an order [default: a random one]
    #[arg(long, value_name = "NUMBER", conflicts_with = "no_shuffle")]
    pub seed: Option<u64>,

    /// Probe the targets in the order in which they are given
    #[arg(long)]
    pub no_shuffle: bool,
}
