//! The writer's settings.

use std::time::Duration;

use clap::Args;
use pingfleet_settings::{Layers, duration, number};
use pingfleet_store::Transport;

/// Rows in a transaction. Large enough that the disk's sync is not the limit, small enough that progress is visible.
const DEFAULT_BATCH_SIZE: usize = 5000;

/// How long a row may wait for its transaction.
const DEFAULT_BATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Flags of the writer.
#[derive(Debug, Clone, Default, Args)]
pub struct WriterArgs {
    /// Rows in one transaction [default: 5000]
    #[arg(long, value_name = "ROWS")]
    pub batch_size: Option<String>,
    /// Longest wait for a transaction to fill [default: 200ms]
    #[arg(long, value_name = "DURATION")]
    pub batch_interval: Option<String>,
}

/// The resolved settings of the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterSettings {
    /// Which queues are drained: RabbitMQ's, or those of this process.
    pub transport: Transport,
    /// A batch is committed when it has this many rows.
    pub batch_size: usize,
    /// A batch is committed when its first delivery is this old.
    pub batch_interval: Duration,
}

impl WriterArgs {
    /// Resolves the writer's settings. Collects problems in `layers`.
    pub fn resolve(&self, layers: &mut Layers, transport: Transport) -> WriterSettings {
        layers.flag(
            "writer.batch_size",
            "--batch-size",
            self.batch_size.as_deref(),
        );
        layers.flag(
            "writer.batch_interval",
            "--batch-interval",
            self.batch_interval.as_deref(),
        );
        WriterSettings {
            transport,
            batch_size: layers.get(
                "writer.batch_size",
                DEFAULT_BATCH_SIZE,
                number(1, 1_000_000),
            ),
            batch_interval: layers.get("writer.batch_interval", DEFAULT_BATCH_INTERVAL, |text| {
                let interval = duration(text)?;
                if interval > Duration::from_secs(10) {
                    return Err("rows should not wait for more than 10s".to_owned());
                }
                Ok(interval)
            }),
        }
    }
}
