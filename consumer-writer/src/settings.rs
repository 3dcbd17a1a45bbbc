//! The writer's settings.

use std::time::Duration;

use clap::Args;
use pingfleet_settings::{Flags, Layers, WriterKeys, keys};
use pingfleet_store::Transport;

/// Flags of the writer.
#[derive(Debug, Clone, Default, Args)]
pub struct WriterArgs {
    /// The flags that are plain settings.
    #[command(flatten)]
    pub flags: Flags<WriterKeys>,
}

/// The resolved settings of the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterSettings {
    /// Which queues are drained: RabbitMQ's, or those of this process.
    pub transport: Transport,
    /// The login of the writer's connections. None within one process, where messages carry no login.
    pub login: Option<String>,
    /// A batch is committed when it has this many rows.
    pub batch_size: usize,
    /// A batch is committed when its first delivery is this old.
    pub batch_interval: Duration,
}

impl WriterArgs {
    /// Resolves the settings of a writer with this login, if it has one. Collects problems in `layers`.
    pub fn resolve(
        &self,
        layers: &mut Layers,
        transport: Transport,
        login: Option<String>,
    ) -> WriterSettings {
        layers.set_flags(&self.flags);
        WriterSettings {
            transport,
            login,
            batch_size: layers.get(&keys::WRITER_BATCH_SIZE),
            batch_interval: layers.get(&keys::WRITER_BATCH_INTERVAL),
        }
    }
}
