//! The writer's settings.

use std::time::Duration;

use clap::Args;
use pingfleet_settings::{Flags, Layers, WriterKeys, keys};
use pingfleet_store::Via;

/// Flags of the writer.
#[derive(Debug, Clone, Default, Args)]
pub struct WriterArgs {
    /// The flags that are plain settings.
    #[command(flatten)]
    pub flags: Flags<WriterKeys>,
}

/// What the writer's settings resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which queues are drained: the broker's, or those of this process.
    pub via: Via,
    /// A batch is committed when it has this many rows.
    pub batch_size: usize,
    /// A batch is committed when its first delivery is this old.
    pub batch_interval: Duration,
}

impl WriterArgs {
    /// Resolves the writer's settings; problems are collected in `layers`.
    pub fn resolve(&self, layers: &mut Layers, via: Via) -> Settings {
        layers.set_flags(&self.flags);
        Settings {
            via,
            batch_size: layers.get(&keys::WRITER_BATCH_SIZE),
            batch_interval: layers.get(&keys::WRITER_BATCH_INTERVAL),
        }
    }
}
