//! The stop signal: the first one starts a drain, the second one exits at once.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::Exit;

/// A signal this soon after the first one is the same request: `timeout` signals a program and then its process group,
/// and a terminal signals both a program and a wrapper that forwards signals to it.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// Watches for SIGTERM and SIGINT (Ctrl-C on Windows).
#[derive(Debug, Clone)]
pub struct Stop {
    /// Cancelled by the first signal.
    pub token: CancellationToken,
}

impl Stop {
    /// Starts watching. Must be called within a runtime.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn watch() -> io::Result<Self> {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let mut signals = Signals::new()?;
        // It runs until the process exits, and needs no cleanup.
        drop(tokio::spawn(async move {
            signals.next().await;
            // A warning, so that it is shown by default: the drain can take a while after Ctrl-C.
            tracing::warn!("stopping; a second signal exits at once");
            cancelled.cancel();
            let first = Instant::now();
            signals.next().await;
            while first.elapsed() < SAME_REQUEST {
                signals.next().await;
            }
            std::process::exit(i32::from(Exit::Interrupted.code()));
        }));
        Ok(Self { token })
    }
}

#[cfg(unix)]
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "the same signature as on Unix")]
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
