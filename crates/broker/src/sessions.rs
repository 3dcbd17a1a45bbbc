//! Opens sessions, with jittered backoff from 0.5 s to 30 s between tries and one warning a minute. Logs each change once:
//! a session is lost, none can be opened, one is open again.

use std::{fmt, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::BrokerError;

/// How long a command that a user waits for tries to reach the broker.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a warning repeats while the broker cannot be reached.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// After a session that lasted this long, the next one is opened without a pause.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// The sessions that a program opens one after the other. A session that is lost soon after it was opened counts as a
/// failed try, so a broker that accepts logins and then breaks every session is not flooded.
pub struct Sessions {
    /// What they are for, in the log: a program may have several connections.
    what: &'static str,
    opened: Option<Instant>,
    /// Whether the log says that there is no session.
    is_reported: bool,
    /// When it was logged that none can be opened.
    warned: Option<Instant>,
    backoff: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Sessions {
    /// No session yet. `what` says in the log what they are for, such as "results".
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            opened: None,
            is_reported: false,
            warned: None,
            backoff: Box::new(backoff()),
        }
    }

    /// Opens the next session. Tries again after transient errors, for `timeout` or without an end. Returns `None` when
    /// `stop` came first.
    ///
    /// # Errors
    /// The last [`BrokerError`], when it is final or the timeout is over.
    pub async fn open<T, F>(
        &mut self,
        timeout: Option<Duration>,
        stop: &CancellationToken,
        mut open: impl FnMut() -> F,
    ) -> Result<Option<T>, BrokerError>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        let began = Instant::now();
        match self.opened.take() {
            Some(opened) if opened.elapsed() >= STABLE_AFTER => {
                self.backoff = Box::new(backoff());
            }
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
                    if std::mem::take(&mut self.is_reported) {
                        tracing::info!(
                            session = self.what,
                            "a session with the broker is open again"
                        );
                    }
                    self.warned = None;
                    self.opened = Some(Instant::now());
                    return Ok(Some(session));
                }
                Err(error) => error,
            };
            let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            if !error.is_transient() || left.is_some_and(|left| left.is_zero()) {
                return Err(error);
            }
            if self
                .warned
                .is_none_or(|at| at.elapsed() >= WARNING_INTERVAL)
            {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let advice = error.advice();
                tracing::warn!(session = self.what, %error, cause, advice, "no session with the broker, trying again");
                self.warned = Some(Instant::now());
                self.is_reported = true;
            }
            if !self.pause(left, stop).await {
                return Ok(None);
            }
        }
    }

    /// Logs the loss of the session that was opened last, with what happens to its `unsettled` messages. Returns the
    /// error when it is final.
    ///
    /// # Errors
    /// A final [`BrokerError`].
    pub fn lost(
        &mut self,
        error: BrokerError,
        unsettled: usize,
        consequence: impl fmt::Display,
    ) -> Result<(), BrokerError> {
        if !error.is_transient() {
            return Err(error);
        }
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(session = self.what, %error, cause, unsettled, "session lost; {consequence}");
        self.is_reported = true;
        Ok(())
    }

    /// Logs that the session which was opened last is closed on request. The next one is opened without a pause.
    pub fn closed_on_request(&mut self) {
        tracing::info!(
            session = self.what,
            "session with the broker closed in order, a new one follows"
        );
        self.opened = None;
        self.backoff = Box::new(backoff());
    }

    /// Pauses, at most for `most`. Returns false when `stop` came first.
    async fn pause(&mut self, most: Option<Duration>, stop: &CancellationToken) -> bool {
        let pause = self.backoff.next().unwrap_or(STABLE_AFTER);
        let pause = most.map_or(pause, |most| pause.min(most));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// Opens one session for `what`, as [`Sessions::open`] does.
///
/// # Errors
/// As [`Sessions::open`].
pub async fn open_session<T, F>(
    what: &'static str,
    timeout: Option<Duration>,
    stop: &CancellationToken,
    open: impl FnMut() -> F,
) -> Result<Option<T>, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    Sessions::new(what).open(timeout, stop, open).await
}

/// The pauses between tries: 0.5 s doubling up to 15 s, each with a random addition of up to its own length.
pub fn backoff() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(15))
        .with_jitter()
        .without_max_times()
        .build()
}
