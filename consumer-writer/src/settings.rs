//! The writer's settings.

use std::time::Duration;

use clap::Args;
use pingfleet_settings::{Layers, duration, number};
use pingfleet_store::Via;

/// Rows in a transaction: large enough that the sync of the disk is not the limit, small enough to be stored within
/// the patience of somebody who watches.
const BATCH_SIZE: usize = 5000;

/// How long a row may wait for its transaction.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);

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
        Settings {
            via,
            batch_size: layers.get("writer.batch_size", BATCH_SIZE, number(1, 1_000_000)),
            batch_interval: layers.get("writer.batch_interval", BATCH_INTERVAL, |text| {
                let interval = duration(text)?;
                if interval > Duration::from_secs(10) {
                    return Err("rows should not wait for more than 10s".to_owned());
                }
                Ok(interval)
            }),
        }
    }
}
