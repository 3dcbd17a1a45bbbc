//! The worker's settings.

use std::num::{NonZeroU16, NonZeroUsize};

use clap::Args;
use pingfleet_settings::{Layers, Rate, number, rate};
use pingfleet_wire::{MAX_PREFETCH, check_worker_name};

/// The most probing threads by default: more threads compete for the same network card.
const MAX_DEFAULT_THREADS: usize = 4;

/// Flags of the worker.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkerArgs {
    /// Name in reports, of at most 100 characters [default: host name and process id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Probing threads [default: the cores, at most 4]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Ceiling of this worker over all runs: requests a second, or `unlimited` [default: unlimited]
    #[arg(id = "worker_rate", long = "rate", value_name = "RATE")]
    pub rate: Option<String>,
    /// Chunks in hand [default: what the run's rate needs]
    #[arg(long, value_name = "N")]
    pub prefetch: Option<String>,
}

/// What the worker's settings resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSettings {
    /// The worker's name; 1 to 100 printable characters.
    pub name: String,
    /// Probing threads.
    pub threads: NonZeroUsize,
    /// Ceiling of this worker over all runs.
    pub rate: Rate,
    /// A fixed prefetch; without it the prefetch follows from the run's rate.
    pub prefetch: Option<NonZeroU16>,
    /// Whether the queue is in this process. Then no other worker can take a chunk that killed this one, so a slow start
    /// is useless.
    pub exclusive: bool,
}

impl WorkerArgs {
    /// Resolves the worker's settings; problems are collected in `layers`.
    pub fn resolve(&self, layers: &mut Layers) -> WorkerSettings {
        layers.flag("worker.name", "--name", self.name.as_deref());
        layers.flag("worker.threads", "--threads", self.threads.as_deref());
        layers.flag("worker.rate", "--rate", self.rate.as_deref());
        layers.flag("worker.prefetch", "--prefetch", self.prefetch.as_deref());
        WorkerSettings {
            name: layers.get("worker.name", default_name(), |text| {
                check_worker_name(text).map(|()| text.to_owned())
            }),
            threads: layers.get("worker.threads", default_threads(), |text| {
                let threads = number(1_usize, 64)(text)?;
                NonZeroUsize::new(threads).ok_or_else(|| "no threads".to_owned())
            }),
            rate: layers.get("worker.rate", None, rate),
            prefetch: layers.get("worker.prefetch", None, |text| {
                number(1_u16, MAX_PREFETCH)(text).map(NonZeroU16::new)
            }),
            exclusive: false,
        }
    }
}

/// The host's name with the process id, so that two workers on one machine differ.
fn default_name() -> String {
    let host = gethostname::gethostname();
    let plain: String = host
        .to_string_lossy()
        .chars()
        .filter(|c| !c.is_control())
        .take(80)
        .collect();
    format!("{plain}-{}", std::process::id())
}

fn default_threads() -> NonZeroUsize {
    let most = NonZeroUsize::MIN.saturating_add(MAX_DEFAULT_THREADS - 1);
    std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |cores| cores.min(most))
}
