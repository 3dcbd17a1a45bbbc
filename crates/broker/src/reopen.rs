//! Opening a session again and again: jittered backoff from 0.5 s to 30 s, a warning a minute.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::BrokerError;

/// How long a command that a user waits for tries to reach the broker.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A program that stays says once in this time that it still cannot reach the broker.
const WARNING_EVERY: Duration = Duration::from_mins(1);

/// Opens a session, and tries again after transient errors: for `patience`, or for ever when it is absent.
/// Returns `None` when `stop` came first.
///
/// # Errors
/// The last [`BrokerError`], when it is final or the patience is over.
pub async fn reopen<T, F>(
    patience: Option<Duration>,
    stop: &CancellationToken,
    mut open: impl FnMut() -> F,
) -> Result<Option<T>, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let began = Instant::now();
    let mut warned: Option<Instant> = None;
    let mut pauses = pauses();
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            opened = open() => opened,
        };
        let error = match opened {
            Ok(session) => {
                if warned.is_some() {
                    tracing::info!("the broker is reached again");
                }
                return Ok(Some(session));
            }
            Err(error) => error,
        };
        if !error.is_transient() || patience.is_some_and(|patience| began.elapsed() >= patience) {
            return Err(error);
        }
        if warned.is_none_or(|at| at.elapsed() >= WARNING_EVERY) {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "no session with the broker, trying again");
            warned = Some(Instant::now());
        }
        let mut pause = pauses.next().unwrap_or(Duration::from_secs(30));
        if let Some(patience) = patience {
            pause = pause.min(patience.saturating_sub(began.elapsed()));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The pauses between tries: 0.5 s, doubled up to 30 s, each with up to as much again at random.
pub fn pauses() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(15))
        .with_jitter()
        .without_max_times()
        .build()
}
