//! The worker's settings.

use std::num::{NonZeroU16, NonZeroUsize};

use clap::Args;
use pingfleet_settings::{FILES_FOR_PROBING, Flags, Layers, Rate, WorkerKeys, keys};

/// The most probing threads by default: more threads compete for the same network card.
const MAX_DEFAULT_THREADS: usize = 4;

/// Flags of the worker.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkerArgs {
    /// The flags that are plain settings.
    #[command(flatten)]
    pub flags: Flags<WorkerKeys>,
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

/// Files that one more probing thread needs: its runtime, its sockets, and those that look for local losses.
const FILES_FOR_A_THREAD: u64 = 16;

impl WorkerSettings {
    /// How many files a program with such a worker has open at the same time, at least.
    #[must_use]
    pub fn files(&self) -> u64 {
        let more = self.threads.get().saturating_sub(MAX_DEFAULT_THREADS) as u64;
        FILES_FOR_PROBING + more * FILES_FOR_A_THREAD
    }
}

impl WorkerArgs {
    /// Resolves the worker's settings; problems are collected in `layers`.
    pub fn resolve(&self, layers: &mut Layers) -> WorkerSettings {
        layers.set_flags(&self.flags);
        WorkerSettings {
            name: layers
                .optional(&keys::WORKER_NAME)
                .unwrap_or_else(default_name),
            threads: layers
                .optional(&keys::WORKER_THREADS)
                .unwrap_or_else(default_threads),
            rate: layers.get(&keys::WORKER_RATE),
            prefetch: layers.optional(&keys::WORKER_PREFETCH),
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
