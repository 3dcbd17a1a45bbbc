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

/// A session that lasted this long was a good one: the next one is opened without a pause.
const STEADY: Duration = Duration::from_secs(30);

/// The sessions that a program opens one after the other. One that is lost soon after it was opened counts as a try
/// that failed, so a broker that takes logins and breaks every session is not flooded with them.
pub struct Sessions {
    opened: Option<Instant>,
    warned: Option<Instant>,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            opened: None,
            warned: None,
            pauses: Box::new(pauses()),
        }
    }
}

impl Sessions {
    /// Opens the next session, and tries again after transient errors: for `patience`, or for ever when it is absent.
    /// Returns `None` when `stop` came first.
    ///
    /// # Errors
    /// The last [`BrokerError`], when it is final or the patience is over.
    pub async fn open<T, F>(
        &mut self,
        patience: Option<Duration>,
        stop: &CancellationToken,
        mut open: impl FnMut() -> F,
    ) -> Result<Option<T>, BrokerError>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        let began = Instant::now();
        match self.opened.take() {
            Some(opened) if opened.elapsed() >= STEADY => *self = Self::default(),
            Some(_) if !self.pause(None, stop).await => return Ok(None),
            _ => {}
        }
        loop {
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                opened = open() => opened,
            };
            let error = match opened {
                Ok(session) => {
                    if self.warned.take().is_some() {
                        tracing::info!("the broker is reached again");
                    }
                    self.opened = Some(Instant::now());
                    return Ok(Some(session));
                }
                Err(error) => error,
            };
            let left = patience.map(|patience| patience.saturating_sub(began.elapsed()));
            if !error.is_transient() || left.is_some_and(|left| left.is_zero()) {
                return Err(error);
            }
            if self.warned.is_none_or(|at| at.elapsed() >= WARNING_EVERY) {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "no session with the broker, trying again");
                self.warned = Some(Instant::now());
            }
            if !self.pause(left, stop).await {
                return Ok(None);
            }
        }
    }

    /// Pauses, for `most` at most. Returns false when `stop` came first.
    async fn pause(&mut self, most: Option<Duration>, stop: &CancellationToken) -> bool {
        let pause = self.pauses.next().unwrap_or(STEADY);
        let pause = most.map_or(pause, |most| pause.min(most));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// Opens one session, as [`Sessions::open`] does.
///
/// # Errors
/// As [`Sessions::open`].
pub async fn reopen<T, F>(
    patience: Option<Duration>,
    stop: &CancellationToken,
    open: impl FnMut() -> F,
) -> Result<Option<T>, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    Sessions::default().open(patience, stop, open).await
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
